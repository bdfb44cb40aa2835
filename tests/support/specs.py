"""Sizes of models that tests make: what most of them share is said here."""

from typing import Any

from stair_jax.model.spec import Spec


def llama(**sizes: Any) -> Spec:
    """Returns a plain Llama of these sizes; `vocab` is the table's unless it is given."""
    return Spec(
        **{
            "vocab": sizes["V"],
            "eps": 1e-5,
            "theta": 10_000.0,
            "rope_scaling": None,
            "qkv_bias": False,
            "qk_norm": False,
            "tied": False,
            "family": "llama",
            **sizes,
        }
    )
