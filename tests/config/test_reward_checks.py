import contextlib

import pytest

from stair_jax.config.checks import validate
from tests.support.configs import tiny

BT = {"prm__loss": "bt", "prm__beta": 0.1, "prm__sft_coef": 0.0, "prm__reference": "start"}
BCE = BT | {"prm__loss": "bce", "prm__pairs_per_tree": 3, "prm__train__batching": "bucket"}
BAD = [
    ({"search__value": "oracle"}, r"config\.search\.value: 'oracle' is not one of"),
    ({"search__value": "prm"}, r"config\.search\.value_model: empty"),
    ({"search__value_model": "x"}, r"value_model: 'x' would be ignored"),
    ({"search__value_weight": 0.1}, r"value_weight: 0\.1 would be ignored"),
    (
        {"search__value": "mix", "search__value_model": "x", "search__value_weight": 2.0},
        r"value_weight: 2\.0, expected a number in \[0, 1\]",
    ),
    ({"prm__loss": "hinge"}, r"config\.prm\.loss: 'hinge' is not one of"),
    ({"prm__readout": "start"}, r"config\.prm\.readout: 'start' is not one of"),
    ({"prm__readout": "eos"}, r"config\.prm\.readout: 'eos', the log-ratio"),
    ({"prm__prompts": 0, "prm__temperature": 0.5}, r"temperature: 0\.5 would be ignored"),
    ({"prm__temperature": 0.0}, r"config\.prm\.temperature: 0\.0, expected a number above 0"),
    ({"prm__centering": 0.1}, r"centering: 0\.1 would be ignored, it needs config\.prm\.loss=bt"),
    ({"prm__visit_weights": True}, r"visit_weights: True would be ignored"),
    (BT | {"prm__beta": 0.3}, r"beta: 0\.3 would be ignored, it needs config\.prm\.loss=implicit"),
    (BT | {"prm__reference": "none"}, r"reference: 'none' would be ignored"),
    ({"prm__reference": "other"}, r"config\.prm\.reference: 'other' is not one of"),
    (BT | {"prm__sft_coef": 1.0}, r"sft_coef: 1\.0 would be ignored"),
    (BCE | {"prm__min_value_gap": 0.1}, r"min_value_gap: 0\.1 would be ignored"),
    (BCE | {"prm__pairs_per_tree": 4}, r"pairs_per_tree: 4 would be ignored"),
    (BCE | {"prm__full_share": 0.1}, r"full_share: 0\.1 would be ignored"),
    (BCE | {"prm__train__batching": "tree"}, r"batching: 'tree' packs pairs"),
    ({"prm__train__batching": "pack"}, r"config\.prm\.train\.batching: 'pack' is not one of"),
    ({"prm__train__lora_rank": 4}, r"config\.prm\.train\.lora_rank: 4 with prm\.loss=implicit"),
    (
        BT | {"prm__more_layers": 1, "prm__train__lora_rank": 4},
        r"lora_rank: 4 with prm\.more_layers",
    ),
    ({"prm__beta": 0.0}, r"config\.prm\.beta: 0\.0, expected a number above 0"),
    ({"prm__full_share": 1.5}, r"config\.prm\.full_share: 1\.5, expected a number in \[0, 1\]"),
    ({"prm__eval_share": 1.0}, r"config\.prm\.eval_share: 1\.0, expected"),
    ({"prm__prompts": -1}, r"config\.prm\.prompts: -1, expected 0 or more"),
    ({"prm__samples": 0}, r"config\.prm\.samples: 0, expected 1 or more"),
    ({"prm__prompts": 0, "prm__samples": 2}, r"samples: 2 would be ignored"),
    (
        {"prm__prompts": 0, "prm__temperature": 1.0, "prm__demonstrations": True},
        r"demonstrations: True would be ignored",
    ),
]


REMOTE = {"judge__helpfulness": "remote", "judge__endpoint": "http://h/v1", "judge__model": "m"}
SELF = {"judge__helpfulness": "self", "judge__templates": "miniature"}
RULE = {"judge__safety": "rule", "judge__helpfulness": "none"}
REWARD = {"judge__helpfulness": "reward_model", "judge__reward_model": "x"}
KNOBS = {
    "samples": 2,
    "temperature": 0.1,
    "top_p": 0.5,
    "max_tokens": 7,
    "refusal_rule": False,
    "scope": "by_type",
}
# Which of those knobs somebody reads, under which judges (of safety the miniature's verifier).
READ = [
    ({}, {"scope"}),
    ({"judge__scope": "by_type"}, {"refusal_rule"}),
    (RULE, set()),
    (RULE | SELF, {"samples", "temperature", "top_p", "max_tokens", "scope"}),
    (SELF, set(KNOBS)),
    (REMOTE, set(KNOBS)),
    (REWARD, {"refusal_rule", "scope"}),
    ({"judge__helpfulness": "none"}, {"refusal_rule", "scope"}),
]


@pytest.mark.parametrize(("judges", "read"), READ)
@pytest.mark.parametrize("knob", KNOBS)
def test_a_knob_that_no_judge_reads_is_refused_by_name(tmp_path, judges, read, knob):
    c = tiny(**({"workdir": str(tmp_path)} | judges | {f"judge__{knob}": KNOBS[knob]}))
    if knob in read or judges.get(f"judge__{knob}") == KNOBS[knob]:
        validate(c)
        return
    with pytest.raises(
        ValueError, match=rf"config\.judge\.{knob}: {KNOBS[knob]!r} would be ignored"
    ):
        validate(c)


LEAVE_OUT = [
    ("top_p", {}, None),
    (" temperature , top_p,max_tokens", {}, None),
    ("", {"judge__top_p": 0.5}, None),
    ("seed", {}, r"config\.judge\.leave_out: \['seed'\] not in \['temperature', 'top_p'"),
    ("top_p", {"judge__top_p": 0.5}, r"config\.judge\.top_p: 0\.5 would be ignored.*leave_out"),
    ("top_p", {"judge__temperature": 0.5}, None),
    ("top_p", {"judge__top_p": 0.5, "judge__safety": "self"}, None),
    (
        "top_p",
        {"judge__helpfulness": "verifier", "judge__endpoint": "", "judge__model": ""},
        r"config\.judge\.leave_out: 'top_p' would be ignored, it needs 'remote'",
    ),
]


@pytest.mark.parametrize(("left_out", "changes", "message"), LEAVE_OUT)
def test_what_is_left_out_of_requests_is_known_and_is_not_set(tmp_path, left_out, changes, message):
    values = {"workdir": str(tmp_path), "judge__leave_out": left_out, "stages": "sft"}
    c = tiny(**(values | REMOTE | changes))
    with pytest.raises(ValueError, match=message) if message else contextlib.nullcontext():
        validate(c)


@pytest.mark.parametrize(("changes", "message"), BAD)
def test_a_bad_setting_is_refused_in_one_line(changes, message, tmp_path):
    with pytest.raises(ValueError, match=message) as caught:
        validate(tiny(**({"workdir": str(tmp_path)} | changes)))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        BT,
        BCE,
        BT | {"prm__more_layers": 2},
        BT | {"prm__more_layers": 0, "prm__train__lora_rank": 4},
        BCE | {"prm__visit_weights": True, "prm__readout": "eos"},
        {"search__value": "mix", "search__value_model": "x", "search__value_weight": 0.2},
    ],
)
def test_good_settings_pass(changes, tmp_path):
    validate(tiny(**({"workdir": str(tmp_path)} | changes)))
