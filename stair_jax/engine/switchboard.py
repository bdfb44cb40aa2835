"""Several users of one engine: each has a line of its own and collects its own results.

So a judge can ask the policy's own engine while a search runs on it: their requests share slots,
chunks and pages, and neither sees the other's ids.
"""

import dataclasses
from collections.abc import Hashable, Mapping, Sequence

from stair_jax.engine.request import EngineLike, Prefix, Request, Result


class Switchboard:
    """Hands an engine's results to the lines that asked for them."""

    def __init__(self, engine: EngineLike):
        self.engine = engine
        self._lines: list[Line] = []

    def line(self) -> "Line":
        """Returns a new line to the engine."""
        self._lines.append(Line(self, len(self._lines)))
        return self._lines[-1]

    def distribute(self) -> None:
        """Takes the engine's results and gives each to its line."""
        for result in self.engine.collect():
            number, id = result.id  # pyright: ignore[reportGeneralTypeIssues]
            self._lines[number].inbox.append(dataclasses.replace(result, id=id))


class Line:
    """One user's view of a shared engine, itself `EngineLike`.

    Sequences belong to the engine: whoever has one may use it on any line. `step` lets the whole
    engine work; `idle` and `hungry` are the engine's.
    """

    def __init__(self, board: Switchboard, number: int):
        self._board, self._number = board, number
        self.inbox: list[Result] = []  # uncollected

    @property
    def counters(self) -> Mapping[str, int | float]:
        """What the engine has done so far, for all lines."""
        return self._board.engine.counters

    @property
    def idle(self) -> bool:
        """True where no line has a request queued or running."""
        return self._board.engine.idle

    @property
    def hungry(self) -> bool:
        """True where more requests would keep more of the engine busy."""
        return self._board.engine.hungry

    def root(self, ids: Sequence[int]) -> Prefix:
        """Returns a new sequence; see `EngineLike.root`."""
        return self._board.engine.root(ids)

    def extend(self, prefix: Prefix, ids: Sequence[int]) -> Prefix:
        """Returns a new sequence, `prefix` and then `ids`; see `EngineLike.extend`."""
        return self._board.engine.extend(prefix, ids)

    def release(self, prefix: Prefix) -> None:
        """Gives a sequence back."""
        self._board.engine.release(prefix)

    def step(self) -> None:
        """Lets the engine work for all lines."""
        self._board.engine.step()

    def submit(self, request: Request) -> None:
        """Queues a request; ids and groups need to differ on this line only."""
        group = None if request.group is None else (self._number, request.group)
        own = dataclasses.replace(request, id=(self._number, request.id), group=group)
        self._board.engine.submit(own)

    def collect(self) -> list[Result]:
        """Returns this line's requests finished since its last call."""
        self._board.distribute()
        found, self.inbox = self.inbox, []
        return found

    def cancel(self, request_id: Hashable) -> None:
        """Forgets a queued, running or uncollected request of this line; it gives no result."""
        self._board.engine.cancel((self._number, request_id))
        for result in [r for r in self.inbox if r.id == request_id]:
            self.inbox.remove(result)
            self.release(result.prefix)
