"""What is compiled: how much, how often, and what it holds beside the pool."""

import dataclasses

import jax
import numpy as np
import pytest

from stair_jax.engine import decode
from stair_jax.engine.batch import COLUMNS
from stair_jax.engine.engine import Engine
from stair_jax.engine.request import GREEDY, Request, Sampling
from stair_jax.engine.siblings import Siblings
from stair_jax.model import cache, transformer, views
from stair_jax.model.groups import SharedPrefixCache
from tests.support.engines import CONFIG, SPEC, STOPS

DEEP = dataclasses.replace(SPEC, L=6)  # more layers than a scan unrolls
SLOTS, WIDTH, PAGES, Z = 4, 8, 8192, 8
KINDS = [
    ("views", "off", DEEP),
    ("xla", "off", SPEC),
    ("xla", "off", DEEP),
    ("xla", "on", DEEP),
]


def compiled(attention, share, spec):
    """A decoding program over a large pool, and the pool's bytes."""
    pool = cache.empty_pool(spec, pages=PAGES, page_size=Z, dtype=np.float32)
    draw = lambda key: transformer.by_layer(transformer.init(spec, key))  # noqa: E731
    params = jax.eval_shape(draw, jax.random.key(0))
    rows = 3 * SLOTS if attention == "views" else SLOTS
    kept = pool
    if attention == "views":
        kept = dataclasses.replace(views.empty(pool, slots=SLOTS, pages=WIDTH), pool=pool)
    else:
        shared = Siblings.empty(2, SLOTS, WIDTH).arrays() if share == "on" else {}
        kept = SharedPrefixCache(pool, **shared, implementation="xla")
    plan = decode.DecodePlan(transformer.Decoder(spec, np.float32), 4, spec.V, 0, True)
    program = decode.decode_chunk.lower(
        params,
        kept,
        np.zeros((rows, len(COLUMNS)), np.int32),
        np.zeros((rows, WIDTH), np.int32),
        np.zeros((2, spec.V), bool),
        np.int32(0),
        plan=plan,
    ).compile()
    return program, pool.k.nbytes + pool.v.nbytes


@pytest.mark.parametrize(("attention", "share", "spec"), KINDS)
def test_a_decoding_program_needs_little_beside_its_pool(attention, share, spec):
    program, pool_bytes = compiled(attention, share, spec)
    needed = program.memory_analysis()
    assert needed is not None
    assert needed.argument_size_in_bytes > pool_bytes  # the pool is there, and large
    assert needed.alias_size_in_bytes >= pool_bytes  # and given back in place
    assert needed.temp_size_in_bytes < 0.1 * pool_bytes


@pytest.fixture(scope="module")
def params():
    return transformer.init(SPEC, jax.random.key(0))


def load(engine):
    """Prompts of all lengths, continued by siblings, greedy and warm."""
    warm = Sampling(temperature=1.5, top_p=0.9, min_p=0.01)
    roots = [engine.root([1 + i % 20 for i in range(length)]) for length in (1, 2, 9, 20, 33, 39)]
    for turn, sampling in enumerate([warm, GREEDY]):
        engine.generate(
            [
                Request(
                    id=(turn, i, k),
                    prefix=root,
                    key=(turn, i, k),
                    stop="end",
                    max_tokens=7,
                    sampling=sampling,
                    group=i,
                    shared=len(root.ids),
                )
                for i, root in enumerate(roots)
                for k in range(3)
            ]
        )
    return [warm, GREEDY]


@pytest.mark.parametrize(("attention", "share"), [("views", "off"), ("xla", "off"), ("xla", "on")])
def test_nothing_is_compiled_after_the_engine_was_told_what_comes(params, attention, share):
    jax.clear_caches()
    config = dataclasses.replace(CONFIG, attention=attention, share_prefix=share, page_size=2)
    cold, warmed = (
        Engine(SPEC, params, config=config, stops=STOPS, vocab=SPEC.V - 2) for _ in range(2)
    )
    samplings = load(cold)
    assert cold.counters["compiles"] > 0
    jax.clear_caches()
    warmed.compile(samplings)
    before = warmed.counters["compiles"]
    load(warmed)
    assert warmed.counters["compiles"] == before


@pytest.mark.parametrize("attention", ["views", "xla"])
def test_a_slot_that_ends_takes_up_the_next_request_within_the_chunk(params, attention):
    config = dataclasses.replace(CONFIG, slots=2, chunk=16, attention=attention)
    engine = Engine(SPEC, params, config=config, stops=STOPS, vocab=SPEC.V - 2)
    for i in range(6):
        engine.submit(
            Request(
                id=i,
                prefix=engine.root([3, i + 1]),
                key=(i,),
                stop="never",
                max_tokens=5,
                sampling=GREEDY,
            )
        )
    engine.step()
    done = [str(result.id) for result in engine.collect()]
    c = engine.counters
    assert c["busy_slots"] == c["decoded"]
    assert c["busy_slots"] + c["idle_slots"] + c["overshoot"] == 2 * c["steps"]
    if attention == "views":
        assert sorted(done) == list("012345")  # three rounds of five steps
        assert c["overshoot"] == 0
    else:
        assert sorted(done) == ["0", "1"]
        assert c["steps"] == 5


def test_one_program_serves_every_mix_of_settings(params):
    jax.clear_caches()
    engine = Engine(
        SPEC, params, config=dataclasses.replace(CONFIG, attention="xla"), stops=STOPS, vocab=SPEC.V
    )
    engine.compile([GREEDY], logps=True)
    told = engine.counters["compiles"]
    kinds = [
        GREEDY,
        Sampling(temperature=1.0),
        Sampling(temperature=0.7, top_p=0.9),
        Sampling(temperature=1.2, top_k=5),
        Sampling(temperature=1.0, min_p=0.1),
    ]
    root = engine.root([1, 2, 3])
    for count in (1, 3, 5):  # a judge's requests alone want no log-probs
        found = engine.generate(
            [
                Request(
                    id=(count, i),
                    prefix=root,
                    key=(count, i),
                    stop="end",
                    max_tokens=3,
                    sampling=kinds[i],
                    logps=i == 2,
                )
                for i in range(count)
            ]
        )
        assert {len(r.logps) > 0 for i, r in enumerate(found) if i != 2} == {False}
    assert engine.counters["compiles"] == told
