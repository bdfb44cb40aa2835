"""Drawing tokens. B rows, V vocabulary entries, C candidates (the C largest logits)."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt32

from stair_jax import ops

GREEDY, ALL = 1, 0  # values of `candidates`: no row draws; every entry is one
_LEAST = 16  # candidates come in powers of two from here on, so that programs stay few
_NEVER = 128.0  # nats below the likeliest entry at which float32 knows no probability any more
_ODD = np.uint32(0x9E3779B9)  # 2^32 over the golden ratio: spreads neighbouring ids
_HALVINGS = 10  # of a bracket between two looks at whether one entry is left in it
_SMALL = 4096  # vocabularies up to here are not worth a top-k: on a CPU it sorts


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
) -> Int[Array, " B"]:
    """Returns one token a row.

    Order: temperature, top-k, top-p over what top-k left (as vLLM; thu-ml/STAIR samples with it),
    then min-p (Nguyen et al. 2024, section 3: at least `min_p` times the likeliest entry's
    probability). The likeliest entry always stays; among equal logits the lowest id is likelier.
    A row's noise depends on `key`, `index` (its token number) and the token id alone, so the draw
    is the same whatever `candidates` and the other rows are.

    Args:
      temperature: 0 takes the largest logit.
      candidates: static, from `candidates_for`; how many of the largest logits can be drawn.
    """
    greedy_B = temperature == 0
    logits_BV = logits / jnp.where(greedy_B, 1.0, temperature)[:, None]
    if candidates == GREEDY:
        return _first_largest(logits_BV)
    logits_BV -= logits_BV.max(axis=-1, keepdims=True)  # what is a tie must be one for top_k too
    if candidates == ALL:
        token_BC = jnp.broadcast_to(jnp.arange(logits.shape[-1])[None], logits.shape)
        logit_BC, kept_BC = logits_BV, kept_of_all(logits_BV, top_k, top_p, min_p)
    else:
        logit_BC, token_BC = ops.top_k(logits_BV, min(candidates, logits.shape[-1]))
        kept_BC = kept_of_sorted(logit_BC, top_k, top_p, min_p)
    noise_BC = jnp.where(greedy_B[:, None], 0.0, gumbel(key, index, token_BC))
    best_B = _first_largest(jnp.where(kept_BC, logit_BC + noise_BC, -jnp.inf))
    return jnp.take_along_axis(token_BC, best_B[:, None], axis=-1)[:, 0].astype(jnp.int32)


def logp_of(
    logits: Float[Array, "B V"], token: Int[Array, " B"], temperature: Float[Array, " B"]
) -> Float[Array, " B"]:
    """Returns the nats of each row's token at its temperature, before top-k, top-p and min-p.

    At temperature 0 they are those of temperature 1.
    """
    scaled_BV = logits / jnp.where(temperature == 0, 1.0, temperature)[:, None]
    chosen_B = jnp.take_along_axis(scaled_BV, token[:, None], axis=-1)[:, 0]
    return chosen_B - jax.nn.logsumexp(scaled_BV, axis=-1)


def kept_of_sorted(
    logits: Float[Array, "B C"],
    top_k: Int[Array, " B"],
    top_p: Float[Array, " B"],
    min_p: Float[Array, " B"],
) -> jax.Array:
    """Marks which of falling logits stay, [B, C] bool."""
    rank_1C = jnp.arange(logits.shape[-1])[None]
    in_k_BC = rank_1C < jnp.where(top_k > 0, top_k, logits.shape[-1])[:, None]
    weight_BC = jnp.where(in_k_BC, jnp.exp(logits - logits[:, :1]), 0.0)
    before_BC = jnp.cumsum(weight_BC, axis=-1) - weight_BC
    mass_B1 = top_p[:, None] * weight_BC.sum(axis=-1, keepdims=True)
    in_p_BC = (before_BC < mass_B1) | (top_p >= 1.0)[:, None]
    # The first candidate stays even where rounding or a tiny top_p would drop it.
    return (in_k_BC & in_p_BC & (weight_BC >= min_p[:, None])) | (rank_1C == 0)


def kept_of_all(
    logits: Float[Array, "B V"],
    top_k: Int[Array, " B"],
    top_p: Float[Array, " B"],
    min_p: Float[Array, " B"],
) -> jax.Array:
    """Marks which of all logits stay, [B, V] bool, without a sort.

    The smallest logit that stays is found by halving: a dozen passes over the logits for each
    filter.
    """
    V = logits.shape[-1]
    fall_BV = jnp.maximum(logits - logits.max(axis=-1, keepdims=True), -_NEVER)
    weight_BV = jnp.exp(fall_BV)
    count_B = jnp.where(top_k > 0, jnp.minimum(top_k, V), V).astype(jnp.float32)
    k_BV = _largest(fall_BV, jnp.ones_like(weight_BV), count_B)
    inside_BV = jnp.where(k_BV, weight_BV, 0.0)
    mass_B = jnp.where(top_p < 1.0, top_p * inside_BV.sum(axis=-1), jnp.inf)
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

    `GREEDY` where no row draws, the next power of two where each of the drawing rows has a top-k
    and the vocabulary is large, else `ALL`.
    """
    drawing = np.asarray(temperature) > 0
    if not drawing.any():
        return GREEDY
    wanted = np.asarray(top_k)[drawing]
    most = int(wanted.max())
    if (wanted > 0).all() and most < vocab and vocab > _SMALL:
        return max(_LEAST, 1 << (most - 1).bit_length())
    return ALL
