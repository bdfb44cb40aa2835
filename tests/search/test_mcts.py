import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stair_jax.search import mcts
from stair_jax.search import tree as tree_lib
from stair_jax.search.tree import NONE
from tests.support.plain_mcts import PlainSearch
from tests.support.scripted import PAPER, RandomScript, prompts, run, search_config

STATS = st.lists(
    st.tuples(st.integers(0, 50), st.floats(-5, 5, width=32), st.floats(0, 1, width=32)),
    min_size=3,
    max_size=3,
)
ucb, pucb = jax.jit(mcts.ucb, static_argnames="c"), jax.jit(mcts.pucb, static_argnames="c")


def _columns(stats):
    parent = sum(n for n, *_ in stats) + 1
    visits, sums, priors = (jnp.array([column]) for column in zip(*stats, strict=True))
    return parent, visits, sums.astype(jnp.float32), priors.astype(jnp.float32)


@given(STATS)
@settings(max_examples=50, deadline=None)
def test_ucb_equals_the_scalar_formula(stats):
    parent, visits, sums, _ = _columns(stats)
    want = [v / n + 1.5 * math.sqrt(math.log(parent) / n) if n else 150.0 for n, v, _ in stats]
    got = ucb(jnp.array([parent]), visits, sums, c=1.5)
    np.testing.assert_allclose(got, [want], rtol=1e-5, atol=1e-5)


@given(STATS)
@settings(max_examples=50, deadline=None)
def test_pucb_equals_the_scalar_formula(stats):
    parent, visits, sums, priors = _columns(stats)
    want = [v / n + 0.7 * p * math.sqrt(parent) / (1 + n) if n else 70.0 * p for n, v, p in stats]
    got = pucb(jnp.array([parent]), visits, sums, priors, c=0.7)
    np.testing.assert_allclose(got, [want], rtol=1e-5, atol=1e-5)


def _as_rows(tree):
    return {
        node.tag: (
            [step.text for step in tree.path(i)],
            node.visits,
            node.terminal,
            node.depth,
        )
        for i, node in enumerate(tree.nodes)
    }


def _assert_equal(tree, plain):
    assert _as_rows(tree) == {
        n.tag: (n.trajectory, n.visits, n.terminal, n.depth) for n in plain.nodes
    }
    by_tag = {n.tag: n for n in plain.nodes}
    for node in tree.nodes:
        twin = by_tag[node.tag]
        assert node.value_sum == pytest.approx(twin.value_sum, abs=1e-3)
        assert (node.reward is None) == (twin.reward is None)
        assert node.reward is None or node.reward == pytest.approx(twin.reward, abs=1e-5)
        assert node.p == pytest.approx(twin.p, abs=1e-5)
    assert tree.counters["iterations"] == plain.iterations
    assert tree.counters["missing"] == plain.missing


VARIANTS = {
    "ucb": {},
    "pucb": {"score": "pucb"},
    "bounded": {"reselect_terminal": False, "max_depth": 3, "iterations": 61},
    "bounded pucb": {"reselect_terminal": False, "score": "pucb", "visit_all_nodes": False},
    "shallow": {"max_depth": 1, "num_children": 2},
    "greedy": {"c": 0.1, "num_children": 5},
    "not all": {"visit_all_nodes": False, "iterations": 23},
}


@pytest.mark.parametrize("variant", VARIANTS)
@given(
    salt=st.integers(0, 10**6),
    names=st.integers(1, 9),
    ends=st.sampled_from([0.0, 0.2, 0.7, 1.0]),
    missing=st.sampled_from([0.0, 0.3, 1.0]),
    uncut=st.sampled_from([1.0, 0.5]),
)
@settings(max_examples=8, deadline=None, derandomize=True)
def test_arrays_grow_the_tree_that_pointers_grow(variant, salt, names, ends, missing, uncut):
    script = RandomScript(salt, names=names, ends=ends, missing=missing, uncut=uncut)
    config = search_config(**VARIANTS[variant])
    trees, *_ = run(script, config, rows=prompts(3))
    for prompt in prompts(3):
        _assert_equal(trees[prompt.id], PlainSearch(script, prompt, config, PAPER).run())


