"""Which of several sampled responses is the answer."""

import collections
from collections.abc import Sequence

from stair_jax import text
from stair_jax.engine.request import key_of


def best(scores: Sequence[float]) -> int:
    """Returns the index of the highest score; among equals the first."""
    return max(range(len(scores)), key=scores.__getitem__)


def vote(scores: Sequence[float], answers: Sequence[str | None]) -> int:
    """Returns the index of the best member of the group with the highest sum of scores.

    Equal answers are a group; None is an answer that cannot be compared, a group of its own. Among
    equals the first counts. Source: Li et al. 2023 (arXiv 2206.02336), weighted vote of verified
    answers.

    Args:
      scores: weights, 0 or more.
      answers: as `comparable` gives them.
    """
    groups: dict[object, list[int]] = collections.defaultdict(list)
    for index, answer in enumerate(answers):
        groups[index if answer is None else answer].append(index)
    members = max(groups.values(), key=lambda group: sum(scores[i] for i in group))
    return members[best([scores[i] for i in members])]


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
    answer = response if direct else text.final_answer(response)
    if answer is None:
        return None
    return " ".join(answer.casefold().split()).removesuffix(".").rstrip()
