"""The requests of a chunk, as the device reads them: one array, one transfer."""

import dataclasses
import struct
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

CHANGING = ("last", "length", "made")  # what a chunk changes
COLUMNS = (
    *CHANGING,
    "limit",
    "active",
    "stop",
    "top_k",
    "key0",
    "key1",
    "temperature",
    "top_p",
    "min_p",
)
_ROW = struct.Struct("=7i2I3f")  # a row of COLUMNS: 7 int32, 2 uint32, 3 float32


@dataclasses.dataclass(frozen=True)
class Batch:
    """What the device knows of R requests."""

    last: Any  # [R] int32: token that is fed next; it has no keys in the pool yet
    length: Any  # [R] int32: tokens with keys in the pool
    made: Any  # [R] int32: new tokens so far, the counter of the random draws
    limit: Any  # [R] int32: new tokens at most
    active: Any  # [R] int32: 0 or 1
    stop: Any  # [R] int32: index of the stop set
    top_k: Any  # [R] int32
    key: Any  # [R, 2] uint32
    temperature: Any  # [R] float32
    top_p: Any  # [R] float32
    min_p: Any  # [R] float32


def row(
    *,
    last: int,
    length: int,
    made: int,
    limit: int,
    active: int,
    stop: int,
    top_k: int,
    key: np.ndarray,
    temperature: float,
    top_p: float,
    min_p: float,
) -> np.ndarray:
    """Returns a request as int32 in the order of `COLUMNS`, bit for bit."""
    ints, floats = (last, length, made, limit, active, stop, top_k), (temperature, top_p, min_p)
    return np.frombuffer(bytearray(_ROW.pack(*ints, *key.tolist(), *floats)), np.int32)


def unpack(packed: jax.Array) -> Batch:
    """Returns the columns of [R, C] int32, rows as `row` makes them."""
    column = {name: packed[:, i] for i, name in enumerate(COLUMNS)}

    def take(name, dtype):
        return jax.lax.bitcast_convert_type(column.pop(name), dtype)

    key_R2 = jnp.stack([take("key0", jnp.uint32), take("key1", jnp.uint32)], axis=1)
    floats = {name: take(name, jnp.float32) for name in ("temperature", "top_p", "min_p")}
    return Batch(key=key_R2, **floats, **column)
