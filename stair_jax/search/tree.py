"""A batch of search trees as arrays: B trees, M nodes each, A children per node at most.

The arrays may hold more trees than a call is about: C of them, of which `row` names B. So the cost
of a call follows the trees that move, not those that grow.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from stair_jax import ops
from stair_jax.config.schema import SearchConfig

ROOT, NONE = 0, -1


@struct.dataclass
class TreeArrays:
    """Structure and statistics of C trees, B of them in turn; `NONE` marks a missing link."""

    row: jax.Array  # [B] int32, where in the arrays the trees in turn lie
    parent: jax.Array  # [C, M] int32
    children: jax.Array  # [C, M, A] int32, filled from slot 0 on
    depth: jax.Array  # [C, M] int32, 0 at the root
    prior: jax.Array  # [C, M] float32, p of PUCB
    visits: jax.Array  # [C, M] int32
    value_sum: jax.Array  # [C, M] float32
    outcome: jax.Array  # [C, M] int32, of an evaluation not yet used up (`mcts.UNKNOWN` onwards)
    reward: jax.Array  # [C, M] float32, that came with the outcome
    dead: jax.Array  # [C, M] bool, never to be selected again
    size: jax.Array  # [C] int32, nodes in use


def capacity(config: SearchConfig) -> int:
    """Returns the number of nodes M that a tree can come to under `config`.

    An iteration expands one node at most, the first one none; a node at `max_depth` never grows.
    """
    inner, level = 0, 1
    for _ in range(config.max_depth):
        inner += level
        level *= config.num_children
        if inner >= config.iterations:  # the level sizes would soon leave every bound
            break
    return 1 + config.num_children * min(inner, config.iterations - 1)


def empty(trees: int, nodes: int, children: int) -> TreeArrays:
    """Returns trees that hold only their root; all of them are in turn."""
    return TreeArrays(
        row=jnp.arange(trees, dtype=jnp.int32),
        parent=jnp.full((trees, nodes), NONE, jnp.int32),
        children=jnp.full((trees, nodes, children), NONE, jnp.int32),
        depth=jnp.zeros((trees, nodes), jnp.int32),
        prior=jnp.ones((trees, nodes), jnp.float32),
        visits=jnp.zeros((trees, nodes), jnp.int32),
        value_sum=jnp.zeros((trees, nodes), jnp.float32),
        outcome=jnp.zeros((trees, nodes), jnp.int32),
        reward=jnp.zeros((trees, nodes), jnp.float32),
        dead=jnp.zeros((trees, nodes), bool),
        size=jnp.ones((trees,), jnp.int32),
    )


def clear(tree: TreeArrays, chosen: Bool[Array, " B"]) -> TreeArrays:
    """Turns the trees where `chosen` holds back into lone roots."""
    C, M, A = tree.children.shape
    at_B = ops.or_beyond(chosen, tree.row, C)

    def reset(old, new):
        return old.at[at_B].set(new, **ops.SCATTER)

    cleared = jax.tree.map(reset, tree, empty(1, M, A))
    return dataclasses.replace(cleared, row=tree.row)


def expand(
    tree: TreeArrays, node: Int[Array, " B"], count: Int[Array, " B"], prior: Float[Array, "B A"]
) -> TreeArrays:
    """Gives `node` its `count` children, in the next free places; a count of 0 changes nothing."""
    (_, M, A), row_B = tree.children.shape, tree.row
    B = row_B.shape[0]
    slot_BA = jnp.broadcast_to(jnp.arange(A)[None], (B, A))
    child_BA = jnp.where(slot_BA < count[:, None], tree.size[row_B][:, None] + slot_BA, NONE)
    at_B = ops.or_beyond(count > 0, node, M)
    at_BA = ops.or_beyond(child_BA != NONE, child_BA, M)
    row_BA = jnp.broadcast_to(row_B[:, None], (B, A))
    depth_BA = jnp.broadcast_to(tree.depth[row_B, node][:, None] + 1, (B, A))
    node_BA = jnp.broadcast_to(node[:, None], (B, A))
    return dataclasses.replace(
        tree,
        children=tree.children.at[row_B, at_B].set(child_BA, **ops.SCATTER),
        parent=tree.parent.at[row_BA, at_BA].set(node_BA, **ops.SCATTER),
        depth=tree.depth.at[row_BA, at_BA].set(depth_BA, **ops.SCATTER),
        prior=tree.prior.at[row_BA, at_BA].set(prior, **ops.SCATTER),
        size=tree.size.at[row_B].add(count),
    )


def backup(
    tree: TreeArrays, leaf: Int[Array, " B"], value: Float[Array, " B"], chosen: Bool[Array, " B"]
) -> TreeArrays:
    """Adds `value` and a visit to `leaf` and all its ancestors, in trees where `chosen` holds.

    Source: thu-ml/STAIR src/mcts.py `update`.
    """
    row_B, M = tree.row, tree.parent.shape[1]

    def up(carry):
        node_B, visits, value_sum = carry
        at_B = ops.or_beyond(node_B != NONE, node_B, M)
        visits = visits.at[row_B, at_B].add(1, **ops.SCATTER)
        value_sum = value_sum.at[row_B, at_B].add(value, **ops.SCATTER)
        above_B = jnp.where(node_B == NONE, NONE, tree.parent[row_B, node_B])
        return above_B, visits, value_sum

    start_B = jnp.where(chosen, leaf, NONE)
    _, visits, value_sum = jax.lax.while_loop(
        lambda carry: (carry[0] != NONE).any(), up, (start_B, tree.visits, tree.value_sum)
    )
    return dataclasses.replace(tree, visits=visits, value_sum=value_sum)


def mark_dead(tree: TreeArrays, leaf: Int[Array, " B"], chosen: Bool[Array, " B"]) -> TreeArrays:
    """Marks `leaf` as dead where `chosen` holds, then each ancestor whose children are all dead."""
    row_B, M = tree.row, tree.parent.shape[1]

    def up(carry):
        node_B, dead = carry
        at_B = ops.or_beyond(node_B != NONE, node_B, M)
        child_BA = tree.children[row_B, node_B]
        child_dead_BA = dead[row_B[:, None], child_BA] | (child_BA == NONE)
        closed_B = child_dead_BA.all(axis=1) & (child_BA[:, 0] != NONE)
        dead = dead.at[row_B, at_B].max(closed_B, **ops.SCATTER)
        above_B = jnp.where(node_B == NONE, NONE, tree.parent[row_B, node_B])
        return above_B, dead

    at_B = ops.or_beyond(chosen, leaf, M)
    dead = tree.dead.at[row_B, at_B].set(True, **ops.SCATTER)
    start_B = jnp.where(chosen, leaf, NONE)
    _, dead = jax.lax.while_loop(lambda carry: (carry[0] != NONE).any(), up, (start_B, dead))
    return dataclasses.replace(tree, dead=dead)
