"""One optimiser step, the same for every stage."""

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from stair_jax import mesh as mesh_lib
from stair_jax.data.batches import BatchT, TrainingBatch
from stair_jax.program import Program, device_bytes
from stair_jax.train import optimizer
from stair_jax.train.losses import Loss, Sums


@struct.dataclass
class State:
    """What a step changes, and a checkpoint holds."""

    params: Any  # what is trained: all weights, or the adapters
    opt: Any  # the optimiser's state: moments, counters, the rate


class GivenUp(Exception):
    """A step, or a measurement, was not finished because it was asked to stop."""


def abstract(params: Any, tx: optax.GradientTransformation, mesh: Mesh) -> State:
    """Returns the shapes and places of a state of `params`, for a restore; nothing is allocated."""
    opt = jax.tree.map(
        lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where),
        jax.eval_shape(functools.partial(_start, tx), params),
        _places(params, tx, mesh),
    )
    like = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)  # noqa: E731
    return State(jax.tree.map(like, params), opt)


def init(params: Any, tx: optax.GradientTransformation, mesh: Mesh) -> State:
    """Returns the state before the first step; it owns `params`, which the first step consumes."""
    begin = jax.jit(_start, static_argnums=0, out_shardings=_places(params, tx, mesh))
    return State(params, begin(tx, params))  # one function for all: compiled once a layout


def _start(tx: optax.GradientTransformation, params: Any) -> Any:
    """Returns the optimiser's first state: float32 whatever the parameters are."""
    return tx.init(_float32(params))


def _places(params: Any, tx: optax.GradientTransformation, mesh: Mesh) -> Any:
    """Returns where a state of the optimiser lies: moments beside their parameters."""
    everywhere = NamedSharding(mesh, PartitionSpec())
    return optax.tree.map_params(
        tx,
        lambda x, p: p.sharding if x.shape == p.shape else everywhere,
        jax.eval_shape(functools.partial(_start, tx), params),
        params,
        transform_non_params=lambda _: everywhere,
    )


def _float32(tree: Any) -> Any:
    return jax.tree.map(lambda x: x.astype(jnp.float32), tree)


def on_mesh(params: Any, mesh: Mesh) -> Any:
    """Returns `params` on `mesh`: split as they are already, on every device where they are not."""

    def put(x: jax.Array | np.ndarray) -> jax.Array:
        where = x.sharding if isinstance(x, jax.Array) else None
        spec = where.spec if isinstance(where, NamedSharding) else PartitionSpec()
        return jax.device_put(x, NamedSharding(mesh, spec))

    return jax.tree.map(put, params)


def place(batch: BatchT, mesh: Mesh) -> BatchT:
    """Puts a batch [accum, micro, ...] on the mesh, rows over the data and fsdp axes.

    The cut into micro-batches is the data's work, on the host: inside the program it would move
    rows between devices.
    """
    return jax.device_put(batch, _batch_place(mesh))


def step(
    state: State,
    batch: TrainingBatch,
    lr: float | jax.Array,
    *,
    loss: Loss,
    tx: optax.GradientTransformation,
    frozen: Any = None,
    stop: Callable[[], bool] = lambda: False,
) -> tuple[State, Sums]:
    """Returns the next state and the metrics; `state` is donated, do not use it again.

    Where loss or gradient are not finite the state stays as it was and `skipped` is 1. A metric
    whose count is 0 in this batch is not a number.

    Args:
      state: parameters and moments, anywhere on the mesh; they stay where they are.
      batch: [accum, micro, ...] of `place`, of the kind that the objective is of.
      lr: the learning rate of this step, if it is injected into `tx`.
      loss: the objective.
      tx: the optimiser, any of optax's.
      frozen: weights that the objective reads and nobody trains, by name: "base" under adapters,
        "reference" of a preference.
      stop: asked between two forward and backward passes whether to give the step up.

    Raises:
      GivenUp: where `stop` says so; `state` is as it was.
    """
    programs, lr = Programs.for_state(loss, tx, state), jnp.float32(lr)
    if len(batch.weight) == 1:
        return programs.whole(state, frozen, batch, lr)
    total = programs.zeros(state.params, frozen, batch)
    for number in range(_used(batch)):
        if number and stop():
            raise GivenUp
        total = programs.add(total, state.params, frozen, batch, jnp.int32(number))
        jax.block_until_ready(total[0][0])  # or all passes would be under way at once
    return programs.update(state, total, batch, lr)


