"""How many floating-point operations a traced program does: its matrix products and attention.

Counted is what runs, what the backward pass computes again included; a multiplication and an
addition are two. Element by element work is left out. A loop with a length that only data decides
counts once: the vocabulary's head in training goes over the wanted tokens, chunk by chunk.
"""

import math
from collections.abc import Iterator
from typing import Any

from jax.extend import core

_ATTENTION = "dot_product_attention"  # cuDNN's, as JAX names it
_BACKWARD = 2.5  # of its forward pass: five products for two


def flops(jaxpr: Any) -> float:
    """Returns the operations of a `jax.extend.core.Jaxpr`, all devices together."""
    return sum((_of(eqn) for eqn in jaxpr.eqns), start=0.0)


def _of(eqn: Any) -> float:
    name = eqn.primitive.name
    if name == "dot_general":
        (over, _), _ = eqn.params["dimension_numbers"]
        left = eqn.invars[0].aval.shape
        return 2.0 * math.prod(eqn.outvars[0].aval.shape) * math.prod(left[i] for i in over)
    if _ATTENTION in name:
        return _attention(eqn)
    inside = [flops(jaxpr) for jaxpr in _jaxprs(eqn.params)]
    if not inside:
        return 0.0
    if name == "cond":
        return max(inside)
    if name == "scan":
        return sum(inside) * eqn.params["length"]
    if name == "shard_map":  # its operations are one device's
        return sum(inside) * eqn.params["mesh"].size
    return sum(inside)


def _attention(eqn: Any) -> float:
    """Returns the operations of fused attention over all pairs of a query and a key."""
    q, k = (x.aval.shape for x in eqn.invars[:2])  # [B, T, N, H], [B, S, K, H]
    forward = 4.0 * math.prod(q) * k[1]
    return forward * (_BACKWARD if "bwd" in eqn.primitive.name else 1)


def _jaxprs(params: Any) -> Iterator[Any]:
    """Yields the programs inside an operation."""
    for value in params.values():
        for one in value if isinstance(value, (tuple, list)) else [value]:
            if isinstance(one, core.ClosedJaxpr):
                yield one.jaxpr
            elif isinstance(one, core.Jaxpr):
                yield one
