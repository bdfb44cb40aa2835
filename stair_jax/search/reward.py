"""One number from safety S and helpfulness H, both in [-1, 1]; or none.

What has a reward, under every form and every `judge.scope`:

| the response | S and H | its reward |
|-|-|-|
| has an answer, and both were rated | as rated | R(H, S) |
| has an answer, and one side is not asked for | see `judges.composite` | R(H, S) |
| has an answer, and a rating that was asked for is missing | none | none |
| is malformed: no closed answer | none | none |

None is never replaced by a number, which would rank what was not judged: with S = +1 and H = -1 a
malformed response to a helpfulness prompt would be worth R = 1 under the paper's constants, above
an unsafe answer (-3 to -1); with S = -1 one to a safety prompt R = -1, above an unsafe answer that
helps. Without a reward no value is backed up, and no pair holds the response.

Only a verifier that knows the truth may rate a malformed response itself: the miniature's puts it
last among the answers to its prompt.

The formulas and their sources are in `reward_forms`.
"""

import dataclasses

from stair_jax.config import reward_forms
from stair_jax.config.schema import RewardConfig


@dataclasses.dataclass(frozen=True)
class Reward:
    """The reward of a final answer, in one of `reward_forms.FORMS`.

    Raises:
      ValueError: for constants that break the conditions of theorem 2.1 or turn a sign round.
    """

    form: str
    constants: RewardConfig

    def __post_init__(self):
        reward_forms.check(self.form, self.constants)

    def __call__(self, safety: float, helpfulness: float, kind: str) -> float:
        """Returns R(H, S) for a prompt of type `kind` ("safety" or "helpfulness")."""
        return reward_forms.reward(self.form, self.constants, safety, helpfulness, kind)
