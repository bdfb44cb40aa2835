"""Groups: siblings that decode side by side read what they share once.

Attention splits into the whole pages that a group shares, for all its queries at once, and what
each slot has of its own; their log-sum-exps join the two (Juravsky et al. 2024, Hydragen, section
3). Where a slot is split is a property of its request, never of its company, so that what it
computes does not depend on who else is there.

Shape letters: B slots  T = 1  N query heads  K kv heads  Q = N/K  H head dim  C groups
  I members of a group at most  W pages of a shared part  U pages of an own part  Z tokens per page
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float

from stair_jax import ops
from stair_jax.model import cache
from stair_jax.model.cache import KVPool, Rows


@struct.dataclass
class SharedPrefixCache:
    """The pool, and which slots share which pages. Without `table` no slot shares any.

    `rows.table` of `attend` has the pages of the slots' own parts alone.
    """

    pool: KVPool
    table: Any = None  # [C, W] int32, pages of the shared parts
    length: Any = None  # [C] int32, tokens in them: whole pages
    member: Any = None  # [C, I] int32, slots; B where nobody is
    place: Any = None  # [B] int32, where the slot stands in `member`, flat; any value if split is 0
    split: Any = None  # [B] int32, tokens of the slot that its group shares
    implementation: str = struct.field(pytree_node=False, default="xla")

    def attend(
        self,
        layer: jax.Array | int,
        rows: Rows,
        q: Float[Array, "B 1 N H"],
        k: Float[Array, "B 1 K H"],
        v: Float[Array, "B 1 K H"],
    ) -> tuple[Float[Array, "B 1 N H"], "SharedPrefixCache"]:
        """Returns attention of one token a slot, and the grown cache."""
        B, _, N, H = q.shape
        K = k.shape[2]
        length_B = rows.length if self.table is None else rows.length - self.split
        own = dataclasses.replace(rows, length=length_B)
        grown = dataclasses.replace(self, pool=cache.write(self.pool, layer, own, k, v))
        q_BKQH = q.reshape(B, K, N // K, H)
        seen_B = jnp.where(rows.count > 0, length_B + 1, 0)
        out_BKQH, lse_BKQ = grown._paged(q_BKQH, layer, rows.table, seen_B)
        if self.table is not None:
            shared = grown._shared(q_BKQH, layer)
            out_BKQH, _ = ops.merge_attention(out_BKQH, lse_BKQ, *shared)
        return out_BKQH.reshape(B, 1, N, H).astype(q.dtype), grown

    def _paged(self, q, layer, table, length):
        pool, scale = self.pool, q.shape[-1] ** -0.5
        return ops.paged_attention(
            q, pool.k, pool.v, layer, table, length, scale=scale, implementation=self.implementation
        )

    def _shared(self, q_BKQH: jax.Array, layer: jax.Array | int) -> tuple[jax.Array, jax.Array]:
        """Returns attention over the shared parts, and its log-sum-exp, slot by slot."""
        _, K, Q, H = q_BKQH.shape
        C, I = self.member.shape
        q_CIKQH = q_BKQH.at[self.member].get(mode="fill", fill_value=0)
        q_CKMH = q_CIKQH.swapaxes(1, 2).reshape(C, K, I * Q, H)
        out_CKMH, lse_CKM = self._paged(q_CKMH, layer, self.table, self.length)
        out_XKQH = out_CKMH.reshape(C, K, I, Q, H).swapaxes(1, 2).reshape(C * I, K, Q, H)
        lse_XKQ = lse_CKM.reshape(C, K, I, Q).swapaxes(1, 2).reshape(C * I, K, Q)
        out_BKQH = out_XKQH.at[self.place].get(mode="clip")
        lse_BKQ = lse_XKQ.at[self.place].get(mode="clip")
        alone_B11 = (self.split == 0)[:, None, None]
        return out_BKQH, jnp.where(alone_B11, ops.NO_KEYS, lse_BKQ)
