"""Several clients of one engine, each of which collects its own results.

So a judge can ask the policy's own engine while a search runs on it: their requests share slots,
chunks and pages, and neither sees the other's ids.
"""

import dataclasses
from collections.abc import Hashable, Mapping, Sequence

from stair_jax.engine.request import EngineLike, Prefix, Request, Result


class SharedEngine:
    """Hands an engine's results to the clients that asked for them."""

    def __init__(self, engine: EngineLike):
        self.engine = engine
        self._clients: list[Client] = []

    def client(self) -> "Client":
        """Returns a new client of the engine."""
        self._clients.append(Client(self, len(self._clients)))
        return self._clients[-1]

    def distribute(self) -> None:
        """Takes the engine's results and gives each to its client."""
        for result in self.engine.collect():
            number, id = result.id  # pyright: ignore[reportGeneralTypeIssues]
            self._clients[number].inbox.append(dataclasses.replace(result, id=id))


class Client:
    """One user's view of a shared engine, itself `EngineLike`.

    Sequences belong to the engine: whoever has one may use it through any client. `step` lets the
    whole engine work; `idle` and `hungry` are the engine's.
    """

    def __init__(self, shared: SharedEngine, number: int):
        self._shared, self._number = shared, number
        self.inbox: list[Result] = []  # uncollected

    @property
    def counters(self) -> Mapping[str, int | float]:
        """What the engine has done so far, for all clients."""
        return self._shared.engine.counters

    @property
    def idle(self) -> bool:
        """True where no client has a request queued or running."""
        return self._shared.engine.idle

    @property
    def hungry(self) -> bool:
        """True where more requests would keep more of the engine busy."""
        return self._shared.engine.hungry

    def root(self, ids: Sequence[int]) -> Prefix:
        """Returns a new sequence; see `EngineLike.root`."""
        return self._shared.engine.root(ids)

    def extend(self, prefix: Prefix, ids: Sequence[int]) -> Prefix:
        """Returns a new sequence, `prefix` and then `ids`; see `EngineLike.extend`."""
        return self._shared.engine.extend(prefix, ids)

    def release(self, prefix: Prefix) -> None:
        """Gives a sequence back."""
        self._shared.engine.release(prefix)

    def step(self) -> None:
        """Lets the engine work for all clients."""
        self._shared.engine.step()

    def submit(self, request: Request) -> None:
        """Queues a request; ids and groups need to differ for this client only."""
        group = None if request.group is None else (self._number, request.group)
        own = dataclasses.replace(request, id=(self._number, request.id), group=group)
        self._shared.engine.submit(own)

    def collect(self) -> list[Result]:
        """Returns this client's requests finished since its last call."""
        self._shared.distribute()
        found, self.inbox = self.inbox, []
        return found

    def cancel(self, request_id: Hashable) -> None:
        """Forgets a queued, running or uncollected request of this client; it gives no result."""
        self._shared.engine.cancel((self._number, request_id))
        for result in [r for r in self.inbox if r.id == request_id]:
            self.inbox.remove(result)
            self.release(result.prefix)
