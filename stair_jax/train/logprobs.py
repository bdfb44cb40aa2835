"""Log-probabilities of tokens under the model, and those of the reference, computed once."""

import dataclasses
from collections.abc import Iterable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from stair_jax import mesh as mesh_lib
from stair_jax.config import TrainConfig
from stair_jax.model import heads
from stair_jax.model.spec import Spec
from stair_jax.model.transformer import Decoder


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scorer:
    """The model as the losses see it: tokens in, their log-probabilities out. Hashable."""

    spec: Spec
    compute_dtype: str
    remat: str

    @classmethod
    def of(cls, spec: Spec, config: TrainConfig) -> "Scorer":
        """Takes precision and remat from the training configuration."""
        return cls(spec=spec, compute_dtype=config.compute_dtype, remat=config.remat)

    def __call__(self, params: Any, tokens: Int[Array, "B T"]) -> Float[Array, "B T"]:
        """Log-probability of every token given those before it, in nats; 0 for the first.

        Rows are padded on the right, so causality alone keeps padding out of real positions.
        """
        decoder = Decoder(self.spec, jnp.dtype(self.compute_dtype), self.remat)
        hidden_BTD, _ = decoder.apply({"params": params}, tokens)
        # All positions go through the head: with a small vocabulary it is 5 % of a step (measured),
        # so gathering the trained ones first would not pay. The last one predicts nothing.
        next_BT = jnp.roll(tokens, -1, axis=1)
        logp_BT = token_logp(heads.logits(params, hidden_BTD, self.spec), next_BT)
        return jnp.pad(logp_BT[:, :-1], ((0, 0), (1, 0)))


def token_logp(logits: Float[Array, "*B V"], target: Int[Array, "*B"]) -> Float[Array, "*B"]:
    """Log-probability of `target`; logits[t] predicts target[t], no shift happens here."""
    chosen = jnp.take_along_axis(logits, target[..., None], axis=-1)[..., 0]
    return chosen - jax.nn.logsumexp(logits, axis=-1)


def step_logps(
    scorer: Scorer, params: Any, tokens: Int[Array, "B 2 T"], step_mask: Bool[Array, "B 2 T"]
) -> tuple[Float[Array, "B 2"], Float[Array, "B 2 T"]]:
    """Summed log-probability of each masked step, and that of every token."""
    flat_XT = tokens.reshape(-1, tokens.shape[-1])  # chosen and rejected in one forward pass
    logp_B2T = scorer(params, flat_XT).reshape(tokens.shape)
    return jnp.einsum("BXT,BXT->BX", logp_B2T, step_mask.astype(jnp.float32)), logp_B2T


@partial(jax.jit, static_argnames="scorer")
def _reference_step(scorer: Scorer, params: Any, batch: dict[str, jax.Array]) -> jax.Array:
    return step_logps(scorer, params, batch["tokens"], batch["step_mask"])[0]


def reference(
    scorer: Scorer,
    params: Any,
    batches: Iterable[tuple[np.ndarray, dict[str, np.ndarray]]],
    *,
    pairs: int,
    mesh: jax.sharding.Mesh,
) -> np.ndarray:
    """Summed step log-probabilities [pairs, 2] of the reference model, chosen and rejected.

    Args:
      scorer: the one that training uses: rewards are then 0 at its first step, but for rounding.
      params: the reference model's.
      batches: `DpoData.pair_batches(rows)`: indices of the pairs, then their arrays.
      pairs: how many there are.
      mesh: where to compute; a batch's rows lie over its data and fsdp axes.
    """
    out_N2 = np.zeros((pairs, 2), np.float32)
    where = jax.sharding.NamedSharding(mesh, mesh_lib.spec("batch"))
    with jax.set_mesh(mesh):
        for index, batch in batches:
            used = {name: jax.device_put(batch[name], where) for name in ("tokens", "step_mask")}
            out_N2[index] = np.asarray(_reference_step(scorer, params, used))[: len(index)]
    return out_N2
