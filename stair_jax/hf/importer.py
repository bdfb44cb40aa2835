"""Hugging Face import: tensor by tensor from the files into arrays on a mesh."""

import collections
import dataclasses
import functools
import pathlib
from collections.abc import Callable, Collection, Iterator, Mapping, Set
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import safetensors
from jax.sharding import NamedSharding, PartitionSpec

from stair_jax.hf import metadata
from stair_jax.hf import names as names_lib
from stair_jax.hf.names import Rule
from stair_jax.log import progress
from stair_jax.model.spec import Spec

Params = Any  # the tree of `transformer.init`
FLOATS = {
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F64": np.dtype(np.float64),
}
_ADAPTER = "adapter_config.json"  # of PEFT
_COMPARED = 1 << 24  # values of a repeated head that are compared at once


@dataclasses.dataclass(frozen=True)
class Tensor:
    """Where a tensor lies on the disk, and what it is."""

    file: pathlib.Path
    name: str
    dtype: str  # as safetensors calls it
    shape: tuple[int, ...]
    offset: int  # of its first byte in the file

    def read(self) -> np.ndarray:
        """Returns the values; nothing else of the file comes into memory."""
        dtype = FLOATS[self.dtype]
        count = int(np.prod(self.shape, dtype=np.int64))
        raw = np.fromfile(self.file, np.uint8, count * dtype.itemsize, offset=self.offset)
        return raw.view(dtype).reshape(self.shape)


def load_onto(
    path: metadata.Path, shardings: Any = None, dtype: str = "float32"
) -> tuple[Spec, Params]:
    """Returns the sizes and the parameters of a checkpoint folder, placed and in `dtype`.

    Each tensor goes from its file to the devices that hold it before the next is read. So the host
    holds at most one tensor and a device's part of it, in the dtype of the file.

    Args:
        path: a folder or a hub name.
        shardings: a tree of `NamedSharding` as for `transformer.init`; None for one device.
        dtype: of the arrays, "float32" or "bfloat16".

    Raises:
        ValueError: whatever makes the folder unusable, in one line that names the file.
    """
    spec, readers = readers_of(path, shardings, dtype)
    return spec, read_all(readers)


def readers_of(
    path: metadata.Path, shardings: Any = None, dtype: str = "float32"
) -> tuple[Spec, dict[str, Callable[[], jax.Array]]]:
    """Returns the sizes, and by its path ("layers/wq") what reads each of the parameters.

    Arguments and errors are those of `load_onto`.
    """
    spec, found = look(path)
    return spec, _readers(found, spec, shardings, dtype, names_lib.POLICY)


def look(path: metadata.Path) -> tuple[Spec, dict[str, Tensor]]:
    """Returns the sizes and the tensors of a checkpoint, read from the files' headers alone.

    Raises:
        ValueError: see `load_onto`; values that are not finite are found as they are read.
    """
    folder = metadata.resolve(path)
    spec, found = metadata.read_spec(folder), tensors_of(folder)
    # Some files of a tied model repeat the embedding.
    check_names(folder, found, spec, ignored={names_lib.HEAD} if spec.tied else set())
    check_values(found, spec)
    return spec, found


def placed(
    found: Mapping[str, Tensor],
    spec: Spec,
    shardings: Any,
    dtype: str,
    kind: str = names_lib.POLICY,
) -> Params:
    """Returns the parameters of one kind of model from its tensors, which were checked before.

    The score of a reward model is float32 in any case.
    """
    return read_all(_readers(found, spec, shardings, dtype, kind))


def read_all(readers: Mapping[str, Callable[[], jax.Array]]) -> Params:
    """Returns the tree of what the readers of `readers_of` read."""
    with progress.over(readers.items(), "reading weights", len(readers), "kinds") as items:
        flat = {name: read() for name, read in items}
    return flax.traverse_util.unflatten_dict(flat, sep="/")


def _readers(
    found: Mapping[str, Tensor], spec: Spec, shardings: Any, dtype: str, kind: str
) -> dict[str, Callable[[], jax.Array]]:
    places = names_lib.flat(_on_one_device(spec, kind) if shardings is None else shardings)
    readers = {}
    for rule in names_lib.rules_of(spec, kind):
        own = jnp.dtype(jnp.float32 if rule.ours == "score" else dtype)
        place = places[rule.ours]
        readers[rule.ours] = functools.partial(_parameter, rule, found, spec, place, own)
    return readers


def tensors_of(folder: pathlib.Path) -> dict[str, Tensor]:
    """Returns the tensors of a folder by name.

    Raises:
        ValueError: files are missing or broken, or in another format.
    """
    if (folder / _ADAPTER).exists():
        raise ValueError(f"{folder / _ADAPTER}: adapters are not read, merge them into the weights")
    index = _index_of(folder)
    found: dict[str, Tensor] = {}
    holders = collections.defaultdict(set)
    for file in sorted(set(index.values()) or {metadata.WEIGHTS}):
        for tensor in _header_of(folder / file):
            there = found.setdefault(tensor.name, tensor)
            if there is not tensor and not _same(there, tensor):
                raise ValueError(
                    f"{tensor.file}: {tensor.name} differs from that of {there.file.name}"
                )
            holders[tensor.name].add(file)
    for name in sorted(index.keys() | found.keys()) if index else ():
        if index.get(name) not in holders[name]:
            raise ValueError(
                f"{folder / metadata.INDEX}: {name} is said to be in {index.get(name)}, found it in"
                f" {sorted(holders[name])}"
            )
    return found


