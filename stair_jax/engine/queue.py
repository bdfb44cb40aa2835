"""The requests that wait for pages, in the order in which they are to be admitted."""

import heapq
from collections.abc import Hashable, Iterator

from stair_jax.engine.request import Request


class RequestQueue:
    """Requests of lower turns go first; those of one turn go in the order of their submission."""

    def __init__(self) -> None:
        self._heap: list[tuple[int, int, Request]] = []  # (turn, place in the turn, request)
        self._last = self._first = 0  # places given out, at the end of a turn and at its front

    def __len__(self) -> int:
        return len(self._heap)

    def __iter__(self) -> Iterator[Request]:
        return (request for *_, request in sorted(self._heap, key=lambda entry: entry[:2]))

    def push(self, request: Request) -> None:
        """Adds a request behind all of its turn."""
        self._last += 1
        heapq.heappush(self._heap, (request.turn, self._last, request))

    def push_back(self, request: Request) -> None:
        """Returns a request that was taken out: it goes before all others of its turn."""
        self._first -= 1
        heapq.heappush(self._heap, (request.turn, self._first, request))

    def pop(self) -> Request:
        """Takes out the request that goes next; IndexError where none waits."""
        return heapq.heappop(self._heap)[2]

    def remove(self, request_id: Hashable) -> list[Request]:
        """Takes out all requests of an id, and returns them."""
        found = [request for *_, request in self._heap if request.id == request_id]
        if found:
            self._heap = [entry for entry in self._heap if entry[2].id != request_id]
            heapq.heapify(self._heap)
        return found
