"""Test-time search on the real engine and a real reward model, both small and random."""

import dataclasses

import jax
import pytest

from stair_jax import config as config_lib
from stair_jax.config.schema import GuidedConfig
from stair_jax.config.strategies import parse
from stair_jax.engine.engine import Engine
from stair_jax.engine.request import GREEDY, Request, Sampling
from stair_jax.engine.scoring import Scoring
from stair_jax.guided import beams, loop, mcts
from stair_jax.model import reward, transformer
from stair_jax.model.reward import Readout
from stair_jax.prm.reader import RewardModel
from tests.support.search_engine import END, ENGINE, PROMPTS, SEARCH, SPEC, STEP_END, Letters

CONFIG = dataclasses.replace(
    GuidedConfig.of(config_lib.default().evaluate),
    max_tokens=24,
    temperature=1.3,
    top_p=0.95,
    top_k=0,
)
STEP = frozenset({STEP_END, END, 6, 8, 10})  # many, so that greedy responses have steps


class Codec(Letters):
    """The letters, and what ends a step."""

    step_stop = STEP


@pytest.fixture(scope="module")
def weights():
    lively = lambda x: x * 4 if x.ndim > 2 else x * 1.5  # noqa: E731
    small = jax.tree.map(lively, transformer.init(SPEC, jax.random.key(1)))
    judge = jax.tree.map(lively, reward.init(SPEC, jax.random.key(2)))
    return small, judge | {"score": 9 * judge["score"]}


def machines(weights, *, position="step_end", engine=ENGINE):
    """A fresh engine and a fresh reward model."""
    policy, judge = weights
    made = Engine(SPEC, policy, config=engine, stops={"step": STEP, "end": {END}}, vocab=SPEC.V)
    readout = Readout(position=position, loss="bce", low=-3.0, high=3.0)
    scoring = Scoring(reward.scalar(SPEC), judge, config=engine)
    return made, RewardModel(scoring, readout, END)


def run(weights, plan, prompts=PROMPTS, *, config=CONFIG, seed=3, **how):
    """Returns {prompt id: (found, state)}, engine and reward model."""
    engine, reader = machines(weights, **how)
    guide = loop.Guide(
        engine=engine, reward_model=reader, codec=Codec(), config=config, max_depth=6, seed=seed
    )
    found = {}
    passed_over = loop.find(
        prompts,
        plan,
        guide=guide,
        read_at=engine.config.slots,
        on_found=lambda state, what: found.update({state.prompt.id: (what, state)}),
    )
    assert not passed_over
    assert not any(engine._store.pages.owners)  # every sequence was given back
    assert not any(reader._scoring._store.pages.owners)
    return found, engine, reader


def beam(name):
    return lambda state: beams.beam(state, parse(name))


def greedy(state):
    return beams.greedy(state, parse("greedy"))


def samples(count):
    return lambda state: beams.sample(state, range(count))


def ids_of(found):
    return {id: what.ids for id, (what, _) in found.items()}


def test_one_beam_with_one_successor_is_greedy_decoding_step_by_step(weights):
    cold = dataclasses.replace(CONFIG, temperature=0.0)
    found = ids_of(run(weights, beam("beam_1x1"), config=cold)[0])
    engine, _ = machines(weights)
    for prompt in PROMPTS:
        prefix, ids = engine.root(Codec().prompt_ids(prompt.question)), ()
        while len(ids) < CONFIG.max_tokens and END not in ids:
            (result,) = engine.generate(
                [
                    Request(
                        id="a",
                        prefix=prefix,
                        key=("x",),
                        stop="step",
                        sampling=GREEDY,
                        max_tokens=CONFIG.max_tokens - len(ids),
                    )
                ]
            )
            prefix, ids = result.prefix, ids + result.ids
        assert found[prompt.id] == ids
    assert ids_of(run(weights, greedy)[0]) == found  # nor does it stop between steps
    assert any(sum(token in STEP for token in ids) > 2 for ids in found.values())
    assert ids_of(run(weights, beam("beam_1x1"))[0]) != found  # warm


