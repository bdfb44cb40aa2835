"""Rows that hold more than one sequence: the position of each token, and what it attends to.

A row is a forest whose nodes are runs of tokens, written down depth first: packed examples are
trees of one node, sibling steps are the children of the prefix that they share. All tokens below
a node then lie side by side, so one number a token, where its node's subtree ends, says who sees
it. A row of one sequence needs no layout.

Shape letters: B rows  T tokens of a row
"""

from typing import Any

import numpy as np
from flax import struct
from jaxtyping import Array, Bool

from stair_jax import ops


@struct.dataclass
class Layout:
    """Places of the tokens of B rows. Padding sees itself alone: reach t + 1, position 0."""

    positions: Any  # [B, T] int32, tokens before it on its path: what RoPE turns by
    reach: Any  # [B, T] int32, end (exclusive) of the subtree of its node: the last to see it
    parent: Any  # [B, T] int32, index of the token before it on its path; the first has its own


def visible(layout: Layout) -> Bool[Array, "B T T"]:
    """Returns who sees whom: [b, q, s] is True where token q of a row sees its token s."""
    return ops.visible(layout.reach)


def real(layout: Layout) -> Bool[np.ndarray, "*B T"]:
    """Returns which positions hold a token; of a layout on the host, with any leading axes."""
    # Padding sees itself alone and lies at position 0; the first token of a piece has others
    # after it.
    alone = layout.reach == 1 + np.arange(layout.reach.shape[-1])
    return ~alone | (layout.positions > 0)
