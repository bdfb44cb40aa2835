"""Log-probabilities from hidden states and the head, with the logits of one chunk at a time.

Shape letters: X positions  C positions of a chunk  D model  V rows of the head. On a mesh they are
those of one device: positions lie over the axes data and fsdp, the head's rows over tensor and its
columns over fsdp. The head is put together once before the loop over chunks, and its gradient is
summed over devices once after it; the loop itself has no communication, so that each
device may have as many chunks as it has wanted positions.
"""

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax import lax
from jax.sharding import PartitionSpec as P

from stair_jax import mesh as mesh_lib

_PIECES, _LEAST_PIECE = 8, 256  # of the positions where logits are kept: at most so many, so small
_LEAST = float(jnp.finfo(jnp.float32).min)  # of a device whose columns are all padding


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeadPlan:
    """What the programs are made for, beside their shapes. Hashable."""

    vocab: int  # columns of the logits that are tokens; those from here on are padding
    padded: bool  # whether there are any
    chunk: int  # positions a device computes at once
    keep: bool  # whether the backward pass gets all logits, instead of computing them again
    rows: tuple[str, ...] = ()  # mesh axes that split the positions
    heads: tuple[str, ...] = ()  # mesh axes that split the rows of the head
    widths: tuple[str, ...] = ()  # mesh axes that split its columns

    def shared(self, body: Callable[..., Any], ins: str, outs: str) -> Callable[..., Any]:
        """Returns `body` as a program of each device; a letter of X, V, D names an axis.

        Args:
            ins: the arguments' axes, such as "XD VD X X"; so are `outs` the results'.
        """
        if not (self.rows or self.heads or self.widths):
            return body
        split = {"X": self.rows, "V": self.heads}

        def spec(axes: str) -> P:
            if axes == "VD":
                return P(self.heads or None, self.widths or None)
            return P(*(split.get(axis) or None for axis in axes))

        in_specs, out_specs = tuple(map(spec, ins.split())), tuple(map(spec, outs.split()))
        return jax.shard_map(body, in_specs=in_specs, out_specs=out_specs, check_vma=False)


