"""The largest entries of long rows without sorting them, and their oracle, `jax.lax.top_k`.

XLA compiles `lax.top_k` with k above 16 to a sort of the whole row on GPUs: for 256 rows of
128,256 logits that is 263 MB of temporaries and some passes over them. Here the rows are read
once, and what is sorted is a hundredth of them. All of it is plain XLA.

Shape letters: B rows  V entries  C groups of a row  E entries of a group
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

reference = jax.lax.top_k
GROUPS = (128, 8)  # entries of a group in the first narrowing and in the second
LONG = 16384  # entries below which a row is sorted as fast


def group_maxima(x: Float[Array, "B V"]) -> Float[Array, "B C"]:
    """Returns the largest entry of each group of the first narrowing: `GROUPS[0]` neighbours."""
    # XLA would merge this with a maximum over the groups into one over x, and read x once more.
    return jax.lax.optimization_barrier(_groups(x, GROUPS[0]).max(axis=-1))


def exact_top_k(
    x: Float[Array, "B V"],
    k: int,
    *,
    of: Callable[[jax.Array], jax.Array] | None = None,
    maxima: Float[Array, "B C"] | None = None,
) -> tuple[Float[Array, "B k"], Int[Array, "B k"]]:
    """Returns the k largest entries of each row, falling, and their indices, as `lax.top_k`.

    Equal entries come in the order of their indices; 0.0 and -0.0 are equal here, which
    `lax.top_k` tells apart. No entry may be nan.

    Of groups of neighbours, the k with the largest maxima hold the k largest entries: an entry
    elsewhere has k maxima before it. That narrows the row to k groups, and those again to k smaller
    ones; only the last few hundred entries are put in order.

    Args:
        of: where given, the largest of `of(x)` are found and returned, which is never computed for
            whole rows. It acts on each entry of [B, ...] alone and never falls where x rises.
        maxima: `group_maxima(x)` where that is known; else it is computed.

    Raises:
        ValueError: k is larger than V.
    """
    V = x.shape[-1]
    if k > V:
        raise ValueError(f"top-k wants k <= V, found k = {k} and V = {V}")
    of = of or (lambda x: x)
    index_BV = None
    for size in GROUPS:
        if V >= LONG and x.shape[-1] >= 8 * k * size:  # else it would hardly get narrower
            x_BCE = _groups(x, size)
            known_BC = maxima if size == GROUPS[0] else None
            maxima_BC = x_BCE.max(axis=-1) if known_BC is None else known_BC
            x, index_BV = _narrow(x_BCE, of(maxima_BC), index_BV, k)
    top_Bk, at_Bk = reference(of(x), k)
    return top_Bk, at_Bk if index_BV is None else jnp.take_along_axis(index_BV, at_Bk, axis=1)


def _groups(x_BV: jax.Array, size: int) -> jax.Array:
    """Returns the row as groups [B, C, size]."""
    spare = -x_BV.shape[-1] % size  # filled up with what comes last, even after entries of -inf
    padded = jnp.pad(x_BV, ((0, 0), (0, spare)), constant_values=-jnp.inf)
    return padded.reshape(len(x_BV), -1, size)


def _narrow(
    x_BCE: jax.Array, maxima_BC: jax.Array, index_BV: jax.Array | None, k: int
) -> tuple[jax.Array, jax.Array]:
    """Returns the entries [B, k * E] of the k best groups, and their indices in the first row.

    Both keep the order of the row, so that a tie goes to the lowest index at the end as well.
    """
    B, _, size = x_BCE.shape
    _, best_Bk = reference(maxima_BC, k)
    best_Bk1 = jnp.sort(best_Bk, axis=-1)[..., None]
    entry_11E = jnp.arange(size)[None, None]
    at_BV = (best_Bk1 * size + entry_11E).reshape(B, -1)
    if index_BV is not None:
        at_BV = jnp.take_along_axis(index_BV, at_BV, axis=1)
    return jnp.take_along_axis(x_BCE, best_Bk1, axis=1).reshape(B, -1), at_BV