def test_best_of_one_is_sampling_with_the_same_key(weights):
    found, _, _ = run(weights, samples(1))
    engine, _ = machines(weights)
    results = engine.generate(
        [
            Request(
                id=prompt.id,
                prefix=engine.root(Codec().prompt_ids(prompt.question)),
                key=(3, prompt.id, "0", "sample", 0),
                stop="end",
                max_tokens=24,
                sampling=Sampling(temperature=1.3, top_p=0.95),
            )
            for prompt in PROMPTS
        ]
    )
    drawn = {id: what[0][0].ids for id, (what, _) in found.items()}
    assert drawn == {result.id: result.ids for result in results}
    other, _, _ = run(weights, samples(1), seed=4)
    assert drawn != {id: what[0][0].ids for id, (what, _) in other.items()}


@pytest.mark.parametrize("plan", [beam("beam_2x3"), samples(3)], ids=["beam", "samples"])
def test_answers_do_not_depend_on_company_or_order(weights, plan):
    whole = {id: what for id, (what, _) in run(weights, plan)[0].items()}
    for some in (PROMPTS[::-1], PROMPTS[4:6]):
        found, _, _ = run(weights, plan, some)
        for id, (what, _) in found.items():
            assert spoken(what) == spoken(whole[id])
            assert numbers(what) == pytest.approx(numbers(whole[id]), abs=1e-5)
    few = dataclasses.replace(ENGINE, slots=3, prefill_rows=2)
    found, _, _ = run(weights, plan, engine=few)
    same = sum(spoken(what) == spoken(whole[id]) for id, (what, _) in found.items())
    assert same >= 0.9 * len(whole)


def spoken(what):
    return [one.ids for one in what[0]] if isinstance(what, tuple) else what.ids


def numbers(what):
    return [x for one in what[0] for x in one.raw] if isinstance(what, tuple) else list(what.raw)


@pytest.mark.parametrize("position", ["step_end", "eos"])
@pytest.mark.parametrize(
    "plan", [beam("beam_2x4"), beam("diverse_3x2"), samples(8)], ids=["beam", "diverse", "best_of"]
)
def test_nothing_is_computed_twice(weights, plan, position):
    found, engine, reader = run(weights, plan, position=position)
    prompts = sum(len(Codec().prompt_ids(prompt.question)) for prompt in PROMPTS)
    generated = sum(state.tokens for _, state in found.values())
    read = sum(state.scored for _, state in found.values())
    assert generated > 20 * len(PROMPTS)
    done = engine.counters
    assert done["decoded"] == generated
    assert (done["prefilled"] + done["decoded"]) / (prompts + generated) <= 1.05
    computed = reader.counters["prefilled"]
    asked = reader.counters["scored"]  # under "eos" an end of sequence behind each step besides
    assert (asked > read) == (position == "eos")
    print(f"policy {done}, reward model {reader.counters}, {prompts=} {generated=} {read=}")
    assert computed / (prompts + asked) <= 1.05


def trees(weights, prompts=PROMPTS, **search):
    """Returns {prompt id: picked}, engine and reward model, of searches with trees."""
    engine, reader = machines(weights)
    guide = loop.Guide(
        engine=engine, reward_model=reader, codec=Codec(), config=CONFIG, max_depth=4, seed=3
    )
    config = mcts.config_of(dataclasses.replace(SEARCH, **search), guide, 12)
    found = {}
    passed_over = mcts.find(
        prompts,
        config,
        guide=guide,
        on_found=lambda prompt, picked: found.update({prompt.id: picked}),
    )
    assert not passed_over
    assert not any(engine._store.pages.owners)  # every sequence was given back
    assert not any(reader._scoring._store.pages.owners)
    return found, engine, reader


def test_a_search_with_trees_computes_nothing_twice_and_keeps_prompts_apart(weights):
    found, engine, reader = trees(weights)
    prompts = sum(len(Codec().prompt_ids(prompt.question)) for prompt in PROMPTS)
    generated = sum(picked.tokens for picked in found.values())
    read = sum(picked.scored for picked in found.values())
    done = engine.counters
    assert done["decoded"] == generated > 20 * len(PROMPTS)
    assert (done["prefilled"] + done["decoded"]) / (prompts + generated) <= 1.05
    assert reader.counters["prefilled"] / (prompts + read) <= 1.05
    assert any(picked.ended for picked in found.values())
    few, _, _ = trees(weights, PROMPTS[6:3:-1], trees_in_flight=2)
    assert few == {id: found[id] for id in few}