class Programs(NamedTuple):
    """The compiled parts of a step; the state's layout is part of them, so that it never drifts."""

    whole: Any  # of a batch of one micro-batch
    zeros: Any  # sums to begin with
    add: Any  # a pass over a micro-batch, added to them
    update: Any  # what the sums do to the state

    @classmethod
    def for_state(cls, loss: Loss, tx: optax.GradientTransformation, state: State) -> "Programs":
        """Returns the programs of an objective for a state, or for the shapes of one."""
        leaves, tree = jax.tree.flatten(jax.tree.map(lambda x: x.sharding, state))
        return cls.of(loss, tx, tree, tuple(leaves))

    @classmethod
    @functools.lru_cache(maxsize=32)
    def of(
        cls, loss: Loss, tx: optax.GradientTransformation, tree: Any, shardings: tuple
    ) -> "Programs":
        """Returns the programs of an objective for a state of this layout."""
        where = jax.tree.unflatten(tree, shardings)
        sums = ((None, None), where.params)
        parts, state = functools.partial(_pass, loss=loss), (where, None)
        return cls(
            whole=jax.jit(
                functools.partial(_step, loss=loss, tx=tx), donate_argnums=0, out_shardings=state
            ),
            zeros=jax.jit(functools.partial(_zeros, parts), out_shardings=sums),
            add=jax.jit(functools.partial(_added, parts), donate_argnums=0, out_shardings=sums),
            update=jax.jit(
                functools.partial(_update, loss=loss, tx=tx), donate_argnums=0, out_shardings=state
            ),
        )


def programs(
    state: State,
    batch: TrainingBatch,
    *,
    loss: Loss,
    tx: optax.GradientTransformation,
    mesh: Mesh,
    frozen: Any = None,
    beside: Mapping[str, int] | None = None,
) -> list[Program]:
    """Returns what `step` runs for such a batch, on shapes.

    Args:
      state: of `abstract`.
      batch: [accum, micro, ...], of shapes or of NumPy.
      loss: the objective.
      tx: the optimiser.
      mesh: where the batch comes to lie.
      frozen: shapes of the weights that the objective reads.
      beside: bytes on each device of what else is alive, by what it holds.
    """
    found, where = Programs.for_state(loss, tx, state), _batch_place(mesh)
    batch = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), batch)
    lr, others = jax.ShapeDtypeStruct((), jnp.float32), dict(beside or {})
    size = f"{batch.tokens.shape[1:]}".strip("()").replace(", ", " x ")

    def one(what: str, call: Any, *args: Any, **more: int) -> Program:
        name = f"{what} of {size} tokens"
        return Program(name=name, call=call, args=args, mesh=mesh, beside=others | more)

    if len(batch.weight) == 1:
        return [one("step", found.whole, state, frozen, batch, lr)]
    moments = device_bytes(state.opt)
    with jax.set_mesh(mesh):
        sums, grads = jax.eval_shape(found.zeros, state.params, frozen, batch)
    grads = jax.tree.map(
        lambda x, p: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=p.sharding),
        grads,
        state.params,
    )
    total, number = (sums, grads), jax.ShapeDtypeStruct((), jnp.int32)
    kept = {} if frozen is None else {"frozen weights": device_bytes(frozen)}
    return [
        one("first sums", found.zeros, state.params, frozen, batch, moments=moments),
        one("pass", found.add, total, state.params, frozen, batch, number, moments=moments),
        one("update", found.update, state, total, batch, lr, **kept),
    ]


def measuring(
    state: State,
    batch: TrainingBatch,
    *,
    loss: Loss,
    mesh: Mesh,
    frozen: Any = None,
    beside: Mapping[str, int] | None = None,
) -> Program:
    """Returns what `measure` runs for such a batch, on shapes; arguments as of `programs`."""
    where = _batch_place(mesh)
    batch = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), batch)
    return Program(
        name="measure of rows set aside",
        call=_measured,
        args=(state.params, frozen, batch),
        static={"loss": loss},
        mesh=mesh,
        beside={**(beside or {}), "moments": device_bytes(state.opt)},
    )


def _batch_place(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, mesh_lib.spec(None, "batch"))


def _step(
    state: State,
    frozen: Any,
    batch: TrainingBatch,
    lr: jax.Array,
    *,
    loss: Loss,
    tx: optax.GradientTransformation,
):
    total = _pass(state.params, frozen, batch, 0, loss=loss)
    return _update(state, total, batch, lr, loss=loss, tx=tx)


