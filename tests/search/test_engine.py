"""Trees grown by the real engine: the same whatever else is in flight, and nearly so for any sizes.

The model has random weights, large enough that its text is lively, and a tiny language: it stops
often, repeats itself, and its answers are judged by a hash.
"""

import dataclasses
import zlib

import jax
import pytest

from stair_jax import config as config_lib
from stair_jax import mesh as mesh_lib
from stair_jax.config.schema import RewardConfig
from stair_jax.engine.engine import Engine
from stair_jax.judges.base import FunctionJudge, Score
from stair_jax.model import transformer
from stair_jax.search import driver
from stair_jax.search.reward import Reward
from tests.support.search_engine import END, ENGINE, PROMPTS, SEARCH, SPEC, STEP_END, Letters


def judge():
    def score(prompt, response):
        code = zlib.crc32(f"{prompt.id}{response}".encode())
        return Score(safety=(-1.0, 1.0)[code % 2], helpfulness=(-1.0, 0.0, 1.0)[code % 3])

    return FunctionJudge(score)


@pytest.fixture(scope="module")
def params():
    small = transformer.init(SPEC, jax.random.key(1))
    return jax.tree.map(lambda x: x * 4 if x.ndim > 2 else x * 1.5, small)


def grow(params, prompts=PROMPTS, *, mesh=None, engine=ENGINE, **search):
    """Returns {prompt id: (nodes, counters)}."""
    trees = {}
    machine = Engine(
        SPEC,
        params,
        config=engine,
        stops={"step": {STEP_END, END}, "end": {END}},
        vocab=SPEC.V,
        mesh=mesh,
    )
    leftovers = driver.grow(
        prompts,
        engine=machine,
        judge=judge(),
        codec=Letters(),
        config=dataclasses.replace(SEARCH, **search),
        seed=3,
        reward=Reward("paper", RewardConfig.of(config_lib.default().reward)),
        on_tree=lambda tree: trees.update({tree.prompt.id: (tree.nodes, tree.counters)}),
    )
    assert leftovers == driver.Leftovers({}, ())
    assert not any(machine._store.pages.owners)  # every sequence was given back
    return trees


@pytest.fixture(scope="module")
def trees(params):
    found = grow(params)
    sizes = {len(nodes) for nodes, _ in found.values()}
    assert len(sizes) > 3  # the trees have shapes of their own
    assert any(node.terminal for nodes, _ in found.values() for node in nodes)
    return found


@pytest.mark.parametrize("in_flight", [1, 12])
def test_trees_do_not_depend_on_what_else_is_in_flight(params, trees, in_flight):
    assert in_flight != SEARCH.trees_in_flight
    assert grow(params, trees_in_flight=in_flight) == trees


def test_trees_do_not_depend_on_the_order_of_prompts_or_on_a_restart(params, trees):
    assert grow(params, PROMPTS[::-1]) == trees
    late = grow(params, PROMPTS[7:])
    assert late == {prompt.id: trees[prompt.id] for prompt in PROMPTS[7:]}


def test_seed_and_temperature_reach_the_trees(params, trees):
    assert grow(params, temperature=0.7) != trees


@pytest.mark.parametrize(
    "change", [{"slots": 32}, {"slots": 64}, {"page_size": 16}, {"pool_bytes": 70_000}]
)
def test_other_sizes_leave_nine_trees_in_ten_as_they_are(params, trees, change):
    engine = dataclasses.replace(ENGINE, **change)
    assert engine != ENGINE
    found = grow(params, engine=engine)
    same = sum(found[name][0] == trees[name][0] for name in trees)
    assert same >= 0.9 * len(trees)


@pytest.mark.parametrize("shape", [(1, 8, 1), (1, 4, 2), (2, 2, 2)])
def test_a_tree_grown_on_a_mesh_is_the_same(params, trees, shape):
    found = grow(params, PROMPTS[:2], mesh=mesh_lib.make(shape))
    assert found == {prompt.id: trees[prompt.id] for prompt in PROMPTS[:2]}
