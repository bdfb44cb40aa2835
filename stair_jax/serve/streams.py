"""Server-sent events, as OpenAI's clients read them."""

import contextlib
import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

from stair_jax.serve.desk import Desk, EventStream, Visit

DONE = "data: [DONE]\n\n"


def line(event: dict[str, Any]) -> str:
    """Returns one event."""
    return f"data: {json.dumps(event, ensure_ascii=False, separators=(',', ':'))}\n\n"


def streamed(desk: Desk, visit: Visit, events: AsyncIterator[str]) -> EventStream:
    """Returns the answer that sends events, and closes a visit at its end."""

    def gone() -> None:
        desk.metrics.dropped += 1

    limit = desk.limits.timeout_s
    return EventStream(events, close=visit.close, timeout_s=limit, on_gone=gone)


@contextlib.contextmanager
def closing_on_error(visit: Visit) -> Iterator[None]:
    """Closes a visit where what is done in it fails, or is ended."""
    try:
        yield
    except BaseException:
        visit.close()
        raise
