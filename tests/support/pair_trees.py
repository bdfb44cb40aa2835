"""Trees with steps to pair."""

import dataclasses

from stair_jax.config.schema import PairsConfig
from stair_jax.records import Node, Prompt, Tree

CONFIG = PairsConfig(
    min_value_gap=0.5,
    good_value_safety=0.75,
    good_value_helpfulness=2.5,
    min_visits=4,
    terminal_only=False,
    max_good_bad_ratio=4,
    max_tokens=100,
    max_per_prompt=0,
    max_responses_per_prompt=0,
)


def _node(parent, tag, value, *, visits=4, terminal=False, ids=(7,)):
    return Node(
        parent=parent,
        ids=ids,
        text=f"<{tag}>",
        depth=tag.count("."),
        visits=visits,
        value_sum=value * visits,
        reward=value if terminal else None,
        terminal=terminal,
        p=1.0,
        tag=tag,
    )


def _tree(*nodes, type="safety"):
    root = dataclasses.replace(_node(-1, "0", 0.5, visits=9, ids=()), text="")
    return Tree(prompt=Prompt(id="x", question="q", type=type), nodes=(root, *nodes))
