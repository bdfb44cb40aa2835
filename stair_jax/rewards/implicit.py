"""A reward model without a head: how much likelier a policy finds a step than its reference does.

Trained as a policy on preferences, the sum of its log-ratios is a reward (Rafailov et al. 2023,
section 4), and that up to the end of a step is the step's value (Yuan et al. 2024, Free process
rewards without process labels, arXiv 2412.01981, proposition 3.1). Every token of a pair teaches
it, where a head on the last token is taught one bit.
"""

import itertools
from collections.abc import Mapping, Sequence

import numpy as np

from stair_jax.engine.likelihood import Likelihood
from stair_jax.engine.request import Prefix
from stair_jax.model.reward import Readout
from stair_jax.rewards.prm import Item, Reading, check_steps


class Ratio(Prefix):
    """A sequence under both models, and the log-ratio of what has been read of it."""

    def __init__(self, ids: Sequence[int], parts: tuple[Prefix, Prefix], total: float):
        super().__init__(ids)
        self.parts, self.total = parts, total


class ImplicitRewardModel:
    """Reads steps as `beta` times their log-ratio to a reference, from the response's start on.

    Args:
      model: the policy that learned the preferences.
      reference: the one it started from.
      readout: of "step_end"; its scores are Bradley-Terry's.
      beta: of the loss, per nat.
    """

    def __init__(self, model: Likelihood, reference: Likelihood, readout: Readout, beta: float):
        self.readout = readout
        self._both, self._beta = (model, reference), beta

    @property
    def counters(self) -> Mapping[str, int]:
        """What was computed, under the model alone; see `Scoring.counters`."""
        return self._both[0].counters

    def root(self, ids: Sequence[int]) -> Ratio:
        """Returns a new sequence; ValueError where `ids` is empty or leaves no room."""
        model, reference = self._both
        return Ratio(ids, (model.root(ids), reference.root(ids)), 0.0)

    def read(self, items: Sequence[Item]) -> list[Reading]:
        """Returns the scores of the steps that follow each sequence, all items in one batch.

        Raises:
          ValueError: for a step without tokens, no steps, a released prefix, or a full context.
        """
        check_steps(items)
        after = [[*itertools.chain(*steps)] for _, steps in items]
        prefixes = [_ratio(prefix) for prefix, _ in items]
        found = []
        for i, part in enumerate(self._both):
            asked = [(prefix.parts[i], ids) for prefix, ids in zip(prefixes, after, strict=True)]
            found.append(part.extend(asked))
        out = []
        for prefix, (_, steps), ids, new, old in zip(prefixes, items, after, *found, strict=True):
            ratio = prefix.total + np.cumsum(new[1].astype(np.float64) - old[1])
            grown = Ratio((*prefix.ids, *ids), (new[0], old[0]), float(ratio[-1]))
            ends = itertools.accumulate(map(len, steps))
            out.append(Reading(grown, tuple(self._beta * float(ratio[end - 1]) for end in ends)))
        return out

    def release(self, prefix: Prefix) -> None:
        """Gives a sequence back."""
        for part, held in zip(self._both, _ratio(prefix).parts, strict=True):
            part.release(held)


def _ratio(prefix: Prefix) -> Ratio:
    if not isinstance(prefix, Ratio):
        raise ValueError("prefix: not made by this reward model")
    return prefix
