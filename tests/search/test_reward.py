import dataclasses
import itertools

import numpy as np
import pytest

from stair_jax.config.reward_forms import FORMS, WEIGHTS
from stair_jax.config.schema import RewardConfig
from stair_jax.search.reward import Reward

GRID = np.linspace(-1, 1, 21)


def _reward(form="paper", **changes):
    constants = RewardConfig(F="identity", c1=1.0, c2=-1.0, k1=1.0, k2=1.0)
    return Reward(form, dataclasses.replace(constants, **changes))


def test_the_papers_figure_and_its_default_form():
    reward = _reward()
    assert reward(-1.0, 1.0, "safety") == -3.0  # comply, STAIR figure 2
    assert reward(1.0, -0.5, "safety") == 1.5  # refuse
    for s, h in itertools.product(GRID, GRID):
        assert reward(s, h, "safety") == pytest.approx(s * h + 2 * s)


@pytest.mark.parametrize("F", WEIGHTS)
def test_safety_comes_first(F):
    reward = _reward(F=F)
    safe = [reward(s, h, "safety") for s, h in itertools.product(GRID[GRID > 0], GRID)]
    unsafe = [reward(s, h, "safety") for s, h in itertools.product(GRID[GRID < 0], GRID)]
    assert min(safe) > 0 > max(unsafe)


@pytest.mark.parametrize("F", WEIGHTS)
@pytest.mark.parametrize("c2", [-1.0, -0.5])
def test_helpfulness_counts_for_safe_answers_and_against_unsafe_ones(F, c2):
    reward = _reward(F=F, c2=c2)
    for s in GRID[np.abs(GRID) > 1e-9]:
        steps = np.diff([reward(s, h, "safety") for h in GRID])
        assert (np.sign(steps) == np.sign(s)).all()


@pytest.mark.parametrize("F", WEIGHTS)
@pytest.mark.parametrize("c2", [-1.0, -0.5])
def test_the_reward_degenerates_to_either_objective(F, c2):
    reward = _reward(F=F, c2=c2)
    for a, b in itertools.pairwise(GRID):
        only_h = reward(1.0, b, "safety") - reward(1.0, a, "safety")  # S = C1
        only_s = reward(b, c2, "safety") - reward(a, c2, "safety")  # H = C2
        assert only_h == pytest.approx(b - a)
        assert only_s == pytest.approx(b - a)


def test_the_released_form():
    reward = _reward("safe-constraint", k1=2.0, k2=0.5)
    assert reward(-0.5, 1.0, "safety") == pytest.approx(2.5 * -0.5 + 2.0 * -0.5)
    assert reward(1.0, -1.0, "helpfulness") == pytest.approx(0.5)
    same = _reward("safe-constraint")
    for s, h in itertools.product(GRID, GRID):
        assert same(s, h, "safety") == pytest.approx(_reward()(s, h, "safety"))


def test_outcome_is_safety_or_helpfulness_by_the_prompts_type():
    reward = _reward("outcome")
    assert reward(0.5, -1.0, "safety") == 0.5
    assert reward(0.5, -1.0, "helpfulness") == -1.0


@pytest.mark.parametrize(
    ("form", "changes"),
    [
        ("paper", {"F": "power"}),
        ("paper", {"F": "quadratic"}),
        ("paper", {"c2": -0.5}),
        ("safe-constraint", {"k1": 2.0}),
        ("safe-constraint", {"k2": 2.0}),
    ],
)
def test_every_constant_reaches_the_reward(form, changes):
    assert _reward(form)(-0.5, 0.25, "safety") != _reward(form, **changes)(-0.5, 0.25, "safety")


@pytest.mark.parametrize(
    ("form", "changes", "named"),
    [
        ("papers", {}, "search.reward"),
        ("paper", {"c1": 0.5}, "reward.c1"),  # F(0.5) is not 1: H would be rescaled
        ("paper", {"c1": 0.0}, "reward.c1"),
        ("paper", {"c1": -1.0}, "reward.c1"),
        ("paper", {"c1": 1.5}, "reward.c1"),
        ("paper", {"c2": -1.5}, "reward.c2"),
        ("safe-constraint", {"k1": 0.0}, "reward.k1"),
        ("safe-constraint", {"k2": -1.0}, "reward.k2"),
    ],
)
def test_what_the_theorem_rules_out_is_refused_by_name(form, changes, named):
    with pytest.raises(ValueError, match=named):
        _reward(form, **changes)


def test_a_weight_that_is_unknown_is_refused_by_name():
    constants = RewardConfig()
    object.__setattr__(constants, "F", "cubic")  # as where nobody checks types
    with pytest.raises(ValueError, match=r"reward\.F: 'cubic' is not one of"):
        Reward("paper", constants)


def test_forms_do_not_check_constants_that_they_do_not_use():
    for form in FORMS:
        changes = {"k1": -1.0} if form != "safe-constraint" else {"c1": 0.0}
        assert _reward(form, **changes)(1.0, 0.0, "safety") != 0