def _pass(params: Any, frozen: Any, batch: TrainingBatch, number: Any, *, loss: Loss) -> Any:
    """Returns ((the objective's part, sums), gradients) of a micro-batch."""
    counts = loss.counts(batch)  # of the whole batch: parts add up to its means
    micro = _micro(batch, number)

    def objective(params: Any) -> Any:
        sums = loss.sums(params, frozen, micro)
        return sum(
            coef * sums[name] / jnp.maximum(counts[loss.units[name]], 1)
            for name, coef in loss.terms.items()
        ), sums

    return jax.value_and_grad(objective, has_aux=True)(params)


def _micro(batch: BatchT, number: Any) -> BatchT:
    """Returns one micro-batch [micro, ...]."""
    return jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, number, keepdims=False), batch)


def _zeros(part: Any, params: Any, frozen: Any, batch: TrainingBatch) -> Any:
    shapes = jax.eval_shape(part, params, frozen, batch, 0)
    return jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), shapes)


def _added(
    part: Any, total: Any, params: Any, frozen: Any, batch: TrainingBatch, number: Any
) -> Any:
    return jax.tree.map(jnp.add, total, part(params, frozen, batch, number))


def _update(
    state: State,
    total: Any,
    batch: TrainingBatch,
    lr: jax.Array,
    *,
    loss: Loss,
    tx: optax.GradientTransformation,
):
    (value, sums), grads = total
    counts = loss.counts(batch)
    new, norms = updated(state, grads, lr, tx)
    finite = jnp.isfinite(value) & jnp.isfinite(norms["grad_norm"])
    new = jax.tree.map(lambda fresh, old: jnp.where(finite, fresh, old), new, state)
    metrics = {name: x / counts[loss.units[name]] for name, x in sums.items()}
    return new, metrics | norms | {"loss": value, "skipped": 1 - finite}


def updated(
    state: State, grads: Any, lr: jax.Array, tx: optax.GradientTransformation
) -> tuple[State, dict[str, jax.Array]]:
    """Returns the state after an update, and two figures of it.

    All is float32 until parameters are stored in their own dtype. `grad_norm` is the gradient's
    global norm before clipping, `update_ratio` the norm of the change over that of the parameters.
    """
    grads, params = _float32(grads), _float32(state.params)
    changes, opt = tx.update(grads, optimizer.with_rate(state.opt, lr), params)
    norms = {
        "grad_norm": optax.tree.norm(grads),
        "update_ratio": optax.tree.norm(changes) / jnp.maximum(optax.tree.norm(params), 1e-12),
    }
    return State(optax.apply_updates(state.params, changes), opt), norms


def _used(batch: TrainingBatch) -> int:
    """Returns how many micro-batches are computed: empty ones at the end cost nothing."""
    return int(np.flatnonzero(batch.filled).max(initial=0)) + 1


def measure(
    params: Any,
    batches: Iterable[TrainingBatch],
    mesh: Mesh,
    *,
    loss: Loss,
    frozen: Any = None,
    stop: Callable[[], bool] = lambda: False,
) -> dict[str, float]:
    """Returns the metrics of held-out batches and their `loss`; nothing where there are none.

    Means are over all batches together, as if they were one.

    Raises:
      GivenUp: where `stop`, asked before each batch, says so.
    """
    total: dict[str, float] = {}
    for batch in batches:
        if stop():
            raise GivenUp
        for name, x in _measured(params, frozen, place(batch, mesh), loss=loss).items():
            total[name] = total.get(name, 0.0) + float(x)
    if not total:
        return {}
    found = {
        name: total[name] / total[f"count/{count}"]
        for name, count in loss.units.items()
        if total[f"count/{count}"]
    }
    return found | {"loss": sum(coef * found.get(n, 0.0) for n, coef in loss.terms.items())}


@functools.partial(jax.jit, static_argnames="loss")
def _measured(params: Any, frozen: Any, batch: TrainingBatch, *, loss: Loss) -> Sums:
    part = functools.partial(loss.sums, params, frozen)
    zeros = jax.tree.map(
        lambda x: jnp.zeros(x.shape, jnp.float32),
        jax.eval_shape(part, _micro(batch, 0)),
    )

    def add(number: jax.Array, sums: Sums) -> Sums:
        return jax.tree.map(jnp.add, sums, part(_micro(batch, number)))

    filled = batch.filled
    used = jnp.max(jnp.where(filled, jnp.arange(len(filled)) + 1, 1))  # as `_used`
    sums = jax.lax.fori_loop(0, used, add, zeros)
    return sums | {f"count/{name}": x for name, x in loss.counts(batch).items()}