def dtype_of(path: metadata.Path) -> str:
    """Returns the dtype that loses nothing of a checkpoint's weights: their own, or float32."""
    kinds = {tensor.dtype for tensor in tensors_of(metadata.resolve(path)).values()}
    return "bfloat16" if kinds == {"BF16"} else "float32"


def _header_of(file: pathlib.Path) -> Iterator[Tensor]:
    """Yields the tensors of a file, without their values."""
    try:
        with safetensors.safe_open(file, framework="numpy"):
            pass  # it compares the header with the file's length
    except (safetensors.SafetensorError, OSError) as error:
        raise ValueError(f"{file} is broken: {error}") from error
    with file.open("rb") as raw:
        length = int.from_bytes(raw.read(8), "little")
        header = metadata.parse_json(file, raw.read(length))
    header.pop("__metadata__", None)
    for name, entry in header.items():
        begin = 8 + length + entry["data_offsets"][0]
        yield Tensor(file, name, entry["dtype"], tuple(entry["shape"]), begin)


def _index_of(folder: pathlib.Path) -> dict[str, str]:
    """Returns the file of each tensor that an index names; nothing where one file holds them all.

    Raises:
        ValueError: there are no weights, or two sets of them, or the index is not one.
    """
    index, single = folder / metadata.INDEX, folder / metadata.WEIGHTS
    if not index.exists():
        if single.exists():
            return {}
        binary = sorted(p.name for p in folder.glob("*.bin"))
        hint = f", found {binary[0]}: .bin weights are not read, convert them" if binary else ""
        raise ValueError(f"{folder}: expected {metadata.WEIGHTS} or {metadata.INDEX}{hint}")
    names = metadata.read_json(index).get("weight_map")
    if not isinstance(names, dict) or not names:
        raise ValueError(f"{index}: weight_map is {names!r:.80}, expected the files by tensor")
    for tensor, file in names.items():
        if not isinstance(file, str) or pathlib.PurePath(file).name != file:
            raise ValueError(f"{index}: {tensor!r:.80} is in {file!r:.80}, expected a file's name")
    absent = sorted({file for file in names.values() if not (folder / file).is_file()})
    if absent:
        raise ValueError(f"{index} names missing files {absent}")
    if single.exists() and single.name not in names.values():
        raise ValueError(
            f"{folder}: found both {metadata.WEIGHTS} and {metadata.INDEX}, which does not"
            " name it; expected one of the two"
        )
    return names


def check_values(found: Mapping[str, Tensor], spec: Spec, kind: str = names_lib.POLICY) -> None:
    """Raises ValueError where the tensors of a model have other shapes or dtypes, or disagree."""
    wanted = names_lib.tensors_of(spec, kind)
    head = found.get(names_lib.HEAD) if spec.tied and kind == names_lib.POLICY else None
    shapes = {name: names_lib.their_shape(rule, spec) for name, (rule, _) in wanted.items()}
    for name in [*wanted, *([names_lib.HEAD] if head else [])]:
        tensor = found[name]
        if tensor.dtype not in FLOATS:
            raise ValueError(
                f"{tensor.file}: {name} is {tensor.dtype}, expected one of {sorted(FLOATS)} "
                f"(quantised weights are not supported)"
            )
        if name in shapes and tensor.shape != shapes[name]:
            raise ValueError(
                f"{tensor.file}: {name} has shape {tensor.shape}, expected {shapes[name]}"
            )
    if head and not _same(head, found[names_lib.RULES[0].theirs]):
        raise ValueError(
            f"{head.file}: {head.name} differs from the embedding that config.json ties it to"
        )


def check_names(
    folder: pathlib.Path,
    found: Collection[str],
    spec: Spec,
    *,
    kind: str = names_lib.POLICY,
    ignored: Set[str],
) -> None:
    """Raises ValueError, naming the difference, where a checkpoint has other tensors."""
    if len(found) < spec.L:
        raise ValueError(
            f"{folder}: config.json names {spec.L} layers, the files hold {len(found)} tensors"
        )
    want = set(names_lib.tensors_of(spec, kind))
    names = {name for name in found if not name.endswith("rotary_emb.inv_freq")} - ignored
    missing, unknown = sorted(want - names), sorted(names - want)
    if missing or unknown:
        raise ValueError(
            f"{folder}: {len(missing)} tensors are missing {missing[:3]} and {len(unknown)} are "
            f"unknown {unknown[:3]} for a {spec.family} of {spec.L} layers"
        )


