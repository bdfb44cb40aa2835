"""Numbers of the configuration lie in ranges, and settings that would be ignored are refused."""

import math
import re

import pytest

from stair_jax.config import ranges
from stair_jax.config.checks import validate
from stair_jax.config.schema import KNOBS
from tests.support.configs import tiny

NUMBERS = [key for key, knob in KNOBS.items() if type(knob.default) in (int, float)]
# Numbers of which -1 means something, or is refused for another reason: those of rewards.
BELOW_0 = {"reward.c1", "reward.c2", "pairs.good_value_safety", "pairs.good_value_helpfulness"}


def with_value(key, value):
    c = tiny(workdir="x")
    *sections, name = key.split(".")
    section = c
    for each in sections:
        section = section[each]
    section[name] = value
    return c


def test_every_number_has_a_range_and_every_range_a_number():
    assert {key for key, knob in KNOBS.items() if knob.among is not None} == set(NUMBERS)


@pytest.mark.parametrize("key", NUMBERS)
def test_what_is_no_sensible_number_is_refused_in_a_line_that_names_the_key(key):
    validate(tiny(workdir="x"))
    whole = type(KNOBS[key].default) is int
    odd = [10**18, True] if whole else [math.nan, math.inf, -math.inf, 1e18]
    for value in [*odd, -1 if whole else -1.0][: None if key not in BELOW_0 else -1]:
        with pytest.raises(
            ValueError, match=re.escape(f"config.{key}: {value}, expected ")
        ) as caught:
            validate(with_value(key, value))
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("key", sorted(BELOW_0 - {"reward.c1", "reward.c2"}))
def test_a_least_reward_may_be_negative(key):
    validate(with_value(key, -1.0))


def test_truth_values_are_no_numbers_and_tuples_hold_numbers_only():
    for key, value in (
        ("search.iterations", True),
        ("mesh.shape", (1, True, 1)),
        ("sft.train.buckets", (8, "9")),
    ):
        with pytest.raises(ValueError, match=rf"^config\.{key}: .*expected"):
            validate(with_value(key, value))


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (ranges.SHARE, "a number in [0, 1]"),
        (ranges.PART, "a number in [0, 1)"),
        (ranges.MASS, "a number in (0, 1]"),
        (ranges.FROM_1, "1 or more, at most 2147483647"),
        (ranges.ABOVE_0, "a number above 0, at most 2147483647"),
    ],
)
def test_a_range_says_what_it_holds(found, expected):
    assert str(found) == expected
    assert found.high in found or found.below
    assert (found.low in found) != found.above
    assert math.nan not in found


# A value other than the default under which each setting is ignored, and what makes it count.
IGNORED = [
    ({"dpo__sft_scope": "step"}, {"dpo__sft_coef": 0.0, "dpo__anchors_per_pair": 0.0}),
    ({"dpo__sft_reduction": "token"}, {"dpo__sft_coef": 0.0, "dpo__anchors_per_pair": 0.0}),
    ({"dpo__anchors_per_pair": 2.0}, {"dpo__sft_coef": 0.0}),
    ({"pairs__min_visits": 2}, {"pairs__terminal_only": True}),
    ({"prm__full_share": 0.25}, {"prm__pairs_per_tree": 0}),
    *(
        (
            {f"model__size__{name}": value},
            {"model__checkpoint": "x", "stages": "sft", "data__sft": "x.jsonl"},
        )
        for name, value in (
            ("L", 2),
            ("D", 64),
            ("N", 2),
            ("K", 1),
            ("H", 16),
            ("F", 9),
            ("eps", 1e-6),
            ("theta", 10.0),
        )
    ),
    (
        {"prm__train__head_chunk": 512},
        {"prm__loss": "bt", "prm__beta": 0.1, "prm__sft_coef": 0.0, "prm__reference": "start"},
    ),
]


@pytest.mark.parametrize(("setting", "under"), IGNORED, ids=lambda x: next(iter(x)))
def test_a_setting_that_would_be_ignored_is_refused(setting, under):
    ((name, value),) = setting.items()
    key = name.replace("__", ".")
    with pytest.raises(ValueError, match=rf"^config\.{key}: {value!r} would be ignored, it needs"):
        validate(tiny(workdir="x", **(setting | under)))
    validate(tiny(workdir="x", **setting))
    validate(tiny(workdir="x", **({name: KNOBS[key].default} | under)))


MEANINGLESS = [
    ({"engine__max_context": 40}, r"engine\.max_context: 40 tokens .*max_step_tokens=40"),
    ({"engine__page_size": 128}, r"engine\.page_size: 128, expected at most the 104"),
    ({"pairs__max_tokens": 97}, r"dpo\.train\.buckets: 96 tokens at most, and pairs have up to 97"),
    ({"mesh__shape": (1, 0, 1)}, r"mesh\.shape: \(1, 0, 1\), expected 3 whole numbers above 0"),
    ({"mesh__shape": (-1, -1, 1)}, r"mesh\.shape: \(-1, -1, 1\), expected"),
    ({"model__size__K": 3}, r"model\.size\.N: 4 query heads, expected a multiple of the 3"),
    ({"model__size__H": 33}, r"model\.size\.H: 33, expected an even number"),
    ({"sft__train__buckets": (-8, 96)}, r"sft\.train\.buckets: .*expected rising lengths"),
    ({"sft__train__buckets": (8.5, 96)}, r"sft\.train\.buckets: .*expected rising lengths"),
    ({"search__temperature": 0.0}, r"search\.temperature: 0 draws the same tokens each time"),
    ({"evaluate__temperature": 0.0}, r"evaluate\.temperature: 0 draws the same tokens each time"),
    ({"reward__c1": 0.5}, r"reward\.c1: F\(c1\) = 1 expected .* identity\(0\.5\)"),
]


@pytest.mark.parametrize(("changes", "message"), MEANINGLESS)
def test_settings_that_mean_nothing_together_are_refused(changes, message):
    with pytest.raises(ValueError, match=rf"^config\.{message}"):
        validate(tiny(workdir="x", **changes))


def test_a_setting_that_a_file_has_added_is_refused():
    c = tiny(workdir="x")
    c.search.itertions = 3
    with pytest.raises(
        ValueError, match=r"^config\.search\.itertions: 3, expected no such setting"
    ):
        validate(c)
