import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stair_jax.search import tree as tree_lib
from tests.support.scripted import RandomScript, run, search_config

backup, mark_dead, expand = (
    jax.jit(tree_lib.backup),
    jax.jit(tree_lib.mark_dead),
    jax.jit(tree_lib.expand),
)


def _three_trees():
    """Three rows of different shape, 7 nodes and 2 children at most."""
    tree = tree_lib.empty(3, 7, 2)
    ones_BA = jnp.ones((3, 2))
    tree = expand(tree, jnp.array([0, 0, 0]), jnp.array([2, 1, 0]), 0.5 * ones_BA)
    return expand(tree, jnp.array([2, 1, 0]), jnp.array([2, 2, 0]), 0.25 * ones_BA)


def test_expansion_links_children_depth_and_prior():
    tree = _three_trees()
    np.testing.assert_array_equal(tree.size, [5, 4, 1])
    np.testing.assert_array_equal(tree.parent[0], [-1, 0, 0, 2, 2, -1, -1])
    np.testing.assert_array_equal(tree.parent[1], [-1, 0, 1, 1, -1, -1, -1])
    np.testing.assert_array_equal(tree.children[0, :3], [[1, 2], [-1, -1], [3, 4]])
    np.testing.assert_array_equal(tree.children[1, :2], [[1, -1], [2, 3]])
    np.testing.assert_array_equal(tree.depth[0], [0, 1, 1, 2, 2, 0, 0])
    np.testing.assert_array_equal(tree.prior[1], [1, 0.5, 0.25, 0.25, 1, 1, 1])


def test_a_count_of_zero_changes_nothing():
    tree = _three_trees()
    again = expand(tree, jnp.array([1, 2, 0]), jnp.zeros(3, jnp.int32), jnp.zeros((3, 2)))
    for old, new in zip(jax.tree.leaves(tree), jax.tree.leaves(again), strict=True):
        np.testing.assert_array_equal(old, new)


def test_backup_reaches_the_root_and_only_ancestors_of_chosen_rows():
    tree = backup(
        _three_trees(),
        jnp.array([3, 2, 0]),
        jnp.array([0.5, -1.0, 7.0]),
        jnp.array([True, True, False]),
    )
    np.testing.assert_array_equal(tree.visits[0], [1, 0, 1, 1, 0, 0, 0])
    np.testing.assert_array_equal(tree.value_sum[1], [-1, -1, -1, 0, 0, 0, 0])
    np.testing.assert_array_equal(tree.visits[2], np.zeros(7))
    np.testing.assert_array_equal(tree.value_sum[2], np.zeros(7))


def test_a_branch_is_dead_once_all_its_leaves_are():
    tree, first_two = _three_trees(), jnp.array([True, True, False])
    tree = mark_dead(tree, jnp.array([3, 2, 0]), first_two)
    np.testing.assert_array_equal(tree.dead[:2, :4], [[0, 0, 0, 1], [0, 0, 1, 0]])
    tree = mark_dead(tree, jnp.array([4, 3, 0]), first_two)
    np.testing.assert_array_equal(tree.dead[0, :5], [0, 0, 1, 1, 1])  # node 1 keeps the root open
    np.testing.assert_array_equal(tree.dead[1, :4], [1, 1, 1, 1])
    assert not tree.dead[2].any()
    again = mark_dead(tree, jnp.array([1, 0, 0]), jnp.array([False, False, False]))
    np.testing.assert_array_equal(again.dead, tree.dead)
    again = mark_dead(tree, jnp.array([1, 0, 0]), jnp.array([True, False, True]))
    np.testing.assert_array_equal(again.dead[:, 0], [True, True, True])


def test_clearing_a_row_leaves_its_neighbours_alone():
    tree = _three_trees()
    cleared = tree_lib.clear(tree, jnp.array([True, False, True]))
    empty = tree_lib.empty(3, 7, 2)
    for field in dataclasses.fields(tree):
        got, old, new = (getattr(t, field.name) for t in (cleared, tree, empty))
        np.testing.assert_array_equal(got[0], new[0])
        np.testing.assert_array_equal(got[1], old[1])


@pytest.mark.parametrize(
    ("changes", "nodes"),
    [
        ({"iterations": 1}, 1),  # the root is evaluated, nothing expanded
        ({"iterations": 200, "num_children": 4, "max_depth": 7}, 1 + 4 * 199),
        ({"iterations": 200, "num_children": 3, "max_depth": 2}, 1 + 3 * (1 + 3)),  # whole tree
        ({"iterations": 10**6, "num_children": 1, "max_depth": 7}, 1 + 7),
    ],
)
def test_capacity_is_bounded_by_iterations_and_by_depth(changes, nodes):
    assert tree_lib.capacity(search_config(**changes)) == nodes


@pytest.mark.parametrize("depth", [2, 9])
def test_no_tree_outgrows_its_capacity(depth):
    config = search_config(max_depth=depth, c=0.01, visit_all_nodes=False)
    trees, *_ = run(RandomScript("full", names=1000, ends=0.0), config)
    sizes = [len(tree.nodes) for tree in trees.values()]
    assert max(sizes) <= tree_lib.capacity(config)
    assert max(sizes) > config.num_children + 1
