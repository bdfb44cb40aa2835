"""Search against transformers: the engines that stand for it, the claims, and (slow) all of it."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from benchmarks import miniature
from benchmarks.growing import Planted
from stair_jax import pipeline
from stair_jax.config.schema import EngineConfig
from stair_jax.engine.engine import Engine
from stair_jax.engine.request import GREEDY, EngineLike, Prefix, Request, Sampling
from stair_jax.hf import exporter
from stair_jax.model import transformer
from tests.support import specs
from tests.support.configs import tiny

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.parity

SPEC = specs.llama(L=2, D=24, N=4, K=2, H=6, F=20, V=23)
STOPS = {"step": {3, 4, 5, 6}, "end": {4}}
CONTEXT = 40
SAMPLING = Sampling(temperature=1.3, top_k=9, top_p=0.9)


@pytest.fixture(scope="module")
def params():
    small = transformer.init(SPEC, jax.random.key(1))
    return jax.tree.map(lambda x: np.asarray(x * 3 if x.ndim > 2 else x * 1.5), small)


@pytest.fixture(scope="module")
def model(params, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported") / "model"
    exporter.save(folder, SPEC, params, None, end_ids=[4], dtype="float32")
    return transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, trust_remote_code=False
    ).eval()


@pytest.fixture
def generator(model):
    from benchmarks.transformers_engine import Generator

    return Generator(model, stops=STOPS, pad_id=0, max_context=CONTEXT)


@pytest.fixture
def one_by_one(generator):
    from benchmarks.transformers_engine import OneByOne

    return OneByOne(generator)


@pytest.fixture
def lockstep(generator):
    from benchmarks.transformers_engine import Lockstep

    return Lockstep(generator)


def prompt(number, length):
    return np.random.default_rng([number, length]).integers(7, SPEC.V, length).tolist()


def request(engine, number, length, *, stop="step", max_tokens=12, sampling=GREEDY):
    return Request(
        id=number,
        prefix=engine.root(prompt(number, length)),
        key=(number,),
        stop=stop,
        max_tokens=max_tokens,
        sampling=sampling,
    )


def asked(engine):
    """Requests of many lengths, two kinds, three limits; some have less room than they want."""
    stops, limits = ("step", "end"), (3, 12, 30)
    return [
        request(engine, i, 2 + 7 * i % 38, stop=stops[i % 2], max_tokens=limits[i % 3])
        for i in range(24)
    ]


def answers(engine, requests):
    """Returns {id: (tokens, finish)}."""
    for one in requests:
        engine.submit(one)
    found = {}
    while not engine.idle:
        engine.step()
        found |= {result.id: result for result in engine.collect()}
    for one in requests:
        assert found[one.id].prefix.ids == one.prefix.ids + found[one.id].ids
    return {id: (result.ids, result.finish) for id, result in found.items()}


@pytest.mark.parametrize("name", ["one_by_one", "lockstep"])
def test_greedy_answers_are_those_of_our_engine(request, params, name):
    theirs = request.getfixturevalue(name)
    config = EngineConfig(
        slots=8,
        page_size=8,
        pool_bytes=0,
        max_context=CONTEXT,
        chunk=4,
        prefill_rows=4,
        dtype="float32",
    )
    ours = Engine(SPEC, params, config=config, stops=STOPS, vocab=SPEC.V)
    expected = answers(ours, asked(ours))
    assert {finish for _, finish in expected.values()} == {"stop", "length"}
    assert len({len(ids) for ids, _ in expected.values()}) > 4
    assert answers(theirs, asked(theirs)) == expected


@pytest.mark.parametrize("name", ["one_by_one", "lockstep"])
def test_drawn_answers_end_where_they_must(request, name):
    engine = request.getfixturevalue(name)
    requests = [dataclasses.replace(one, sampling=SAMPLING) for one in asked(engine)]
    found = answers(engine, requests)
    assert {finish for _, finish in found.values()} == {"stop", "length"}
    for one in requests:
        ids, finish = found[one.id]
        room = min(one.max_tokens, CONTEXT - len(one.prefix.ids))
        assert 0 < len(ids) <= room
        assert not STOPS[one.stop] & {*ids[:-1]}
        assert (finish == "stop") == (ids[-1] in STOPS[one.stop])
        assert finish == "stop" or len(ids) == room
    assert engine.counters["delivered"] == sum(len(ids) for ids, _ in found.values())


def test_a_full_context_gets_an_empty_answer(lockstep):
    full = Request(
        id="full",
        prefix=Prefix(prompt(0, CONTEXT)),
        key=(0,),
        stop="step",
        max_tokens=3,
        sampling=GREEDY,
    )
    found = answers(lockstep, [full, request(lockstep, 1, 5)])
    assert found["full"] == ((), "length")
    assert len(found[1][0]) > 0
    assert answers(lockstep, [full]) == {"full": ((), "length")}
    assert lockstep.counters["calls"] == 1


def test_lockstep_answers_each_kind_in_one_call_and_counts_idle_rows(lockstep, one_by_one):
    found = answers(lockstep, asked(lockstep))
    assert lockstep.counters["calls"] == 2
    assert lockstep.counters["decoded"] > lockstep.counters["delivered"]
    prefixes = sum(len(one.prefix.ids) for one in asked(lockstep))
    assert lockstep.counters["prefilled"] == prefixes
    assert lockstep.counters["generate_s"] > 0
    assert found


def test_one_by_one_answers_the_oldest_request_alone(one_by_one):
    requests = asked(one_by_one)[:3]
    for one in requests:
        one_by_one.submit(one)
    one_by_one.step()
    assert [result.id for result in one_by_one.collect()] == [requests[0].id]
    one_by_one.cancel(requests[1].id)
    one_by_one.step()
    assert [result.id for result in one_by_one.collect()] == [requests[2].id]
    assert one_by_one.idle
    assert one_by_one.counters["calls"] == 2
    assert one_by_one.counters["decoded"] == one_by_one.counters["delivered"]


def test_a_large_batch_is_cut(lockstep, monkeypatch):
    from benchmarks import transformers_engine

    whole = answers(lockstep, asked(lockstep))
    monkeypatch.setattr(transformers_engine, "BATCH", 5)
    assert answers(lockstep, asked(lockstep)) == whole  # 12 of a kind: 5 + 5 + 2, twice
    assert lockstep.counters["calls"] == 2 + 6


def test_an_engine_on_transformers_is_an_engine(lockstep):
    assert isinstance(lockstep, EngineLike)
    assert lockstep.hungry
    for length in (0, CONTEXT):
        with pytest.raises(ValueError, match=f"prompt of {length} tokens"):
            lockstep.root(prompt(0, length))


def test_the_last_planting_is_noted(one_by_one):
    planted = Planted(one_by_one, 3)
    assert isinstance(planted, EngineLike)
    first = planted.root([7, 8])
    answers(planted, [request(one_by_one, 0, 4)])
    planted.release(Prefix([7, 8]))  # a sequence, but no tree's root
    planted.root([7, 9])
    assert (planted.dry, planted.most) == ({}, 2)
    planted.release(first)
    planted.root([7, 10])
    assert (planted.dry["calls"], planted.most) == (1, 2)
    answers(planted, [request(one_by_one, 1, 4)])
    assert planted.dry["calls"] == 1
    assert planted.counters["calls"] == 2


def test_claims_are_those_of_the_contract():
    from benchmarks import search_vs_transformers

    ours = {
        "trees_per_hour": 90.0,
        "tokens_per_s": 9.0,
        "computed_per_unique_token": 1.01,
        "busy_slots": 0.95,
        "recompiles": 0.0,
    }
    other = {"trees_per_hour": 30.0, "tokens_per_s": 2.0}
    slow = {"trees_per_hour": 3.0, "tokens_per_s": 0.25}
    one = {"ours": ours, "single": slow, "lockstep": other}
    claims = search_vs_transformers.claims_of([one, one])
    assert {name: (c.value, c.op, c.target) for name, c in claims.items()} == {
        "trees_per_hour_vs_single": (30.0, ">=", 25),
        "trees_per_hour_vs_lockstep": (3.0, ">=", 3),
        "computed_per_unique_token": (1.01, "<=", 1.05),
        "busy_slots": (0.95, ">=", 0.90),
        "recompiles": (0.0, "==", 0),
    }
    late = [one, one | {"ours": ours | {"recompiles": 2.0}}, one]
    assert search_vs_transformers.claims_of(late)["recompiles"].value == 2  # not the median


@pytest.mark.slow
def test_all_sides_grow_trees_on_one_model(tmp_path, monkeypatch, capsys):
    from benchmarks import search_vs_transformers

    run, out = tmp_path / "run", tmp_path / "o.json"
    few = {"sft__train__max_steps": 5, "data__sft_rows": 160}
    pipeline.run(tiny("smoke", workdir=str(run), stages="sft", **few))
    monkeypatch.setitem(miniature.PAPER, "iterations", 4)
    search_vs_transformers.main(
        [
            "--out",
            str(out),
            "--workdir",
            str(run),
            "--repetitions=2",
            "--trees=9",
            "--single=1",
            "--lockstep=3",
            "--refilled=2",
        ]
    )
    found = json.loads(out.read_text())
    assert found["export_max_abs_diff"] < 1e-4
    trees = {"ours": 9, "single": 1, "lockstep": 3, "refilled": 2}
    assert found["settings"]["trees"] == trees
    assert [{side: one[side]["trees"] for side in one} for one in found["rounds"]] == [trees] * 2
    assert found["settings"]["search"]["iterations"] == 4
    for one in found["rounds"]:
        assert one["ours"]["engine/prefilled"] < one["ours"]["engine/decoded"]
        assert one["single"]["prefilled_per_tree"] > one["ours"]["prefilled_per_tree"]
        assert one["ours"]["recompiles"] == 0
    assert found["claims"].keys() == {
        "trees_per_hour_vs_single",
        "trees_per_hour_vs_lockstep",
        "computed_per_unique_token",
        "busy_slots",
        "recompiles",
    }
    assert "trees_per_hour_vs_lockstep" in capsys.readouterr().out
