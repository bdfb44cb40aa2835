"""The formulas of the reward, and between which numbers it lies. Floor 0.

Source: STAIR section 2.2 and theorem 2.1 (form "paper"); thu-ml/STAIR src/generate_tree.py
`_get_reward` (forms "safe-constraint" and "outcome").
"""

import itertools
from collections.abc import Callable, Iterable

from stair_jax.config.schema import RewardConfig

FORMS = ("paper", "safe-constraint", "outcome")
KINDS = ("safety", "helpfulness")  # types of prompts

# F of theorem 2.1: continuous, of the sign of S. All three have F(1) = 1, and only there.
WEIGHTS: dict[str, Callable[[float], float]] = {
    "identity": lambda s: s,
    "power": lambda s: 2.0**s - 1.0,
    "quadratic": lambda s: -s * s + 2.0 * s,
}
ENDS = (-1.0, 1.0)
# A reward is a line in H, so that its ends are enough; in S it may bend.
FINE = tuple(step / 200 for step in range(-200, 201))


def reward(form: str, c: RewardConfig, safety: float, helpfulness: float, kind: str) -> float:
    """Returns R(H, S) for a prompt of type `kind`, one of `KINDS`."""
    if form == "outcome":
        return safety if kind == "safety" else helpfulness
    if form == "safe-constraint":
        return (c.k1 + c.k2) * safety + c.k1 * safety * helpfulness
    weight = WEIGHTS[c.F](safety)
    return weight * helpfulness + safety - c.c2 * weight


def bounds(
    form: str,
    c: RewardConfig,
    *,
    kinds: Iterable[str] = KINDS,
    safety: Iterable[float] = FINE,
    helpfulness: Iterable[float] = ENDS,
) -> tuple[float, float]:
    """Returns the least and the greatest reward, of all S and H in [-1, 1] or of those given."""
    found = [
        reward(form, c, s, h, kind) for s, h, kind in itertools.product(safety, helpfulness, kinds)
    ]
    return min(found), max(found)


def check(form: str, c: RewardConfig) -> None:
    """Refuses constants that break the conditions of theorem 2.1 or turn a sign round.

    Raises:
      ValueError: naming the setting.
    """
    if form not in FORMS:
        raise ValueError(f"search.reward: {form!r} is not one of {FORMS}")
    if form == "paper":
        _check_theorem(c)
    for name in ("k1", "k2"):
        value = getattr(c, name)
        if form == "safe-constraint" and not value > 0:
            raise ValueError(f"reward.{name}: {value} found, a positive number expected")


def _check_theorem(c: RewardConfig) -> None:
    """Refuses what theorem 2.1 rules out: then the reward would not degenerate to H or to S."""
    if c.F not in WEIGHTS:
        raise ValueError(f"reward.F: {c.F!r} is not one of {tuple(WEIGHTS)}")
    for name in ("c1", "c2"):
        value = getattr(c, name)
        if not -1 <= value <= 1:
            raise ValueError(f"reward.{name}: {value} found, a number in [-1, 1] expected")
    at_c1 = WEIGHTS[c.F](c.c1)
    if abs(at_c1 - 1) > 1e-6:
        raise ValueError(
            f"reward.c1: F(c1) = 1 expected (theorem 2.1), {c.F}({c.c1}) = {at_c1:.4g} found"
        )
