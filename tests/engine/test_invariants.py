"""The engine under random operations: nothing is lost, shared unawares, or given twice.

The rules run on the engine with a scripted device, whose tokens show every key that is not where
it should be, and, in fewer examples, on a model.
"""

import dataclasses
import functools
from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from stair_jax.config.schema import EngineConfig
from stair_jax.engine import engine
from stair_jax.engine.device import Device, attention_of
from stair_jax.engine.engine import Engine
from stair_jax.engine.request import Request, Sampling
from stair_jax.engine.sequences import Held
from stair_jax.model import transformer
from tests.support import specs
from tests.support.scripted_device import ScriptedDevice, drawn

SPEC = specs.llama(L=1, D=8, N=2, K=1, H=4, F=8, V=31)
CONFIG = EngineConfig(
    slots=4, page_size=4, pool_bytes=0, max_context=24, chunk=3, prefill_rows=2, dtype="float32"
)
CONTEXT = CONFIG.max_context // CONFIG.page_size
STOPS = {"step": {1, 2, 3, 4, 5, 6}, "end": {1}, "never": set()}
WARM = Sampling(temperature=1.5)
MODES: dict[str, dict[str, Any]] = {
    "views": {"attention": "views"},
    "xla": {"attention": "xla"},
    "sharing": {"attention": "xla", "share_prefix": "on"},
}


def pool_of(pages):
    return 2 * SPEC.L * CONFIG.page_size * SPEC.K * SPEC.H * 4 * pages


@functools.cache
def params():
    small = transformer.init(SPEC, jax.random.key(0))
    return jax.tree.map(lambda x: x * 4 if x.ndim > 2 else x * 1.5, small)


def make(*, scripted: bool = False, **change: Any):
    config = dataclasses.replace(CONFIG, **change)
    with pytest.MonkeyPatch.context() as patch:
        if scripted:
            patch.setattr(engine, "Device", ScriptedDevice)
        return Engine(SPEC, params(), config=config, stops=STOPS, vocab=SPEC.V, mesh=None)


def runs_of(engine):
    return [run for run in (*engine._slots, *engine._ready) if run is not None]


