"""Replicas of an engine, each on devices of its own: one queue of trees, no lock-step."""

import collections
import time
from collections.abc import Collection, Hashable, Mapping, Sequence
from concurrent import futures
from typing import Any

import jax
import jax.numpy as jnp

from stair_jax import startup
from stair_jax.config.schema import EngineConfig
from stair_jax.engine import placing
from stair_jax.engine.device import joins
from stair_jax.engine.engine import Engine
from stair_jax.engine.request import Partial, Prefix, Request, Result, Sampling, generate
from stair_jax.model.spec import Spec

PAUSE_S = 0.0002  # between looks at the replicas, while all of them work


class Replicas:
    """Engines that answer as one. A sequence and all that continues it stay on one replica.

    Each has its own pool and queue; `step` lets those work on whose chunk is done, and waits only
    where none is.

    Args:
      meshes: of the replicas, None for the default device. The other arguments are those of
        `Engine` and count for each.
      params: parameters of `spec`, in any float dtype and place, which go to all replicas in one
        pass; or what is for each of them, such as `Placed`.
    """

    def __init__(
        self,
        spec: Spec,
        params: Any,
        *,
        config: EngineConfig,
        stops: Mapping[str, Collection[int]],
        vocab: int,
        meshes: Sequence[jax.sharding.Mesh | None],
    ):
        placed = params
        if isinstance(params, Mapping):
            dtype, joined = jnp.dtype(config.dtype), joins(config)
            placed = placing.place(spec, params, meshes, dtype=dtype, joined=joined)
        self._engines = [
            Engine(spec, own, config=config, stops=stops, vocab=vocab, mesh=mesh)
            for own, mesh in zip(placed, meshes, strict=True)
        ]
        self._home: dict[Prefix, Engine] = {}  # of every sequence that is held
        self._asked: dict[Hashable, Engine] = {}  # of every request without a result
        self._load: collections.Counter[int] = collections.Counter()  # of both, by replica

    @property
    def counters(self) -> Mapping[str, int | float]:
        """The sums of the replicas' counters; see `Engine.counters`."""
        parts = [engine.counters for engine in self._engines]
        total = {name: sum(part[name] for part in parts) for name in parts[0]}
        return total | {"compiles": parts[0]["compiles"]}  # counted for the whole process

    @property
    def hungry(self) -> bool:
        """True where more requests would keep more slots of some replica busy."""
        return any(engine.hungry for engine in self._engines)

    @property
    def idle(self) -> bool:
        """True where no request is queued or running."""
        return all(engine.idle for engine in self._engines)

    def compile(
        self, samplings: Sequence[Sampling], *, logps: bool = False, extends: bool = False
    ) -> None:
        """Compiles all that requests with these samplings can need, on every replica.

        On accelerators with a cache of programs on disk the first replica compiles alone, and the
        others read what it has written: an entry's name says nothing of which device it is for.
        On CPUs it does, so all compile at once.
        """
        wanted, rest = {"logps": logps, "extends": extends}, self._engines
        if startup.kept_in() and jax.default_backend() != "cpu":
            self._engines[0].compile(samplings, **wanted)
            rest = self._engines[1:]
        with futures.ThreadPoolExecutor(max(1, len(rest))) as pool:
            list(pool.map(lambda e: e.compile(samplings, **wanted), rest))
        self.start_clock()

    def start_clock(self) -> None:
        """See `Engine.start_clock`."""
        for engine in self._engines:
            engine.start_clock()

    def root(self, ids: Sequence[int]) -> Prefix:
        """Returns a new sequence, on the replica that has most to spare; see `Engine.root`."""
        engine = min(self._engines, key=lambda e: (not e.hungry, self._load[id(e)]))
        return self._hold(engine.root(ids), engine)

    def extend(self, prefix: Prefix, ids: Sequence[int]) -> Prefix:
        """Returns a new sequence where `prefix` is; see `Engine.extend`."""
        engine = self._home_of(prefix)
        return self._hold(engine.extend(prefix, ids), engine)

    def submit(self, request: Request) -> None:
        """Queues a request where its prefix is; see `Engine.submit`."""
        engine = self._home_of(request.prefix)
        engine.submit(request)
        self._asked[request.id] = engine
        self._load[id(engine)] += 1

    def step(self) -> None:
        """Starts a chunk on every replica that has none under way; takes up those that are done.

        What is done goes on at once, where it can: a device should not wait for the caller.
        """
        for engine in self._engines:
            if not engine.under_way:
                engine.start()
        working = [engine for engine in self._engines if engine.under_way]
        while working and not any(engine.ready for engine in working):
            time.sleep(PAUSE_S)
        for engine in working:
            if engine.ready:
                engine.finish()
                engine.go_on()

    def collect(self) -> list[Result]:
        """Returns the requests finished since the last call."""
        found = []
        for engine in self._engines:
            for result in engine.collect():
                self._hold(result.prefix, engine)
                self._forget(result.id)
                found.append(result)
        return found

    def partial(self, have: Mapping[Hashable, int]) -> dict[Hashable, Partial]:
        """Returns what running requests have drawn since somebody looked; see `Engine.partial`."""
        return {k: v for engine in self._engines for k, v in engine.partial(have).items()}

    @property
    def occupancy(self) -> dict[str, int]:
        """The sums of the replicas' figures; see `Engine.occupancy`."""
        parts = [engine.occupancy for engine in self._engines]
        return {name: sum(part[name] for part in parts) for name in parts[0]}

    def generate(self, requests: Sequence[Request]) -> list[Result]:
        """Returns the results of all requests, in their order."""
        return generate(self, requests)

    def release(self, prefix: Prefix) -> None:
        """Gives a sequence back."""
        engine = self._home_of(prefix)
        engine.release(prefix)
        del self._home[prefix]
        self._load[id(engine)] -= 1

    def cancel(self, request_id: Hashable) -> None:
        """Forgets a queued, running or uncollected request; it gives no result."""
        if (engine := self._asked.get(request_id)) is not None:
            engine.cancel(request_id)
            self._forget(request_id)

    def _forget(self, request_id: Hashable) -> None:
        self._load[id(self._asked.pop(request_id))] -= 1

    def _hold(self, prefix: Prefix, engine: Engine) -> Prefix:
        self._home[prefix] = engine
        self._load[id(engine)] += 1
        return prefix

    def _home_of(self, prefix: Prefix) -> Engine:
        if prefix not in self._home:
            raise ValueError("prefix: released already, or not made by this engine")
        return self._home[prefix]