@pytest.mark.parametrize("variant", [name for name in VARIANTS if name != "ucb"])
def test_the_variants_of_the_oracle_test_grow_different_trees(variant):
    script = RandomScript("differ")
    plain = [
        PlainSearch(script, prompts(1)[0], search_config(**changes), PAPER).run()
        for changes in ({}, VARIANTS[variant])
    ]
    assert [n.visits for n in plain[0].nodes] != [n.visits for n in plain[1].nodes]


B = 7


def _tell(search, config, *, kind: Any = mcts.NOTHING, count=0, seed: Any = 0, outcomes=()):
    """Tells 7 trees the same, but for what is an array; outcomes are (node, outcome, reward)."""
    shape = B, config.num_children
    node, outcome = np.full(shape, NONE, np.int32), np.zeros(shape, np.int32)
    reward = np.zeros(shape, np.float32)
    for slot, came_to in enumerate(outcomes):
        node[:, slot], outcome[:, slot], reward[:, slot] = came_to
    events = mcts.Events(
        row=np.arange(B, dtype=np.int32),
        kind=np.broadcast_to(np.int32(kind), B),
        count=np.full(B, count, np.int32),
        seed=np.broadcast_to(np.uint32(seed), B),
        prior=np.ones(shape, np.float32),
        node=node,
        outcome=outcome,
        reward=reward,
    )
    search, asks = mcts.advance(search, events, config=config)
    return search, np.asarray(asks)


def _batch(config, seeds=(0,), **news):
    """A batch of 7 trees after their roots were evaluated and given three children each."""
    seeds = np.array([*seeds, *[0] * (B - len(seeds))])
    search, asks = _tell(mcts.empty(B, config), config, kind=mcts.START, seed=seeds)
    np.testing.assert_array_equal(asks, [[mcts.EVALUATE, 0, 0, 0]] * B)
    search, asks = _tell(search, config, outcomes=[(0, mcts.REWARD, 0.5)])
    np.testing.assert_array_equal(asks, [[mcts.EXPAND, 0, 1, 0]] * B)
    return _tell(search, config, kind=mcts.CHILDREN, count=3, **news)


def _copies(search):
    """The arrays of a batch that is about to be donated."""
    return [np.array(leaf) for leaf in jax.tree.leaves(search)]


def test_random_ties_are_fixed_by_the_trees_seed_and_spread_over_children():
    config = search_config(ties="random")
    first = [
        _batch(config, range(start, start + 7))[1][:, mcts.NODE]
        for start in (0, 7, 14, 21, 28, 35, 3)
    ]
    np.testing.assert_array_equal(first[-1][:4], first[0][3:])  # other rows, same seeds
    counts = np.bincount(np.concatenate(first[:-1]), minlength=4)[1:]
    assert counts.sum() == 42
    assert counts.min() >= 7  # 14 expected; the seeds are fixed


def test_ties_go_to_the_first_child_on_request():
    _, asks = _batch(search_config(ties="first"), [3, 4, 5])
    np.testing.assert_array_equal(asks[:, mcts.NODE], np.ones(7))


def test_terminal_nodes_are_revisited_without_asking_the_host():
    config, calls = search_config(), 0
    search, asks = _batch(config)
    for node in (1, 2, 3):
        np.testing.assert_array_equal(asks[:, mcts.NODE], [node] * 7)
        search, asks = _tell(search, config, outcomes=[(node, mcts.TERMINAL_REWARD, 1.0)])
    while asks[0, mcts.ASK] == mcts.WALK:
        done, calls = asks[0, mcts.ITERATIONS], calls + 1
        search, asks = _tell(search, config)
        assert asks[0, mcts.ITERATIONS] <= done + mcts.STRIDE
    assert calls > 1  # one tree's long walk is cut for the sake of the others
    # the root, 3 first visits and 33 revisits
    np.testing.assert_array_equal(asks, [[mcts.FINISHED, asks[0, 1], 37, 33]] * 7)
    np.testing.assert_array_equal(search.tree.visits[:, 0], [37] * 7)
    np.testing.assert_array_equal(search.tree.visits[0, 1:4].sum(), 36)


