"""The paged cache: one pool of key/value pages for all rows and layers.

Shape letters: L layers  P pages in the pool  Z tokens per page  K kv heads  H head dim
  B rows  T tokens of this call  W pages per row  N query heads  S = W Z
Token at position p of a row lives in page `table[p // Z]`, at offset `p % Z`. A page may stand in
the tables of many rows: that is how a shared prefix is stored once.

What a decoder can be given as its cache has one method, `attend`: `KVPool`, and `Fresh` for rows
without a past; to decode, `views.SlotCache` or `groups.SharedPrefixCache`.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float

from stair_jax import ops
from stair_jax.model.spec import Spec

POOL_AXES = ("layer", "page", "kv_head", "slot", "head")  # logical axes of k and v


@struct.dataclass
class Rows:
    """Where the rows of one call keep their tokens."""

    table: Any  # [B, W] int32 page ids; any value where no page is needed yet
    length: Any  # [B] int32 tokens already cached
    count: Any  # [B] int32 real tokens of this call, at the left of its T


@struct.dataclass
class KVPool:
    """Keys and values of all layers, in pages. Donate it: a step must not copy the pool.

    A page holds a head's tokens side by side, as attention reads them.
    """

    k: Any  # [L, P, K, Z, H] array, or what stands for one: shape, sharding, axes
    v: Any  # [L, P, K, Z, H]

    @property
    def page_size(self) -> int:
        """Tokens of a page, Z."""
        return self.k.shape[3]

    def attend(
        self,
        layer: jax.Array | int,
        rows: Rows,
        q: Float[Array, "B T N H"],
        k: Float[Array, "B T K H"],
        v: Float[Array, "B T K H"],
    ) -> tuple[Float[Array, "B T N H"], "KVPool"]:
        """Returns attention over the cached tokens and this call's, and the grown cache."""
        pool = write(self, layer, rows, k, v)
        k_BSKH, v_BSKH = read(pool, layer, rows)
        pos_BT = rows.length[:, None] + jnp.arange(q.shape[1])[None]
        mask_BTS = jnp.arange(k_BSKH.shape[1])[None, None] <= pos_BT[..., None]
        k_BSKH, v_BSKH = k_BSKH.astype(q.dtype), v_BSKH.astype(q.dtype)
        return ops.attention(q, k_BSKH, v_BSKH, mask=mask_BTS, implementation="xla"), pool


@struct.dataclass
class Fresh:
    """A pool for rows that have nothing cached: what they see is in the call itself."""

    pool: KVPool

    def attend(
        self,
        layer: jax.Array | int,
        rows: Rows,
        q: Float[Array, "B T N H"],
        k: Float[Array, "B T K H"],
        v: Float[Array, "B T K H"],
    ) -> tuple[Float[Array, "B T N H"], "Fresh"]:
        """Returns causal attention over this call's tokens, and the grown cache."""
        return ops.attention(q, k, v, causal=True), Fresh(write(self.pool, layer, rows, k, v))


def empty_pool(spec: Spec, *, pages: int, page_size: int, dtype: Any) -> KVPool:
    """Returns a zeroed pool; under `jit` it is made where its `out_shardings` are."""
    shape = pool_shape(spec, pages=pages, page_size=page_size)
    return KVPool(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))


def pool_shape(spec: Spec, *, pages: int, page_size: int) -> tuple[int, ...]:
    """Returns the shape of a pool's k and v."""
    return spec.L, pages, spec.K, page_size, spec.H


def write(
    pool: KVPool,
    layer: jax.Array | int,
    rows: Rows,
    k: Float[Array, "B T K H"],
    v: Float[Array, "B T K H"],
) -> KVPool:
    """Returns the pool with the real tokens of one layer stored; padding is dropped."""
    P, Z = pool.k.shape[1], pool.page_size
    step_1T = jnp.arange(k.shape[1])[None]
    pos_BT = rows.length[:, None] + step_1T
    page_BT = jnp.take_along_axis(rows.table, pos_BT // Z, axis=1, mode="clip")
    fits_BT = (step_1T < rows.count[:, None]) & (pos_BT < rows.table.shape[1] * Z)
    page_BT = ops.or_beyond(fits_BT & (page_BT >= 0), page_BT, P)
    at = (layer, page_BT, slice(None), pos_BT % Z)
    return dataclasses.replace(
        pool,
        k=pool.k.at[at].set(k.astype(pool.k.dtype), **ops.SCATTER),
        v=pool.v.at[at].set(v.astype(pool.v.dtype), **ops.SCATTER),
    )


def read(pool: KVPool, layer: jax.Array | int, rows: Rows) -> tuple[jax.Array, jax.Array]:
    """Returns the keys and values [B, W*Z, K, H] of each row's pages, in position order.

    Slots that no token was written to hold anything: the caller masks them by position.
    """
    B, W = rows.table.shape
    K, Z, H = pool.k.shape[2:]

    def gathered(x):
        x_BWKZH = x.at[layer, rows.table].get(mode="clip")
        return x_BWKZH.swapaxes(2, 3).reshape(B, W * Z, K, H)

    return gathered(pool.k), gathered(pool.v)
