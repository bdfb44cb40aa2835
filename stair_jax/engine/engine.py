"""Continuous batching over a fixed number of slots, with prefixes computed once and forked."""

import collections
import contextlib
import dataclasses
import hashlib
from collections.abc import Collection, Hashable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from stair_jax import mesh as mesh_lib
from stair_jax.config import EngineConfig
from stair_jax.engine import decode, sampling
from stair_jax.engine.pages import OutOfPages, Pages
from stair_jax.engine.request import Prefix, Request, Result
from stair_jax.engine.sequences import Held, Store
from stair_jax.model import cache, transformer
from stair_jax.model.spec import Spec

COUNTERS = (
    "delivered",  # tokens of finished requests
    "decoded",  # tokens drawn, those of preempted requests included
    "prefilled",  # tokens whose keys were computed without drawing
    "reused",  # tokens whose keys a request found computed
    "chunks", "steps", "evicted", "preempted",
)  # fmt: skip
_SHARE = 0.85  # of a device's free memory that the pool takes; the rest is for temporaries
_HOST_BYTES = 2**30  # of the pool where the device does not say what it has
_BLOCKS = (16, 32, 64, 128, 256)  # prompt tokens of one call: the smallest that fits, or the last


@dataclasses.dataclass
class _Running:
    """A request in a slot."""

    request: Request
    pages: list[int]
    ids: list[int] = dataclasses.field(default_factory=list)
    logps: list[float] = dataclasses.field(default_factory=list)


