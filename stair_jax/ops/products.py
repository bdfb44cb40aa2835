"""Matrix products that multiply in the compute dtype in both directions.

JAX's own rule multiplies a float32 cotangent with the operands as they are: a product of bfloat16
operands whose result is float32 becomes two float32 x float32 products backwards, at half the
rate of a GPU or less. Here the cotangent takes the dtype of the operands first.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

Dims = tuple[tuple[tuple[int, ...], tuple[int, ...]], tuple[tuple[int, ...], tuple[int, ...]]]


@partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def dot_general(
    x: jax.Array, y: jax.Array, dims: Dims, out: Any, precision: Any = None
) -> jax.Array:
    """Returns `lax.dot_general` of x and y, summed in float32 and written in the dtype `out`.

    The dtype of `x` is what all three products (value, gradient of x, gradient of y) multiply in.
    The gradient of x comes in that dtype. The gradient of y comes in the dtype of `y`: given as
    stored in float32, a weight gets a gradient that was never rounded to 16 bit.

    Args:
        x: an operand, float32 or 16 bit.
        y: the other operand, in any float dtype; it is cast to the dtype of `x`.
        dims: contracting and batch axes, as in `lax.dot_general`.
        out: dtype of the result.
        precision: of the three products, as in `lax.dot_general`.
    """
    return lax.dot_general(
        x, y.astype(x.dtype), dims, precision=precision, preferred_element_type=out
    )


def _saved(x: jax.Array, y: jax.Array, dims: Dims, out: Any, precision: Any) -> Any:
    return dot_general(x, y, dims, out, precision), (x, y)


def _gradients(dims: Dims, out: Any, precision: Any, saved: Any, grad: jax.Array) -> Any:
    x, y = saved
    (x_sum, y_sum), (x_batch, y_batch) = dims
    grad, other = grad.astype(x.dtype), y.astype(x.dtype)
    of_x = _transposed(grad, other, x.ndim, x.dtype, dims, precision, last=True)
    swapped = ((y_sum, x_sum), (y_batch, x_batch))
    return of_x, _transposed(grad, x, y.ndim, y.dtype, swapped, precision, last=False)


dot_general.defvjp(_saved, _gradients)


def _transposed(
    grad: jax.Array,
    other: jax.Array,
    ndim: int,
    out: Any,
    dims: Dims,
    precision: Any,
    *,
    last: bool,
) -> jax.Array:
    """Returns the gradient of one operand of `ndim` axes; `dims` names its axes first.

    The same products in the same order of operands as JAX's own rule, so that in float32 nothing
    differs from it.

    Args:
        last: whether the axes that `other` keeps are the last of `grad`, or follow the batch axes.
    """
    (own_sum, other_sum), (own_batch, other_batch) = dims
    own_kept = [a for a in range(ndim) if a not in own_sum + own_batch]
    other_kept = tuple(a for a in range(other.ndim) if a not in other_sum + other_batch)
    batch = tuple(range(len(own_batch)))
    first = len(batch) + (len(own_kept) if last else 0)
    kept = tuple(range(first, first + len(other_kept)))
    product = lax.dot_general(
        grad,
        other,
        ((kept, other_kept), (batch, other_batch)),
        precision=precision,
        preferred_element_type=out,
    )
    # The summed axes of `other` come out in their order there.
    by_other = [own for _, own in sorted(zip(other_sum, own_sum, strict=True))]
    axes = [*own_batch, *own_kept, *by_other]
    return jnp.transpose(product, [axes.index(a) for a in range(ndim)])
