"""The largest entries of long rows without sorting them, and their oracle, `jax.lax.top_k`.

XLA compiles `lax.top_k` with k above 16 to a sort of the whole row on GPUs: for 256 rows of
128,256 logits that is 263 MB of temporaries and some passes over them. Here the rows are read
once, and what is sorted is a hundredth of them. All of it is plain XLA.

Shape letters: B rows  V entries  C groups of a row  E entries of a group
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

reference = jax.lax.top_k
GROUPS = (128, 8)  # entries of a group in the first narrowing and in the second
LONG = 16384  # entries below which a row is sorted as fast


def exact_top_k(x: Float[Array, "B V"], k: int) -> tuple[Float[Array, "B k"], Int[Array, "B k"]]:
    """Returns the k largest entries of each row, falling, and their indices, as `lax.top_k`.

    Equal entries come in the order of their indices; 0.0 and -0.0 are equal here, which
    `lax.top_k` tells apart. No entry may be nan.

    Of groups of neighbours, the k with the largest maxima hold the k largest entries: an entry
    elsewhere has k maxima before it. That narrows the row to k groups, and those again to k smaller
    ones; only the last few hundred entries are put in order.

    Raises:
        ValueError: k is larger than V.
    """
    V = x.shape[-1]
    if k > V:
        raise ValueError(f"top-k wants k <= V, found k = {k} and V = {V}")
    index_BV = None
    for size in GROUPS:
        if V >= LONG and x.shape[-1] >= 8 * k * size:  # else it would hardly get narrower
            x, index_BV = _narrow(x, index_BV, k, size)
    top_Bk, at_Bk = reference(x, k)
    return top_Bk, at_Bk if index_BV is None else jnp.take_along_axis(index_BV, at_Bk, axis=1)


def _narrow(
    x_BV: jax.Array, index_BV: jax.Array | None, k: int, size: int
) -> tuple[jax.Array, jax.Array]:
    """Returns the entries [B, k * size] of the k best groups, and their indices in the first row.

    Both keep the order of the row, so that a tie goes to the lowest index at the end as well.
    """
    B, V = x_BV.shape
    spare = -V % size  # filled up with what comes last, even after real entries of -inf
    x_BCE = jnp.pad(x_BV, ((0, 0), (0, spare)), constant_values=-jnp.inf).reshape(B, -1, size)
    _, best_Bk = reference(x_BCE.max(axis=-1), k)
    best_Bk1 = jnp.sort(best_Bk, axis=-1)[..., None]
    entry_11E = jnp.arange(size)[None, None]
    at_BV = (best_Bk1 * size + entry_11E).reshape(B, -1)
    if index_BV is not None:
        at_BV = jnp.take_along_axis(index_BV, at_BV, axis=1)
    return jnp.take_along_axis(x_BCE, best_Bk1, axis=1).reshape(B, -1), at_BV
