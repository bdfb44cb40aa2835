"""One optimiser step, the same for every stage."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from stair_jax import mesh as mesh_lib
from stair_jax.train.losses import Batch, Loss, Sums
from stair_jax.train.optimizer import AdamW


@struct.dataclass
class State:
    """What a checkpoint holds."""

    step: Any  # [] int32, optimiser steps done, which is also the position in the data
    params: Any  # float32
    opt: Any  # AdamW's moments


def abstract(params: Any, tx: AdamW, mesh: Mesh) -> State:
    """Returns the shapes and places of a state of `params`, for a restore; nothing is allocated."""
    everywhere = NamedSharding(mesh, PartitionSpec())
    opt = jax.tree.map(
        lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where),
        jax.eval_shape(tx.init, params), tx.shardings(params, mesh),
    )  # fmt: skip
    like = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)  # noqa: E731
    step = jax.ShapeDtypeStruct((), jnp.int32, sharding=everywhere)
    return State(step, jax.tree.map(like, params), opt)


def init(params: Any, tx: AdamW, mesh: Mesh) -> State:
    """Returns the state before the first step; `params` are copied, as a step donates its state."""
    where = NamedSharding(mesh, PartitionSpec())
    opt = jax.jit(tx.init, out_shardings=tx.shardings(params, mesh))(params)
    return State(jax.device_put(jnp.int32(0), where), jax.tree.map(jnp.copy, params), opt)


def on_mesh(params: Any, mesh: Mesh) -> Any:
    """Returns `params` on `mesh`: split as they are already, on every device where they are not."""

    def put(x: jax.Array | np.ndarray) -> jax.Array:
        where = x.sharding if isinstance(x, jax.Array) else None
        spec = where.spec if isinstance(where, NamedSharding) else PartitionSpec()
        return jax.device_put(x, NamedSharding(mesh, spec))

    return jax.tree.map(put, params)


def place(batch: Mapping[str, np.ndarray], micro_batch: int, mesh: Mesh) -> dict[str, jax.Array]:
    """Puts a batch on the mesh as [accum, micro, ...], rows over the data and fsdp axes.

    The cut into micro-batches happens here, on the host: inside the program it would move rows
    between devices.
    """
    where = NamedSharding(mesh, mesh_lib.spec(None, "batch"))
    cut = {name: x.reshape(-1, micro_batch, *x.shape[1:]) for name, x in batch.items()}
    return jax.device_put(cut, where)


def step(
    state: State, batch: Batch, lr: float | jax.Array, *, loss: Loss, tx: AdamW
) -> tuple[State, Sums]:
    """Returns the next state and the metrics; `state` is donated, do not use it again.

    Where loss or gradient are not finite the state stays as it was, `step` included, and
    `skipped` is 1.

    Args:
      state: parameters and moments, anywhere on the mesh; they stay where they are.
      batch: arrays [accum, micro, ...] of `place`.
      lr: the learning rate of this step.
      loss: the objective.
      tx: the optimiser.
    """
    leaves, tree = jax.tree.flatten(jax.tree.map(lambda x: x.sharding, state))
    return _program(loss, tx, tree, tuple(leaves))(state, batch, jnp.float32(lr))


@functools.lru_cache(maxsize=32)
def _program(loss: Loss, tx: AdamW, tree: Any, shardings: tuple):
    """The compiled step; the state's layout is part of the program, so that it never drifts."""
    return jax.jit(
        functools.partial(_step, loss=loss, tx=tx),
        donate_argnums=0,
        out_shardings=(jax.tree.unflatten(tree, shardings), None),
    )


def _step(state: State, batch: Batch, lr: jax.Array, *, loss: Loss, tx: AdamW):
    counts = loss.counts(batch)  # of the whole batch, before any part of it is differentiated
    mean = lambda name, x: x / jnp.maximum(counts[loss.units[name]], 1)  # noqa: E731

    def objective(params, micro):
        sums = loss.sums(params, micro)
        return sum(coef * mean(name, sums[name]) for name, coef in loss.terms.items()), sums

    def part(micro):
        return jax.value_and_grad(objective, has_aux=True)(state.params, micro)

    if next(iter(batch.values())).shape[0] == 1:
        (value, sums), grads = part({name: x[0] for name, x in batch.items()})
    else:
        zeros = jax.tree.map(
            lambda x: jnp.zeros(x.shape, x.dtype),
            jax.eval_shape(part, {name: x[0] for name, x in batch.items()}),
        )
        add = lambda total, micro: (jax.tree.map(jnp.add, total, part(micro)), None)  # noqa: E731
        ((value, sums), grads), _ = jax.lax.scan(add, zeros, dict(batch))
    params, opt, norm = tx.update(grads, state.opt, state.params, lr)
    finite = jnp.isfinite(value) & jnp.isfinite(norm)
    new = State(state.step + 1, params, opt)
    new = jax.tree.map(lambda fresh, old: jnp.where(finite, fresh, old), new, state)
    metrics = {name: mean(name, x) for name, x in sums.items()}
    return new, metrics | {"loss": value, "grad_norm": norm, "skipped": 1 - finite}
