"""The engine's device programs: extend, decode a chunk, copy pages. All of fixed shape.

Shape letters: B slots  R requests of a chunk  W pages per request  N tokens of a chunk
  X prompts computed together  T prompt tokens of this call  V vocabulary  E stop sets
  A slots loaded together
A chunk is handed more requests than there are slots: the first B rows are what the slots run, the
others wait, and a slot that ends takes up the next of them without a word from the host.
"""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from stair_jax import ops
from stair_jax.engine import batch as batch_lib
from stair_jax.engine import sampling
from stair_jax.engine.batch import Batch
from stair_jax.model import heads, views
from stair_jax.model.cache import Fresh, KVPool, Rows
from stair_jax.model.transformer import Decoder
from stair_jax.model.views import SlotCache

NO_TOKEN = NO_ROW = -1
_LEAST_TAKEN, _SHARE_TAKEN = 4, 8  # slots taken up a step: at least four, or an eighth of all


@dataclasses.dataclass(frozen=True)
class DecodePlan:
    """What a decoding program is compiled for, beside its shapes."""

    decoder: Decoder
    chunk: int  # N
    vocab: int  # tokens that may be drawn, the ids below it; an embedding can have spare rows
    candidates: int  # see `sampling.candidates_for`
    logps: bool  # whether log-probs are wanted


@struct.dataclass
class Chunk:
    """What a chunk gives back."""

    tokens: Any  # [R, N] int32, NO_TOKEN past what a request got
    logps: Any  # [R, N] float32; zeros where the plan wants none
    row: Any  # [B] int32, the request that each slot runs; NO_ROW for none
    steps: Any  # [] int32


@struct.dataclass
class _State:
    """The loop's state; a slot's `row` says which request it runs, or ran last."""

    step: Any  # [] int32
    waiting: Any  # [] int32, the next request that no slot has taken up
    going: Any  # [B] bool
    row: Any  # [B] int32
    last: Any  # [B] int32, the token that is fed next
    length: Any  # [B] int32, tokens with keys
    made: Any  # [B] int32, new tokens
    cache: Any
    tokens: Any  # [R, N] int32
    logps: Any  # [R, N] float32


def _apply(decoder: Decoder, params: Any, tokens: jax.Array, cache: Any, rows: Rows) -> Any:
    """Returns hidden states and the grown cache; Flax itself does not say what `apply` returns."""
    return decoder.apply({"params": params}, tokens, cache, rows)


@partial(jax.jit, static_argnames=("decoder", "fresh"), donate_argnames="pool")
def extend(
    params: Any,
    pool: KVPool,
    tokens: jax.Array,
    length: jax.Array,
    count: jax.Array,
    table: jax.Array,
    *,
    decoder: Decoder,
    fresh: bool,
) -> KVPool:
    """Returns the pool with the keys of `tokens` [X, T], the `count` [X] left ones of each row.

    The pool is donated. Nothing is sampled: a sequence's last token is fed by `decode_chunk`.

    Args:
      length: [X] int32, tokens that have keys already.
      fresh: whether none of the rows has; they need not look into the pool then.
    """
    cache, rows = Fresh(pool) if fresh else pool, Rows(table, length, count)
    cache = _apply(decoder, params, tokens, cache, rows)[1]
    return cache.pool if fresh else cache


@partial(jax.jit, static_argnames="plan", donate_argnames="cache")
def decode_chunk(
    params: Any,
    cache: Any,
    packed: jax.Array,
    table: jax.Array,
    stops: jax.Array,
    patience: jax.Array,
    *,
    plan: DecodePlan,
) -> tuple[Any, Chunk]:
    """Decodes up to `plan.chunk` steps; the cache is donated.

    Ends early where no request waits and more than `patience` slots have ended theirs.

    Args:
      cache: `SlotCache` or `SharedPrefixCache` over the pool.
      packed: rows of `batch.row`, [R, C] int32; row b < B is what slot b runs.
      table: [R, W] int32, the requests' pages.
      stops: [E, V] bool, the stop sets; a request ends after a token of its own, or at its limit.
      patience: [] int32.
    """
    batch = batch_lib.unpack(packed)
    R, B = packed.shape[0], _slots(cache, packed)
    state = _State(
        step=jnp.int32(0),
        waiting=jnp.int32(B),
        going=batch.active[:B] > 0,
        row=jnp.arange(B),
        last=batch.last[:B],
        length=batch.length[:B],
        made=batch.made[:B],
        cache=cache,
        tokens=jnp.full((R, plan.chunk), NO_TOKEN, jnp.int32),
        logps=jnp.zeros((R, plan.chunk), jnp.float32),
    )
    end = (batch.active > 0).sum(where=jnp.arange(R) >= B) + B
    enough = state.going.sum() - patience

    def more(state):
        busy = state.going.sum()
        return (state.step < plan.chunk) & (busy > 0) & ((state.waiting < end) | (busy >= enough))

    def step(state):
        # Slots take up requests last: before the pool is written, XLA would copy it to read it.
        state = _one(state, batch, params, table, stops, plan)
        return _take_up(state, batch, table, end) if R > B else state

    state = jax.lax.while_loop(more, step, state)
    row = jnp.where(state.going, state.row, NO_ROW)
    return state.cache, Chunk(state.tokens, state.logps, row, state.step)