KNOWN = [(1, mcts.REWARD, 0.25), (2, mcts.TERMINAL_REWARD, -1.0), (3, mcts.MISSING, 0.0)]


def test_outcomes_that_are_known_are_used_without_asking():
    config = search_config()
    search, asks = _batch(config)
    for node, *_ in KNOWN:
        np.testing.assert_array_equal(asks, [[mcts.EVALUATE, node, node, 0]] * 7)
        search, asks = _tell(search, config, outcomes=[KNOWN[node - 1]])
    np.testing.assert_array_equal(asks, [[mcts.EVALUATE, 3, 4, 0]] * 7)  # missing: asked again
    at_once, asks_at_once = _batch(config, outcomes=KNOWN)
    np.testing.assert_array_equal(asks_at_once, asks)
    for one, other in zip(_copies(search), _copies(at_once), strict=True):
        np.testing.assert_array_equal(one, other)


def test_an_outcome_waits_for_the_visit_it_is_for():
    config = search_config()
    search, asks = _batch(config)
    search, later = _tell(search, config, outcomes=KNOWN[1:])
    np.testing.assert_array_equal(later, asks)
    np.testing.assert_array_equal(search.tree.visits[:, :4], [[1, 0, 0, 0]] * 7)
    _, asks = _tell(search, config, outcomes=KNOWN[:1])
    np.testing.assert_array_equal(asks, [[mcts.EVALUATE, 3, 4, 0]] * 7)


def test_a_call_copies_no_array_of_the_trees():
    config, temporaries = search_config(iterations=200), []
    wide, flat = np.zeros((B, config.num_children), np.int32), np.zeros(B, np.int32)
    events = mcts.Events(
        row=np.arange(B, dtype=np.int32),
        kind=flat,
        seed=flat.astype(np.uint32),
        count=flat,
        prior=wide.astype(np.float32),
        node=wide,
        outcome=wide,
        reward=wide.astype(np.float32),
    )
    for trees in (29, 997):
        leaves, form = jax.tree.flatten(mcts.empty(trees, config))

        def call(leaves, form=form):
            return jax.tree.leaves(mcts.advance(form.unflatten(leaves), events, config=config))

        memory = jax.jit(call, donate_argnums=0).lower(leaves).compile().memory_analysis()
        assert memory is not None
        temporaries.append(memory.temp_size_in_bytes)
    # However many trees there are: as much as starting all in turn takes, and no more.
    assert temporaries[1] == temporaries[0]
    assert temporaries[1] < min(leaf.nbytes for leaf in leaves if leaf.ndim > 1)


def test_a_row_without_news_does_not_move():
    config = search_config()
    search, asks = _batch(config, [1, 2, 3])
    before, row_B = _copies(search), np.arange(7)
    awaited = np.where(row_B == 1, asks[:, mcts.NODE], NONE)
    after, asks_after = _tell(
        search,
        config,
        kind=np.where(row_B == 2, mcts.START, mcts.NOTHING),
        seed=9,
        outcomes=[(awaited, mcts.REWARD, 2.0)],
    )
    for old, new in zip(before, jax.tree.leaves(after), strict=True):
        np.testing.assert_array_equal(np.delete(old, [1, 2], 0), np.delete(new, [1, 2], 0))
    np.testing.assert_array_equal(asks_after[0], asks[0])
    assert after.tree.visits[1, 0] == 2
    assert after.tree.size[2] == 1
    assert after.seed[2] == 9


