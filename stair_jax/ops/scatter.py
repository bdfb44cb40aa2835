"""Scatters that skip some of their writes."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

# For `x.at[...]`: all places differ from one another, and those out of range are skipped.
SCATTER: dict[str, Any] = {"mode": "drop", "unique_indices": True}


def or_beyond(chosen: Bool[Array, "..."], index: Int[Array, "..."], size: int) -> Int[Array, "..."]:
    """Returns `index` where `chosen` holds, and elsewhere distinct indices from `size` on.

    For an axis of `size` entries in `x.at[...].set(..., **SCATTER)`. The two belong together. Where
    places may be equal, `xla_flags.REPEATABLE` has XLA sort them by where they lie in the flat
    array; there, the place behind a row's last is the next row's first, and one of these two writes
    is lost (read in what XLA of jax 0.11.2 makes of it; a search on an H100 never ended).
    """
    chosen, index = jnp.broadcast_arrays(chosen, index)
    beyond = size + jnp.arange(index.size, dtype=index.dtype).reshape(index.shape)
    return jnp.where(chosen, index, beyond)
