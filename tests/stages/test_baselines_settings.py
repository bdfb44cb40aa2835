"""Settings and files of the baselines: what is refused, and what is taken."""

import pytest

from stair_jax.config.checks import validate
from stair_jax.data import examples
from stair_jax.miniature import tokenizer
from stair_jax.records import Preference
from stair_jax.run import rows
from stair_jax.text import Codec
from tests.support.configs import tiny

CODEC = Codec(tokenizer.build(), "llama3")


REAL = {"model__checkpoint": "x", "stages": "baselines"}
BAD = [
    ({"baselines__names": "sft,orpo"}, r"baselines\.names: \['orpo'\] not in"),
    ({"baselines__names": ""}, r"baselines\.names: '' with config\.stages=.*if and only if"),
    ({"stages": "sft"}, r"baselines\.names: .*'sft', expected names if and only if"),
    (
        {"baselines__sacpo_betas": (0.1, 0.01), "baselines__names": "sft"},
        r"sacpo_betas: \(0\.1, 0\.01\) would be ignored, it needs sacpo",
    ),
    (
        {"baselines__candidates": 8, "baselines__names": "sft"},
        r"candidates: 8 would be ignored, it needs self-rewarding",
    ),
    (
        {"baselines__names": "", "stages": "sft"},
        r"buckets: .* would be ignored, it needs a name in config\.baselines\.names",
    ),
    ({"baselines__sacpo_betas": (0.1,)}, r"sacpo_betas: \(0\.1,\), expected two"),
    ({"baselines__sacpo_betas": (0.1, 0.0)}, r"sacpo_betas: .* expected two numbers above 0"),
    ({"baselines__candidates": 1}, r"baselines\.candidates: 1, expected 2 or more"),
    ({"baselines__temperature": 0.0}, r"baselines\.temperature: 0\.0, expected a number above 0"),
    ({"baselines__top_p": 0.0}, r"baselines\.top_p: 0\.0, expected a number in \(0, 1\]"),
    ({"baselines__sft_lr": -1.0}, r"baselines\.sft_lr: -1\.0, expected 0 or more"),
    ({"baselines__buckets": (9, 3)}, r"baselines\.buckets: \(9, 3\), expected rising"),
    ({"data__preference_rows": 0}, r"data\.preference_rows: 0, the miniature needs"),
    ({"data__preferences": "rows.json"}, r"data\.preferences: 'rows\.json' needs a model"),
    (
        {"data__sft_rows": 0, "stages": "baselines"},
        r"data\.sft_rows: 0, the miniature needs",  # of their own start
    ),
    (
        {"data__round_prompts": 0, "stages": "baselines"},
        r"data\.round_prompts: 0, the miniature needs",  # of self-rewarding
    ),
    (REAL, r"data\.preferences: 'miniature' means nothing to 'x'; .* need a file"),
]


@pytest.mark.parametrize(("changes", "message"), BAD, ids=lambda x: str(x)[:50])
def test_a_bad_setting_is_refused_in_one_line_that_names_it(changes, message):
    validate(tiny("baselines"))
    with pytest.raises(ValueError, match=message) as error:
        validate(tiny("baselines", **changes))
    assert "\n" not in str(error.value)


def test_settings_that_fit_together_are_taken():
    validate(tiny("smoke,baselines"))
    validate(tiny("baselines", baselines__names="dpo"))
    validate(tiny("baselines", baselines__names="sft", data__round_prompts=0, stages="baselines"))
    validate(tiny("baselines", **REAL, baselines__names="self-rewarding"))
    validate(tiny("baselines", **REAL, data__preferences="rows.json"))
    assert "baselines" not in tiny().stages


def test_preferences_come_from_a_file_too(tmp_path):
    path = tmp_path / "rows.json"
    path.write_text(
        '[{"prompt": "q", "chosen": "a", "rejected": "b", "type": "safety"},'
        ' {"prompt": "r", "chosen": "c", "rejected": "d", "type": "helpfulness"}]'
    )
    c = tiny(data__preferences=str(path), data__preference_rows=0)
    first, second = rows.for_preferences(c)
    assert (first.question, first.type, first.chosen, first.rejected) == ("q", "safety", "a", "b")
    assert second.type == "helpfulness"
    c.data.preference_rows = 1
    assert rows.for_preferences(c) == [first]


def test_earlier_turns_are_a_part_of_the_prompt():
    before = (("user", "what is 4 ?"), ("assistant", "4"))
    row = Preference(id="x", question="is 5 ?", type="", chosen="5", rejected="4", before=before)
    for example in (
        examples.preference_example(row, CODEC),
        examples.answer_example(row, "5", CODEC),
    ):
        assert list(example.prompt) == CODEC.prompt_ids("is 5 ?", before)
        assert list(example.prompt) != CODEC.prompt_ids("is 5 ?")
