"""Places of an array that are written, where others shall be passed over."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

# How `x.at[...]` writes to places that differ from one another, and passes over those out of range.
SCATTER: dict[str, Any] = {"mode": "drop", "unique_indices": True}


def or_beyond(chosen: Bool[Array, "..."], index: Int[Array, "..."], size: int) -> Int[Array, "..."]:
    """Returns `index` where `chosen` holds; elsewhere an index from `size` on, each another.

    For an axis of `size` entries in `x.at[...].set(..., **SCATTER)`. The two belong together. Where
    places may be equal, `xla_flags.REPEATABLE` has XLA sort them by where they lie in the flat
    array; there, the place behind a row's last is the next row's first, and one of these two writes
    is lost (XLA of jax 0.10.2 to 0.12.0: an H100 lost tokens and visits by it).
    """
    chosen, index = jnp.broadcast_arrays(chosen, index)
    beyond = size + jnp.arange(index.size, dtype=index.dtype).reshape(index.shape)
    return jnp.where(chosen, index, beyond)
