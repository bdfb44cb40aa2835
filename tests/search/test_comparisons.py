import collections
import dataclasses
import itertools
import math

import numpy as np
import pytest

from stair_jax.search import comparisons
from tests.support.comparisons import CONFIG, FAMILY, node, tree


def config(**changes):
    return dataclasses.replace(CONFIG, **changes)


def tags(rows):
    return {tuple(row.id.split("/")[1:]) for row in rows}


def test_pairs_of_equal_depth_under_any_parent_and_of_whole_responses():
    rows, dropped = comparisons.comparisons_of(FAMILY, CONFIG, seed=0)
    steps, whole = ([r for r in rows if bool(r.depth) == kind] for kind in (True, False))
    assert tags(steps) == {
        ("0.0", "0.1"),
        ("0.2", "0.0"),
        ("0.2", "0.1"),  # one of two may be whole
        ("0.0.0", "0.1.1"),
        ("0.1.1", "0.1.0"),  # 0.0.1 has too few visits
    }
    assert {r.depth for r in steps} == {1, 2}
    assert {r.depth for r in steps if r.id.startswith("x/0.0.0/")} == {2}
    # Of depths 1 and 2, and the two of depth 2, which are no pair of steps.
    assert tags(whole) == {("0.2", "0.1.0"), ("0.0.0", "0.1.0")}
    # 3.0 beside 3.0 has no gap at all.
    assert dropped == {"unvisited": 1, "few_visits": 1, "small_gap": 1}


def test_a_row_holds_whole_trajectories_and_both_values():
    rows, _ = comparisons.comparisons_of(FAMILY, CONFIG, seed=0)
    row = next(r for r in rows if r.id == "x/0.1.1/0.1.0")
    own = {n.tag: n.ids[0] for n in FAMILY.nodes if n.ids}
    assert row.better == (own["0.1"], own["0.1.1"])
    assert row.worse == (own["0.1"], own["0.1.0"])
    assert (row.better_value, row.worse_value) == (1.0, -3.0)
    assert (row.question, row.type) == ("q", "safety")


@pytest.mark.parametrize(
    ("first", "second", "kept", "reason"),
    [
        ({"value": 1.0}, {"value": 0.25}, 1, None),
        ({"value": 1.0}, {"value": 0.5}, 0, "small_gap"),  # the gap itself is not enough
        ({"value": -2.0}, {"value": -3.0}, 1, None),  # no threshold for the better one
        ({"value": 1.0}, {"value": -1.0, "visits": 1}, 0, "few_visits"),
        ({"value": 1.0}, {"value": -1.0, "visits": 2}, 1, None),
        ({"value": 1.0}, {"value": -1.0, "visits": 1, "ends": True}, 1, None),
        ({"value": 1.0}, {"value": -1.0, "visits": 0}, 0, "unvisited"),
        ({"value": 1.0}, {"value": -1.0, "ends": True, "judged": False}, 0, "unjudged"),
        ({"value": 1.0, "ids": (7,)}, {"value": -1.0, "ids": (7,)}, 0, "identical"),
    ],
)
def test_what_each_rule_drops(first, second, kept, reason):
    rows, dropped = comparisons.comparisons_of(
        tree(node(0, "0.0", **first), node(0, "0.1", **second)), CONFIG, seed=0
    )
    assert len(rows) == kept
    assert dropped == ({reason: 1} if reason else {})


def test_equal_trajectories_from_different_branches_are_no_pair():
    # Cut in two ways, the tokens are the same.
    twins = tree(
        node(0, "0.0", 1.0, ids=(7,)),
        node(0, "0.1", 1.0, ids=(7, 8)),
        node(1, "0.0.0", 2.0, ids=(8, 9), ends=True),
        node(2, "0.1.0", -2.0, ids=(9,), ends=True),
    )
    rows, dropped = comparisons.comparisons_of(twins, CONFIG, seed=0)
    assert rows == []
    assert dropped == {"identical": 1, "small_gap": 1}


def test_the_limits_of_gap_and_visits_come_from_the_configuration():
    def count(**changes):
        return len(comparisons.comparisons_of(FAMILY, config(**changes), seed=0)[0])

    assert count() == 7
    assert count(min_value_gap=4.5) == 3  # 3 over -2, and twice over -3
    assert count(min_visits=1) == 10  # 0.0.1 joins: under 0.0.0 and 0.1.1, over 0.1.0
    assert count(min_visits=5) == 2  # the whole responses alone


def wide(id, steps, whole):
    """A tree with `steps` and `whole` pairs."""
    nodes = [node(0, "0.0", 0.0, visits=1)]
    nodes += [node(1, f"0.0.{i}", float(i), ids=(i,)) for i in range(steps)]
    nodes += [node(0, f"0.{i + 1}", float(i), ends=True, ids=(50 + i,)) for i in range(whole)]
    return tree(*nodes, id=id)


@pytest.mark.parametrize(
    ("limit", "share", "want_steps", "want_whole"),
    [
        (4, 0.5, 2, 2),
        (4, 0.0, 4, 0),
        (4, 1.0, 0, 4),
        (8, 0.25, 6, 2),
        (10, 1.0, 4, 6),  # six pairs of whole responses is all there are
        (30, 0.1, 27, 3),
        (0, 0.5, 28, 6),
        (99, 0.5, 28, 6),
    ],
)
def test_so_many_pairs_a_tree_and_so_many_of_them_whole(limit, share, want_steps, want_whole):
    rows, dropped = comparisons.comparisons_of(
        wide("x", 8, 4), config(pairs_per_tree=limit, full_share=share), seed=0
    )
    assert collections.Counter(bool(r.depth) for r in rows) == +collections.Counter(
        {True: want_steps, False: want_whole}
    )
    assert len(tags(rows)) == len(rows)
    assert dropped["over_limit"] == 34 - len(rows)


