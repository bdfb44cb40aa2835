"""What goes into the engine and what comes out: the interface that the search is written to."""

import dataclasses
import hashlib
from collections.abc import Hashable, Mapping, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling:
    """How a token is drawn: temperature, then top-k, top-p and min-p, each on what is left.

    Min-p keeps the tokens whose probability is at least `min_p` of the likeliest one's.
    """

    temperature: float = 1.0  # 0: greedy
    top_k: int = 0  # 0: off
    top_p: float = 1.0  # 1: off; 0: the likeliest token alone
    min_p: float = 0.0  # 0: off

    def __post_init__(self):
        bounded = 0 <= self.top_p <= 1 and 0 <= self.min_p <= 1
        if self.temperature < 0 or self.top_k < 0 or not bounded:
            raise ValueError(
                f"sampling: temperature={self.temperature} top_k={self.top_k} top_p={self.top_p}"
                f" min_p={self.min_p}; expected temperature >= 0, top_k >= 0, 0 <= top_p <= 1,"
                " 0 <= min_p <= 1"
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
    whatever else the engine is doing. `turn` decides who waits: where slots are short, requests of
    a lower turn are admitted first, and no result depends on it. `group` and `shared` are a hint,
    of use where siblings run side by side: the keys of what they share need to be read once only.
    """

    id: Hashable
    prefix: Prefix
    key: tuple[int | str, ...]
    stop: str  # name of a stop set: "step" or "end"
    max_tokens: int
    sampling: Sampling
    group: Hashable = None  # equal in requests that share their first tokens; None: alone
    shared: int = 0  # tokens at the front of `prefix` that all of the group have in common
    turn: int = 0  # the lowest goes first; of equal ones, the one submitted first
    logps: bool = False  # whether the result is to have log-probs


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
    """The answer to a request; the stop token, where one fell, is the last of `ids`."""

    id: Hashable
    ids: tuple[int, ...]  # new tokens
    logps: tuple[float, ...]  # nats, at the sampling temperature, unfiltered; () where not wanted
    prefix: Prefix  # the request's prefix and `ids`; owned by the receiver
    finish: str  # "stop" or "length"


class Partial(NamedTuple):
    """New tokens of a request that still runs."""

    ids: tuple[int, ...]
    logps: tuple[float, ...]  # as those of a `Result`


@runtime_checkable
class EngineLike(Protocol):
    """What the search asks of an engine."""

    @property
    def counters(self) -> Mapping[str, int | float]:
        """What has been done so far."""
        ...

    def root(self, ids: Sequence[int]) -> Prefix:
        """Returns a new sequence; ValueError where it leaves no room for an answer."""
        ...

    def extend(self, prefix: Prefix, ids: Sequence[int]) -> Prefix:
        """Returns a new sequence, `prefix` and then `ids`; ValueError as in `root`."""
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

    @property
    def hungry(self) -> bool:
        """True where more requests would keep more of the engine busy."""
        ...


def generate(engine: EngineLike, requests: Sequence[Request]) -> list[Result]:
    """Returns the results of all requests, in their order."""
    for request in requests:
        engine.submit(request)
    found: dict[Hashable, Result] = {}
    while len(found) < len(requests):
        engine.step()
        found |= {result.id: result for result in engine.collect()}
    return [found[request.id] for request in requests]


def key_of(parts: tuple[int | str, ...]) -> np.ndarray:
    """Returns the random key [2] uint32 made of a request's `key`."""
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    return np.frombuffer(hashlib.blake2b(text.encode(), digest_size=8).digest(), np.uint32)