class EngineOperations(RuleBasedStateMachine):
    """Everything a caller may do, in any order, with a pool of hardly more than a context."""

    mode = "views"
    scripted = True

    def __init__(self):
        super().__init__()
        pool = pool_of(CONTEXT + 4)
        self.engine = make(scripted=self.scripted, pool_bytes=pool, **MODES[self.mode])
        self.held: list[Any] = []  # not released
        self.released: list[Any] = []
        self.path: dict[Any, Any] = {}  # what a sequence was a continuation of
        self.requests: dict[Any, Request] = {}  # that have no result yet, in order
        self.count = 0

    def pick(self, data, some):
        return data.draw(st.sampled_from(some))

    # Operations

    @rule(ids=st.lists(st.integers(7, 30), min_size=1, max_size=23))
    def root(self, ids):
        self.held.append(self.engine.root(ids))

    @precondition(lambda self: self.held)
    @rule(data=st.data(), ids=st.lists(st.integers(7, 30), min_size=0, max_size=9))
    def extend(self, data, ids):
        base = self.pick(data, self.held)
        if len(base.ids) + len(ids) >= CONFIG.max_context:
            with pytest.raises(ValueError, match="expected 1 to"):
                self.engine.extend(base, ids)
            return
        longer = self.engine.extend(base, ids)
        assert longer.ids == (*base.ids, *ids)
        self.held.append(longer)
        self.path[longer] = base

    @precondition(lambda self: self.held)
    @rule(
        data=st.data(),
        many=st.integers(1, 5),
        stop=st.sampled_from(list(STOPS)),
        tokens=st.integers(1, 30),
        together=st.booleans(),
        logps=st.booleans(),
        turn=st.integers(0, 3),
    )
    def submit(self, data, many, stop, tokens, together, logps, turn):
        """Siblings, as a rule: from one sequence, or from sequences with a common start."""
        parent = self.pick(data, self.held)
        path = self.path.get(parent, parent)
        family = [s for s in self.held if self.path.get(s) is path] or [parent]
        for i in range(many):
            prefix = family[i % len(family)] if together else parent
            common = path if together else parent
            self.count += 1
            request = Request(
                id=self.count,
                prefix=prefix,
                key=("k", self.count),
                stop=stop,
                max_tokens=tokens,
                sampling=WARM,
                group=id(common),
                shared=len(common.ids),
                turn=turn,
                logps=logps or not self.scripted,  # programs for both would be compiled
            )
            self.engine.submit(request)
            self.requests[request.id] = request

    @rule()
    def step(self):
        self.engine.finish()
        self.engine.step()

    @precondition(lambda self: not self.engine.under_way)
    @rule()
    def start(self):
        self.engine.start()
        if self.engine.under_way:
            with pytest.raises(RuntimeError, match="under way"):
                self.engine.start()

    @rule()
    def finish(self):
        self.engine.finish()
        assert self.engine.ready

    @rule()
    def collect(self):
        for result in self.engine.collect():
            request = self.requests.pop(result.id)
            self.check(request, result)
            assert isinstance(result.prefix, Held)
            self.held.append(result.prefix)
            self.path[result.prefix] = request.prefix

    @precondition(lambda self: self.requests)
    @rule(data=st.data())
    def cancel(self, data):
        """Whether queued, running, at hand or uncollected."""
        id = self.pick(data, list(self.requests))
        self.engine.cancel(id)
        self.engine.cancel(id)  # there is nothing left to cancel
        del self.requests[id]

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def release(self, data):
        sequence = self.held.pop(data.draw(st.integers(0, len(self.held) - 1)))
        self.engine.release(sequence)
        self.released.append(sequence)
        with pytest.raises(ValueError, match="released"):
            self.engine.release(sequence)

    # What must hold after each of them

    def check(self, request, result):
        assert result.prefix.ids == request.prefix.ids + result.ids
        assert len(result.logps) == (len(result.ids) if request.logps else 0)
        if self.scripted:
            want = drawn(request, vocab=SPEC.V, stops=STOPS, context=CONFIG.max_context)
            assert (result.ids, result.finish) == want

    def sequences(self):
        uncollected = [result.prefix for result in self.engine._done]
        return [*self.held, *self.released, *uncollected]

    @invariant()
    def references_add_up_and_the_free_list_is_exact(self):
        pages = self.engine._store.pages
        held = [page for sequence in self.sequences() for page in sequence.pages]
        held += [page for run in runs_of(self.engine) for page in run.pages]
        assert pages.owners == [held.count(page) for page in range(len(pages.owners))]
        assert sorted(pages.free) == [p for p, owners in enumerate(pages.owners) if not owners]

    @invariant()
    def no_page_that_will_be_written_has_a_second_owner(self):
        for run in runs_of(self.engine):
            for page in run.pages[run.length // CONFIG.page_size :]:
                assert self.engine._store.pages.owners[page] == 1

    @invariant()
    def every_request_is_in_one_place(self):
        known: list[Any] = [request.id for request in self.engine._queue]
        known += [run.request.id for run in runs_of(self.engine)]
        known += [result.id for result in self.engine._done]
        assert sorted(known) == sorted(self.requests)
        assert self.engine.idle == (len(known) == len(self.engine._done))

    @invariant()
    def sequences_know_their_users_and_hold_nothing_beyond_them(self):
        waiting = [*self.engine._queue, *(run.request for run in runs_of(self.engine))]
        later = [sequence.base for sequence in self.sequences() if sequence.waits]
        for sequence in self.sequences():
            users = sum(request.prefix is sequence for request in waiting)
            assert sequence.users == users + sum(base is sequence for base in later)
            if sequence.released and not sequence.users:
                assert sequence.pages == []

    def teardown(self):
        while not self.engine.idle:
            self.step()
        self.collect()
        assert not self.requests
        for sequence in self.held:
            self.engine.release(sequence)
        pages, counters = self.engine._store.pages, self.engine.counters
        assert not any(pages.owners)
        assert sorted(pages.free) == list(range(len(pages.owners)))
        slot_steps = counters["steps"] * CONFIG.slots
        assert sum(counters[k] for k in ("busy_slots", "idle_slots", "overshoot")) == slot_steps


def machine(mode, *, scripted, examples):
    name = f"{mode}{scripted}"
    kind = type(name, (EngineOperations,), {"mode": mode, "scripted": scripted})
    kind.TestCase.settings = settings(max_examples=examples, stateful_step_count=40, deadline=None)
    return kind.TestCase


TestScriptedViews = machine("views", scripted=True, examples=120)
TestScriptedXla = machine("xla", scripted=True, examples=60)
TestScriptedSharing = machine("sharing", scripted=True, examples=120)
TestViews = machine("views", scripted=False, examples=6)
TestXla = machine("xla", scripted=False, examples=6)
TestSharing = machine("sharing", scripted=False, examples=6)


def family(engine, lengths, *, many, **change):
    """Requests of `many` siblings on prompts of some lengths, in groups."""
    roots = [engine.root(list(range(7, 7 + length))) for length in lengths]
    return [
        Request(
            id=(len(root.ids), i),
            prefix=root,
            key=("f", len(root.ids), i),
            stop="end",
            max_tokens=9,
            sampling=WARM,
            group=len(root.ids),
            shared=len(root.ids),
            logps=True,
        )
        for root in roots
        for i in range(many)
    ]


def answers(engine, requests):
    return {result.id: (result.ids, result.logps) for result in engine.generate(requests)}


LENGTHS = (3, 4, 5, 8, 13)  # within a page, at its end, over it


def test_sharing_changes_no_token_and_company_no_bit():
    alone: dict = {}
    for i, length in enumerate(LENGTHS):
        engine = make(**MODES["sharing"])
        alone |= answers(engine, [family(engine, [length], many=5)[i]])
    sharing, plain, order = (make(**MODES[mode]) for mode in ("sharing", "xla", "sharing"))
    together = answers(sharing, family(sharing, LENGTHS, many=5))
    assert {name: together[name] for name in alone} == alone
    assert answers(order, family(order, LENGTHS, many=5)[::-1]) == together
    apart = answers(plain, family(plain, LENGTHS, many=5))
    assert len({ids for ids, _ in together.values()}) > 15
    for name, (ids, logps) in together.items():
        assert ids == apart[name][0]
        np.testing.assert_allclose(logps, apart[name][1], atol=1e-5)


def test_siblings_that_run_side_by_side_are_grouped(monkeypatch):
    seen, decode = [], Device.decode

    def spy(self, packed, table, siblings, wanted):
        seen.append(siblings)
        return decode(self, packed, table, siblings, wanted)

    monkeypatch.setattr(Device, "decode", spy)
    sharing, plain = make(**MODES["sharing"]), make(**MODES["xla"])
    sharing.generate(family(sharing, [9], many=4))
    first = seen[0]
    assert first.length.tolist() == [8]
    assert sorted(first.member[0].tolist()) == [0, 1, 2, 3]
    assert all((siblings.split <= 8).all() for siblings in seen)
    seen.clear()
    plain.generate(family(plain, [9], many=4))
    assert seen
    assert not any(seen)


# What is asked for cannot be had, or hardly


@pytest.mark.parametrize("mode", MODES)
def test_the_smallest_pool_that_is_allowed_serves_the_largest_requests(mode):
    engine = make(scripted=True, pool_bytes=pool_of(CONTEXT + 1), **MODES[mode])
    roots = [engine.root([7 + i] * length) for i, length in enumerate((23, 22, 21, 20, 17, 2, 1))]
    requests = [
        Request(id=(i, k), prefix=root, key=(i, k), stop="never", max_tokens=99, sampling=WARM)
        for i, root in enumerate(roots)
        for k in range(3)
    ]
    for request, result in zip(requests, engine.generate(requests), strict=True):
        want = drawn(request, vocab=SPEC.V, stops=STOPS, context=CONFIG.max_context)
        assert (result.ids, result.finish) == want == (result.ids, "length")
        assert len(result.prefix.ids) == CONFIG.max_context
        engine.release(result.prefix)
    assert engine.counters["pages_high_water"] == CONTEXT + 1
    with pytest.raises(ValueError, match=f"hold {CONTEXT} pages"):
        make(scripted=True, pool_bytes=pool_of(CONTEXT))


def test_pages_that_were_lost_are_an_error_and_no_endless_wait():
    engine = make(scripted=True, pool_bytes=pool_of(CONTEXT + 1))
    engine.submit(
        Request(
            id=0,
            prefix=engine.root([7, 8, 9]),
            key=(0,),
            stop="never",
            max_tokens=20,
            sampling=WARM,
        )
    )
    engine.step()
    engine._store.pages.take(len(engine._store.pages.free))  # by nobody
    engine.step()
    engine.step()  # the prompt's keys give up their page
    with pytest.raises(RuntimeError, match="one request alone finds no pages"):
        engine.step()


@pytest.mark.parametrize("scripted", [True, False], ids=["scripted", "model"])
def test_an_engine_without_requests_does_nothing(scripted):
    engine = make(scripted=scripted)
    before = dict(engine.counters)
    assert engine.generate([]) == []
    engine.step()
    engine.start()
    assert engine.idle
    assert engine.ready
    assert not engine.under_way
    engine.finish()
    engine.cancel("nobody")
    assert engine.collect() == []
    assert dict(engine.counters) == before


@pytest.mark.parametrize(
    ("mode", "requests", "tokens", "ahead"),
    [
        ("xla", 8, 3, True),
        ("sharing", 8, 3, True),
        ("xla", 7, 3, False),
        ("xla", 3, 9, False),
        ("xla", 4, 9, True),
        ("views", 99, 3, False),
    ],
)
def test_a_step_starts_the_next_chunk_where_enough_requests_wait(mode, requests, tokens, ahead):
    """Chunks of 3 tokens in 4 slots: of 7 requests 3 wait once the first 4 have ended."""
    engine = make(scripted=True, **MODES[mode])
    root = engine.root([7, 8, 9])
    asked = [
        Request(id=i, prefix=root, key=(i,), stop="never", max_tokens=tokens, sampling=WARM)
        for i in range(requests)
    ]
    for request in asked:
        engine.submit(request)
    engine.step()
    assert engine.counters["chunks"] == 1
    assert engine.under_way == ahead
    found = {result.id: result.ids for result in engine.collect()}
    assert bool(found) == (tokens == 3)
    while not engine.idle:
        engine.step()
        found |= {result.id: result.ids for result in engine.collect()}
    for request in asked:
        want = drawn(request, vocab=SPEC.V, stops=STOPS, context=CONFIG.max_context)
        assert found[request.id] == want[0]


def test_an_engine_is_hungry_until_enough_requests_wait():
    for mode, waiting in (("views", CONFIG.slots), ("xla", 1)):
        engine = make(scripted=True, **MODES[mode])
        root, told = engine.root([7]), []
        for i in range(2 * waiting):
            told.append(engine.hungry)
            engine.submit(
                Request(id=i, prefix=root, key=(i,), stop="never", max_tokens=1, sampling=WARM)
            )
        assert told == [True] * waiting + [False] * waiting
    tight = make(scripted=True, pool_bytes=pool_of(CONTEXT + 1))
    root = tight.root([7] * 15)
    for i in range(4):
        tight.submit(
            Request(id=i, prefix=root, key=(i,), stop="never", max_tokens=9, sampling=WARM)
        )
    tight.step()
    assert len(tight._queue) + len(tight._ready) < 4
    assert not tight.hungry  # more requests would only push each other out


def test_attention_that_cannot_run_here_is_refused():
    assert attention_of("auto") == attention_of("views") == "views"
    assert attention_of("xla") == "xla"
    with pytest.raises(ValueError, match="'flash' is unknown"):
        attention_of("flash")
    with pytest.raises(ValueError, match="'pallas' cannot run here"):
        make(attention="pallas")
    with pytest.raises(ValueError, match="share_prefix 'on'"):
        make(attention="views", share_prefix="on")
