"""Views: a copy of each slot's keys and values beside the pool, laid out as a CPU reads them.

Gathering pages for every token moves all keys three times (read, write, read again). A slot that
keeps a contiguous copy for as long as a request runs reads them once. The copy costs memory for
every slot's whole context: it pays where contexts are short or the pool is not the scarce thing.

Shape letters: L layers  B slots  K kv heads  G query heads per kv head  H head dim  S key slots
  W pages per row  Z tokens per page  A slots loaded together
"""

import dataclasses
from typing import Any

import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Int

from stair_jax import ops
from stair_jax.model import cache
from stair_jax.model.cache import KVPool, Rows

VIEW_AXES = ("slot", "kv_head", None, None)  # logical axes of a layer's k and v


@struct.dataclass
class SlotCache:
    """The pool and the slots' copies of it; every token is written to both.

    A layer is an array of its own, since a slice would be copied: they serve parameters that
    `transformer.by_layer` has parted.
    """

    pool: KVPool | None  # None while nobody attends
    k: tuple[Any, ...]  # of [B, K, H, S]: scores are sums over H of whole vectors over S
    v: tuple[Any, ...]  # of [B, K, S, H]

    def attend(
        self,
        layer: int,
        rows: Rows,
        q: Float[Array, "B 1 N H"],
        k: Float[Array, "B 1 K H"],
        v: Float[Array, "B 1 K H"],
    ) -> tuple[Float[Array, "B 1 N H"], "SlotCache"]:
        """Returns attention of one token a slot, and the grown cache.

        Products and sums are left to fused loops: one query a head is too little for a matrix
        product.
        """
        k_BKHS, v_BKSH, pool = self.k[layer], self.v[layer], self.pool
        if pool is None:
            raise ValueError("views attend beside their pool, found none")
        (B, _, N, H), (_, K, _, S) = q.shape, k_BKHS.shape
        at_B = ops.or_beyond(rows.count > 0, rows.length, S)
        slot_B = jnp.arange(B)
        k_BKHS = k_BKHS.at[slot_B, :, :, at_B].set(k[:, 0].astype(k_BKHS.dtype), **ops.SCATTER)
        v_BKSH = v_BKSH.at[slot_B, :, at_B].set(v[:, 0].astype(v_BKSH.dtype), **ops.SCATTER)
        views = SlotCache(
            cache.write(pool, layer, rows, k, v),
            _with(self.k, layer, k_BKHS),
            _with(self.v, layer, v_BKSH),
        )
        k_BKHS, v_BKSH = k_BKHS.astype(jnp.float32), v_BKSH.astype(jnp.float32)
        q_BKGH = q.reshape(B, K, N // K, H).astype(jnp.float32) * H**-0.5
        score_BKGS = (q_BKGH[..., None] * k_BKHS[:, :, None]).sum(axis=3)
        seen_BS = jnp.arange(S)[None] <= rows.length[:, None]
        score_BKGS = jnp.where(seen_BS[:, None, None], score_BKGS, -jnp.inf)
        weight_BKGS = jnp.exp(score_BKGS - score_BKGS.max(axis=-1, keepdims=True))
        sum_BKGH = (weight_BKGS[..., None] * v_BKSH[:, :, None]).sum(axis=3)
        out_BKGH = sum_BKGH / weight_BKGS.sum(axis=-1)[..., None]
        return out_BKGH.reshape(B, 1, N, H).astype(q.dtype), views


def _with(layers: tuple[Any, ...], layer: int, new: Any) -> tuple[Any, ...]:
    return (*layers[:layer], new, *layers[layer + 1 :])


def empty(pool: KVPool, *, slots: int, pages: int) -> SlotCache:
    """Returns zeroed views of `pages` pages a slot, without the pool."""
    L, _, K, Z, H = pool.k.shape
    S, dtype = pages * Z, pool.k.dtype
    return SlotCache(
        None,
        tuple(jnp.zeros((slots, K, H, S), dtype) for _ in range(L)),
        tuple(jnp.zeros((slots, K, S, H), dtype) for _ in range(L)),
    )


def load(
    views: SlotCache, pool: KVPool, slot: Int[Array, " A"], table: Int[Array, "A W"]
) -> SlotCache:
    """Returns the views with what the pages of `table` hold in the given slots.

    A slot out of range is passed over; W is the views' width.
    """
    (L, _, K, Z, H), (A, W), B = pool.k.shape, table.shape, len(views.k[0])
    slot = ops.or_beyond(slot < B, slot, B)
    k_LAWKZH = pool.k.at[:, table].get(mode="clip")
    v_LAWKZH = pool.v.at[:, table].get(mode="clip")
    k_LAKHS = k_LAWKZH.transpose(0, 1, 3, 5, 2, 4).reshape(L, A, K, H, W * Z)
    v_LAKSH = v_LAWKZH.transpose(0, 1, 3, 2, 4, 5).reshape(L, A, K, W * Z, H)
    return dataclasses.replace(
        views,
        k=tuple(k.at[slot].set(k_LAKHS[i], **ops.SCATTER) for i, k in enumerate(views.k)),
        v=tuple(v.at[slot].set(v_LAKSH[i], **ops.SCATTER) for i, v in enumerate(views.v)),
    )
