"""Weights from wherever they lie to the devices of engines: by layer, in the engine's dtype.

Arrays on devices go from device to device, and arrays of NumPy from the host to each device that
keeps a part of them. A group of weights moves at a time, the largest first, so that beside the
weights little more than one group's source is alive. All engines are served in one pass: where
they share the devices of the source, one program gathers a group for all of them.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, Sharding, SingleDeviceSharding

from stair_jax import mesh as mesh_lib
from stair_jax.log import progress
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


@dataclasses.dataclass(frozen=True)
class Planned(Placed):
    """Shapes and places of weights, for an engine that is planned: nothing of it is allocated."""

    free_bytes: int | None  # that each device has before the weights; None where it keeps no count


def place(
    spec: Spec,
    params: Any,
    places: Sequence[Place],
    *,
    dtype: Any,
    joined: bool = False,
    give_away: bool = False,
) -> list[Placed]:
    """Returns the weights for each of `places`.

    Args:
      spec: sizes of the model.
      params: the tree of `transformer.init` or `transformer.by_layer`, a reward model's "score"
        beside it; leaves are arrays of JAX or NumPy, or `Later`.
      places: meshes of engines, with an axis "tensor"; None for the first local device.
      dtype: of the weights; the score's is float32.
      joined: whether weights that one product can serve become one, `transformer.JOINED`. Where
        the kv heads do not divide over the tensor axis, those of attention stay apart: a device
        would hold other query heads than its keys serve.
      give_away: whether `params` is emptied on the way, weight by weight. An array that nobody
        else holds is then freed as soon as it has been read.
    """
    axes, trees = _axes(spec), [_empty(spec) for _ in places]
    tensor = max(1 if where is None else where.shape["tensor"] for where in places)
    groups = _groups(params, joined, spec.K % tensor == 0)
    with progress.over(groups, "loading weights", len(groups), "kinds") as counted:
        for group in counted:
            layered, own = group.holder is not params, jnp.dtype(dtype)
            parts = _placed_parts(
                [_taken(group.holder, name, give_away) for name in group.names],
                layered=layered,
                how=How(
                    spec, group.target, jnp.dtype(jnp.float32) if group.target == SCORE else own
                ),
                axes=(axes["layers"] if layered else axes)[group.target],
                places=places,
            )
            jax.block_until_ready(parts)  # what was given away is free only then
            for tree, own_parts in zip(trees, parts, strict=True):
                if layered:
                    for layer, part in zip(tree["layers"], own_parts, strict=True):
                        layer[group.target] = part
                else:
                    (tree[group.target],) = own_parts
    return [Placed(tree) for tree in trees]


def planned(
    spec: Spec,
    place: Place,
    *,
    dtype: Any,
    joined: bool = False,
    scalar: bool = False,
    free_bytes: int | None = None,
) -> Planned:
    """Returns the shapes of what `place` returns; nothing is computed.

    Args:
      spec: sizes of the model, those of `reward.scalar` for a reward model.
      place: the engine's mesh.
      dtype: of the weights.
      joined: see `place`.
      scalar: whether a reward model's score lies beside them.
      free_bytes: that each device has before the weights; None where it keeps no count.
    """
    parts = dict(jax.eval_shape(lambda: transformer.by_layer(_drawn(spec))))
    if scalar:
        parts[SCORE] = jax.ShapeDtypeStruct((spec.D,), jnp.float32)
    axes, tree = _axes(spec), _empty(spec)
    for group in _groups(parts, joined, place is None or spec.K % place.shape["tensor"] == 0):
        layered = group.holder is not parts
        own = jnp.dtype(jnp.float32 if group.target == SCORE else dtype)
        how = How(spec, group.target, own)
        sources, targets = (parts["layers"], tree["layers"]) if layered else ([parts], [tree])
        for source, target in zip(sources, targets, strict=True):
            whole = jax.eval_shape(how, [source[name] for name in group.names])
            where = sharding(
                (axes["layers"] if layered else axes)[group.target], whole.shape, place
            )
            target[group.target] = jax.ShapeDtypeStruct(whole.shape, own, sharding=where)
    return Planned(tree, free_bytes)


def _drawn(spec: Spec) -> Any:
    return transformer.init(spec, jax.random.key(0))


def _axes(spec: Spec) -> Any:
    """Returns the logical axes of weights by layer, of all layers those of one."""
    axes: Any = {**transformer.logical_axes_by_layer(spec), SCORE: (None,)}
    axes["layers"] = axes["layers"][0] | {name: j.axes for name, j in transformer.JOINED.items()}
    return axes


def _empty(spec: Spec) -> Any:
    return {"layers": [{} for _ in range(spec.L)]}


def empty(make: Callable[..., Any], places: Any, **sizes: Any) -> Any:
    """Returns the shapes of what `zeros` returns."""
    found = jax.eval_shape(functools.partial(make, **sizes))
    return jax.tree.map(
        lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where),
        found,
        jax.tree.map(lambda _: places, found),
    )


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


@dataclasses.dataclass(frozen=True)
class Group:
    """Weights that are moved together."""

    holder: Any  # the tree that has them, or a list of one a layer
    names: tuple[str, ...]
    target: str  # what becomes of them


def _groups(params: Any, joined: bool, heads_divide: bool) -> list[Group]:
    """Returns what is moved together, the largest first."""
    layers = params["layers"]
    first = layers[0] if isinstance(layers, list) else layers
    apart = dict.fromkeys(first)
    found = [Group(params, (name,), name) for name in params if name != "layers"]
    for target, whole in transformer.JOINED.items() if joined else ():
        if whole.parts[0] in apart and (heads_divide or target == "w_gate_up"):
            found.append(Group(layers, whole.parts, target))
            for part in whole.parts:
                del apart[part]
    found += [Group(layers, (name,), name) for name in apart]

    def size(group: Group) -> int:
        source = first if group.holder is layers else group.holder
        return -sum(math.prod(source[name].shape) for name in group.names)

    return sorted(found, key=size)


def _taken(holder: Any, name: str, give_away: bool) -> Any:
    """Returns a weight of a tree, or a list of one a layer; a `Later` one is made."""
    if isinstance(holder, list):
        return [_taken(layer, name, give_away) for layer in holder]
    source = holder[name]
    if give_away:
        del holder[name]
    return source.make() if isinstance(source, Later) else source


@dataclasses.dataclass(frozen=True)
class How:
    """What is made of the weights of a group; hashable, a static argument."""

    spec: Spec
    target: str
    dtype: Any

    def __call__(self, parts: Sequence[Any]) -> Any:
        """Returns the arrays of one layer as one."""
        return parts[0] if len(parts) == 1 else transformer.join(self.target, parts, self.spec)


def _placed_parts(
    sources: Sequence[Any], *, layered: bool, how: How, axes: Any, places: Sequence[Place]
) -> list[list[jax.Array]]:
    """Returns for each place the parts of a group, one a layer; one alone where it has none."""
    found: list[list[jax.Array]] = [[] for _ in places]
    for whole in _wholes(sources, layered=layered, how=how, axes=axes, places=places):
        for own, where in zip(found, places, strict=True):
            own.append(moved(whole, sharding(axes, whole.shape, where)))
    return found


def _wholes(
    sources: Sequence[Any], *, layered: bool, how: How, axes: Any, places: Sequence[Place]
) -> Iterator[Any]:
    """Yields what a group becomes, layer by layer: cast, and where it can be, gathered."""
    if layered and isinstance(sources[0], jax.Array):
        yield from _split(tuple(sources), how=how, **_ways(sources, how, axes, places, skip=1))
        return
    parted = zip(*sources, strict=True) if layered else [sources]  # stacks of NumPy, too
    for parts in parted:
        if not isinstance(parts[0], jax.Array):
            yield how([np.asarray(x).astype(how.dtype, copy=False) for x in parts])
            continue
        ways = _ways(parts, how, axes, places)
        if len(parts) == 1 and parts[0].dtype == how.dtype and ways["goal"] is None:
            yield parts[0]
        else:
            yield _one(tuple(parts), how=how, **ways)


def _ways(
    parts: Sequence[jax.Array], how: How, axes: Any, places: Sequence[Place], skip: int = 0
) -> dict[str, Any]:
    """Returns where the parts lie, and where their whole is to be gathered; see `_gathered`."""
    like = [jax.ShapeDtypeStruct(x.shape[skip:], x.dtype) for x in parts]
    shape = jax.eval_shape(how, like).shape
    goals = [sharding(axes, shape, where) for where in places]
    goal = _gathered(parts[0].sharding, axes, shape, goals)
    if not skip and len(parts) == 1 and goal == parts[0].sharding:
        goal = None  # it lies there
    return {"sources": tuple(x.sharding for x in parts), "goal": goal}


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


@functools.partial(jax.jit, static_argnames=("how", "sources", "goal"))
def _split(stacks: Sequence[jax.Array], *, how: How, sources: Any, goal: Any) -> list[jax.Array]:
    """Returns the layers of stacks, cast before they travel."""
    stacks = [_kept(x.astype(how.dtype), at) for x, at in zip(stacks, sources, strict=True)]
    return [_kept(how([x[i] for x in stacks]), goal) for i in range(stacks[0].shape[0])]


@functools.partial(jax.jit, static_argnames=("how", "sources", "goal"))
def _one(parts: Sequence[jax.Array], *, how: How, sources: Any, goal: Any) -> jax.Array:
    parts = [_kept(x.astype(how.dtype), at) for x, at in zip(parts, sources, strict=True)]
    return _kept(how(parts), goal)


def _kept(x: jax.Array, at: Sharding | None) -> jax.Array:
    return x if at is None else jax.lax.with_sharding_constraint(x, at)


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


def _box(index: Any, shape: Sequence[int]) -> Box:
    return tuple(s.indices(size)[:2] for s, size in zip(index, shape, strict=True))


def _less(box: Box, origin: Box) -> Box:
    """Returns a box as seen from where another starts."""
    return tuple((a - c, b - c) for (a, b), (c, _) in zip(box, origin, strict=True))
