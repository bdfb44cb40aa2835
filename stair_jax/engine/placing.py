"""Weights from wherever they lie to the devices of engines: by layer, in the engine's dtype.

Arrays on devices go from device to device, and arrays of NumPy from the host to each device that
keeps a part of them. A group of weights moves at a time, the largest first, so that beside the
weights little more than one group's source is alive. All engines are served in one pass: where
they share the devices of the source, one program gathers a group for all of them.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, Sharding, SingleDeviceSharding

from stair_jax import mesh as mesh_lib
from stair_jax.model import transformer
from stair_jax.model.spec import Spec

Box = tuple[tuple[int, int], ...]  # start and end in each dimension
Place = jax.sharding.Mesh | None  # None for the first local device
SCORE = "score"  # of a reward model: it stays float32 whatever the engine's dtype


@dataclasses.dataclass(frozen=True)
class Later:
    """A weight that is made when its turn comes, such as one that is still on disk."""

    shape: tuple[int, ...]
    dtype: Any
    make: Callable[[], Any]  # returns the array


@dataclasses.dataclass(frozen=True)
class Placed:
    """Weights on one engine's devices, as `transformer.by_layer` arranges them."""

    tree: Any


def place(
    spec: Spec,
    params: Any,
    places: Sequence[Place],
    *,
    dtype: Any,
    give_away: bool = False,
) -> list[Placed]:
    """Returns the weights for each of `places`.

    Args:
      spec: sizes of the model.
      params: the tree of `transformer.init` or `transformer.by_layer`, a reward model's "score"
        beside it; leaves are arrays of JAX or NumPy, or `Later`.
      places: meshes of engines, with an axis "tensor"; None for the first local device.
      dtype: of the weights; the score's is float32.
      give_away: whether `params` is emptied on the way, weight by weight. An array that nobody
        else holds is then freed as soon as it has been read.
    """
    axes: Any = {**transformer.logical_axes_by_layer(spec), SCORE: (None,)}
    trees: list[Any] = [{"layers": [{} for _ in range(spec.L)]} for _ in places]
    for holder, names in _groups(params):
        layered = holder is not params
        own = jnp.dtype(jnp.float32 if names == (SCORE,) else dtype)
        sources = [_taken(holder, name, give_away) for name in names]
        found = axes["layers"][0] if layered else axes
        parts = _placed_parts(sources, layered, own, found[names[0]], places)
        del sources
        jax.block_until_ready(parts)  # what was given away is free only then
        for tree, own_parts in zip(trees, parts, strict=True):
            if layered:
                for layer, part in zip(tree["layers"], own_parts, strict=True):
                    layer[names[0]] = part
            else:
                (tree[names[0]],) = own_parts
    return [Placed(tree) for tree in trees]


def zeros(make: Callable[..., Any], places: Any, **sizes: Any) -> Any:
    """Returns what `make(**sizes)` does, each array made where `places` says.

    Args:
      make: a function of static sizes, at the top level of a module.
      places: shardings, a tree like what it returns or a prefix of one.
      sizes: hashable.
    """
    return jax.jit(make, static_argnames=tuple(sizes), out_shardings=places)(**sizes)


def sharding(axes: Sequence[str | None], shape: Sequence[int], where: Place) -> Sharding:
    """Returns where an array with these logical axes lies on an engine's devices."""
    if where is None:  # said aloud: where it is left open, a program's first call differs
        return SingleDeviceSharding(first_device(where))
    return NamedSharding(where, mesh_lib.fit(axes, shape, where, rules=mesh_lib.ENGINE_RULES))


def first_device(where: Place) -> Any:
    """Returns the device that speaks for an engine's."""
    return jax.local_devices()[0] if where is None else where.devices.flat[0]


def _groups(params: Any) -> list[tuple[Any, tuple[str, ...]]]:
    """Returns (who holds them, names) of what is moved together, the largest first."""
    layers = params["layers"]
    first = layers[0] if isinstance(layers, list) else layers
    found = [(params, (name,)) for name in params if name != "layers"]
    found += [(layers, (name,)) for name in first]

    def size(group: tuple[Any, tuple[str, ...]]) -> int:
        holder, names = group
        source = first if holder is layers else holder
        return -sum(math.prod(source[name].shape) for name in names)

    return sorted(found, key=size)


def _taken(holder: Any, name: str, give_away: bool) -> Any:
    """Returns a weight of a tree, or a list of one a layer; a `Later` one is made."""
    if isinstance(holder, list):
        return [_taken(layer, name, give_away) for layer in holder]
    assert isinstance(holder, MutableMapping if give_away else Mapping)
    source = holder[name]
    if give_away:
        del holder[name]
    return source.make() if isinstance(source, Later) else source


