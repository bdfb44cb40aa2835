"""Drawing tokens.

Shape letters: B rows  V vocabulary  C candidates, the largest logits  G groups of neighbours
  A rows that are searched together

The filters want a row's largest entries in order, and a vocabulary is long. A step reads all logits
twice: for the largest of each group, from which the C largest entries follow, and for the sum of
the softmax. With these two it is mostly certain what the filters keep, and that it lies among the
candidates: the token is drawn from there. Rows where it is not certain are searched alone, a few at
a time, with some dozen passes. A row that needs no order, since neither top-k nor top-p is on, is
drawn in one more pass.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt32

from stair_jax import ops

ALL = 0  # value of `candidates`: every row is searched
_LEAST = 64  # candidates; more come in powers of two, so that programs stay few
# Rows that are searched together. A search of few rows waits for its dozens of small kernels, not
# for memory: 256 rows took 18 ms of an H100 by 16 where all at once took 5.
_TOGETHER = 64
_NEVER = 128.0  # nats below the likeliest entry at which float32 knows no probability any more
_ODD = np.uint32(0x9E3779B9)  # 2^32 over the golden ratio: spreads neighbouring ids
_HALVINGS = 10  # of a bracket between two looks at whether one entry is left in it
_SMALL = 4096  # vocabularies up to here are not worth a top-k: on a CPU it sorts
_ROUNDING = 2.0**-24  # largest relative error of a float32 operation
_EXP_ERROR = 2.0**-20  # relative; far more than exp of two programs can differ by


class _Rows(NamedTuple):
    """All that the tokens of B rows depend on."""

    logits: jax.Array  # [B, V] float32
    inverse: jax.Array  # [B] float32, 1 / temperature; 1 for a greedy row
    top: jax.Array  # [B] float32, the largest scaled logit
    total: jax.Array  # [B] float32, exp(fall) of all entries
    greedy: jax.Array  # [B] bool
    key: jax.Array  # [B, 2] uint32
    number: jax.Array  # [B] int32, the token's
    top_k: jax.Array  # [B] int32
    top_p: jax.Array  # [B] float32
    min_p: jax.Array  # [B] float32

    def fall(self, logits: jax.Array) -> jax.Array:
        """Returns the scaled distances [B, ...] of logits from their row's largest, at most 0.0.

        It never falls where a logit rises. Logits that are equal here are ties everywhere. There
        is no -0.0, which a sort would tell from 0.0.
        """
        shape = (-1,) + (1,) * (logits.ndim - 1)
        fall = _scaled(logits, self.inverse) - self.top.reshape(shape)
        return jnp.where(fall < 0, fall, 0.0)

    def scores(self, fall: jax.Array, token: jax.Array) -> jax.Array:
        """Returns fall + noise of entries [B, X], of which the largest is drawn."""
        noise = jnp.where(self.greedy[:, None], 0.0, gumbel(self.key, self.number, token))
        return fall + noise


def draw(
    logits: Float[Array, "B V"],
    key: UInt32[Array, "B 2"],
    index: Int[Array, " B"],
    temperature: Float[Array, " B"],
    top_k: Int[Array, " B"],
    top_p: Float[Array, " B"],
    min_p: Float[Array, " B"],
    *,
    candidates: int,
) -> tuple[Int[Array, " B"], Float[Array, " B"]]:
    """Returns one token a row and its log-prob, float32 nats, before the filters.

    Order: temperature, top-k, top-p over what top-k left (as vLLM; thu-ml/STAIR samples with it),
    then min-p (Nguyen et al. 2024, section 3: at least `min_p` times the likeliest entry's
    probability). The likeliest entry always stays; among equal logits the lowest id is likelier.
    A row's noise depends on `key`, `index` (its token number) and the token id alone, so the draw
    is the same whatever `candidates` and the other rows are.

    Args:
      temperature: 0 takes the largest logit, and the log-prob is that of temperature 1.
      candidates: static, from `candidates_for`: the largest logits that are looked at first, or
        `ALL`.
    """
    V, greedy_B = logits.shape[-1], temperature == 0
    inverse_B = 1.0 / jnp.where(greedy_B, 1.0, temperature)
    maxima_BG = logits if candidates == ALL else ops.group_maxima(logits)
    top_B = _scaled(maxima_BG.max(axis=-1), inverse_B)
    rows = _Rows(logits, inverse_B, top_B, top_B, greedy_B, key, index, top_k, top_p, min_p)
    rows = rows._replace(total=jnp.exp(rows.fall(logits)).sum(axis=-1))

    def largest() -> jax.Array:
        if candidates == ALL:
            return _first_largest(rows.fall(logits))
        return _of_best_group(rows, rows.fall(maxima_BG), lambda fall, token: fall)

    def drawn() -> jax.Array:
        if candidates == ALL:
            return _searched(rows, None)
        return _from_candidates(rows, maxima_BG, min(candidates, V))

    token_B = jax.lax.cond(greedy_B.all(), largest, drawn).astype(jnp.int32)
    chosen_B = jnp.take_along_axis(logits, token_B[:, None], axis=-1)[:, 0]
    return token_B, _scaled(chosen_B, inverse_B) - (jnp.log(rows.total) + top_B)


def _scaled(logits: jax.Array, inverse_B: jax.Array) -> jax.Array:
    """Returns logits [B, ...] over their row's temperature, rounded alike in every program.

    XLA multiplies by the inverse in any case. Of a bare product that is added to something LLVM
    makes one operation with one rounding, but not everywhere: the largest logit less itself would
    not be 0.
    """
    product = logits * inverse_B.reshape((-1,) + (1,) * (logits.ndim - 1))
    return jnp.where(logits > -jnp.inf, product, -jnp.inf)


def _from_candidates(rows: _Rows, maxima_BG: jax.Array, C: int) -> jax.Array:
    """Returns a token [B] a row: from the C largest logits wherever these settle it."""
    B, V = rows.logits.shape
    fall_BC, token_BC = ops.top_k(rows.logits, C, of=rows.fall, maxima=maxima_BG)
    kept_BC, sure_B = kept_of_sorted(
        fall_BC, rows.total, rows.top_k, rows.top_p, rows.min_p, vocab=V
    )
    score_BC = jnp.where(kept_BC, rows.scores(fall_BC, token_BC), -jnp.inf)
    best_BC = score_BC == score_BC.max(axis=-1, keepdims=True)
    token_B = jnp.where(best_BC, token_BC, V).min(axis=-1)

    ordered_B = ((rows.top_k > 0) & (rows.top_k < V)) | (rows.top_p < 1.0)
    plain_B = ~sure_B & ~rows.greedy & ~ordered_B
    wide_B = ~sure_B & ~rows.greedy & ordered_B
    token_B = jax.lax.cond(
        plain_B.any(), lambda: jnp.where(plain_B, _without_order(rows), token_B), lambda: token_B
    )

    def search(state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        left_B, token_B = state
        row_A = jnp.nonzero(left_B, size=min(_TOGETHER, B), fill_value=B)[0]
        some = _Rows(*(x.at[row_A].get(mode="clip") for x in rows))
        token_A = _searched(some, some.total)
        at_A = ops.or_beyond(row_A < B, row_A, B)
        return (
            left_B.at[at_A].set(False, **ops.SCATTER),
            token_B.at[at_A].set(token_A, **ops.SCATTER),
        )

    return jax.lax.while_loop(lambda state: state[0].any(), search, (wide_B, token_B))[1]


def kept_of_sorted(
    fall: Float[Array, "B C"],
    total: Float[Array, " B"],
    top_k: Int[Array, " B"],
    top_p: Float[Array, " B"],
    min_p: Float[Array, " B"],
    *,
    vocab: int,
) -> tuple[jax.Array, jax.Array]:
    """Marks which of a row's largest entries stay, [B, C] bool, and where that is certain, [B].

    It is certain where no entry beyond these can stay, and where `kept_of_all` keeps the same:
    sums of weights and exp itself may be rounded otherwise there, so nothing may lie as near to an
    edge as that.

    Args:
      fall: falling; entries of [B, vocab] less their largest.
      total: exp(fall) of all entries, as `kept_of_all` gets it.
    """
    C = fall.shape[-1]
    k_B = jnp.where(top_k > 0, jnp.minimum(top_k, vocab), vocab)
    rank_1C, in_p_B = jnp.arange(C)[None], top_p < 1.0
    in_k_BC = rank_1C < k_B[:, None]
    weight_BC = jnp.where(in_k_BC, jnp.exp(fall), 0.0)
    up_to_BC = jnp.cumsum(weight_BC, axis=-1)
    mass_B = top_p * jnp.where(k_B <= C, up_to_BC[:, -1], total)
    in_p_BC = (up_to_BC - weight_BC < mass_B[:, None]) | ~in_p_B[:, None]
    floor_B1 = min_p[:, None]
    # The first candidate stays even where rounding or a tiny top_p would drop it.
    kept_BC = (in_k_BC & in_p_BC & (weight_BC >= floor_B1)) | (rank_1C == 0)

    # Four sums of C positive terms are compared: two of the mass, two of what comes before it.
    slack_B1 = (4 * (C + 8) * _ROUNDING) * mass_B[:, None]
    near_p_BC = in_p_B[:, None] & (jnp.abs(up_to_BC - mass_B[:, None]) <= slack_B1)
    # exp(0) is 1 in every program.
    near_m_BC = (fall < 0) & (jnp.abs(weight_BC - floor_B1) < _EXP_ERROR * floor_B1)
    mass_known_B = (k_B <= C) | (k_B == vocab)
    ends_B = (k_B <= C) | (in_p_B & (up_to_BC[:, -1] >= mass_B)) | (weight_BC[:, -1] < min_p)
    sure_B = ends_B & (mass_known_B | ~in_p_B) & ~(near_p_BC | near_m_BC).any(axis=-1)
    return kept_BC, sure_B


def _without_order(rows: _Rows) -> jax.Array:
    """Returns a token [B] a row, without top-k and top-p: in one pass over the vocabulary."""

    def scores(fall: jax.Array, token: jax.Array) -> jax.Array:
        weight = jnp.exp(jnp.maximum(fall, -_NEVER))
        kept = (weight >= rows.min_p[:, None]) | (fall == 0)
        return jnp.where(kept, rows.scores(fall, token), -jnp.inf)

    score_BV = scores(rows.fall(rows.logits), _ids(rows))
    return _of_best_group(rows, ops.group_maxima(score_BV), scores)


def _of_best_group(
    rows: _Rows, maxima_BG: jax.Array, scores: Callable[[jax.Array, jax.Array], jax.Array]
) -> jax.Array:
    """Returns the first entry [B] of the largest score, by the maxima of groups of neighbours.

    Args:
      scores: gives those of entries by their fall and token, both [B, X].
    """
    V, size = rows.logits.shape[-1], ops.GROUP
    token_BX = _first_largest(maxima_BG)[:, None] * size + jnp.arange(size, dtype=jnp.int32)[None]
    logit_BX = jnp.take_along_axis(rows.logits, token_BX, axis=-1, mode="clip")
    score_BX = jnp.where(token_BX < V, scores(rows.fall(logit_BX), token_BX), -jnp.inf)
    at_B = _first_largest(score_BX)
    return jnp.take_along_axis(token_BX, at_B[:, None], axis=-1)[:, 0]


def _searched(rows: _Rows, total: jax.Array | None) -> jax.Array:
    """Returns a token [B] a row, whatever the filters, with dozens of passes."""
    fall_BV = rows.fall(rows.logits)
    kept_BV = kept_of_all(fall_BV, rows.top_k, rows.top_p, rows.min_p, total)
    score_BV = rows.scores(fall_BV, _ids(rows))
    return _first_largest(jnp.where(kept_BV, score_BV, -jnp.inf))


def _ids(rows: _Rows) -> jax.Array:
    """Returns the ids of all entries, [B, V] int32."""
    return jnp.broadcast_to(jnp.arange(rows.logits.shape[-1])[None], rows.logits.shape)


def kept_of_all(
    logits: Float[Array, "B V"],
    top_k: Int[Array, " B"],
    top_p: Float[Array, " B"],
    min_p: Float[Array, " B"],
    total: Float[Array, " B"] | None = None,
) -> jax.Array:
    """Marks which of all logits stay, [B, V] bool, without a sort.

    The smallest logit that stays is found by halving: a dozen passes over the logits for each
    filter.

    Args:
      total: the weights' sum, exp of the difference to the largest, where it is known.
    """
    V = logits.shape[-1]
    fall_BV = jnp.maximum(logits - logits.max(axis=-1, keepdims=True), -_NEVER)
    weight_BV = jnp.exp(fall_BV)
    count_B = jnp.where(top_k > 0, jnp.minimum(top_k, V), V).astype(jnp.float32)
    k_BV = _largest(fall_BV, jnp.ones_like(weight_BV), count_B)
    inside_BV = jnp.where(k_BV, weight_BV, 0.0)
    inside_B = inside_BV.sum(axis=-1)
    if total is not None:  # summed once, it is the same for all ways of filtering
        inside_B = jnp.where(count_B < V, inside_B, total)
    mass_B = jnp.where(top_p < 1.0, top_p * inside_B, jnp.inf)
    p_BV = _largest(fall_BV, inside_BV, mass_B)
    first_BV = jnp.arange(V)[None] == _first_largest(logits)[:, None]
    return (k_BV & p_BV & (weight_BV >= min_p[:, None])) | first_BV


def _largest(fall_BV: jax.Array, weight_BV: jax.Array, mass_B: jax.Array) -> jax.Array:
    """Marks the largest entries: each one before which less than `mass` has been gathered.

    Equal entries count in the order of their places.
    """

    def above(bound_B, weight_BV):
        return jnp.where(fall_BV > bound_B[:, None], weight_BV, 0.0).sum(axis=-1)

    def halve(_, bracket):
        # The mass is reached above `low` and not above `high`: the edge is between, or at high.
        low_B, high_B = bracket
        bound_B = (low_B + high_B) / 2
        up_B = above(bound_B, weight_BV) >= mass_B
        return jnp.where(up_B, bound_B, low_B), jnp.where(up_B, high_B, bound_B)

    def narrow(state):
        low_B, high_B = jax.lax.fori_loop(0, _HALVINGS, halve, state[:2])
        inside_B = above(low_B, one_BV) - above(high_B, one_BV)
        middle_B = (low_B + high_B) / 2
        open_B = (inside_B > 1) & (low_B < middle_B) & (middle_B < high_B)
        return low_B, high_B, open_B.any()

    def of_equals(edge_weight_BV):
        return jnp.cumsum(edge_weight_BV, axis=-1) - edge_weight_BV

    one_BV = jnp.ones_like(weight_BV)
    low_B = fall_BV.min(axis=-1) - 1.0
    # Where the mass is never reached (no filter), there is no edge: all entries stay.
    endless_B = mass_B >= weight_BV.sum(axis=-1)
    high_B = jnp.where(endless_B, low_B, 0.0)
    start = low_B, high_B, ~endless_B.all()
    low_B, high_B, _ = jax.lax.while_loop(lambda state: state[2], narrow, start)
    edge_BV = (fall_BV > low_B[:, None]) & (fall_BV <= high_B[:, None])
    edge_weight_BV = jnp.where(edge_BV, weight_BV, 0.0)
    before_BV = jax.lax.cond(
        (edge_BV.sum(axis=-1) > 1).any(), of_equals, jnp.zeros_like, edge_weight_BV
    )
    before_BV += above(high_B, weight_BV)[:, None]
    return (fall_BV > high_B[:, None]) | (edge_BV & (before_BV < mass_B[:, None]))


def _first_largest(x_BV: jax.Array) -> jax.Array:
    """Returns argmax, as two plain reductions: a CPU has vectors for these, not for argmax."""
    V = x_BV.shape[-1]
    top_BV = x_BV == x_BV.max(axis=-1, keepdims=True)
    return jnp.where(top_BV, jnp.arange(V, dtype=jnp.int32)[None], V).min(axis=-1)


def gumbel(
    key: UInt32[Array, "B 2"], index: Int[Array, " B"], token: Int[Array, "B C"]
) -> Float[Array, "B C"]:
    """Returns Gumbel noise, each number from (key[b], index[b], token[b, c]) alone."""

    def words(key, index):
        return jax.random.key_data(jax.random.fold_in(jax.random.wrap_key_data(key), index))

    word_B2 = jax.vmap(words)(key, index)
    # Threefry for every token of the vocabulary would cost as much as a layer.
    bits_BC = _mix(_mix(token.astype(jnp.uint32) * _ODD ^ word_B2[:, :1]) + word_B2[:, 1:])
    # The upper 23 bits as the middle of one of 2^23 equal parts of (0, 1).
    unit_BC = ((bits_BC >> 9).astype(jnp.float32) + 0.5) * 2.0**-23
    return -jnp.log(-jnp.log(unit_BC))


def _mix(x: jax.Array) -> jax.Array:
    """Returns uint32 of which every bit depends on every bit of `x`.

    Source: the finalizer of MurmurHash3 (Appleby 2011), a bijection.
    """
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)


def candidates_for(temperature, top_k, vocab: int) -> int:
    """Returns the static `candidates` that serves all rows (host arrays).

    It is the same for all settings but a top-k beyond 64, which gets the next power of two; `ALL`
    where the vocabulary is small.
    """
    if vocab <= _SMALL:
        return ALL
    wanted = np.asarray(top_k)[np.asarray(temperature) > 0]
    most = int(wanted[wanted < vocab].max(initial=_LEAST))
    return 1 << (most - 1).bit_length()
