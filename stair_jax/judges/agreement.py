"""How often a rater that is a model agrees with the truth, where the truth is known."""

import collections
import math
from collections.abc import Callable, Hashable, Mapping

from stair_jax.judges.base import Rater, Rating, wants_response
from stair_jax.records import Prompt

_HIGH, _LOW = "high", "low"


class Compared:
    """A rater that counts, beside what it counts anyway, its ratings by what would be true.

    The counts are `said_high_is_high`, `said_high_is_low`, `said_low_is_high` and
    `said_low_is_low`; high is above 0, on the scale of [-1, 1].

    Args:
      rater: that is asked.
      truth: the true rating of what the rater is given; None where it is unknown.
    """

    def __init__(self, rater: Rater, truth: Callable[[Prompt, str], float | None]):
        self._rater, self._truth = rater, truth
        self.wants_response = wants_response(rater)
        self._true: dict[Hashable, float | None] = {}
        self._counts: collections.Counter[str] = collections.Counter()

    def submit(self, id: Hashable, prompt: Prompt, answer: str) -> None:
        """Queues a final answer."""
        self._true[id] = self._truth(prompt, answer)
        self._rater.submit(id, prompt, answer)

    def collect(self) -> list[tuple[Hashable, Rating]]:
        """Returns the rater's ratings since the last call."""
        found = self._rater.collect()
        for id, rating in found:
            true = self._true.pop(id)
            if isinstance(rating, float) and math.isfinite(rating) and true is not None:
                self._counts[f"said_{_level(rating)}_is_{_level(true)}"] += 1
        return found

    @property
    def counters(self) -> Mapping[str, int]:
        """The rater's counts and those of the comparison."""
        return {**self._rater.counters, **self._counts}

    def close(self) -> None:
        """Closes the rater."""
        self._rater.close()


def _level(rating: float) -> str:
    return _HIGH if rating > 0 else _LOW


def shares(counters: Mapping[str, int], side: str) -> dict[str, float]:
    """Returns how far one side of a judge agrees with the truth, from the judge's counters.

    `agreement_SIDE` is the share of ratings on the true side of 0; `balanced_agreement_SIDE` the
    mean of that share over what is truly high and truly low: 0.5 for a rater that always says the
    same. Each only where there is something to divide by.
    """

    def count(said: str, true: str) -> int:
        return counters.get(f"{side}_said_{said}_is_{true}", 0)

    right = {level: count(level, level) for level in (_HIGH, _LOW)}
    total = {level: count(_HIGH, level) + count(_LOW, level) for level in (_HIGH, _LOW)}
    found = {}
    if every := sum(total.values()):
        found[f"agreement_{side}"] = sum(right.values()) / every
    if all(total.values()):
        halves = [right[level] / total[level] for level in total]
        found[f"balanced_agreement_{side}"] = sum(halves) / 2
    return found
