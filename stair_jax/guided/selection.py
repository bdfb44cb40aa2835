"""Which of several sampled responses is the answer."""

import collections
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from stair_jax import text
from stair_jax.engine.request import key_of
from stair_jax.model.reward import Readout
from stair_jax.prm.reader import finite


class Samples(Protocol):
    """Sampled responses to a prompt; what a choice does not ask for is not worked out."""

    def __len__(self) -> int: ...

    @property
    def key(self) -> tuple[int | str, ...]:
        """What fixes a random draw."""
        ...

    @property
    def scores(self) -> Sequence[float | None]:
        """Raw, as `reader.aggregate` gives them."""
        ...

    @property
    def readout(self) -> Readout:
        """Of the scores."""
        ...

    @property
    def answers(self) -> Sequence[str | None]:
        """As `comparable` gives them."""
        ...

    @property
    def merits(self) -> Sequence[float]:
        """By the truth."""
        ...


def best(scores: Sequence[float | None]) -> int | None:
    """Returns the index of the highest score; among equals the first.

    A score that is missing is never chosen; None where all are.
    """
    known = _known(scores)
    return max(known, key=known.__getitem__) if known else None


def vote(
    scores: Sequence[float | None], answers: Sequence[str | None], readout: Readout
) -> int | None:
    """Returns the index of the best member of the group with the highest sum of units.

    Equal answers are a group; None is an answer that cannot be compared, a group of its own. A
    response whose score is missing has no vote; None where all are. Sums are compared by their
    logs; where these agree, by how little the members' units lack to 1. Among equals the first
    counts. Source: Li et al. 2023 (arXiv 2206.02336), weighted vote of verified answers.

    Args:
      scores: raw, as `reader.aggregate` gives them.
      answers: as `comparable` gives them.
      readout: of the scores.
    """
    known = _known(scores)
    groups: dict[object, list[int]] = collections.defaultdict(list)
    for index in known:
        answer = answers[index]
        groups[index if answer is None else answer].append(index)

    def weight(members: Sequence[int]) -> tuple[float, float]:
        logs, rests = zip(*(readout.log_units(known[i]) for i in members), strict=True)
        return _log_sum(logs), -_log_sum(rests)

    if not known:
        return None
    return max(max(groups.values(), key=weight), key=known.__getitem__)


def _known(scores: Sequence[float | None]) -> dict[int, float]:
    """Returns the scores that are not missing, by index."""
    found = enumerate(map(finite, scores))
    return {index: score for index, score in found if score is not None}


def _log_sum(logs: Iterable[float]) -> float:
    """Returns the log of a sum from its terms' logs; their order does not move a bit of it."""
    logs = list(logs)
    top = max(logs)
    if not math.isfinite(top):
        return top
    return top + math.log(math.fsum(math.exp(log - top) for log in logs))


def at_random(count: int, key: tuple[int | str, ...]) -> int:
    """Returns an index below `count`, drawn by the key alone."""
    return int(key_of(key)[0]) % count


def comparable(response: str, direct: bool = False) -> str | None:
    """Returns a response's final answer in a form in which equal answers are equal.

    Case, spaces and a closing full stop do not count. None where there is no final answer.

    Args:
      response: whole, as decoded.
      direct: whether all of it is the answer, of a model that does not reason.
    """
    answer = text.final_answer(response, direct)
    if answer is None:
        return None
    return " ".join(answer.casefold().split()).removesuffix(".").rstrip()


# By the kind of strategy. None where nothing is known to choose by.
CHOICES: dict[str, Callable[[Samples], int | None]] = {
    "best_of": lambda some: best(some.scores),
    "vote_of": lambda some: vote(some.scores, some.answers, some.readout),
    "random_of": lambda some: at_random(len(some), some.key),
    "oracle_of": lambda some: best(some.merits),
}
