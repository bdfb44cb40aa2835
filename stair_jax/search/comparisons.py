"""A finished tree as rows of a reward model: trajectories to compare, or steps with values.

Source: STAIR section 2.3: pairs of partial solutions of equal depth in one tree, whatever their
parents, and pairs of whole responses, so that answers in few and in many steps compare too. Only
the gap between the values matters. A node never visited gives nothing, and whatever a rule takes
away is counted under the rule's name: nodes as "unvisited", "few_visits", "unjudged", "not_finite",
pairs as "small_gap", "identical", "over_limit".
"""

import collections
import hashlib
from typing import NamedTuple

import numpy as np

from stair_jax.config.schema import PrmConfig
from stair_jax.records import Comparison, Label, Node, Tree, ValuedTrajectory
from stair_jax.search import roots

Dropped = collections.Counter[str]


class Pairs(NamedTuple):
    """The pairs of a tree as numbers of its nodes, the better one first."""

    steps: np.ndarray  # [n, 2] int, of equal depth; one of the two may be a whole response
    whole: np.ndarray  # [n, 2] int, whole responses of any depths


def is_held_out(prompt_id: str, *, share: float, seed: int) -> bool:
    """Returns whether the trees of a prompt are set aside; of all prompts `share` are.

    It is the prompt that decides: its trees of all rounds stay on one side, with those behind a bad
    step and of its rewrites.
    """
    return _hash(f"{seed}/{roots.origin(prompt_id)}/held out") < share * 2**64


def nodes_of(tree: Tree, config: PrmConfig) -> tuple[list[int], Dropped]:
    """Returns the nodes whose value counts, in the tree's order, and how many do not, by reason."""
    kept, dropped = [], Dropped()
    for i, node in enumerate(tree.nodes):
        if node.parent < 0:
            continue
        if not node.visits:
            dropped["unvisited"] += 1
        elif node.terminal and node.reward is None:
            dropped["unjudged"] += 1
        elif not node.finite:
            dropped["not_finite"] += 1
        elif not node.terminal and node.visits < config.min_visits:
            dropped["few_visits"] += 1
        else:
            kept.append(i)
    return kept, dropped


def pairs_of(tree: Tree, config: PrmConfig) -> tuple[Pairs, Dropped]:
    """Returns all pairs of a tree whose gap is wide enough, and counts what is left out.

    Two whole responses are one kind, whatever their depths, and no pair of steps as well.
    """
    nodes, dropped = nodes_of(tree, config)
    value = np.array([tree.nodes[i].value for i in nodes])
    depth = np.array([tree.nodes[i].depth for i in nodes], int)
    ended = np.array([tree.nodes[i].terminal for i in nodes], bool)
    known: dict[tuple[int, ...], int] = {}
    same = np.array([known.setdefault(_ids(tree.path(i)), len(known)) for i in nodes], int)
    whole = ended[:, None] & ended
    once = np.tri(len(nodes), k=-1, dtype=bool)  # a pair in one order only
    distinct = same[:, None] != same
    wide = value[:, None] - value > config.min_value_gap
    found = []
    for kind in ((depth[:, None] == depth) & ~whole, whole):
        chosen = np.argwhere(kind & distinct & wide)
        dropped["small_gap"] += int(np.sum(kind & distinct & once)) - len(chosen)
        dropped["identical"] += int(np.sum(kind & ~distinct & once))
        found.append(np.array(nodes, int)[chosen])
    return Pairs(*found), +dropped


def comparisons_of(tree: Tree, config: PrmConfig, *, seed: int) -> tuple[list[Comparison], Dropped]:
    """Returns the tree's pairs for the Bradley-Terry loss, and how many each rule dropped.

    Of more than `pairs_per_tree` some are drawn, by the seed and the prompt alone: `full_share` of
    them whole responses, and what one kind lacks the other fills.
    """
    (steps, whole), dropped = pairs_of(tree, config)
    total, limit = len(steps) + len(whole), config.pairs_per_tree
    if limit and total > limit:
        dropped["over_limit"] += total - limit
        draw = np.random.default_rng(_hash(f"{seed}/{tree.prompt.id}/pairs"))
        # A half is rounded up in one tree of two, so that the share holds over all of them.
        wanted = int(limit * config.full_share + draw.random())
        count = min(len(whole), max(wanted, limit - len(steps)))
        whole = whole[np.sort(draw.choice(len(whole), count, replace=False))]
        steps = steps[np.sort(draw.choice(len(steps), limit - count, replace=False))]
    rows = [_comparison(tree, *pair, whole=False) for pair in steps.tolist()]
    return rows + [_comparison(tree, *pair, whole=True) for pair in whole.tolist()], dropped


def values_of(tree: Tree, config: PrmConfig) -> tuple[list[ValuedTrajectory], Dropped]:
    """Returns the tree's nodes with their values, each once, and how many each rule dropped.

    Read at "step_end", a row is a trajectory down to a node below which no other counts, and
    labels the nodes on it that no row before it has. Read at "eos" a row says one thing only, at
    its end, so every node has a row of its own. A label weighs 1, or with `visit_weights` as much
    as its node has visits.
    """
    nodes, dropped = nodes_of(tree, config)
    if config.readout == "eos":
        return [_valued(tree, i, {i}, config) for i in nodes], dropped
    left, rows = set(nodes), []
    above = {a for i in nodes for a in _indices(tree, i)[:-1]}
    for i in nodes:
        if i in above:
            continue
        labelled = left.intersection(_indices(tree, i))
        left -= labelled
        rows.append(_valued(tree, i, labelled, config))
    return rows, dropped


def _hash(text: str) -> int:
    """A number below 2^64 that a text alone decides, the same in every process."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def _comparison(tree: Tree, better: int, worse: int, *, whole: bool) -> Comparison:
    first, second = tree.nodes[better], tree.nodes[worse]
    return Comparison(
        id=f"{tree.prompt.id}/{first.tag}/{second.tag}",
        question=tree.prompt.question,
        type=tree.prompt.type,
        better=_ids(tree.path(better)),
        worse=_ids(tree.path(worse)),
        better_value=first.value,
        worse_value=second.value,
        depth=0 if whole else first.depth,
        before=tree.prompt.before,
        prefill=tree.prompt.prefill,
    )


def _valued(tree: Tree, index: int, labelled: set[int], config: PrmConfig) -> ValuedTrajectory:
    ids: tuple[int, ...] = ()
    labels = []
    for i in _indices(tree, index):
        node = tree.nodes[i]
        ids += node.ids
        if i in labelled:
            weight = float(node.visits) if config.visit_weights else 1.0
            labels.append(
                Label(
                    tokens=len(ids), depth=node.depth, value=node.value, weight=weight, tag=node.tag
                )
            )
    prompt = tree.prompt
    return ValuedTrajectory(
        id=f"{prompt.id}/{tree.nodes[index].tag}",
        question=prompt.question,
        type=prompt.type,
        ids=ids,
        labels=tuple(labels),
        before=prompt.before,
        prefill=prompt.prefill,
    )


def _indices(tree: Tree, index: int) -> list[int]:
    """The numbers of the nodes from the first step down to `index`."""
    path = []
    while tree.nodes[index].parent >= 0:
        path.append(index)
        index = tree.nodes[index].parent
    return path[::-1]


def _ids(steps: list[Node]) -> tuple[int, ...]:
    return tuple(i for step in steps for i in step.ids)