def plan(hidden: jax.Array, head: jax.Array, *, vocab: int, chunk: int) -> HeadPlan:
    """Returns the plan on the mesh that is set, if one is."""
    split: dict[str, tuple[str, ...]] = {}
    positions = hidden.shape[0]
    mesh = jax.sharding.get_abstract_mesh()
    if not mesh.empty and mesh.size > 1:
        rows, _ = mesh_lib.fit(("batch", None), hidden.shape, mesh)
        heads, widths = mesh_lib.fit(("vocab", "embed"), head.shape, mesh)
        for name, entry in (("rows", rows), ("heads", heads), ("widths", widths)):
            axes = (entry,) if isinstance(entry, str) else entry or ()
            split[name] = tuple(axis for axis in axes if mesh.shape[axis] > 1)
        positions //= math.prod(mesh.shape[axis] for axis in split["rows"])
    # All logits together are no more than a chunk's: then they are kept, as one would without
    # chunks, but still computed in pieces, as far as there are wanted positions.
    keep = positions <= chunk
    piece = max(-(-positions // _PIECES), min(_LEAST_PIECE, positions)) if keep else chunk
    return HeadPlan(vocab=vocab, padded=vocab < head.shape[0], chunk=piece, keep=keep, **split)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def linear_logp(
    plan: HeadPlan, hidden: jax.Array, head: jax.Array, target: jax.Array, wanted: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Returns what `ops.linear_logp` does; it is differentiable in `hidden` and `head`."""
    return _with_rest(dataclasses.replace(plan, keep=False), hidden, head, target, wanted)[:2]


def _with_rest(plan: HeadPlan, *arrays: jax.Array) -> Any:
    return plan.shared(partial(_forward, plan), "XD VD X X", "X X X XV")(*arrays)


def _saved(plan: HeadPlan, *arrays: jax.Array) -> Any:
    logp_X, hit_X, *rest = _with_rest(plan, *arrays)
    return (logp_X, hit_X), (*arrays, *rest)


def _gradients(plan: HeadPlan, saved: Any, grads: Any) -> Any:
    program = plan.shared(partial(_backward, plan), "XD VD X X X XV X", "XD VD")
    return *program(*saved, grads[0]), None, None


linear_logp.defvjp(_saved, _gradients)


def _forward(plan: HeadPlan, hidden_XD, head_VD, target_X, wanted_X):
    """Returns log-probs, hits and normalisers [X] of a device's positions, and kept logits."""
    whole_VD, first = _gathered(plan, head_VD, hidden_XD.dtype)
    taken = _Taken.of(wanted_X, plan.chunk)

    def body(i, found):
        found_3X, kept_XV = found
        take_C, _ = taken.chunk(i)
        logits_CV = _logits(plan, hidden_XD[take_C], whole_VD, first)
        top_C = logits_CV.max(axis=-1, initial=_LEAST)
        sum_C = jnp.exp(logits_CV - top_C[:, None]).sum(axis=-1)
        column_C1 = (target_X[take_C] - first)[:, None]
        at_C1 = jnp.clip(column_C1, 0, logits_CV.shape[1] - 1)
        chosen_C1 = jnp.take_along_axis(logits_CV, at_C1, axis=-1)
        chosen_C = jnp.where(at_C1 == column_C1, chosen_C1, -jnp.inf)[:, 0]
        fresh_3C = jnp.stack([top_C, sum_C, chosen_C])
        found_3X = lax.dynamic_update_slice(found_3X, fresh_3C, (0, i * taken.size))
        if plan.keep:
            kept_XV = lax.dynamic_update_slice(kept_XV, logits_CV, (i * taken.size, 0))
        return found_3X, kept_XV

    places = taken.order.size
    start_3X = jnp.zeros((3, places), jnp.float32)
    start_XV = jnp.zeros((places if plan.keep else 0, whole_VD.shape[0]), jnp.float32)
    found_3X, kept_XV = lax.fori_loop(0, taken.chunks, body, (start_3X, start_XV))
    top_X, sum_X, chosen_X = found_3X[:, taken.rank]
    if plan.heads:
        highest_X = lax.pmax(top_X, plan.heads)
        sum_X = lax.psum(sum_X * jnp.exp(top_X - highest_X), plan.heads)
        top_X, chosen_X = highest_X, lax.pmax(chosen_X, plan.heads)
    lse_X = top_X + jnp.log(sum_X)
    logp_X = jnp.where(wanted_X, chosen_X - lse_X, 0)
    return logp_X, wanted_X & (chosen_X >= top_X), lse_X, kept_XV


def _backward(plan: HeadPlan, hidden_XD, head_VD, target_X, wanted_X, lse_X, kept_XV, grad_X):
    """Returns the gradients of a device's hidden states and of its part of the head."""
    whole_VD, first = _gathered(plan, head_VD, hidden_XD.dtype)
    taken = _Taken.of(wanted_X, plan.chunk)

    def body(i, found):
        d_hidden_XD, d_head_VD = found
        take_C, live_C = taken.chunk(i)
        hidden_CD = hidden_XD[take_C]
        if plan.keep:
            logits_CV = lax.dynamic_slice_in_dim(kept_XV, i * taken.size, taken.size)
        else:
            logits_CV = _logits(plan, hidden_CD, whole_VD, first)
        # What fills the last chunk has no normaliser: infinity makes its probabilities 0.
        lse_C = jnp.where(live_C, lse_X[take_C], jnp.inf)
        grad_C = jnp.where(live_C, grad_X[take_C], 0)
        column_C1 = (target_X[take_C] - first)[:, None]
        chosen_CV = lax.broadcasted_iota(jnp.int32, logits_CV.shape, 1) == column_C1
        d_CV = grad_C[:, None] * (chosen_CV - jnp.exp(logits_CV - lse_C[:, None]))
        d_CV = d_CV.astype(hidden_XD.dtype)
        d_hidden_CD = jnp.dot(d_CV, whole_VD, preferred_element_type=jnp.float32)
        d_head_VD += jnp.dot(d_CV.T, hidden_CD, preferred_element_type=jnp.float32)
        d_hidden_XD = lax.dynamic_update_slice(
            d_hidden_XD, d_hidden_CD.astype(d_hidden_XD.dtype), (i * taken.size, 0)
        )
        return d_hidden_XD, d_head_VD

    dtype = jnp.float32 if plan.heads else hidden_XD.dtype  # of sums that are still in parts
    start_XD = jnp.zeros((taken.order.size, hidden_XD.shape[1]), dtype)
    start_VD = jnp.zeros(whole_VD.shape, jnp.float32)
    d_hidden_XD, d_head_VD = lax.fori_loop(0, taken.chunks, body, (start_XD, start_VD))
    d_hidden_XD = jnp.where(wanted_X[:, None], d_hidden_XD[taken.rank], 0)
    if plan.heads:
        d_hidden_XD = lax.psum(d_hidden_XD, plan.heads)
    return d_hidden_XD.astype(hidden_XD.dtype), _summed(plan, d_head_VD).astype(head_VD.dtype)


@struct.dataclass
class _Taken:
    """The wanted positions of a device, ahead of all others, in chunks."""

    order: Any  # [X, rounded up to whole chunks] int32, a position for each place
    rank: Any  # [X] int32, the place of each position; of those not wanted any
    count: Any  # [] int32, wanted positions
    size: int = struct.field(pytree_node=False)  # C

    @classmethod
    def of(cls, wanted_X: jax.Array, chunk: int) -> "_Taken":
        """Returns the order of a device's positions."""
        size = min(chunk, wanted_X.size)
        order_X = jnp.argsort(~wanted_X, stable=True).astype(jnp.int32)
        rank_X = jnp.maximum(jnp.cumsum(wanted_X, dtype=jnp.int32) - 1, 0)
        return cls(jnp.pad(order_X, (0, -wanted_X.size % size)), rank_X, wanted_X.sum(), size)

    @property
    def chunks(self) -> jax.Array:
        """How many of them hold wanted positions."""
        return (self.count + self.size - 1) // self.size

    def chunk(self, i: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns the positions of chunk i, and which of them are wanted; both [C]."""
        take_C = lax.dynamic_slice(self.order, (i * self.size,), (self.size,))
        return take_C, i * self.size + jnp.arange(self.size) < self.count


def _gathered(plan: HeadPlan, head_VD: jax.Array, dtype: Any) -> tuple[jax.Array, jax.Array | int]:
    """Returns a device's rows of the head, all columns, and the token of the first row."""
    head_VD = head_VD.astype(dtype)
    if plan.widths:
        head_VD = lax.all_gather(head_VD, plan.widths, axis=1, tiled=True)
    return head_VD, lax.axis_index(plan.heads) * head_VD.shape[0] if plan.heads else 0


def _logits(plan: HeadPlan, hidden_CD: jax.Array, head_VD: jax.Array, first: Any) -> jax.Array:
    """Returns the float32 logits [C, V] of a device's rows of the head."""
    logits_CV = jnp.dot(hidden_CD, head_VD.T, preferred_element_type=jnp.float32)
    if not plan.padded:
        return logits_CV
    token_1V = (first + jnp.arange(head_VD.shape[0]))[None]
    return jnp.where(token_1V < plan.vocab, logits_CV, -jnp.inf)


def _summed(plan: HeadPlan, d_head_VD: jax.Array) -> jax.Array:
    """Returns the sum over devices of the head's gradient, each device's part of it."""
    for axis in plan.widths:
        if axis in plan.rows:
            d_head_VD = lax.psum_scatter(d_head_VD, axis, scatter_dimension=1, tiled=True)
        else:  # all devices along it have had the same positions
            width = d_head_VD.shape[1] // lax.axis_size(axis)
            start = lax.axis_index(axis) * width
            d_head_VD = lax.dynamic_slice_in_dim(d_head_VD, start, width, axis=1)
    over = tuple(axis for axis in plan.rows if axis not in plan.widths)
    return lax.psum(d_head_VD, over) if over else d_head_VD
