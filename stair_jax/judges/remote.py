"""Raters that ask a model behind an OpenAI-compatible endpoint."""

import collections
import queue
from collections.abc import Hashable, Mapping

from stair_jax.judges.base import Rating
from stair_jax.judges.rubrics import Rubric
from stair_jax.records import Prompt
from stair_jax.remote.client import COUNTERS, Counts, EndpointClient, Reply
from stair_jax.remote.open import OPEN


class RemoteRater:
    """A `Rater` that asks a model behind a line, in one user turn.

    A rating is the mean of those of `config.samples` replies that can be read; none: missing. It is
    open as long as one of them is.
    """

    def __init__(self, rubric: Rubric, line: EndpointClient):
        self._rubric, self._line = rubric, line
        self._replies: queue.SimpleQueue[tuple[Hashable, list[Reply]]] = queue.SimpleQueue()
        # Two threads count, each its own names; none appears later, for others may be reading.
        self._counts: Counts = collections.Counter(dict.fromkeys(COUNTERS, 0))

    def submit(self, id: Hashable, prompt: Prompt, answer: str) -> None:
        """Queues a final answer."""
        self._line.ask(
            self._rubric.ask(prompt, answer),
            self._line.config.samples,
            self._counts,
            lambda replies: self._replies.put((id, replies)),
        )

    def collect(self) -> list[tuple[Hashable, Rating]]:
        """Returns the ratings that came in since the last call.

        Raises:
          Refused, Unavailable: where it makes no sense to go on.
        """
        self._line.check()
        return [self._rating(*self._replies.get()) for _ in range(self._replies.qsize())]

    def _rating(self, id: Hashable, replies: list[Reply]) -> tuple[Hashable, Rating]:
        if OPEN in replies:
            self._counts["open"] += 1
            return id, OPEN
        verdicts = [self._rubric.read(reply) for reply in replies if isinstance(reply, str)]
        # Sorted, for the order must not decide the last bit of the sum.
        said = sorted(verdict for verdict in verdicts if verdict is not None)
        self._counts.update(
            {
                "parsed": len(said),
                "unparsed": len(verdicts) - len(said),
                "declined": len(replies) - len(verdicts),
            }
        )
        return id, sum(said) / len(said) if said else None

    @property
    def counters(self) -> Mapping[str, int]:
        """Replies `parsed`, `unparsed`, `declined`, `cached` (not asked again), `repeated` (while
        the same was being asked), ratings left `open`; `requests`, and of those `failed_requests`
        and `declined_requests`.
        """
        return self._counts

    def close(self) -> None:
        """Closes the line, for all raters on it."""
        self._line.close()
