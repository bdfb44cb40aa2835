"""What goes into the engine and what comes out: the interface that the search is written to."""

import dataclasses
from collections.abc import Hashable, Mapping, Sequence
from typing import Protocol, runtime_checkable


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling:
    """How a token is drawn: temperature, then top-k, then top-p on what top-k left."""

    temperature: float = 1.0  # 0: greedy
    top_k: int = 0  # 0: off
    top_p: float = 1.0  # 1: off

    def __post_init__(self):
        if self.temperature < 0 or self.top_k < 0 or not 0 < self.top_p <= 1:
            raise ValueError(
                f"sampling: temperature={self.temperature} top_k={self.top_k} top_p={self.top_p};"
                " expected temperature >= 0, top_k >= 0, 0 < top_p <= 1"
            )


GREEDY = Sampling(temperature=0.0)


class Prefix:
    """A sequence that the engine holds for its owner, ready to be continued.

    Whoever got it from `root` or in a `Result` owns it, and releases it once.
    """

    def __init__(self, ids: Sequence[int]):
        self.ids: tuple[int, ...] = tuple(ids)  # all tokens, from the prompt's first on


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """Continue `prefix` until a token of the stop set, or `max_tokens` new tokens.

    `key` alone decides the random draws: equal keys, prefix and sampling give equal tokens,
    whatever else the engine is doing.
    """

    id: Hashable
    prefix: Prefix
    key: tuple[int | str, ...]
    stop: str  # name of a stop set: "step" or "end"
    max_tokens: int
    sampling: Sampling


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
    """The answer to a request; the stop token, where one fell, is the last of `ids`."""

    id: Hashable
    ids: tuple[int, ...]  # new tokens
    logps: tuple[float, ...]  # nats, of each, at the sampling temperature before top-k and top-p
    prefix: Prefix  # the request's prefix and `ids`; owned by the receiver
    finish: str  # "stop" or "length"


@runtime_checkable
class EngineLike(Protocol):
    """What the search asks of an engine."""

    @property
    def counters(self) -> Mapping[str, int]:
        """What has been done so far."""
        ...

    def root(self, ids: Sequence[int]) -> Prefix:
        """Returns a new sequence; ValueError where it leaves no room for an answer."""
        ...

    def submit(self, request: Request) -> None:
        """Queues a request; the prefix must stay unreleased until its result is collected."""
        ...

    def step(self) -> None:
        """Admits what fits and runs one chunk of decoding."""
        ...

    def collect(self) -> list[Result]:
        """Returns the requests finished since the last call."""
        ...

    def release(self, prefix: Prefix) -> None:
        """Gives a sequence back."""
        ...

    def cancel(self, request_id: Hashable) -> None:
        """Forgets a queued or running request; it will give no result."""
        ...

    @property
    def idle(self) -> bool:
        """True where no request is queued or running."""
        ...
