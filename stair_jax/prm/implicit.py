"""A reward model without a head: how likely a policy finds a step, or how much likelier now.

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
from stair_jax.prm.reader import Item, Reading, check_steps


class Ratio(Prefix):
    """A sequence under one or both models, and the log-ratio of what has been read of it."""

    def __init__(self, ids: Sequence[int], parts: tuple[Prefix, ...], total: float):
        super().__init__(ids)
        self.parts, self.total = parts, total


class ImplicitRewardModel:
    """Reads steps as `beta` times their log-ratio to a reference, from the response's start on.

    Args:
      model: the policy that learned the preferences.
      reference: the one it started from; None where the score is the log-likelihood itself.
      readout: of "step_end"; its scores are Bradley-Terry's.
      beta: of the loss, per nat.
    """

    def __init__(
        self, model: Likelihood, reference: Likelihood | None, readout: Readout, beta: float
    ):
        self.readout, self._beta = readout, beta
        self._parts = (model,) if reference is None else (model, reference)

    @property
    def counters(self) -> Mapping[str, int]:
        """What was computed, under the model alone; see `Scoring.counters`."""
        return self._parts[0].counters

    def root(self, ids: Sequence[int]) -> Ratio:
        """Returns a new sequence; ValueError where `ids` is empty or leaves no room."""
        return Ratio(ids, tuple(part.root(ids) for part in self._parts), 0.0)

    def read(self, items: Sequence[Item]) -> list[Reading]:
        """Returns the scores of the steps that follow each sequence, all items in one batch.

        Raises:
          ValueError: for a step without tokens, no steps, a released prefix, or a full context.
        """
        check_steps(items)
        after = [[*itertools.chain(*steps)] for _, steps in items]
        prefixes = [_ratio(prefix) for prefix, _ in items]
        found = []
        for i, part in enumerate(self._parts):
            asked = [(prefix.parts[i], ids) for prefix, ids in zip(prefixes, after, strict=True)]
            found.append(part.extend(asked))
        out = []
        grown_parts = zip(*found, strict=True)
        for prefix, (_, steps), ids, both in zip(prefixes, items, after, grown_parts, strict=True):
            logp = both[0][1].astype(np.float64) - sum(old for _, old in both[1:])
            ratio = prefix.total + np.cumsum(logp)
            grown = Ratio((*prefix.ids, *ids), tuple(held for held, _ in both), float(ratio[-1]))
            ends = itertools.accumulate(map(len, steps))
            out.append(Reading(grown, tuple(self._beta * float(ratio[end - 1]) for end in ends)))
        return out

    def release(self, prefix: Prefix) -> None:
        """Gives a sequence back."""
        for part, held in zip(self._parts, _ratio(prefix).parts, strict=True):
            part.release(held)


def _ratio(prefix: Prefix) -> Ratio:
    if not isinstance(prefix, Ratio):
        raise ValueError("prefix: not made by this reward model")
    return prefix
