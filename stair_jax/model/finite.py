"""Whether weights are numbers: one NaN among them spreads to all that a model says."""

from typing import Any

import jax
import jax.numpy as jnp


def complaint(params: Any) -> str:
    """Returns which weight of a tree is not finite, and how much of it; nothing where all are.

    The devices look, in one program; only the counts come to the host.
    """
    counts = jax.device_get(_not_finite(params))
    for path, count in jax.tree_util.tree_leaves_with_path(counts):
        if count:
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            return f"{name} has {count:.0f} values that are NaN or infinite, expected finite ones"
    return ""


@jax.jit
def _not_finite(params: Any) -> Any:
    # Float32, for an int32 could wrap round to 0 where all of a large stack is NaN.
    return jax.tree.map(lambda x: jnp.sum(~jnp.isfinite(x), dtype=jnp.float32), params)