def test_what_steps_lack_whole_responses_fill():
    rows, _ = comparisons.comparisons_of(
        wide("x", 2, 5), config(pairs_per_tree=6, full_share=0.0), seed=0
    )
    assert [bool(r.depth) for r in rows] == [True] + [False] * 5


def test_a_share_of_an_odd_number_holds_over_many_trees():
    trees = [wide(str(i), 5, 5) for i in range(400)]
    rows = [comparisons.comparisons_of(t, config(pairs_per_tree=1), seed=0)[0] for t in trees]
    assert all(len(row) == 1 for row in rows)
    assert np.mean([row[0].depth == 0 for row in rows]) == pytest.approx(0.5, abs=0.08)


def test_a_draw_depends_on_seed_and_prompt_alone():
    some = config(pairs_per_tree=4)
    trees = [wide(str(i), 8, 4) for i in range(6)]

    def drawn(trees, seed=0):
        return {t.prompt.id: tags(comparisons.comparisons_of(t, some, seed=seed)[0]) for t in trees}

    first = drawn(trees)
    assert drawn(trees[::-1]) == first
    assert drawn(trees[2:3])["2"] == first["2"]
    assert len({frozenset(x) for x in first.values()}) > 1  # by prompt
    assert drawn(trees, seed=1) != first


def labels(tree, **changes):
    rows, dropped = comparisons.values_of(tree, config(loss="bce", **changes))
    return {
        row.id.split("/")[1]: [(x.tag, x.tokens, x.depth, x.value, x.weight) for x in row.labels]
        for row in rows
    }, dropped


def test_at_step_end_each_node_is_labelled_once_on_the_first_path_that_holds_it():
    found, dropped = labels(FAMILY, readout="step_end")
    assert found == {
        "0.2": [("0.2", 1, 1, 3.0, 1.0)],
        "0.0.0": [("0.0", 1, 1, 2.0, 1.0), ("0.0.0", 2, 2, 3.0, 1.0)],
        "0.1.0": [("0.1", 1, 1, -2.0, 1.0), ("0.1.0", 2, 2, -3.0, 1.0)],
        "0.1.1": [("0.1.1", 2, 2, 1.0, 1.0)],
    }
    assert dropped == {"unvisited": 1, "few_visits": 1}


def test_a_row_ends_where_no_node_below_counts_and_holds_unlabelled_steps():
    deep = tree(
        node(0, "0.0", 2.0, visits=1, ids=(1, 2)),
        node(1, "0.0.0", 1.0, ids=(3,)),
        node(2, "0.0.0.0", 0.0, visits=0, ids=(4,)),
    )
    [row], _ = comparisons.values_of(deep, config(readout="step_end"))
    assert row.ids == (1, 2, 3)
    assert [(x.tag, x.tokens) for x in row.labels] == [("0.0.0", 3)]


def test_at_eos_every_node_is_a_row_of_its_own():
    found, _ = labels(FAMILY, readout="eos")
    assert all(len(x) == 1 for x in found.values())
    once, _ = labels(FAMILY, readout="step_end")
    assert sorted(itertools.chain(*found.values())) == sorted(itertools.chain(*once.values()))


@pytest.mark.parametrize("readout", ["eos", "step_end"])
def test_weights_are_visits_on_request(readout):
    found, _ = labels(FAMILY, readout=readout, visit_weights=True)
    weight = {x[0]: x[4] for x in itertools.chain(*found.values())}
    assert weight == {"0.0": 4, "0.1": 4, "0.2": 4, "0.0.0": 1, "0.1.0": 7, "0.1.1": 4}


def test_held_out_prompts_are_a_share_by_prompt_and_seed():
    ids = [f"prompt-{i}" for i in range(2000)]

    def held(share, seed=0, ids=ids):
        return {i for i in ids if comparisons.is_held_out(i, share=share, seed=seed)}

    assert held(0.0) == set()
    assert held(1.0) == set(ids)
    assert len(held(0.1)) / len(ids) == pytest.approx(0.1, abs=0.02)
    assert held(0.1, ids=ids[::-1]) == held(0.1) < held(0.2)
    assert held(0.1, seed=1) != held(0.1)


def test_a_lone_root_gives_nothing():
    assert comparisons.comparisons_of(tree(), CONFIG, seed=0) == ([], {})
    assert comparisons.values_of(tree(), CONFIG) == ([], {})


@pytest.mark.parametrize("odd", [math.nan, math.inf, -math.inf])
def test_a_node_whose_value_is_not_finite_gives_no_row_and_is_counted(odd):
    nodes = node(0, "0.0", odd), node(0, "0.1", 2.0), node(0, "0.2", -1.0, ends=True)
    rows, dropped = comparisons.comparisons_of(tree(*nodes), CONFIG, seed=0)
    assert tags(rows) == {("0.1", "0.2")}
    assert dropped == {"not_finite": 1}
    valued, _ = comparisons.values_of(tree(*nodes), config(readout="step_end"))
    assert sorted(label.value for row in valued for label in row.labels) == [-1.0, 2.0]