def _placed_parts(
    sources: Sequence[Any], layered: bool, dtype: Any, axes: Any, places: Sequence[Place]
) -> list[list[jax.Array]]:
    """Returns for each place the parts of a group, one a layer; one alone where it has none."""
    (source,) = sources
    parted = isinstance(source, list)
    shape = source[0].shape if parted else source.shape[1:] if layered else source.shape
    goals = [sharding(axes, shape, where) for where in places]
    found: list[list[jax.Array]] = [[] for _ in places]
    if layered and not parted and isinstance(source, jax.Array):
        where = _gathered(source.sharding, axes, shape, goals)
        source = _split(source, dtype=dtype, source=source.sharding, goal=where)
    elif not layered:
        source = [source]
    for part in source:
        for own, goal in zip(found, goals, strict=True):
            part = _cast(part, dtype, axes, goals)
            own.append(moved(part, goal))
    return found


def _cast(x: Any, dtype: Any, axes: Any, goals: Sequence[Sharding]) -> Any:
    """Returns an array in `dtype`, gathered where the goals share its devices."""
    if not isinstance(x, jax.Array):
        return np.asarray(x).astype(dtype, copy=False)
    where = _gathered(x.sharding, axes, x.shape, goals)
    if x.dtype == dtype and where in (None, x.sharding):
        return x
    return _one(x, dtype=dtype, source=x.sharding, goal=where)


def _gathered(
    source: Sharding, axes: Any, shape: Sequence[int], goals: Sequence[Sharding]
) -> Sharding | None:
    """Returns the sharding over the source's whole mesh that holds all goals' parts in place.

    None where there is none, for the goals have other devices, or other parts of the array.
    """
    if not isinstance(source, NamedSharding) or "tensor" not in source.mesh.axis_names:
        return None
    if set().union(*(goal.device_set for goal in goals)) != source.device_set:
        return None
    rules = mesh_lib.ENGINE_RULES
    whole = NamedSharding(source.mesh, mesh_lib.fit(axes, shape, source.mesh, rules=rules))
    theirs = whole.devices_indices_map(tuple(shape))
    for goal in goals:
        for device, index in goal.devices_indices_map(tuple(shape)).items():
            if _box(theirs[device], shape) != _box(index, shape):
                return None
    return whole


@functools.partial(jax.jit, static_argnames=("dtype", "source", "goal"))
def _split(x: jax.Array, *, dtype: Any, source: Any, goal: Any) -> list[jax.Array]:
    """Returns the layers of a stack, cast before they travel."""
    x = jax.lax.with_sharding_constraint(x.astype(dtype), source)
    parts = [x[i] for i in range(x.shape[0])]
    return parts if goal is None else [jax.lax.with_sharding_constraint(p, goal) for p in parts]


@functools.partial(jax.jit, static_argnames=("dtype", "source", "goal"))
def _one(x: jax.Array, *, dtype: Any, source: Any, goal: Any) -> jax.Array:
    x = jax.lax.with_sharding_constraint(x.astype(dtype), source)
    return x if goal is None else jax.lax.with_sharding_constraint(x, goal)


def moved(x: Any, goal: Sharding) -> jax.Array:
    """Returns an array of JAX or NumPy under another sharding, sent from device to device."""
    wanted = goal.addressable_devices_indices_map(tuple(x.shape))
    if isinstance(x, jax.Array):
        parts = [_part(x, _box(index, x.shape), device) for device, index in wanted.items()]
    else:
        parts = [
            jax.device_put(np.ascontiguousarray(x[index]), device)
            for device, index in wanted.items()
        ]
    return jax.make_array_from_single_device_arrays(tuple(x.shape), goal, parts)


def _part(x: jax.Array, wanted: Box, device: Any) -> jax.Array:
    """Returns the part of an array that lies in a box, on a device of its own."""
    shards = {}
    for shard in x.addressable_shards:
        box = _box(shard.index, x.shape)
        if box not in shards or shard.device == device:
            shards[box] = shard.data
    if wanted in shards:
        return jax.device_put(shards[wanted], device)
    pieces, boxes = [], []
    for box, data in shards.items():
        both = tuple((max(a, c), min(b, d)) for (a, b), (c, d) in zip(box, wanted, strict=True))
        if all(start < end for start, end in both):
            piece = _cut(data, box=_less(both, box))
            pieces.append(jax.device_put(piece, device))
            boxes.append(_less(both, wanted))
    shape = tuple(end - start for start, end in wanted)
    return pieces[0] if len(pieces) == 1 else _joined(pieces, shape=shape, boxes=tuple(boxes))


@functools.partial(jax.jit, static_argnames="box")
def _cut(x: jax.Array, *, box: Box) -> jax.Array:
    return x[tuple(slice(start, end) for start, end in box)]


@functools.partial(jax.jit, static_argnames=("shape", "boxes"))
def _joined(pieces: Sequence[jax.Array], *, shape: Any, boxes: Sequence[Box]) -> jax.Array:
    whole = jnp.zeros(shape, pieces[0].dtype)
    for piece, box in zip(pieces, boxes, strict=True):
        whole = jax.lax.dynamic_update_slice(whole, piece, [start for start, _ in box])
    return whole


def _box(index: Sequence[slice], shape: Sequence[int]) -> Box:
    return tuple(s.indices(size)[:2] for s, size in zip(index, shape, strict=True))


def _less(box: Box, origin: Box) -> Box:
    """Returns a box as seen from where another starts."""
    return tuple((a - c, b - c) for (a, b), (c, _) in zip(box, origin, strict=True))