def _slots(cache: Any, packed: jax.Array) -> int:
    """Returns B: the views' slots; without views every request of the chunk has one."""
    return cache.k[0].shape[0] if isinstance(cache, SlotCache) else packed.shape[0]


def _take_up(state: _State, batch: Batch, table: jax.Array, end: jax.Array) -> _State:
    """Gives idle slots the next requests, as long as there are any; a few slots a step."""
    B = state.row.shape[0]
    few = min(B, max(_LEAST_TAKEN, B // _SHARE_TAKEN))
    rank_B = jnp.cumsum(~state.going) - 1
    new_B = ~state.going & (rank_B < jnp.minimum(few, end - state.waiting))
    row_B = jnp.where(new_B, state.waiting + rank_B, state.row)

    def pick(column_R, old_B):
        return jnp.where(new_B, column_R[row_B], old_B)

    slot_A = jnp.nonzero(new_B, size=few, fill_value=B)[0]
    table_AW = table[row_B.at[slot_A].get(mode="clip")]
    return dataclasses.replace(
        state,
        waiting=state.waiting + new_B.sum(),
        going=state.going | new_B,
        row=row_B,
        last=pick(batch.last, state.last),
        length=pick(batch.length, state.length),
        made=pick(batch.made, state.made),
        cache=views.load(state.cache, state.cache.pool, slot_A, table_AW),
    )


def _one(
    state: _State, batch: Batch, params: Any, table: jax.Array, stops: jax.Array, plan: DecodePlan
) -> _State:
    """Draws one token in every slot that runs a request."""
    spec, row_B, going_B = plan.decoder.spec, state.row, state.going
    rows = Rows(table[row_B], state.length, going_B.astype(jnp.int32))
    hidden_B1D, cache = _apply(plan.decoder, params, state.last[:, None], state.cache, rows)
    logits_BV = heads.logits(params, hidden_B1D[:, 0], spec)
    if plan.vocab < spec.V:
        spare_1V = (jnp.arange(spec.V) >= plan.vocab)[None]
        logits_BV = jnp.where(spare_1V, -jnp.inf, logits_BV)
    token_B, logp_B = sampling.draw(
        logits_BV,
        batch.key[row_B],
        state.made,
        batch.temperature[row_B],
        batch.top_k[row_B],
        batch.top_p[row_B],
        batch.min_p[row_B],
        candidates=plan.candidates,
    )
    count_B = going_B.astype(jnp.int32)
    # A request's column is its count of tokens in this chunk.
    at = (row_B, ops.or_beyond(going_B, state.made - batch.made[row_B], plan.chunk))
    logps = state.logps
    if plan.logps:
        logps = logps.at[at].set(logp_B, **ops.SCATTER)
    made_B = state.made + count_B
    return dataclasses.replace(
        state,
        step=state.step + 1,
        going=going_B & ~stops[batch.stop[row_B], token_B] & (made_B < batch.limit[row_B]),
        last=jnp.where(going_B, token_B, state.last),
        length=state.length + count_B,
        made=made_B,
        cache=cache,
        tokens=state.tokens.at[at].set(token_B, **ops.SCATTER),
        logps=logps,
    )


@partial(jax.jit, donate_argnames="shown")
def load_views(shown: SlotCache, pool: KVPool, slot: jax.Array, table: jax.Array) -> SlotCache:
    """Returns `views.load`; the views are donated, the pool is not."""
    return views.load(shown, pool, slot, table)


@partial(jax.jit, donate_argnames="pool")
def copy_pages(pool: KVPool, source: jax.Array, target: jax.Array) -> KVPool:
    """Returns the pool with page `target[i]` equal to page `source[i]`, for all layers.

    A target outside the pool is passed over. The pool is donated.
    """
    pages = pool.k.shape[1]
    target = ops.or_beyond(target < pages, target, pages)

    def copy(x):
        return x.at[:, target].set(x.at[:, source].get(mode="clip"), **ops.SCATTER)

    return KVPool(copy(pool.k), copy(pool.v))


def compiled() -> int:
    """Returns how many programs of this file JAX has compiled in this process."""
    programs: Any = extend, decode_chunk, load_views, copy_pages
    return sum(program._cache_size() for program in programs)
