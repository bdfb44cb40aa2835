"""What every handler shares: the models, the worker, and the place that a request takes."""

import asyncio
import contextlib
import dataclasses
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from typing import Any, TypeVar

from fastapi import Request
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from stair_jax.serve.errors import ApiError
from stair_jax.serve.events import Drawn, Event, Failed, Ticket
from stair_jax.serve.limits import Gate, Limits
from stair_jax.serve.metrics import ServerMetrics
from stair_jax.serve.pieces import Parts, Reply
from stair_jax.serve.served import Served
from stair_jax.serve.worker import Worker

T = TypeVar("T")
_GRACE_S = 5.0  # that a stream has for its last event, once its time is over


class Gone(Exception):
    """The client has hung up; nobody waits for an answer."""


@dataclasses.dataclass(frozen=True)
class Desk:
    """The server's state.

    Attributes:
      served: the models, by name; the first is the one that is meant where none is named.
      worker: that owns their engines.
      limits: of the server.
      gate: that counts what is under way.
      metrics: what is counted besides.
    """

    served: dict[str, Served]
    worker: Worker
    limits: Limits
    gate: Gate
    metrics: ServerMetrics

    def model(self, name: str | None) -> Served:
        """Returns a model by its name.

        Raises:
          ApiError: 404 where there is none, with those that there are.
        """
        if name is None:
            return next(iter(self.served.values()))
        if name not in self.served:
            raise ApiError(
                404,
                f"model: not one of {', '.join(self.served)}",
                param="model",
                code="model_not_found",
            )
        return self.served[name]


class Visit:
    """A request under way; whoever has one closes it, however the request ends.

    Args:
      desk: where.
      model: that is asked.
      sequences: that it asks for.
      stream: whether it is answered as it grows.

    Raises:
      ApiError: where the server takes on no more, or has failed.
    """

    def __init__(self, desk: Desk, model: Served, sequences: int, *, stream: bool = False):
        if desk.worker.failure is not None:
            raise ApiError(500, "the engine has failed, see the server's log")
        desk.gate.enter(sequences)
        self.model = model
        self._desk, self._sequences = desk, sequences
        self._began = time.monotonic()
        self._tickets: list[Ticket] = []
        self._open, self._waiting = True, stream

    def holds(self, ticket: Ticket) -> Ticket:
        """Notes a ticket, which is given up when the request ends."""
        self._tickets.append(ticket)
        return ticket

    async def event(self, ticket: Ticket) -> Event:
        """Returns the next event of a ticket.

        Raises:
          ApiError: where the worker failed, the request is at fault, or it takes too long.
        """
        limit = self._desk.limits.timeout_s
        left = self._began + limit - time.monotonic()
        try:
            event = await asyncio.wait_for(ticket.events.get(), max(left, 0.0))
        except TimeoutError:
            message = f"not done within {limit:g} s, the server's limit"
            raise ApiError(504, message, code="timeout") from None
        if isinstance(event, Failed):
            if isinstance(event.error, ValueError):
                raise ApiError(400, str(event.error)) from event.error
            raise ApiError(500, "the engine has failed, see the server's log") from event.error
        if self._waiting:
            self._waiting = False
            self._desk.metrics.first_token.add(time.monotonic() - self._began)
        return event

    async def growth(
        self, ticket: Ticket, replies: Sequence[Reply]
    ) -> AsyncIterator[tuple[int, Parts, str]]:
        """Yields what is new of each reply, and "stop" or "length" with its end."""
        left = set(range(len(replies)))
        while left:
            event = await self.event(ticket)
            assert isinstance(event, Drawn)
            index, finish = event.number, event.finish
            if index not in left:
                continue  # it was stopped, and the worker did not know yet
            reply = replies[index]
            parts = reply.add(event.ids, ended=bool(finish))
            if reply.stopped:
                if not finish:
                    self._desk.worker.cancel(ticket, index)
                finish = "stop"
            if finish:
                left.remove(index)
            yield index, parts, finish

    def count(self, prompt_tokens: int, completion_tokens: int) -> dict[str, int]:
        """Counts tokens; returns what an answer says of its use."""
        tokens, name = self._desk.metrics.tokens, self.model.name
        tokens[name, "prompt"] += prompt_tokens
        tokens[name, "completion"] += completion_tokens
        return {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": prompt_tokens + completion_tokens,
        }

    def close(self) -> None:
        """Gives up what is still asked for, and the request's place; may be called twice."""
        if not self._open:
            return
        self._open = False
        for ticket in self._tickets:
            self._desk.worker.cancel(ticket)
        seconds = time.monotonic() - self._began
        self._desk.gate.leave(self._sequences, seconds)
        self._desk.metrics.whole.add(seconds)


async def unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Returns what `work` does; ends it where the client hangs up before.

    Raises:
      Gone: where it did.
    """
    working = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait((working, gone), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise Gone
        return working.result()
    finally:
        for task in (working, gone):
            task.cancel()
        await asyncio.gather(working, gone, return_exceptions=True)


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


class EventStream(StreamingResponse):
    """Server-sent events; `close` is called however the stream ends.

    A reader that takes nothing would hold what it asked for: after `timeout_s` it is left alone.
    """

    def __init__(
        self,
        events: AsyncIterator[str],
        *,
        close: Callable[[], None],
        timeout_s: float,
        on_gone: Callable[[], None],
    ):
        super().__init__(
            events, media_type="text/event-stream", headers={"Cache-Control": "no-store"}
        )
        self._close, self._timeout_s, self._on_gone = close, timeout_s, on_gone
        self._whole = False

    async def stream_response(self, send: Send) -> None:
        """Sends all events."""
        await super().stream_response(send)
        self._whole = True

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request."""
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._timeout_s + _GRACE_S):
                    await super().__call__(scope, receive, send)
        finally:
            self._close()
            if not self._whole:
                self._on_gone()
