"""The engine's device programs: extend, decode a chunk, copy pages. All of fixed shape.

Shape letters: B slots  W pages per slot  N tokens of a chunk  C columns of the packed state
  R rows computed together  T prompt tokens of this call  V vocabulary  E stop sets
"""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from stair_jax.engine import sampling
from stair_jax.model import heads
from stair_jax.model.cache import KVPool, Rows
from stair_jax.model.transformer import Decoder

NO_TOKEN = -1


@dataclasses.dataclass
class Slots:
    """What the host says of each slot at the start of a chunk: arrays of [B], numpy on the host."""

    last: Any  # int32: token that is fed next; it has no keys in the pool yet
    length: Any  # int32: tokens with keys in the pool
    made: Any  # int32: new tokens so far, the counter of the random draws
    limit: Any  # int32: new tokens at most
    active: Any  # int32: 0 or 1
    stop: Any  # int32: index of the stop set
    top_k: Any  # int32
    key: Any  # uint32 [B, 2]
    temperature: Any  # float32
    top_p: Any  # float32

    @classmethod
    def empty(cls, count: int) -> "Slots":
        """Returns `count` idle slots."""
        ints = {f.name: np.zeros(count, np.int32) for f in dataclasses.fields(cls)}
        floats = {name: np.ones(count, np.float32) for name in ("temperature", "top_p")}
        return cls(**(ints | floats | {"key": np.zeros((count, 2), np.uint32)}))

    def pack(self, table: np.ndarray) -> np.ndarray:
        """Returns [B, C] int32, bit for bit: one transfer a chunk in place of eleven."""
        columns = [getattr(self, f.name) for f in dataclasses.fields(self)]
        wide = [c[:, None] if c.ndim == 1 else c for c in columns]
        return np.concatenate([c.view(np.int32) for c in wide] + [table], axis=1)


def _unpack(packed: jax.Array) -> tuple[Slots, jax.Array]:
    """Inverse of `Slots.pack` on the device."""
    take = lambda i, dtype: jax.lax.bitcast_convert_type(packed[:, i], dtype)  # noqa: E731
    key_B2 = jnp.stack([take(7, jnp.uint32), take(8, jnp.uint32)], axis=1)
    slots = Slots(
        *(packed[:, i] for i in range(7)), key=key_B2, temperature=take(9, jnp.float32),
        top_p=take(10, jnp.float32),
    )  # fmt: skip
    return slots, packed[:, 11:]


def _apply(
    decoder: Decoder, params: Any, tokens: jax.Array, pool: KVPool, rows: Rows
) -> tuple[jax.Array, KVPool]:
    """Returns hidden states and the grown pool; Flax itself does not say what `apply` returns."""
    return decoder.apply({"params": params}, tokens, pool, rows)  # pyright: ignore[reportReturnType]


@partial(jax.jit, static_argnames="decoder", donate_argnames="pool")
def extend(
    params: Any,
    pool: KVPool,
    tokens: jax.Array,
    length: jax.Array,
    count: jax.Array,
    table: jax.Array,
    *,
    decoder: Decoder,
) -> KVPool:
    """Returns the pool with the keys of `tokens` [R, T], the `count` [R] left ones of each row.

    The pool is donated. Nothing is sampled: a sequence's last token is fed by `decode_chunk`.
    """
    rows = Rows(table, length, count)
    return _apply(decoder, params, tokens, pool, rows)[1]


@partial(
    jax.jit,
    static_argnames=("decoder", "chunk", "candidates", "vocab"),
    donate_argnames="pool",
)
def decode_chunk(
    params: Any,
    pool: KVPool,
    packed: jax.Array,
    stops: jax.Array,
    *,
    decoder: Decoder,
    chunk: int,
    candidates: int,
    vocab: int,
) -> tuple[KVPool, jax.Array, jax.Array]:
    """Decodes up to `chunk` tokens in every active slot; the pool is donated.

    Args:
      packed: `Slots.pack`, [B, C] int32.
      stops: [E, V] bool, the stop sets; a slot ends after a token of its own, or at its limit.
      candidates: see `sampling.draw`.
      vocab: tokens that may be drawn, the ids below it; an embedding can have spare rows.

    Returns:
      (pool, tokens [B, N] int32 with NO_TOKEN where a slot was idle, log-probs [B, N] float32).
    """
    spec, (slots, table) = decoder.spec, _unpack(packed)
    spare_1V = (jnp.arange(spec.V) >= vocab)[None]

    def more(carry):
        step, active, *_ = carry
        return (step < chunk) & active.any()

    def one(carry):
        step, active, last, length, made, pool, out, logps = carry
        rows = Rows(table, length, active.astype(jnp.int32))
        hidden_B1D, pool = _apply(decoder, params, last[:, None], pool, rows)
        logits_BV = heads.logits(params, hidden_B1D[:, 0], spec)
        token, logp = sampling.draw(
            jnp.where(spare_1V, -jnp.inf, logits_BV), slots.key, made, slots.temperature,
            slots.top_k, slots.top_p, candidates=candidates,
        )  # fmt: skip
        out = out.at[:, step].set(jnp.where(active, token, NO_TOKEN))
        logps = logps.at[:, step].set(jnp.where(active, logp, 0.0))
        count = active.astype(jnp.int32)
        length, made = length + count, made + count
        going = active & ~stops[slots.stop, token] & (made < slots.limit)
        return step + 1, going, jnp.where(active, token, last), length, made, pool, out, logps

    shape = (packed.shape[0], chunk)
    start = (
        jnp.int32(0), slots.active > 0, slots.last, slots.length, slots.made, pool,
        jnp.full(shape, NO_TOKEN, jnp.int32), jnp.zeros(shape, jnp.float32),
    )  # fmt: skip
    return jax.lax.while_loop(more, one, start)[-3:]


@partial(jax.jit, donate_argnames="pool")
def copy_pages(pool: KVPool, source: jax.Array, target: jax.Array) -> KVPool:
    """Returns the pool with page `target[i]` equal to page `source[i]`, for all layers.

    A target outside the pool is passed over. The pool is donated.
    """

    def copy(x):
        return x.at[:, target].set(x.at[:, source].get(mode="clip"), mode="drop")

    return KVPool(copy(pool.k), copy(pool.v))
