"""Thresholds are held against the rewards that can come out."""

import pytest

from stair_jax.config.checks import validate
from stair_jax.config.threshold_checks import bounds
from tests.support.configs import tiny

OUTCOME = {"search__reward": "outcome"}
CONSTRAINT = {"search__reward": "safe-constraint"}
BY_TYPE = {"judge__scope": "by_type"}
RULE = {"judge__safety": "rule", "judge__helpfulness": "none"}


@pytest.mark.parametrize(
    ("changes", "safety", "helpfulness"),
    [
        ({}, (-3, 3), (-3, 3)),
        (BY_TYPE, (-1, 1), (1, 3)),
        (RULE, (-1, 1), (2, 2)),
        (OUTCOME, (-1, 1), (-1, 1)),
        ({"reward__c2": 0.0}, (-2, 2), (-2, 2)),
        ({"reward__F": "quadratic"}, (-7, 3), (-7, 3)),
        (CONSTRAINT | {"reward__k1": 2.0}, (-5, 5), (-5, 5)),
        (CONSTRAINT | {"reward__k2": 0.25} | BY_TYPE, (-0.25, 0.25), (0.25, 2.25)),
    ],
)
def test_the_range_of_rewards_by_type(changes, safety, helpfulness):
    c = tiny(**changes)
    assert bounds(c, "safety") == pytest.approx(safety)
    assert bounds(c, "helpfulness") == pytest.approx(helpfulness)


BAD = [
    (
        OUTCOME,
        r"pairs\.good_value_helpfulness: 2\.5 cannot be reached, .* lie in \[-1, 1\] .*=outcome",
    ),
    ({"reward__c2": 0.0}, r"pairs\.good_value_helpfulness: 2\.5 .* \[-2, 2\]"),
    (
        CONSTRAINT | {"reward__k1": 0.5, "reward__k2": 0.5},
        r"pairs\.good_value_helpfulness: 2\.5 .* \[-1\.5, 1\.5\]",
    ),
    (
        {"pairs__good_value_safety": 3.5},
        r"pairs\.good_value_safety: 3\.5 .* safety prompts .* \[-3, 3\]",
    ),
    (BY_TYPE | {"pairs__good_value_safety": 1.5}, r"pairs\.good_value_safety: 1\.5 .* \[-1, 1\]"),
    ({"pairs__min_value_gap": 6.0}, r"pairs\.min_value_gap: 6\.0 cannot be exceeded, .* \[-3, 3\]"),
    (BY_TYPE | {"pairs__min_value_gap": 2.0}, r"pairs\.min_value_gap: 2\.0 cannot be exceeded"),
    (
        {"pairs__terminal_only": True, "pairs__min_visits": 4, "pairs__min_value_gap": 4.0},
        r"pairs\.min_value_gap: 4\.0 below a config\.pairs\.good_value_safety of 0\.8 there",
    ),
    ({"prm__min_value_gap": 6.0}, r"prm\.min_value_gap: 6\.0 cannot be exceeded"),
]


@pytest.mark.parametrize(("changes", "message"), BAD)
def test_a_threshold_that_cannot_be_reached_is_refused_with_the_range(changes, message):
    with pytest.raises(ValueError, match=rf"^config\.{message}") as caught:
        validate(tiny(workdir="x", **changes))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"pairs__good_value_safety": 3.0, "pairs__good_value_helpfulness": 3.0},  # just reached
        {"pairs__min_value_gap": 5.9},
        OUTCOME | {"pairs__good_value_helpfulness": 1.0},
        OUTCOME | {"stages": "search"},  # no stage asks
        RULE | {"prm__prompts": 0, "prm__temperature": 1.0, "prm__demonstrations": False},
    ],
)
def test_what_can_be_reached_passes(changes):
    validate(tiny(workdir="x", **changes))
