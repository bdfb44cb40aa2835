"""Safety-Informed MCTS over a batch of trees: scores, selection, and the loop between requests.

The device holds every tree up to the point where it needs text: `advance` applies what came in
(children, outcomes of evaluations), then runs each tree on until it asks for an expansion, for an
evaluation, or has finished. An outcome may come long before its node is visited and waits there;
that of a terminal node serves every visit. Walks that end at a known outcome ask for nothing.
Source: STAIR algorithm 1; thu-ml/STAIR src/mcts.py, src/mcts_node.py.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float, Int, UInt

from stair_jax import ops
from stair_jax.config.schema import SearchConfig
from stair_jax.search import tree as tree_lib
from stair_jax.search.tree import NONE, ROOT, TreeArrays

UNVISITED = 100.0  # score of an unvisited child, in units of c (thu-ml/STAIR src/mcts_node.py)
STRIDE = 8  # selections in one call: all trees pay for the one that walks longest
TIE = 1e-5  # scores this close are equal: rounding in float32 must not choose

# What a tree wants, column ASK of what `advance` returns.
IDLE, WALK, EXPAND, EVALUATE, FINISHED = range(5)
ASK, NODE, ITERATIONS, REVISITS = range(4)
# What a tree gets, beside outcomes: a new root, or the children it asked for.
NOTHING, START, CHILDREN = range(3)
# What an evaluation came to: the reward of a node that is not or is terminal, no reward though
# asked twice (and where asking again would give the same, the end of that branch). A node's
# outcome is used up when it is visited; a terminal node keeps its reward for every visit.
UNKNOWN, REWARD, TERMINAL_REWARD, MISSING, MISSING_FOR_GOOD, KEPT_REWARD = range(6)


@struct.dataclass
class Search:
    """The trees and the state of each; within a call, of the B trees in turn."""

    tree: TreeArrays
    ask: jax.Array  # [B] int32, IDLE to FINISHED
    node: jax.Array  # [B] int32, the node that `ask` is about
    iteration: jax.Array  # [B] int32, iterations done
    revisits: jax.Array  # [B] int32, of terminal nodes
    seed: jax.Array  # [B] uint32, of random ties


@struct.dataclass
class Events:
    """What came in for B trees since the last call."""

    row: jax.Array | np.ndarray  # [B] int32, which; only one that is idle and stays so may be twice
    kind: jax.Array | np.ndarray  # [B] int32, NOTHING to CHILDREN
    seed: jax.Array | np.ndarray  # [B] uint32, of a new tree
    count: jax.Array | np.ndarray  # [B] int32, of children
    prior: jax.Array | np.ndarray  # [B, A] float32, of the children
    node: jax.Array | np.ndarray  # [B, A] int32, that were evaluated; `NONE` fills up
    outcome: jax.Array | np.ndarray  # [B, A] int32, REWARD to MISSING_FOR_GOOD
    reward: jax.Array | np.ndarray  # [B, A] float32


def empty(trees: int, config: SearchConfig) -> Search:
    """Returns a batch of idle trees, with room for what `config` can grow."""
    zeros_B = jnp.zeros((trees,), jnp.int32)
    return Search(
        tree=tree_lib.empty(trees, tree_lib.capacity(config), config.num_children),
        ask=zeros_B,
        node=zeros_B + 0,  # buffers of their own: the batch is donated
        iteration=zeros_B + 0,
        revisits=zeros_B + 0,
        seed=jnp.zeros((trees,), jnp.uint32),
    )


def ucb(
    parent_visits: Int[Array, " B"],
    visits: Int[Array, "B A"],
    value_sum: Float[Array, "B A"],
    *,
    c: float,
) -> Float[Array, "B A"]:
    """UCB1 score of each child: mean value + c sqrt(ln(parent visits) / visits).

    Source: STAIR equation 10; thu-ml/STAIR src/mcts_node.py; Auer et al. 2002.
    """
    n_BA = jnp.maximum(visits, 1)
    log_B1 = jnp.log(jnp.maximum(parent_visits, 1).astype(jnp.float32))[:, None]
    return jnp.where(visits > 0, value_sum / n_BA + c * jnp.sqrt(log_B1 / n_BA), UNVISITED * c)


def pucb(
    parent_visits: Int[Array, " B"],
    visits: Int[Array, "B A"],
    value_sum: Float[Array, "B A"],
    prior: Float[Array, "B A"],
    *,
    c: float,
) -> Float[Array, "B A"]:
    """PUCB score of each child: mean value + c p sqrt(parent visits) / (1 + visits).

    Source: thu-ml/STAIR src/mcts_node.py.
    """
    root_B1 = jnp.sqrt(parent_visits.astype(jnp.float32))[:, None]
    seen_BA = value_sum / jnp.maximum(visits, 1) + c * prior * root_B1 / (1 + visits)
    return jnp.where(visits > 0, seen_BA, UNVISITED * c * prior)


def best_child(search: Search, node: Int[Array, " B"], *, config: SearchConfig) -> Int[Array, " B"]:
    """Returns the child of `node` with the highest score; `NONE` where it has no children."""
    tree = search.tree
    row_B = tree.row
    child_BA = tree.children[row_B, node]
    at_BA = (row_B[:, None], child_BA)
    stats = tree.visits[row_B, node], tree.visits[at_BA], tree.value_sum[at_BA]
    if config.score == "pucb":
        score_BA = pucb(*stats, tree.prior[at_BA], c=config.c)
    else:
        score_BA = ucb(*stats, c=config.c)
    score_BA = jnp.where((child_BA == NONE) | tree.dead[at_BA], -jnp.inf, score_BA)
    best_BA = score_BA >= score_BA.max(axis=1, keepdims=True) - TIE
    if config.ties == "random":
        draw_BA = _draws(search.seed, search.iteration, tree.depth[row_B, node], best_BA.shape[1])
        slot_B = jnp.where(best_BA, draw_BA, -1.0).argmax(axis=1)
    else:
        slot_B = best_BA.argmax(axis=1)
    return child_BA[jnp.arange(len(slot_B)), slot_B]


def _draws(
    seed: UInt[Array, " B"], iteration: Int[Array, " B"], depth: Int[Array, " B"], A: int
) -> Float[Array, "B {A}"]:
    """Uniform numbers that depend on the tree, the iteration and the depth, on nothing else."""

    def one(seed, iteration, depth):
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), iteration), depth)
        return jax.random.uniform(key, (A,))

    return jax.vmap(one)(seed, iteration, depth)


def select(search: Search, *, config: SearchConfig) -> Int[Array, " B"]:
    """Walks each tree from its root down to a leaf, by score."""

    def down(carry):
        node_B, _ = carry
        child_B = best_child(search, node_B, config=config)
        return jnp.where(child_B == NONE, node_B, child_B), (child_B != NONE).any()

    start_B = jnp.full_like(search.node, ROOT)
    leaf_B, _ = jax.lax.while_loop(lambda carry: carry[1], down, (start_B, jnp.array(True)))
    return leaf_B


@functools.partial(jax.jit, static_argnames="config", donate_argnames="search")
def advance(
    search: Search, events: Events, *, config: SearchConfig
) -> tuple[Search, Int[Array, "B 4"]]:
    """Applies `events` and runs their trees on until each needs text or has finished.

    A tree that needs neither for a long time stops at WALK; the next call takes it up again.
    `search` is donated. Returns the new state, and for the host a row a tree of `events`: ASK,
    NODE, ITERATIONS done and terminal REVISITS. Other trees do not change.
    """
    every, search = search, _in_turn(search, events)
    search = _start(search, events)
    search = _attach_children(search, events, config=config)
    search = _note(search, events)
    # Settling first, then walking, lets XLA write to the tree in place: reads come after writes.
    search, _ = jax.lax.while_loop(
        lambda carry: _can_move(carry[0]).any() & (carry[1] < STRIDE),
        lambda carry: (_walk(_settle(carry[0], config=config), config=config), carry[1] + 1),
        (search, 0),
    )
    ask_B = jnp.where(_can_move(search), WALK, search.ask)
    asks = jnp.stack((ask_B, search.node, search.iteration, search.revisits), axis=1)
    return _put_back(every, search), asks


_STANDINGS = "ask", "node", "iteration", "revisits", "seed"  # what `Search` has beside its tree


def _in_turn(search: Search, events: Events) -> Search:
    """Returns the trees that `events` are about: their standings, and the arrays of all trees."""
    row_B = jnp.asarray(events.row)
    tree = dataclasses.replace(search.tree, row=row_B)
    return Search(tree=tree, **{name: getattr(search, name)[row_B] for name in _STANDINGS})


def _put_back(every: Search, search: Search) -> Search:
    """Returns all trees, with those of `search` as they stand now."""
    put = {
        name: getattr(every, name).at[search.tree.row].set(getattr(search, name))
        for name in _STANDINGS
    }
    return Search(tree=dataclasses.replace(search.tree, row=every.tree.row), **put)


@jax.jit
def statistics(search: Search, row: jax.Array | np.ndarray) -> dict[str, jax.Array]:
    """Returns one tree's statistics: visits, value_sum, outcome and reward, [M] each."""
    names = "visits", "value_sum", "outcome", "reward"
    return {name: getattr(search.tree, name)[row] for name in names}


