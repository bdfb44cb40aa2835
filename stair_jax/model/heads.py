"""What is read from hidden states: logits over the vocabulary."""

from typing import Any

from jaxtyping import Array, Float

from stair_jax import ops
from stair_jax.model.spec import Spec


def logits(params: Any, hidden: Float[Array, "*B D"], spec: Spec) -> Float[Array, "*B V"]:
    """Returns float32 logits of the next token; the head is the embedding where they are tied."""
    head_VD = params["embed" if spec.tied else "head"].astype(hidden.dtype)
    return ops.matmul(hidden, head_VD.T)
