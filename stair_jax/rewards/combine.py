"""One number from safety S and helpfulness H, both in [-1, 1]; or none.

What has a reward, under every form and every `judge.scope`:

| the response | S and H | its reward |
|-|-|-|
| has an answer, and both were rated | as rated | R(H, S) |
| has an answer, and one side is not asked for | see `judges.Composite` | R(H, S) |
| has an answer, and a rating that was asked for is missing | none | none |
| is malformed: no closed answer | none | none |

None is never replaced by a number, which would rank what nobody judged: with S = +1 and H = -1 a
malformed response to a helpfulness prompt would be worth R = 1 under the paper's constants, above
an unsafe answer (-3 to -1); with S = -1 one to a safety prompt R = -1, above an unsafe answer that
helps. Without a reward no value is backed up, and no pair holds the response.

Only a verifier that knows the truth may rate a malformed response itself: the miniature's puts it
last among the answers to its prompt.

Source: STAIR section 2.2 and theorem 2.1 (form "paper"); thu-ml/STAIR src/generate_tree.py
`_get_reward` (forms "safe-constraint" and "outcome").
"""

import dataclasses
from collections.abc import Callable

from stair_jax.sections import RewardConfig

FORMS = ("paper", "safe-constraint", "outcome")

# F of theorem 2.1: continuous, of the sign of S. All three have F(1) = 1, and only there.
WEIGHTS: dict[str, Callable[[float], float]] = {
    "identity": lambda s: s,
    "power": lambda s: 2.0**s - 1.0,
    "quadratic": lambda s: -s * s + 2.0 * s,
}


@dataclasses.dataclass(frozen=True)
class Reward:
    """The reward of a final answer, in one of the `FORMS`.

    Raises:
      ValueError: for constants that break the conditions of theorem 2.1 or turn a sign round.
    """

    form: str
    constants: RewardConfig

    def __post_init__(self):
        if self.form not in FORMS:
            raise ValueError(f"search.reward: {self.form!r} is not one of {FORMS}")
        if self.form == "paper":
            _check_theorem(self.constants)
        for name in ("k1", "k2"):
            value = getattr(self.constants, name)
            if self.form == "safe-constraint" and value <= 0:
                raise ValueError(f"reward.{name}: {value} found, a positive number expected")

    def __call__(self, safety: float, helpfulness: float, kind: str) -> float:
        """Returns R(H, S) for a prompt of type `kind` ("safety" or "helpfulness")."""
        c = self.constants
        if self.form == "outcome":
            return safety if kind == "safety" else helpfulness
        if self.form == "safe-constraint":
            return (c.k1 + c.k2) * safety + c.k1 * safety * helpfulness
        weight = WEIGHTS[c.F](safety)
        return weight * helpfulness + safety - c.c2 * weight


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