def _same(a: Tensor, b: Tensor) -> bool:
    """Returns whether two tensors hold the same values; reads a part of both at a time."""
    if a.shape != b.shape:
        return False
    size = int(np.prod(a.shape, dtype=np.int64))
    for start in range(0, size, _COMPARED):
        x, y = (
            dataclasses.replace(
                t,
                shape=(min(_COMPARED, size - start),),
                offset=t.offset + start * FLOATS[t.dtype].itemsize,
            ).read()
            for t in (a, b)
        )
        if not np.array_equal(x.astype(np.float64), y.astype(np.float64), equal_nan=True):
            return False
    return True


def _on_one_device(spec: Spec, kind: str) -> Any:
    mesh = jax.sharding.Mesh(np.array(jax.local_devices()[:1]), ("all",))
    paths = dict.fromkeys(names_lib.shapes_of(spec, kind), NamedSharding(mesh, PartitionSpec()))
    return flax.traverse_util.unflatten_dict(paths, sep="/")


def _parameter(
    rule: Rule, found: Mapping[str, Tensor], spec: Spec, place: NamedSharding, dtype: np.dtype
) -> jax.Array:
    """Returns one of our parameters: a tensor of theirs, or one a layer in a stack."""
    # Without its names, so that parameters of one form share a program.
    how: Any = {"rule": names_lib.form(rule), "spec": spec, "place": place, "dtype": dtype}
    if "{l}" not in rule.theirs:
        part = _finite(found[rule.theirs], rule, spec, place.mesh, place.spec, dtype)
        return jax.block_until_ready(_turned(part, **how))
    stack = _empty(shape=names_lib.shapes_of(spec)[rule.ours], place=place, dtype=dtype)
    for layer in range(spec.L):
        tensor = found[rule.theirs.format(l=layer)]
        part = _finite(tensor, rule, spec, place.mesh, place.spec[1:], dtype)
        # Without waiting the host would read ahead of the devices, and hold what it has read.
        stack = jax.block_until_ready(_filled(stack, part, np.int32(layer), **how))
    return stack


_STATIC = ("rule", "spec", "place", "dtype")


@functools.partial(jax.jit, static_argnames=_STATIC)
def _turned(x: jax.Array, *, rule: Rule, spec: Spec, place: Any, dtype: np.dtype) -> jax.Array:
    ours = names_lib.to_ours(rule, x, spec).astype(dtype)
    return jax.lax.with_sharding_constraint(ours, place)


@functools.partial(jax.jit, static_argnames=("shape", "place", "dtype"))
def _empty(*, shape: tuple[int, ...], place: Any, dtype: np.dtype) -> jax.Array:
    return jax.lax.with_sharding_constraint(jnp.zeros(shape, dtype), place)


@functools.partial(jax.jit, static_argnames=_STATIC, donate_argnames="stack")
def _filled(
    stack: jax.Array,
    x: jax.Array,
    layer: Any,
    *,
    rule: Rule,
    spec: Spec,
    place: Any,
    dtype: np.dtype,
) -> jax.Array:
    """Returns the stack with one layer of it filled, in the stack's own memory."""
    ours = names_lib.to_ours(rule, x, spec).astype(dtype)
    stack = jax.lax.dynamic_update_index_in_dim(stack, ours, layer, 0)
    return jax.lax.with_sharding_constraint(stack, place)


def _finite(
    tensor: Tensor, rule: Rule, spec: Spec, mesh: Any, axes: Any, dtype: np.dtype
) -> jax.Array:
    """Returns a tensor on the devices, see `_place`; they look at its values, not the host.

    Raises:
        ValueError: for NaN or an infinity, which would spread to all that the model says.
    """
    part = _place(tensor.read(), rule, spec, mesh, axes)
    if wrong := int(_not_finite(part, dtype=dtype)):
        raise ValueError(
            f"{tensor.file}: {tensor.name} has {wrong} values that are NaN or infinite in {dtype},"
            " expected finite ones"
        )
    return part


@functools.partial(jax.jit, static_argnames="dtype")
def _not_finite(x: jax.Array, *, dtype: np.dtype) -> jax.Array:
    return jnp.sum(~jnp.isfinite(x.astype(dtype)), dtype=jnp.int32)


def _place(x: np.ndarray, rule: Rule, spec: Spec, mesh: Any, axes: Any) -> jax.Array:
    """Returns one of their tensors on the devices, each with the part that it will keep.

    Args:
        x: as read from the file.
        rule: of the tensor.
        spec: sizes.
        mesh: of the parameter.
        axes: mesh axes of the parameter, one for each of our letters, the last may be left out.
    """
    of = dict(zip(rule.axes, [*axes, *[None] * len(rule.axes)], strict=False))
    letters = names_lib.letters_of(rule)
    split = x.reshape([spec.vocab if a == "V" else getattr(spec, a) for a in letters])
    if split.dtype == np.float64:
        split = split.astype(np.float32)
    place = NamedSharding(mesh, PartitionSpec(*(of[a] for a in letters)))
    parts = [
        jax.block_until_ready(jax.device_put(np.ascontiguousarray(split[index]), device))
        for device, index in place.addressable_devices_indices_map(split.shape).items()
    ]
    return jax.make_array_from_single_device_arrays(split.shape, place, parts)