def _start(search: Search, events: Events) -> Search:
    new_B = events.kind == START

    def reset(leaf_B):
        return jnp.where(new_B, 0, leaf_B)

    return dataclasses.replace(
        search,
        # Most ticks begin no tree, and the arrays are the larger part of a tick.
        tree=jax.lax.cond(
            new_B.any(), lambda t: tree_lib.clear(t, new_B), lambda t: t, search.tree
        ),
        ask=jnp.where(new_B, WALK, search.ask),
        node=reset(search.node),
        iteration=reset(search.iteration),
        revisits=reset(search.revisits),
        seed=jnp.where(new_B, events.seed, search.seed),
    )


def _attach_children(search: Search, events: Events, *, config: SearchConfig) -> Search:
    """Attaches the children that came in; one of them is evaluated in the same iteration."""
    grown_B = events.kind == CHILDREN
    count_B = jnp.where(grown_B, events.count, 0)
    tree = tree_lib.expand(search.tree, search.node, count_B, jnp.asarray(events.prior))
    search = dataclasses.replace(search, tree=tree)
    child_B = best_child(search, search.node, config=config)
    return dataclasses.replace(
        search,
        node=jnp.where(grown_B, child_B, search.node),
        ask=jnp.where(grown_B, EVALUATE, search.ask),
    )


