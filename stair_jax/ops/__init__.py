"""The operations that a model is made of; which implementation runs is settled in `dispatch`."""

from stair_jax.ops.dispatch import (
    ATTENTION,
    GROUP,
    NO_KEYS,
    PAGED,
    attention,
    group_maxima,
    is_fused_attention,
    keep_plans,
    linear_logp,
    matmul,
    merge_attention,
    paged_attention,
    paged_choice,
    top_k,
    visible,
)
from stair_jax.ops.scatter import SCATTER, or_beyond

__all__ = [
    "ATTENTION",
    "GROUP",
    "NO_KEYS",
    "PAGED",
    "SCATTER",
    "attention",
    "group_maxima",
    "is_fused_attention",
    "keep_plans",
    "linear_logp",
    "matmul",
    "merge_attention",
    "or_beyond",
    "paged_attention",
    "paged_choice",
    "top_k",
    "visible",
]
