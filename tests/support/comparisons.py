"""Small trees with values, for pairs of trajectories."""

import dataclasses

from stair_jax.config import default
from stair_jax.config.schema import PrmConfig
from stair_jax.records import Node, Prompt, Tree

CONFIG = dataclasses.replace(
    PrmConfig.of(default().prm),
    loss="bt",
    readout="eos",
    min_value_gap=0.5,
    min_visits=2,
    pairs_per_tree=0,
    full_share=0.5,
    visit_weights=False,
    eval_share=0.0,
)


def node(parent, tag, value, *, visits=4, ends=False, ids=None, judged=True):
    """A node whose step is one token of its own unless `ids` says otherwise."""
    own = 100 + int("1" + tag.replace(".", ""))
    return Node(
        parent=parent,
        ids=(own,) if ids is None else ids,
        text=f"<{tag}>",
        depth=tag.count("."),
        visits=visits,
        value_sum=value * visits,
        reward=value if ends and judged else None,
        terminal=ends,
        p=1.0,
        tag=tag,
    )


def tree(*nodes, id="x", kind="safety"):
    root = node(-1, "0", 0.0, visits=9, ids=())
    return Tree(prompt=Prompt(id=id, question="q", type=kind), nodes=(root, *nodes))


# 0.0 (2.0) -> 0.0.0 (3.0, ends), 0.0.1 (-1.0, one visit)
# 0.1 (-2.0) -> 0.1.0 (-3.0, ends), 0.1.1 (1.0)
# 0.2 (3.0, ends)
# 0.3 (not visited)
FAMILY = tree(
    node(0, "0.0", 2.0),
    node(0, "0.1", -2.0),
    node(0, "0.2", 3.0, ends=True),
    node(0, "0.3", 0.0, visits=0),
    node(1, "0.0.0", 3.0, ends=True, visits=1),
    node(1, "0.0.1", -1.0, visits=1),
    node(2, "0.1.0", -3.0, ends=True, visits=7),
    node(2, "0.1.1", 1.0),
)