def _note(search: Search, events: Events) -> Search:
    """Puts the outcomes that came in beside their nodes."""
    tree, node_BA = search.tree, jnp.asarray(events.node)
    row_BA = jnp.broadcast_to(tree.row[:, None], node_BA.shape)
    at_BA = ops.or_beyond(node_BA != NONE, node_BA, tree.parent.shape[1])
    tree = dataclasses.replace(
        tree,
        outcome=tree.outcome.at[row_BA, at_BA].set(events.outcome, **ops.SCATTER),
        reward=tree.reward.at[row_BA, at_BA].set(events.reward, **ops.SCATTER),
    )
    return dataclasses.replace(search, tree=tree)


def _can_move(search: Search) -> Bool[Array, " B"]:
    """Returns which trees need nothing from the host."""
    outcome_B = search.tree.outcome[search.tree.row, search.node]
    return (search.ask == WALK) | ((search.ask == EVALUATE) & (outcome_B != UNKNOWN))


def _settle(search: Search, *, config: SearchConfig) -> Search:
    """Ends the iteration of each tree that asks for an evaluation whose outcome is known."""
    tree, node_B = search.tree, search.node
    row_B, M = tree.row, tree.parent.shape[1]
    outcome_B = jnp.where(search.ask == EVALUATE, tree.outcome[row_B, node_B], UNKNOWN)
    known_B, again_B = outcome_B != UNKNOWN, outcome_B == KEPT_REWARD
    terminal_B = again_B | (outcome_B == TERMINAL_REWARD)
    scored_B = terminal_B | (outcome_B == REWARD)
    closed_B = outcome_B == MISSING_FOR_GOOD
    if not config.reselect_terminal:
        deep_B = tree.depth[row_B, node_B] >= config.max_depth
        closed_B |= terminal_B | (scored_B & deep_B)
    left_B = jnp.where(terminal_B, KEPT_REWARD, UNKNOWN)
    at_B = ops.or_beyond(known_B, node_B, M)
    outcome = tree.outcome.at[row_B, at_B].set(left_B, **ops.SCATTER)
    tree = dataclasses.replace(tree, outcome=outcome)
    tree = tree_lib.backup(tree, node_B, tree.reward[row_B, node_B], scored_B)
    return dataclasses.replace(
        search,
        tree=tree_lib.mark_dead(tree, node_B, closed_B),
        iteration=search.iteration + known_B,
        revisits=search.revisits + again_B,
        ask=jnp.where(known_B, WALK, search.ask),
    )


def _walk(search: Search, *, config: SearchConfig) -> Search:
    """One selection in each tree that can go on."""
    row_B, tree = search.tree.row, search.tree
    walks_B = search.ask == WALK
    over_B = (search.iteration >= config.iterations) | tree.dead[row_B, ROOT]
    leaf_B = select(search, config=config)
    fresh_B = tree.visits[row_B, leaf_B] == 0
    last_B = tree.outcome[row_B, leaf_B] == KEPT_REWARD
    last_B |= tree.depth[row_B, leaf_B] >= config.max_depth
    ask_B = jnp.where(fresh_B | last_B, EVALUATE, EXPAND)
    ask_B = jnp.where(over_B, FINISHED, ask_B)
    return dataclasses.replace(
        search,
        ask=jnp.where(walks_B, ask_B, search.ask),
        node=jnp.where(walks_B, leaf_B, search.node),
    )