def test_trees_move_alike_wherever_they_lie_and_whoever_else_is_in_turn():
    """Three trees of 29, in rows out of order; the last one never moves and fills up the call."""
    config, spare = search_config(ties="random"), 28
    rows, wide = np.array([17, 2, 11, spare, spare], np.int32), (5, config.num_children)
    small, asks = _batch(config, [4, 5, 6], outcomes=KNOWN[1:])
    small, asks = _tell(small, config, outcomes=[(asks[:, mcts.NODE], mcts.REWARD, 0.25)])
    many, moved = mcts.empty(29, config), None
    node = np.full(wide, NONE, np.int32)
    for kind, news in (
        (mcts.START, []),
        (mcts.NOTHING, [(0, mcts.REWARD, 0.5)]),
        (mcts.CHILDREN, KNOWN[1:]),
        (mcts.NOTHING, None),
    ):
        events = mcts.Events(
            row=rows,
            kind=np.where(rows == spare, mcts.NOTHING, kind).astype(np.int32),
            seed=np.array([4, 5, 6, 0, 0], np.uint32),
            count=np.full(5, 3, np.int32),
            prior=np.ones(wide, np.float32),
            node=node.copy(),
            outcome=np.zeros(wide, np.int32),
            reward=np.zeros(wide, np.float32),
        )
        if news is None:
            assert moved is not None
            news = [(moved[:3, mcts.NODE], mcts.REWARD, 0.25)]
        for slot, (evaluated, outcome, reward) in enumerate(news):
            events.node[:3, slot], events.outcome[:3, slot] = evaluated, outcome
            events.reward[:3, slot] = reward
        many, moved = mcts.advance(many, events, config=config)
        moved = np.asarray(moved)
    assert moved is not None
    assert len(set(asks[:3, mcts.NODE])) > 1  # the seeds differ, and so do the trees
    np.testing.assert_array_equal(moved, [*asks[:3], [0] * 4, [0] * 4])
    for name in ("parent", "children", "depth", "visits", "value_sum", "outcome", "size"):
        got, want = getattr(many.tree, name), getattr(small.tree, name)
        np.testing.assert_array_equal(got[rows[:3]], want[:3])
        lone = getattr(mcts.empty(1, config).tree, name)
        others = np.delete(np.asarray(got), rows[:3], 0)
        np.testing.assert_array_equal(others, np.broadcast_to(lone, others.shape))
    final = mcts.statistics(many, np.int32(2))
    np.testing.assert_array_equal(final["visits"], small.tree.visits[1])


def test_rounding_does_not_break_a_tie():
    config = search_config(c=0.01)  # an unvisited child scores 1
    search, asks = _batch(config)
    for node, value in (1, 0.3), (2, 0.3 + 1e-6), (3, 0.3 - 1e-6):
        search, asks = _tell(search, config, outcomes=[(node, mcts.REWARD, value)])
    assert search.tree.value_sum[0, 2] > search.tree.value_sum[0, 1]
    np.testing.assert_array_equal(asks[0, :3], [mcts.EXPAND, 1, 4])


@pytest.mark.parametrize("ties", ["first", "random"])
@pytest.mark.parametrize(("apart", "best"), [(0.0, {1, 2, 3}), (2e-6, {1, 2, 3}), (4e-5, {3})])
def test_scores_a_thousandth_of_a_percent_apart_are_equal_and_no_further_ones(ties, apart, best):
    """Three children of as many visits, the last one better by so much."""
    config, seeds = search_config(ties=ties, c=1e-3), jnp.arange(20, dtype=jnp.uint32)
    search = mcts.empty(20, config)
    zeros_B = jnp.zeros(20, jnp.int32)
    tree = tree_lib.expand(search.tree, zeros_B, zeros_B + 3, jnp.ones((20, 3)))
    tree = dataclasses.replace(
        tree,
        visits=tree.visits.at[:, :4].set(jnp.array([6, 2, 2, 2])),
        value_sum=tree.value_sum.at[:, :4].set(2 * jnp.array([0.0, 0.25, 0.25, 0.25 + apart])),
    )
    search = dataclasses.replace(search, tree=tree, seed=seeds)
    chosen = set(np.asarray(mcts.best_child(search, zeros_B, config=config)).tolist())
    assert chosen == (best if ties == "random" else {min(best)})
