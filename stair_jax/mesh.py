"""Where arrays live: the mesh, and the one table from logical axes to mesh axes.

Parameters and activations name their dimensions by meaning ("embed", "q_head"); `RULES` says which
mesh axes split each of them. A mesh axis that does not divide a dimension is left out there: the
array is replicated along it.
"""

import logging
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

log = logging.getLogger(__name__)

AXES = ("data", "fsdp", "tensor")
REST = -1  # in a mesh shape: all devices that the other axes leave
Rules = Mapping[str, str | tuple[str, ...] | None]
RULES: Rules = {
    "batch": ("data", "fsdp"),
    "time": None,
    "layer": None,
    "embed": "fsdp",
    "vocab": "tensor",
    "q_head": "tensor",
    "kv_head": "tensor",
    "head": None,
    "ffn": "tensor",
    "page": None,
    "slot": None,
}
# Decoding reads every weight for each token, so a gather per layer would cost more than the copy.
ENGINE_RULES: Rules = {**RULES, "embed": None}

_reported: set[tuple[str, int, str]] = set()


def make(shape: Sequence[int], devices: Sequence[Any] | None = None) -> jax.sharding.Mesh:
    """Returns a mesh with Auto axes over the first devices; one size may be -1, what is left.

    Auto is said here because `jax.make_mesh` alone gives Explicit axes from jax 0.10 on.

    Raises:
        ValueError: the shape does not fit the devices.
    """
    devices = jax.devices() if devices is None else list(devices)
    text = f"mesh.shape {tuple(shape)} over {AXES}"
    if len(shape) != len(AXES):
        raise ValueError(f"{text}: found {len(shape)} sizes, expected {len(AXES)}")
    if sum(n == REST for n in shape) > 1 or any(n < 1 and n != REST for n in shape):
        raise ValueError(f"{text}: sizes must be 1 or more, and at most one of them {REST}")
    known = math.prod(n for n in shape if n != REST)
    if known > len(devices) or (REST in shape and len(devices) % known):
        raise ValueError(f"{text} does not fit {len(devices)} devices ({known} asked for)")
    sizes = tuple(len(devices) // known if n == REST else n for n in shape)
    used = devices[: math.prod(sizes)]
    return jax.make_mesh(sizes, AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=used)


def replicas(mesh: jax.sharding.Mesh, count: int) -> list[jax.sharding.Mesh]:
    """Returns where the engine's replicas lie: meshes of shape (1, 1, tensor).

    There is one for every place on the data and fsdp axes. Beside a mesh of a single CPU there is
    one on each of `count` CPUs: XLA puts little of a small model's work on more than one core.

    Args:
      count: what the configuration asks for; 0 leaves it open.

    Raises:
      ValueError: where that many cannot be had.
    """
    rows = mesh.devices.reshape(-1, 1, 1, mesh.shape["tensor"])
    if mesh.size == 1 and mesh.devices.flat[0].platform == "cpu":
        devices = jax.local_devices(backend="cpu")
        count = count or min(cores(), len(devices))
        if count > len(devices):
            raise ValueError(f"mesh.replicas: {count}, but JAX shows {len(devices)} CPU devices")
        rows = np.array(devices[:count]).reshape(-1, 1, 1, 1)
    elif count not in (0, len(rows)):
        raise ValueError(f"mesh.replicas: {count}, expected data x fsdp = {len(rows)}, or 0")
    return [jax.sharding.Mesh(row, AXES, axis_types=(AxisType.Auto,) * len(AXES)) for row in rows]


def cores() -> int:
    """Returns how many CPU devices are worth having: one for each core, at most four."""
    return min(4, len(os.sched_getaffinity(0)))


def show_cpus(shape: Sequence[int], count: int) -> None:
    """Has JAX show as many CPU devices as a mesh of `shape` and `count` replicas want.

    It must come before JAX starts its backend; whoever has set a number keeps it.
    """
    flagged = "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    if not flagged and not _cpus_chosen():
        wanted = math.prod(n for n in shape if n != REST)
        jax.config.update("jax_num_cpu_devices", max(wanted, count or cores()))


def _cpus_chosen() -> bool:
    return jax.config.jax_num_cpu_devices != -1  # pyright: ignore[reportAttributeAccessIssue]


def spec(*axes: str | None, rules: Rules = RULES) -> PartitionSpec:
    """Returns the mesh axes of logical axis names, one name per array dimension."""
    return PartitionSpec(*(a if a is None else rules[a] for a in axes))


def fit(
    axes: Sequence[str | None], shape: Sequence[int], mesh: Any, *, rules: Rules = RULES
) -> PartitionSpec:
    """Returns `spec(*axes)` without the mesh axes that do not divide their dimension.

    Each left-out axis is logged once per logical name, size and mesh axis.
    """
    if len(axes) != len(shape):
        raise ValueError(f"{len(axes)} axis names {tuple(axes)} for an array of shape {shape}")
    fitted = []
    for name, size in zip(axes, shape, strict=True):
        wanted = None if name is None else rules[name]
        kept, parts = [], 1
        for axis in (wanted,) if isinstance(wanted, str) else wanted or ():
            if size % (parts * mesh.shape[axis]) == 0:
                kept.append(axis)
                parts *= mesh.shape[axis]
            elif (str(name), size, axis) not in _reported:
                _reported.add((str(name), size, axis))
                ways = mesh.shape[axis]
                log.info("%s: %d over %s=%d does not divide, replicated", name, size, axis, ways)
        fitted.append(kept[0] if len(kept) == 1 else tuple(kept) or None)
    return PartitionSpec(*fitted)


def shardings(axes: Any, mesh: jax.sharding.Mesh, shapes: Any, *, rules: Rules = RULES) -> Any:
    """Returns a tree of NamedSharding for a tree of logical axes (tuples of names).

    Args:
        axes: tuples of logical names as leaves, such as `transformer.logical_axes(spec)`.
        mesh: from `make`.
        shapes: the same tree with arrays or shape structs as leaves.
        rules: `RULES` to train, `ENGINE_RULES` to decode.
    """
    place = lambda a, x: NamedSharding(mesh, fit(a, x.shape, mesh, rules=rules))  # noqa: E731
    return jax.tree.map(place, axes, shapes, is_leaf=lambda a: isinstance(a, tuple))


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """Pins the layout of an intermediate; does nothing where no mesh is set."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, fit(axes, x.shape, mesh)))
