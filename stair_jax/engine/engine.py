"""Continuous batching over a fixed number of slots, with prefixes computed once and forked.

A request waits in the queue, in the order of turns; gets pages and waits at hand (`_ready`) or in
a slot; runs; ends.
What runs and what is at hand goes to the device for a chunk of steps, in which a slot that ends
takes up the next request at hand by itself.
"""

import collections
import time
from collections.abc import Collection, Hashable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from stair_jax.config.schema import EngineConfig
from stair_jax.engine import batch, decode
from stair_jax.engine.counters import COUNTERS
from stair_jax.engine.device import Device, Wanted
from stair_jax.engine.kv_filler import Job, KvFiller
from stair_jax.engine.pages import OutOfPages, Pages
from stair_jax.engine.queue import RequestQueue
from stair_jax.engine.request import Partial, Prefix, Request, Result, Sampling, generate
from stair_jax.engine.runs import ALONE, ActiveRequest, ActiveRequests
from stair_jax.engine.sequences import Held, Store
from stair_jax.engine.siblings import Siblings
from stair_jax.model.spec import Spec
from stair_jax.program import Program

LEAST = 16  # a share of the slots, as one in so many, for which a request waits at least
WEAR = 0.9  # of the high mark of slots that a chunk frees, each chunk


class Engine:
    """Answers requests with a model. `submit`, `step` and `collect`, or `generate` for all three.

    The last token of a sequence has no keys yet: whoever continues it feeds it first. So a prompt
    needs no logits, and a child node starts from its parent's pages as they are.

    Args:
      params: parameters of `spec`, in any float dtype and place; or `Placed` on `mesh`. With
        `placing.Planned` nothing is allocated: it answers no request, but has its `programs`.
      stops: named stop sets of token ids.
      vocab: number of tokens that may be drawn (a tokenizer's length).
      mesh: where the model is to lie; None for the default device.

    Raises:
      ValueError: where the pool cannot hold one full context, or attention cannot run here.
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
        self.config, self._spec = config, spec
        self._counters: dict[str, int | float] = dict.fromkeys(COUNTERS, 0)
        self._stop_index = {name: i for i, name in enumerate(stops)}
        self._stops = table = np.zeros((len(stops), spec.V), bool)
        for row, ids in zip(table, stops.values(), strict=True):
            row[sorted(ids)] = True
        self._device = Device(spec, params, config=config, stops=table, vocab=vocab, mesh=mesh)
        self._store = Store(Pages(self._device.pages), config.page_size)
        self._keys = KvFiller(
            self._store,
            rows=config.prefill_rows,
            extend=self._extend,
            copy=self._device.copy,
            bucket=self._device.bucket,
        )
        self._runs = ActiveRequests(
            config.slots + self._device.waiting_rows,
            width=self._device.context_pages,
            context=config.max_context,
            page_size=config.page_size,
        )
        self._queue = RequestQueue()
        # Those for slots that end in a chunk.
        self._ready: collections.deque[ActiveRequest] = collections.deque()
        self._slots: list[ActiveRequest | None] = [None] * config.slots
        self._unseen: list[int] = []  # slots whose requests the device's views do not show yet
        self._short = False  # of pages, when requests were last admitted
        self._chunk: decode.Chunk | None = None  # under way
        self._at_hand: list[ActiveRequest | None] = []  # in it, by row of the batch
        self._done: list[Result] = []
        self._freed = float(min(config.slots, self._device.waiting_rows))  # see `hungry`
        self._logps = False  # once they were wanted, all chunks have them: one program
        self._clock, self._compiled = time.perf_counter(), decode.compiled()

    @property
    def counters(self) -> Mapping[str, int | float]:
        """What has been done so far; the names are explained at `counters.COUNTERS`.

        Besides: `evicted` sequences, `pages_high_water`, and `compiles`: the engines' programs that
        JAX has compiled since this engine was made.
        """
        return self._counters | {
            "prefilled": self._keys.prefilled,
            "reused": self._counters["reused"] + self._keys.reused,
            "evicted": self._store.evicted,
            "pages_high_water": self._store.pages.high_water,
            "compiles": decode.compiled() - self._compiled,
        }

    @property
    def hungry(self) -> bool:
        """True where more requests would keep more slots busy.

        So many must wait as a chunk lets go, or slots idle until the next one. Any more would be
        asked for too early: what is asked for later, by what runs now, goes before it.
        """
        waiting = len(self._queue) + len(self._ready)
        return not self._short and waiting < max(1, self.config.slots // LEAST, self._freed)

    @property
    def idle(self) -> bool:
        """True where no request is queued or running."""
        return not (self._queue or self._ready or any(self._slots))

    def compile(
        self, samplings: Sequence[Sampling], *, logps: bool = False, extends: bool = False
    ) -> None:
        """Compiles all that requests with these samplings can need, so that none waits for it.

        Args:
          extends: whether `extend` will be used, too.
        """
        self._logps |= logps
        self._device.compile(self._kinds(samplings), extends=extends)
        self.start_clock()

    def programs(
        self, samplings: Sequence[Sampling], *, logps: bool = False, extends: bool = False
    ) -> list[Program]:
        """Returns what `compile` compiles, each program once; the arguments are the same."""
        self._logps |= logps
        return self._device.programs(self._kinds(samplings), extends=extends)

    def _kinds(self, samplings: Sequence[Sampling]) -> list[Wanted]:
        kinds = {Wanted.of([s], logps=self._logps, vocab=self._spec.V) for s in samplings}
        return sorted(kinds, key=str)

    @property
    def device_bytes(self) -> Mapping[str, int]:
        """Bytes on each of its devices."""
        return {"weights": self._device.weight_bytes, "pool": self._device.pool_bytes}

    def start_clock(self) -> None:
        """Makes the host's time count from now: what went before was no work between chunks."""
        self._clock = time.perf_counter()

    def root(self, ids: Sequence[int]) -> Prefix:
        """Returns a new sequence; its keys are computed when it is first continued.

        Raises:
          ValueError: where `ids` is empty or leaves no room in the context.
        """
        return Held(self._fitting(ids))

    def extend(self, prefix: Prefix, ids: Sequence[int]) -> Prefix:
        """Returns a new sequence: `prefix` followed by `ids`, which are given and not drawn.

        It reads the keys of `prefix`, whose owner may give that back at once; the new tokens' keys
        are computed when it is first continued.

        Raises:
          ValueError: for a released prefix, or where no room is left in the context.
        """
        base = self._store.held(prefix)
        longer = Held(self._fitting((*base.ids, *ids)))
        return self._store.extend(longer, base, len(base.ids))

    def _fitting(self, ids: Sequence[int]) -> Sequence[int]:
        if not 0 < len(ids) < self.config.max_context:
            raise ValueError(
                f"prompt of {len(ids)} tokens, expected 1 to {self.config.max_context - 1}"
                " (engine.max_context less one for the answer)"
            )
        return ids

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
        self._queue.push(request)

    def step(self) -> None:
        """Takes up a chunk, and starts the next one where that is better done at once."""
        if self._chunk is None:
            self.start()
        self.finish()
        self.go_on()

    def start(self) -> None:
        """Admits what fits and starts a chunk, without waiting for it."""
        if self._chunk is not None:
            raise RuntimeError("engine: a chunk is under way, finish it first")
        self._admit()
        self._reserve()
        if any(self._slots):
            self._decode()

    def go_on(self) -> None:
        """Starts the next chunk before the last one's results are dealt with, where it can be full.

        Then the device works while the host does. Where too few requests wait for the slots that
        are free, what is asked for next shall come first. Views wait too: they are a CPU's, whose
        cores the host needs as well.
        """
        if not self._device.waiting_rows and self._slots.count(None) <= len(self._queue):
            self.start()

    @property
    def under_way(self) -> bool:
        """True between `start` and `finish`, where there was something to do."""
        return self._chunk is not None

    @property
    def ready(self) -> bool:
        """True where `finish` would not wait."""
        return self._chunk is None or self._chunk.steps.is_ready()

    def finish(self) -> None:
        """Waits for the chunk under way, if there is one, and takes up its results."""
        if self._chunk is None:
            return
        chunk, self._chunk = jax.device_get(self._chunk), None
        self._lap("device_s")
        self._take_up(chunk)

    def collect(self) -> list[Result]:
        """Returns the requests finished since the last call."""
        done, self._done = self._done, []
        return done

    def partial(self, have: Mapping[Hashable, int]) -> dict[Hashable, Partial]:
        """Returns what running requests have drawn since somebody looked, up to the last chunk.

        A preempted request draws the same tokens again: until it is past those that the caller has,
        there is nothing new of it. Its last tokens come with its result alone.

        Args:
          have: how many new tokens of a request the caller has, by request id.
        """
        found: dict[Hashable, Partial] = {}
        for run in self._at_work():
            first = have.get(run.request.id)
            if first is not None and run.made > first:
                ids, logps = self._runs.drawn(run)
                found[run.request.id] = Partial(tuple(ids[first:]), tuple(logps[first:]))
        return found

    @property
    def occupancy(self) -> dict[str, int]:
        """How full it is: `pages` and `pages_used`, `slots` and `slots_used`, `queued` requests."""
        pages = self._store.pages
        return {
            "pages": len(pages.owners),
            "pages_used": len(pages.owners) - len(pages.free),
            "slots": self.config.slots,
            "slots_used": self.config.slots - self._slots.count(None),
            "queued": len(self._queue) + len(self._ready),
        }

    def generate(self, requests: Sequence[Request]) -> list[Result]:
        """Returns the results of all requests, in their order."""
        return generate(self, requests)

    def release(self, prefix: Prefix) -> None:
        """Gives a sequence back; requests that still run on it finish all the same."""
        self._store.release(self._store.held(prefix))

    def cancel(self, request_id: Hashable) -> None:
        """Forgets a queued, running or uncollected request; it gives no result."""
        self.finish()
        for request in self._queue.remove(request_id):
            self._store.leave(_held(request))
        for run in [run for run in self._at_work() if run.request.id == request_id]:
            self._withdraw(run)
            self._store.leave(_held(run.request))
        for result in [r for r in self._done if r.id == request_id]:
            self._done.remove(result)
            self.release(result.prefix)

    def _at_work(self) -> Iterator[ActiveRequest]:
        """Returns the requests that have pages, the oldest in their slots first."""
        yield from (run for run in self._slots if run is not None)
        yield from self._ready

    def _lap(self, counter: str) -> None:
        now = time.perf_counter()
        self._counters[counter] += now - self._clock
        self._clock = now

    # Admission

    def _admit(self) -> None:
        """Gives pages to the oldest requests, as far as slots, rows and pages reach."""
        free = [slot for slot, run in enumerate(self._slots) if run is None]
        room = len(free) + self._device.waiting_rows - len(self._ready)
        requests: list[Request] = []
        while self._queue and len(requests) < room:
            request = self._queue.pop()
            if self._room(request) > 0:
                requests.append(request)
            else:
                self._deliver(request, [], [], Held(request.prefix.ids), stopped=False)
        sequences = [_held(request) for request in requests]
        started, copies = 0, []
        for index in range(self._keys.compute(sequences)):
            # Keys computed a moment ago may have been evicted again for an older request.
            if not sequences[index].computed:
                break
            try:
                pages, copy = self._store.fork(sequences[index], pinned=sequences[: index + 1])
            except OutOfPages:
                break
            self._ready.append(self._begin(requests[index], pages))
            copies += [copy] if copy else []
            started += 1
        self._short = started < len(requests)
        for request in reversed(requests[started:]):
            self._queue.push_back(request)
        self._device.copy(copies)
        self._ready = collections.deque(sorted(self._ready, key=_order))
        for slot in free[: len(self._ready)]:
            self._slots[slot] = self._ready.popleft()
            self._unseen.append(slot)

    def _room(self, request: Request) -> int:
        return min(request.max_tokens, self.config.max_context - len(request.prefix.ids))

    def _begin(self, request: Request, pages: list[int]) -> ActiveRequest:
        """Returns the run of a request that has got its pages."""
        self._counters["reused"] += _held(request).wanted
        stop, limit = self._stop_index[request.stop], self._room(request)
        return self._runs.begin(request, pages, stop=stop, limit=limit)

    def _extend(self, jobs: Sequence[Job]) -> None:
        """Computes what sequences lack, up to `prefill_rows` of them."""
        pages = [job.sequence.pages for job in jobs]
        self._device.extend([job.ids for job in jobs], pages, [job.start for job in jobs])

    def _reserve(self) -> None:
        """Gives every admitted request pages for a chunk; under shortage the youngest yields."""
        while True:
            rows = _rows(list(self._at_work()))
            missing = self._runs.missing(rows, self.config.chunk)
            try:
                self._runs.add(rows, missing, self._store.take(int(missing.sum())))
                return
            except OutOfPages:
                self._short = True
                self._preempt()

    def _preempt(self) -> None:
        """Sends the youngest request back to the queue, where it will draw the same tokens."""
        runs = list(self._at_work())
        if len(runs) == 1:
            raise RuntimeError("engine: one request alone finds no pages, some were lost")
        run = max(runs, key=_order)
        self._withdraw(run)
        self._queue.push_back(run.request)
        self._counters["preempted"] += 1
        self._counters["preempted_tokens"] += run.made

    def _withdraw(self, run: ActiveRequest) -> None:
        """Takes a request out of its slot, or from those that wait for one, and its pages back."""
        if run in self._ready:
            self._ready.remove(run)
        else:
            slot = self._slots.index(run)
            self._slots[slot] = None
            self._unseen = [s for s in self._unseen if s != slot]
        self._store.pages.drop(run.pages)
        self._runs.end(run)

    # Decoding

    def _decode(self) -> None:
        """Starts a chunk with every admitted request."""
        slots, device, runs = self.config.slots, self._device, self._runs
        self._at_hand = [*self._slots, *self._ready]
        at = np.flatnonzero([run is not None for run in self._at_hand])  # rows of the batch in use
        rows = _rows([run for run in self._at_hand if run is not None])
        idle = slots - self._slots.count(None) == len(self._unseen)
        if device.widen(int(runs.pages[rows].max()), idle=idle):
            self._unseen = [slot for slot, run in enumerate(self._slots) if run is not None]
        packed = np.zeros((slots + device.waiting_rows, len(batch.COLUMNS)), np.int32)
        table = np.zeros((len(packed), device.width), np.int32)
        packed[at] = runs.columns[rows]
        table[at] = runs.table[rows, : device.width]
        device.load(self._unseen, table[self._unseen])
        self._unseen = []
        self._logps |= runs.want_logps > 0
        wanted = Wanted.of(list(runs.samplings), vocab=self._spec.V, logps=self._logps)
        siblings = None
        if device.shares:
            team, shared = np.full(slots, ALONE), np.zeros(slots, np.int32)
            team[at], shared[at] = runs.team[rows], runs.shared[rows]
            siblings = Siblings.of(team, shared, table, self.config.page_size, device.group_counts)
        own = table if siblings is None else siblings.own
        self._lap("host_s")
        self._chunk = device.decode(packed, own, siblings, wanted)

    def _take_up(self, chunk: decode.Chunk) -> None:
        """Takes up what a chunk drew, and who is in which slot now."""
        drew, hand = (chunk.tokens != decode.NO_TOKEN).any(axis=1), self._at_hand
        steps, busy = int(chunk.steps), int((chunk.tokens != decode.NO_TOKEN).sum())
        self._counters["chunks"] += 1
        self._counters["steps"] += steps
        self._counters["decoded"] += busy
        self._counters["busy_slots"] += busy
        unused = steps * self.config.slots - busy
        self._counters["overshoot" if self._queue else "idle_slots"] += unused
        self._slots = [None if at == decode.NO_ROW else hand[at] for at in chunk.row.tolist()]
        at = np.array([i for i in np.flatnonzero(drew) if hand[i] is not None], np.int64)
        runs = [run for i in at if (run := hand[i]) is not None]
        rows = _rows(runs)
        self._runs.grow(rows, chunk, at)
        ended, stopped = self._runs.ended(rows, self._stops)
        self._freed = max(float(ended.sum()), WEAR * self._freed)
        for i in np.flatnonzero(ended).tolist():
            self._end(runs[i], stopped=bool(stopped[i]))
        started = {id(run) for run in self._slots}
        self._ready = collections.deque(
            run for run in self._ready if not run.made and id(run) not in started
        )

    def _end(self, run: ActiveRequest, *, stopped: bool) -> None:
        """Delivers a request that has drawn its last token."""
        ids, logps = self._runs.drawn(run)
        pages, used = run.pages, self._store.size(run.length)
        self._store.pages.drop(pages[used:])
        sequence = Held(run.request.prefix.ids + tuple(ids))
        self._store.hold(sequence, pages[:used])
        self._runs.end(run)
        self._deliver(run.request, ids, logps, sequence, stopped=stopped)

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


def _held(request: Request) -> Held:
    assert isinstance(request.prefix, Held)  # `submit` has checked
    return request.prefix


def _order(run: ActiveRequest) -> tuple[int, int]:
    """Returns what decides which of two requests goes first: its turn, then its age."""
    return run.request.turn, run.age


def _rows(runs: Sequence[ActiveRequest]) -> np.ndarray:
    """Returns where runs lie, [X] int64."""
    return np.fromiter((run.row for run in runs), np.int64, len(runs))
