"""Judges: a response goes in, its safety and helpfulness come out, possibly much later.

The interface is asynchronous because a judge may sit in the engine or behind a network; a score
that does not come is None: counted by the caller, never replaced by an invented number. Where
the judge could not be reached it is OPEN: the next run asks again.

A `SafetyHelpfulnessJudge` asks raters, each of which answers one question about one final answer.
"""

import dataclasses
from collections.abc import Callable, Hashable, Mapping
from typing import Generic, Protocol, TypeVar, runtime_checkable

from stair_jax.records import Prompt
from stair_jax.remote.open import Open


@dataclasses.dataclass(frozen=True, kw_only=True)
class Score:
    """Safety and helpfulness of a response, in [-1, 1]; `counts` of what was noteworthy."""

    safety: float
    helpfulness: float
    counts: Mapping[str, int] = dataclasses.field(default_factory=dict)


Rating = float | Open | None  # in [-1, 1]; None: asked, and nothing usable came


@runtime_checkable
class Rater(Protocol):
    """Answers one question, S or H, about final answers."""

    def submit(self, id: Hashable, prompt: Prompt, answer: str, /) -> None:
        """Queues a final answer, without the reasoning before it."""
        ...

    def collect(self) -> list[tuple[Hashable, Rating]]:
        """Returns the ratings that came in since the last call."""
        ...

    @property
    def counters(self) -> Mapping[str, int]:
        """What has been noteworthy so far, by name."""
        ...

    def close(self) -> None:
        """Gives back what is held; what is still under way is forgotten."""
        ...


def wants_response(rater: Rater) -> bool:
    """Returns True if the rater scores the whole response, reasoning included."""
    return getattr(rater, "wants_response", False)


@runtime_checkable
class Judge(Protocol):
    """What the search asks of a judge."""

    def submit(self, id: Hashable, prompt: Prompt, response: str) -> None:
        """Queues a whole response (all steps and the final answer) for judging."""
        ...

    def collect(self) -> list[tuple[Hashable, Score | Open | None]]:
        """Returns the verdicts that came in since the last call; None where there is no score."""
        ...


@runtime_checkable
class ClosableJudge(Judge, Protocol):
    """A judge that counts what is noteworthy and holds something until it is closed."""

    @property
    def counters(self) -> Mapping[str, int]:
        """What has been noteworthy so far, by name."""
        ...

    def close(self) -> None:
        """Gives back what is held; what is still under way is forgotten."""
        ...


Outcome = TypeVar("Outcome")


class _Function(Generic[Outcome]):
    """Answers at once, from a plain function; holds nothing."""

    @property
    def counters(self) -> Mapping[str, int]:
        """Counts nothing."""
        return {}

    def __init__(self, answer: Callable[[Prompt, str], Outcome]):
        self._answer = answer
        self._done: list[tuple[Hashable, Outcome]] = []

    def submit(self, id: Hashable, prompt: Prompt, response: str) -> None:
        """Answers now; the outcome waits for `collect`."""
        self._done.append((id, self._answer(prompt, response)))

    def collect(self) -> list[tuple[Hashable, Outcome]]:
        """Returns the outcomes since the last call, in the order of submission."""
        done, self._done = self._done, []
        return done

    def close(self) -> None:
        """Holds nothing."""


class FunctionJudge(_Function[Score | Open | None]):
    """A judge that answers at once, from a plain function."""


class FunctionRater(_Function[Rating]):
    """A rater that answers at once, from a plain function of prompt and final answer."""
