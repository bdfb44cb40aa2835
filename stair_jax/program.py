"""A program of a device: a jitted function and what it is called with, arrays or only their shapes.

Engine and trainers call their programs through this and hand the same out to be planned, with
shapes in place of arrays: what is planned is what runs.
"""

import contextlib
import dataclasses
import math
from collections.abc import Hashable, Iterable, Mapping
from typing import Any

import jax
import numpy as np

Bytes = Mapping[str, int]  # by what they hold


@dataclasses.dataclass(frozen=True, kw_only=True)
class Program:
    """A function of `jax.jit` with its arguments.

    Attributes:
      name: in tables and messages.
      call: the jitted function.
      args: arrays of JAX or NumPy, or `jax.ShapeDtypeStruct` in their place.
      static: its static arguments, by keyword.
      mesh: set while it is traced; None for none.
      beside: bytes on each device of what is alive while it runs and is none of its arguments.
      reads: bytes on each device that one call reads of a pool of keys; None: of all arguments.
    """

    name: str
    call: Any
    args: tuple[Any, ...]
    static: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    mesh: jax.sharding.Mesh | None = None
    beside: Bytes = dataclasses.field(default_factory=dict)
    reads: int | None = None

    def run(self) -> Any:
        """Returns what the function does; arguments that it donates are gone afterwards."""
        with on_mesh(self.mesh):
            return self.call(*self.args, **self.static)

    def lowered(self) -> Any:
        """Returns the `jax.stages.Lowered` of the very call, which finds it compiled later."""
        with on_mesh(self.mesh):
            return self.call.lower(*self.args, **self.static)

    def traced(self) -> Any:
        """Returns a `jax.stages.Traced` of the function for shapes like the arguments'."""
        with on_mesh(self.mesh):
            return self.call.trace(*jax.tree.map(shape_of, self.args), **self.static)

    @property
    def key(self) -> Hashable:
        """What programs that are compiled alike share: of arguments shapes and places count."""
        leaves, tree = jax.tree.flatten(jax.tree.map(shape_of, self.args))
        where = tuple((x.shape, str(x.dtype), x.sharding) for x in leaves)
        return id(self.call), where, tree, tuple(self.static.items())


def on_mesh(mesh: jax.sharding.Mesh | None) -> contextlib.AbstractContextManager[Any]:
    """Returns a block in which `mesh` is set, if there is one."""
    return contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh)


def shape_of(x: Any) -> jax.ShapeDtypeStruct:
    """Returns the shape of an argument; where it lies, if that is known."""
    if isinstance(x, jax.ShapeDtypeStruct):
        return x
    if isinstance(x, jax.Array):
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)
    return jax.ShapeDtypeStruct(np.shape(x), np.asarray(x).dtype)


def device_bytes(tree: Any) -> int:
    """Returns the bytes of a tree of arrays or shapes on one device."""
    return sum(_own_bytes(x) for x in jax.tree.leaves(tree))


def _own_bytes(x: Any) -> int:
    where = getattr(x, "sharding", None)
    shape = x.shape if where is None else where.shard_shape(x.shape)
    return math.prod(shape) * np.dtype(x.dtype).itemsize


def distinct(programs: Iterable[Program]) -> list[Program]:
    """Returns the programs without those that are compiled like one before them."""
    found: dict[Hashable, Program] = {}
    for program in programs:
        found.setdefault(program.key, program)
    return list(found.values())
