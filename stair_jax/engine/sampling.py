"""Drawing tokens. B rows, V vocabulary entries, C candidates (the C largest logits)."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt32


def draw(
    logits: Float[Array, "B V"],
    key: UInt32[Array, "B 2"],
    index: Int[Array, " B"],
    temperature: Float[Array, " B"],
    top_k: Int[Array, " B"],
    top_p: Float[Array, " B"],
    *,
    candidates: int,
) -> tuple[Int[Array, " B"], Float[Array, " B"]]:
    """Returns one token a row and its log-prob at the row's temperature, before top-k and top-p.

    Order: temperature, top-k, top-p over what top-k left (as vLLM; thu-ml/STAIR samples with it).
    A row's noise depends on `key`, `index` (its token number) and the token id alone, so the draw
    is the same whatever `candidates` and the other rows are.

    Args:
      temperature: 0 takes the largest logit; its log-prob is then reported at temperature 1.
      candidates: static; how many of the largest logits can be drawn. At least every row's
        `top_k`; 0 says that no row filters, and then nothing is sorted.
    """
    greedy_B = temperature == 0
    logits_BV = logits / jnp.where(greedy_B, 1.0, temperature)[:, None]
    logp_BV = jax.nn.log_softmax(logits_BV, axis=-1)
    noise_BV = jnp.where(greedy_B[:, None], 0.0, _gumbel(key, index, logits.shape[-1]))
    if candidates == 0:
        token_B = jnp.argmax(logits_BV + noise_BV, axis=-1)
    else:
        top_BC, id_BC = jax.lax.top_k(logits_BV, min(candidates, logits.shape[-1]))
        kept_BC = _kept(top_BC, top_k, top_p)
        noise_BC = jnp.take_along_axis(noise_BV, id_BC, axis=-1)
        best_B1 = jnp.argmax(jnp.where(kept_BC, top_BC + noise_BC, -jnp.inf), axis=-1)[:, None]
        token_B = jnp.take_along_axis(id_BC, best_B1, axis=-1)[:, 0]
    logp_B = jnp.take_along_axis(logp_BV, token_B[:, None], axis=-1)[:, 0]
    return token_B.astype(jnp.int32), logp_B


def _kept(top_BC: jax.Array, top_k: jax.Array, top_p: jax.Array) -> jax.Array:
    """Marks the candidates (falling logits) that top-k and then top-p leave; never none."""
    rank_1C = jnp.arange(top_BC.shape[-1])[None]
    in_k_BC = rank_1C < jnp.where(top_k > 0, top_k, top_BC.shape[-1])[:, None]
    prob_BC = jax.nn.softmax(jnp.where(in_k_BC, top_BC, -jnp.inf), axis=-1)
    before_BC = jnp.cumsum(prob_BC, axis=-1) - prob_BC
    # The first candidate stays even where rounding or a tiny top_p would drop it.
    return in_k_BC & ((before_BC < top_p[:, None]) | (top_p >= 1.0)[:, None] | (rank_1C == 0))


def _gumbel(key: jax.Array, index: jax.Array, size: int) -> jax.Array:
    """Returns [B, size] Gumbel noise, row b from (key[b], index[b]) alone."""

    def row(key, index):
        folded = jax.random.fold_in(jax.random.wrap_key_data(key), index)
        return jax.random.gumbel(folded, (size,), jnp.float32)

    return jax.vmap(row)(key, index)


def candidates_for(temperature, top_k, top_p, vocab: int) -> int:
    """Returns the static `candidates` that serves all rows (host arrays), 0 where none filters."""
    drawing = temperature > 0
    filtering = drawing & ((top_k > 0) | (top_p < 1))
    if not filtering.any():
        return 0
    return int(top_k.max(where=drawing, initial=0)) if (top_k[drawing] > 0).all() else vocab