class Engine:
    """Answers requests with a model. `submit`, `step` and `collect`, or `generate` for all three.

    The last token of a sequence has no keys yet: whoever continues it feeds it first. So a prompt
    needs no logits, and a child node starts from its parent's pages as they are.

    Args:
      params: parameters of `spec`, in any float dtype and place.
      stops: named stop sets of token ids.
      vocab: number of tokens that may be drawn (a tokenizer's length).
      mesh: where the model is to lie; None for the default device.

    Raises:
      ValueError: where the pool cannot hold one full context.
    """

    def __init__(
        self,
        spec: Spec,
        params: Any,
        *,
        config: EngineConfig,
        stops: Mapping[str, Collection[int]],
        vocab: int,
        mesh: jax.sharding.Mesh | None = None,
    ):
        self.config, self._spec, self._vocab, self._mesh = config, spec, vocab, mesh
        self._counters = dict.fromkeys(COUNTERS, 0)
        self._decoder = transformer.Decoder(spec, jnp.dtype(config.dtype))
        self._width = -(-config.max_context // config.page_size)
        self._params = self._place_params(params)
        self._store = Store(Pages(page_count(spec, config, _free_bytes())), config.page_size)
        self._pool = self._empty_pool()
        self._stop_index = {name: i for i, name in enumerate(stops)}
        self._stops = np.zeros((len(stops), spec.V), bool)
        for row, ids in zip(self._stops, stops.values(), strict=True):
            row[sorted(ids)] = True
        self._slots = decode.Slots.empty(config.slots)
        self._table = np.zeros((config.slots, self._width), np.int32)
        self._running: dict[int, _Running] = {}  # by slot, the youngest last
        self._queue: collections.deque[Request] = collections.deque()
        self._done: list[Result] = []

    def _place_params(self, params: Any) -> Any:
        """Returns the parameters in the engine's dtype, on its mesh."""
        dtype = jnp.dtype(self.config.dtype)
        params = jax.tree.map(lambda x: jnp.asarray(x, dtype), params)
        return self._spread(params, transformer.logical_axes(self._spec))

    def _empty_pool(self) -> cache.KVPool:
        """Returns a pool of zeros, split over kv heads where the mesh divides them."""
        pool = cache.empty_pool(
            self._spec, pages=len(self._store.pages.owners), page_size=self.config.page_size,
            dtype=jnp.dtype(self.config.dtype),
        )  # fmt: skip
        return self._spread(pool, cache.KVPool(k=cache.POOL_AXES, v=cache.POOL_AXES))

    def _spread(self, tree: Any, axes: Any) -> Any:
        if self._mesh is None:
            return tree
        rules = mesh_lib.ENGINE_RULES
        return jax.device_put(tree, mesh_lib.shardings(axes, self._mesh, tree, rules=rules))

    @property
    def counters(self) -> Mapping[str, int]:
        """What has been done so far; the names are explained at `COUNTERS`."""
        return self._counters | {"evicted": self._store.evicted}

    def root(self, ids: Sequence[int]) -> Prefix:
        """Returns a new sequence; its keys are computed when it is first continued.

        Raises:
          ValueError: where `ids` is empty or leaves no room in the context.
        """
        if not 0 < len(ids) < self.config.max_context:
            raise ValueError(
                f"prompt of {len(ids)} tokens, expected 1 to {self.config.max_context - 1}"
                " (engine.max_context less one for the answer)"
            )
        return Held(ids)

    def submit(self, request: Request) -> None:
        """Queues a request.

        Raises:
          ValueError: for an unknown stop set, no tokens wanted, or a released prefix.
        """
        if request.stop not in self._stop_index:
            raise ValueError(f"stop set {request.stop!r} is not one of {list(self._stop_index)}")
        if request.max_tokens < 1:
            raise ValueError(f"max_tokens={request.max_tokens}, expected 1 or more")
        self._store.held(request.prefix).users += 1
        self._queue.append(request)

    def step(self) -> None:
        """Admits what fits and decodes one chunk."""
        self._admit()
        self._reserve()
        if self._running:
            self._decode()

    def collect(self) -> list[Result]:
        """Returns the requests finished since the last call."""
        done, self._done = self._done, []
        return done

    def generate(self, requests: Sequence[Request]) -> list[Result]:
        """Returns the results of all requests, in their order."""
        for request in requests:
            self.submit(request)
        found: dict[Hashable, Result] = {}
        while len(found) < len(requests):
            self.step()
            found |= {result.id: result for result in self.collect()}
        return [found[request.id] for request in requests]

    def release(self, prefix: Prefix) -> None:
        """Gives a sequence back; requests that still run on it finish all the same."""
        self._store.release(self._store.held(prefix))

    def cancel(self, request_id: Hashable) -> None:
        """Forgets a queued or running request; it gives no result."""
        for request in [r for r in self._queue if r.id == request_id]:
            self._queue.remove(request)
            self._store.leave(_held(request))
        for slot in [s for s, run in self._running.items() if run.request.id == request_id]:
            run = self._vacate(slot)
            self._store.pages.drop(run.pages)
            self._store.leave(_held(run.request))

    @property
    def idle(self) -> bool:
        """True where no request is queued or running."""
        return not self._queue and not self._running

    # Admission

    def _admit(self) -> None:
        """Gives free slots to the oldest requests, as far as pages reach."""
        free = [s for s in range(self.config.slots) if s not in self._running]
        batch: list[Request] = []
        while self._queue and len(batch) < len(free):
            request = self._queue.popleft()
            if self._room(request) > 0:
                batch.append(request)
            else:
                self._deliver(request, [], [], Held(request.prefix.ids), stopped=False)
        ready = self._compute([_held(request) for request in batch])
        started, copies = 0, []
        for slot, request in zip(free, batch[:ready], strict=False):
            sources = [_held(r) for r in batch[: started + 1]]
            # Keys computed a moment ago may have been evicted again for an older request.
            if not sources[-1].computed:
                break
            try:
                pages, copy = self._store.fork(sources[-1], pinned=sources)
            except OutOfPages:
                break
            self._occupy(slot, request, pages)
            copies += [copy] if copy else []
            started += 1
        self._queue.extendleft(reversed(batch[started:]))
        self._copy(copies)

    def _room(self, request: Request) -> int:
        return min(request.max_tokens, self.config.max_context - len(request.prefix.ids))

    def _occupy(self, slot: int, request: Request, pages: list[int]) -> None:
        sequence, s, how = _held(request), self._slots, request.sampling
        self._running[slot] = _Running(request, pages)
        s.last[slot], s.length[slot] = sequence.ids[-1], sequence.wanted
        s.made[slot], s.limit[slot], s.active[slot] = 0, self._room(request), 1
        s.stop[slot], s.key[slot] = self._stop_index[request.stop], key_of(request.key)
        s.temperature[slot], s.top_k[slot], s.top_p[slot] = how.temperature, how.top_k, how.top_p
        self._counters["reused"] += sequence.wanted

    def _copy(self, copies: list[list[int]]) -> None:
        if copies:
            nowhere = len(self._store.pages.owners)
            pairs = np.full((self.config.slots, 2), nowhere, np.int32)
            pairs[: len(copies)] = copies
            self._pool = decode.copy_pages(self._pool, pairs[:, 0], pairs[:, 1])

    # Keys of prompts, and of sequences that lost theirs

    def _compute(self, batch: list[Held]) -> int:
        """Computes missing keys; returns how many sequences, from the first on, now have them."""
        groups: dict[int, list[Held]] = collections.defaultdict(list)
        ready = len(batch)
        for index, sequence in enumerate(batch):
            if sequence.computed:
                continue
            try:
                pages = self._store.take(self._store.size(sequence.wanted), batch[: index + 1])
            except OutOfPages:
                ready = index
                break
            self._store.hold(sequence, pages)
            groups[next((b for b in _BLOCKS if b >= sequence.wanted), _BLOCKS[-1])].append(sequence)
        rows = self.config.prefill_rows
        for block, group in sorted(groups.items()):
            for start in range(0, len(group), rows):
                self._extend(group[start : start + rows], block)
        return ready

    def _extend(self, group: list[Held], block: int) -> None:
        """Computes all but the last token of up to `prefill_rows` sequences, block by block."""
        rows = self.config.prefill_rows
        longest = -(-max(s.wanted for s in group) // block) * block
        ids = np.zeros((rows, longest), np.int32)
        table, total = np.zeros((rows, self._width), np.int32), np.zeros(rows, np.int32)
        for row, sequence in enumerate(group):
            total[row] = sequence.wanted
            ids[row, : sequence.wanted] = sequence.ids[:-1]
            table[row, : len(sequence.pages)] = sequence.pages
        for start in range(0, longest, block):
            with self._on_mesh():
                self._pool = decode.extend(
                    self._params, self._pool, ids[:, start : start + block],
                    np.minimum(total, start), np.clip(total - start, 0, block), table,
                    decoder=self._decoder,
                )  # fmt: skip
        self._counters["prefilled"] += int(total.sum())

    # Decoding

    def _reserve(self) -> None:
        """Gives every slot pages for the next chunk; under shortage the youngest slot yields."""
        s = self._slots
        for slot in list(self._running):
            while slot in self._running:
                run = self._running[slot]
                ahead = min(self.config.chunk, int(s.limit[slot] - s.made[slot]))
                wanted = self._store.size(int(s.length[slot]) + ahead)
                try:
                    run.pages += self._store.take(max(0, wanted - len(run.pages)))
                    self._table[slot, : len(run.pages)] = run.pages
                    break
                except OutOfPages:
                    self._preempt()

    def _preempt(self) -> None:
        """Sends the youngest request back to the queue, where it will draw the same tokens."""
        if len(self._running) == 1:
            raise RuntimeError("engine: one request alone finds no pages, some were lost")
        run = self._vacate(next(reversed(self._running)))
        self._store.pages.drop(run.pages)
        self._queue.appendleft(run.request)
        self._counters["preempted"] += 1

    def _decode(self) -> None:
        s, active = self._slots, self._slots.active > 0
        candidates = sampling.candidates_for(
            s.temperature[active], s.top_k[active], s.top_p[active], self._spec.V
        )
        with self._on_mesh():
            self._pool, *out = decode.decode_chunk(
                self._params, self._pool, s.pack(self._table), self._stops, decoder=self._decoder,
                chunk=self.config.chunk, candidates=candidates, vocab=self._vocab,
            )  # fmt: skip
        tokens, logps = jax.device_get(out)
        self._counters["chunks"] += 1
        self._counters["steps"] += int((tokens != decode.NO_TOKEN).any(axis=0).sum())
        for slot in list(self._running):
            count = int((tokens[slot] != decode.NO_TOKEN).sum())
            self._advance(slot, tokens[slot, :count].tolist(), logps[slot, :count].tolist())

    def _advance(self, slot: int, tokens: list[int], logps: list[float]) -> None:
        """Takes up a slot's new tokens, and delivers the request where it has ended."""
        run, s, count = self._running[slot], self._slots, len(tokens)
        run.ids += tokens
        run.logps += logps
        self._counters["decoded"] += count
        s.last[slot] = run.ids[-1]
        s.length[slot] += count
        s.made[slot] += count
        stopped = bool(self._stops[s.stop[slot], run.ids[-1]])
        if stopped or s.made[slot] >= s.limit[slot]:
            self._vacate(slot)
            used = self._store.size(int(s.length[slot]))
            self._store.pages.drop(run.pages[used:])
            sequence = Held(run.request.prefix.ids + tuple(run.ids))
            self._store.hold(sequence, run.pages[:used])
            self._deliver(run.request, run.ids, run.logps, sequence, stopped=stopped)

    def _deliver(
        self, request: Request, ids: list[int], logps: list[float], sequence: Held, *, stopped: bool
    ) -> None:
        self._counters["delivered"] += len(ids)
        result = Result(
            id=request.id,
            ids=tuple(ids),
            logps=tuple(logps),
            prefix=sequence,
            finish="stop" if stopped else "length",
        )
        self._done.append(result)
        self._store.leave(_held(request))

    def _vacate(self, slot: int) -> _Running:
        self._slots.active[slot] = 0
        return self._running.pop(slot)

    def _on_mesh(self) -> contextlib.AbstractContextManager[Any]:
        return contextlib.nullcontext() if self._mesh is None else jax.set_mesh(self._mesh)


def _held(request: Request) -> Held:
    assert isinstance(request.prefix, Held)  # `submit` has checked
    return request.prefix


def key_of(parts: tuple[int | str, ...]) -> np.ndarray:
    """Returns the random key [2] uint32 that a request's `key` stands for."""
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    return np.frombuffer(hashlib.blake2b(text.encode(), digest_size=8).digest(), np.uint32)


def page_count(spec: Spec, config: EngineConfig, free_bytes: int | None = None) -> int:
    """Returns how many pages the pool has: `pool_bytes`, else four contexts a slot if they fit.

    Args:
      free_bytes: what the device has left; None where it does not say.

    Raises:
      ValueError: where that is too few for one context and a page to fork.
    """
    context = -(-config.max_context // config.page_size)
    page_bytes = 2 * spec.L * config.page_size * spec.K * spec.H * jnp.dtype(config.dtype).itemsize
    budget = _HOST_BYTES if free_bytes is None else int(free_bytes * _SHARE)
    count = config.pool_bytes // page_bytes
    if not config.pool_bytes:
        count = min(4 * config.slots * context, budget // page_bytes)
    if count < context + 1:
        raise ValueError(
            f"config.engine.pool_bytes: {config.pool_bytes or budget} bytes hold {count} pages of"
            f" {page_bytes} bytes, expected at least {context + 1} for one context"
        )
    return count


def _free_bytes() -> int | None:
    """Returns what the first device has left, None where it keeps no count (CPUs)."""
    stats = jax.local_devices()[0].memory_stats() or {}
    limit = stats.get("bytes_limit")
    return None if limit is None else limit - stats.get("bytes_in_use", 0)
