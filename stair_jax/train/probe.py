"""A look at the attention in use, before rows with many sequences are trusted to it.

An implementation that passes over a mask trains on without a complaint: the sequences of a row
just see each other. So it is run on a small row of known answer first.
"""

import functools
import logging

import jax
import jax.numpy as jnp
import numpy as np

from stair_jax import ops
from stair_jax.model.spec import Spec

log = logging.getLogger(__name__)

T = 64  # tokens of the probed row
# Sequences side by side as (first own token, end), each after the tokens of its prefix: 20 alone;
# 12 shared by two steps of 7 and 9; 11 alone. The rest is padding.
_PATHS = (
    ((0, 0), (0, 20)),
    ((0, 0), (20, 32)),
    ((20, 32), (32, 39)),
    ((20, 32), (39, 48)),
    ((0, 0), (48, 59)),
)
_TREE = (20, 48)  # the prefix's reach is that of its last child
# Of the largest value. Measured on CPU: 4e-7 and 6e-3 where all is well, 1 with a leak.
LIMITS = {"float32": 1e-3, "bfloat16": 2e-2}


def check_packing(spec: Spec, compute_dtype: str, attention: str = "auto") -> float:
    """Returns how far a packed row's attention is from that of its sequences alone.

    It is the largest difference, in outputs and in gradients, over the largest value.

    Args:
      spec: sizes; heads and head dim are the model's own, since they decide what runs.
      compute_dtype: what the model computes in.
      attention: an implementation of `ops.attention`.

    Raises:
      ValueError: where it is beyond rounding, so that the sequences of a row see each other.
    """
    dtype = jnp.dtype(compute_dtype)
    draw = np.random.default_rng(0)
    q, k, v, weight = (
        jnp.asarray(draw.normal(size=(1, T, heads, spec.H)), dtype)
        for heads in (spec.N, spec.K, spec.K, spec.N)
    )
    packed, apart = (
        functools.partial(body, implementation=attention) for body in (_packed, _apart)
    )
    pairs = zip(_both(packed, q, k, v, weight), _both(apart, q, k, v, weight), strict=True)
    gap = float(np.max([_gap(a, b) for a, b in pairs]))  # numpy's: not a number stays what it is
    if not gap <= LIMITS[compute_dtype]:
        raise ValueError(
            f"attention {attention!r} in {compute_dtype}: the sequences of a packed row are"
            f" {gap:.2g} off from what they are alone (at most {LIMITS[compute_dtype]:g}), so they"
            " see each other; set train.batching to 'bucket'"
        )
    said = "packed rows: with attention %s they differ by %.1g from their sequences alone"
    log.info(said, attention, gap)
    return gap


def _reach() -> np.ndarray:
    reach_T = np.arange(1, T + 1)
    for _, (start, end) in _PATHS:
        reach_T[start:end] = end
    reach_T[_TREE[0] : _PATHS[1][1][1]] = _TREE[1]
    return reach_T[None].astype(np.int32)


def _packed(q: jax.Array, k: jax.Array, v: jax.Array, *, implementation: str) -> jax.Array:
    """Returns what the tokens of the row get in it, [X, N, H] of all but the padding."""
    out = ops.attention(q, k, v, reach=jnp.asarray(_reach()), implementation=implementation)
    return out[0, : _PATHS[-1][1][1]]


def _apart(q: jax.Array, k: jax.Array, v: jax.Array, *, implementation: str) -> jax.Array:
    """Returns what they get where each sequence has a row to itself."""
    rows, own = [], []
    for i, (prefix, (start, end)) in enumerate(_PATHS):
        path = [*range(*prefix), *range(start, end)]
        own += [(i, t) for t in range(len(path) - (end - start), len(path))]
        rows.append(path + [T - 1] * (T - len(path)))
    at = np.array(rows)
    out = ops.attention(q[0, at], k[0, at], v[0, at], causal=True, implementation=implementation)
    row, token = np.array(own).T
    return out[row, token]


def _both(body, q: jax.Array, k: jax.Array, v: jax.Array, weight: jax.Array) -> list[jax.Array]:
    """Returns outputs, and the gradients of their weighted sum to queries, keys and values."""

    @jax.jit
    def run(q, k, v, weight):
        out, back = jax.vjp(body, q, k, v)
        return [out, *back(weight[0, : len(out)])]

    return run(q, k, v, weight)


def _gap(a: jax.Array, b: jax.Array) -> float:
    a64, b64 = (np.asarray(x, np.float64) for x in (a, b))
    return np.abs(a64 - b64).max() / max(np.abs(b64).max(), np.finfo(np.float32).tiny)
