"""The paged cache: one pool of key/value pages for all rows and layers.

Shape letters: L layers  P pages in the pool  Z tokens per page  K kv heads  H head dim
  B rows  T tokens of this call  W pages per row
Token at position p of a row lives in page `table[p // Z]`, at offset `p % Z`. A page may stand in
the tables of many rows: that is how a shared prefix is stored once.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float

from stair_jax.model.spec import Spec

POOL_AXES = ("layer", "page", "slot", "kv_head", "head")  # logical axes of k and v


@struct.dataclass
class KVPool:
    """Keys and values of all layers, in pages. Donate it: a step must not copy the pool."""

    k: Any  # [L, P, Z, K, H] array, or what stands for one: shape, sharding, axes
    v: Any  # [L, P, Z, K, H]


@struct.dataclass
class Rows:
    """Where the rows of one call keep their tokens."""

    table: Any  # [B, W] int32 page ids; any value where no page is needed yet
    length: Any  # [B] int32 tokens already cached
    count: Any  # [B] int32 real tokens of this call, at the left of its T


def empty_pool(spec: Spec, *, pages: int, page_size: int, dtype: Any) -> KVPool:
    """Returns a zeroed pool. On CPU with jax 0.10, bfloat16 scatters are slow: take float32."""
    shape = (spec.L, pages, page_size, spec.K, spec.H)
    return KVPool(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))


def write(
    pool: KVPool,
    layer: jax.Array | int,
    rows: Rows,
    k: Float[Array, "B T K H"],
    v: Float[Array, "B T K H"],
) -> KVPool:
    """Returns the pool with the real tokens of one layer stored; padding is dropped."""
    P, Z = pool.k.shape[1:3]
    step_1T = jnp.arange(k.shape[1])[None]
    pos_BT = rows.length[:, None] + step_1T
    page_BT = jnp.take_along_axis(rows.table, pos_BT // Z, axis=1, mode="clip")
    fits_BT = (step_1T < rows.count[:, None]) & (pos_BT < rows.table.shape[1] * Z)
    # P lies outside the pool, so "drop" skips it; a negative id would count from the end instead.
    page_BT = jnp.where(fits_BT & (page_BT >= 0), page_BT, P)
    at = (layer, page_BT, pos_BT % Z)
    return dataclasses.replace(
        pool,
        k=pool.k.at[at].set(k.astype(pool.k.dtype), mode="drop"),
        v=pool.v.at[at].set(v.astype(pool.v.dtype), mode="drop"),
    )


def read(pool: KVPool, layer: jax.Array | int, rows: Rows) -> tuple[jax.Array, jax.Array]:
    """Returns the keys and values [B, W*Z, K, H] of each row's pages, in position order.

    Slots that no token was written to hold anything: the caller masks them by position.
    """
    B, W = rows.table.shape
    _, _, Z, K, H = pool.k.shape
    at = (layer, rows.table)
    k_BWZKH, v_BWZKH = pool.k.at[at].get(mode="clip"), pool.v.at[at].get(mode="clip")
    return k_BWZKH.reshape(B, W * Z, K, H), v_BWZKH.reshape(B, W * Z, K, H)
