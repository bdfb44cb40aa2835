"""What is read from hidden states: logits over the vocabulary."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from stair_jax import ops
from stair_jax.model.spec import Spec


def matrix(params: Any, spec: Spec) -> jax.Array:
    """Returns the output head [V, D] as it is stored: the embedding where they are tied."""
    return params["embed" if spec.tied else "head"]


def logits(params: Any, hidden: Float[Array, "*B D"], spec: Spec) -> Float[Array, "*B V"]:
    """Returns float32 logits of the next token; rows that only pad the vocabulary get -inf."""
    logits = ops.matmul(hidden, matrix(params, spec).T)
    if spec.vocab == spec.V:
        return logits
    real_V = jnp.arange(spec.V) < spec.vocab
    return jnp.where(real_V.reshape((1,) * (logits.ndim - 1) + (spec.V,)), logits, -jnp.inf)
