"""What the worker hands back to those who asked."""

import asyncio
from typing import NamedTuple

from stair_jax.engine.likelihood import Told
from stair_jax.run.answerer import Reply as Found
from stair_jax.serve.served import Served


class Drawn(NamedTuple):
    """New tokens of a continuation; `finish` is "stop" or "length" with its last ones, else ""."""

    number: int
    ids: tuple[int, ...]
    finish: str


class Read(NamedTuple):
    """What a model finds of texts."""

    told: list[Told]


class Searched(NamedTuple):
    """What a search found."""

    found: Found


class Judged(NamedTuple):
    """What the reward model finds of a beginning, 0 to 1; None where it finds nothing."""

    unit: float | None


class Failed(NamedTuple):
    """Why there is nothing; ValueError where the request is at fault."""

    error: Exception


Event = Drawn | Read | Searched | Judged | Failed


class Ticket:
    """A request's place at the worker; its events come in `events`, in the event loop."""

    def __init__(self, number: int, model: Served):
        self.number, self.model = number, model
        self.events: asyncio.Queue[Event] = asyncio.Queue()
