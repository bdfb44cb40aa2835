"""Reward models as judges of steps: what test-time search and the search's values are read from.

A step's score is that of its last token, or, under the read-out "eos", that of an end of sequence
put behind it: the token that the model was trained to be read at.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np

from stair_jax.engine.request import Prefix
from stair_jax.engine.scoring import Scoring
from stair_jax.model.reward import Readout


class Reading(NamedTuple):
    """What a reward model says of the steps that follow a sequence."""

    prefix: Prefix  # after all of the steps; owned by the receiver
    raw: tuple[float, ...]  # one a step; what is not finite is missing, see `finite`


Item = tuple[Prefix, Sequence[Sequence[int]]]  # a sequence, and the ids of each step behind it


@runtime_checkable
class RewardModelLike(Protocol):
    """What the search asks of a reward model."""

    readout: Readout

    def root(self, ids: Sequence[int]) -> Prefix:
        """Returns a new sequence; ValueError where it leaves no room."""
        ...

    def read(self, items: Sequence[Item]) -> list[Reading]:
        """Returns the scores of the steps that follow each sequence."""
        ...

    def release(self, prefix: Prefix) -> None:
        """Gives a sequence back."""
        ...


class RewardModel:
    """A reward model that reads steps, each prefix once.

    Args:
      scoring: with the reward model's weights.
      readout: of the reward model.
      eos_id: the end of sequence that the read-out "eos" is trained on, `Codec.eos_id`.
    """

    def __init__(self, scoring: Scoring, readout: Readout, eos_id: int):
        self.readout = readout
        self._scoring, self._eos_id = scoring, eos_id

    @property
    def counters(self) -> Mapping[str, int]:
        """What was computed; see `Scoring.counters`."""
        return self._scoring.counters

    def root(self, ids: Sequence[int]) -> Prefix:
        """Returns a new sequence.

        Raises:
          ValueError: where `ids` is empty or leaves no room in the context.
        """
        return self._scoring.root(ids)

    def read(self, items: Sequence[Item]) -> list[Reading]:
        """Returns the scores of the steps that follow each sequence, all items in one batch.

        Under "eos" an end of sequence is put behind each step in passing, unless the step ends
        with it; the sequences do not hold it.

        Raises:
          ValueError: for a step without tokens, no steps, a released prefix, or a full context.
        """
        check_steps(items)
        grown = self._scoring.extend([(p, [*itertools.chain(*steps)]) for p, steps in items])
        ends = [[*itertools.accumulate(map(len, steps))] for _, steps in items]
        raw = [
            [float(scores[end - 1]) for end in at]
            for (_, scores), at in zip(grown, ends, strict=True)
        ]
        if self.readout.position == "eos":
            self._read_behind(items, [prefix for prefix, _ in grown], ends, raw)
        return [Reading(p, tuple(scores)) for (p, _), scores in zip(grown, raw, strict=True)]

    def _read_behind(
        self,
        items: Sequence[Item],
        grown: Sequence[Prefix],
        ends: Sequence[Sequence[int]],
        raw: list[list[float]],
    ) -> None:
        """Replaces scores at the ends of steps by those of an end of sequence behind them."""
        where = [
            (row, step)
            for row, (_, steps) in enumerate(items)
            for step, ids in enumerate(steps)
            if ids[-1] != self._eos_id
        ]
        behind = [
            (grown[row], len(items[row][0].ids) + ends[row][step], [self._eos_id])
            for row, step in where
        ]
        for (row, step), scores in zip(where, self._scoring.aside(behind), strict=True):
            raw[row][step] = float(scores[0])

    def release(self, prefix: Prefix) -> None:
        """Gives a sequence back."""
        self._scoring.release(prefix)


def finite(raw: float | None) -> float | None:
    """Returns a score, None where it is missing: a number that is not finite says nothing."""
    return None if raw is None or not math.isfinite(raw) else float(raw)


def aggregate(raw: Sequence[float | None], readout: Readout, how: str) -> float | None:
    """Returns the raw score of a response from those of its steps.

    Its unit, `readout.unit`, is the last, the least, the mean or the product of the steps' units.
    The raw scores themselves are compared, because units round to 0 and 1 where a logistic score
    is below -38 or above 37:

    | how | a logistic score | a score of "mse", which is 2 q - 1 |
    |-|-|-|
    | last, min | the last, the least raw score | the same |
    | mean | logit of the mean unit, in logs | the mean raw score |
    | product | logit of the product of the units, in logs | 2 p - 1, see `_product_of_values` |

    Returns None where a score that counts is missing, and for a response without steps.
    """
    counted = [finite(score) for score in (raw[-1:] if how == "last" else raw)]
    known = [score for score in counted if score is not None]
    if not known or len(known) < len(counted):
        return None
    if how in ("last", "min"):
        return min(known)
    values = readout.loss == "mse"
    if how == "mean":
        return math.fsum(known) / len(known) if values else _logit_of_mean(known, readout)
    if how == "product":
        return _product_of_values(known) if values else _logit_of_product(known, readout)
    raise ValueError(f"evaluate.aggregation: {how!r} is not one of last, min, mean, product")


def _logit_of_mean(raw: Sequence[float], readout: Readout) -> float:
    logs, rests = zip(*map(readout.log_units, raw), strict=True)
    return float(np.logaddexp.reduce(logs) - np.logaddexp.reduce(rests))


def _logit_of_product(raw: Sequence[float], readout: Readout) -> float:
    """Goes by 1 - p u = (1 - p) + p (1 - u) of a product p and a factor u: nothing cancels."""
    logs, rests = zip(*map(readout.log_units, raw), strict=True)
    log, rest = logs[0], rests[0]
    for more, its_rest in zip(logs[1:], rests[1:], strict=True):
        log, rest = log + more, np.logaddexp(rest, log + its_rest)
    return float(log - rest)


def _product_of_values(raw: Sequence[float]) -> float:
    """Returns 2 p - 1 of the product p of q = (raw + 1) / 2, which are not clipped.

    Where a q is 0 or less the product would be 0, or its sign that of chance: p is then the sum of
    those, which is 0 at most and goes on where the product ends.
    """
    q = [(score + 1) / 2 for score in raw]
    short = [x for x in q if x <= 0]
    return 2 * (math.fsum(short) if short else math.prod(q)) - 1


def check_steps(items: Sequence[Item]) -> None:
    """Raises ValueError where an item has no steps, or a step no tokens."""
    for _, steps in items:
        if not steps or not all(steps):
            raise ValueError(f"steps of {[*map(len, steps)]} tokens, expected 1 or more each")
