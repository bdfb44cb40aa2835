"""Hugging Face export: a streaming writer of safetensors, and the proof that an export is right."""

import contextlib
import functools
import importlib.util
import json
import math
import os
import pathlib
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import transformers
from jax.sharding import NamedSharding, PartitionSpec

from stair_jax.hf import card as card_lib
from stair_jax.hf import importer, metadata
from stair_jax.hf import names as names_lib
from stair_jax.hf.names import Rule
from stair_jax.log import progress
from stair_jax.model import heads, transformer
from stair_jax.model.spec import Spec

Params = Any  # the tree of `transformer.init`
DTYPES = {
    "float32": ("F32", np.dtype(np.float32)),
    "bfloat16": ("BF16", np.dtype(ml_dtypes.bfloat16)),
}
SHARD_BYTES = 5_000_000_000  # of one exported file, as transformers cuts them
MAX_POSITIONS = 8192  # of an export that was imported from nowhere
_PULLED = 1 << 26  # bytes that come from the devices at once


def save(
    path: metadata.Path,
    spec: Spec,
    params: Params,
    tokenizer: Any,
    *,
    end_ids: Iterable[int],
    dtype: str,
    chat_template: str | None = None,
    source: metadata.Path | None = None,
    shard_bytes: int = SHARD_BYTES,
    kind: str = names_lib.POLICY,
    more: Mapping[str, Any] | None = None,
    card: str = "",
) -> None:
    """Writes a folder that transformers loads; it appears whole or not at all.

    Args:
        path: the folder, replaced where it exists.
        spec: sizes.
        params: the tree of `transformer.init`, anywhere.
        tokenizer: saved beside the weights; None writes the model alone.
        end_ids: every token that ends a generation, for generation_config.json.
        dtype: of the written weights, "float32" or "bfloat16".
        chat_template: the template that the model was trained with; None keeps the tokenizer's.
        source: the checkpoint it was imported from, for the context length that `Spec` lacks.
        shard_bytes: a larger model is cut into several files with an index.
        kind: of model; the parameters of a reward model have a score and no head.
        more: keys of config.json beside the usual ones.
        card: text of README.md; empty for none.

    Raises:
        ValueError: an unknown dtype, or parameters that do not fit the sizes.
    """
    if dtype not in DTYPES:
        raise ValueError(f"export dtype {dtype!r} is unknown, expected one of {[*DTYPES]}")
    flat, shapes = names_lib.flat(params), names_lib.shapes_of(spec, kind)
    if set(flat) != set(shapes):
        raise ValueError(
            f"export: parameters {sorted(set(flat) ^ set(shapes))} do not fit the spec"
        )
    for name, x in flat.items():
        if x.shape != shapes[name]:
            raise ValueError(f"export: {name} has shape {x.shape}, expected {shapes[name]}")
    with whole(pathlib.Path(path)) as folder:
        _write_weights(folder, spec, flat, dtype, shard_bytes, kind)
        config = _config(spec, tokenizer, sorted(end_ids), dtype, source)
        write_json(folder / "config.json", {**config, **(more or {})})
        if kind == names_lib.POLICY:
            keys = ("bos_token_id", "eos_token_id", "pad_token_id")
            generation = {key: config[key] for key in keys} | {"do_sample": False}
            write_json(folder / "generation_config.json", generation)
        if tokenizer is not None:
            _write_tokenizer(folder, tokenizer, chat_template)
        if card:
            (folder / card_lib.FILE).write_text(card, encoding="utf-8")


@contextlib.contextmanager
def whole(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    """Gives a folder to write to, which takes the place of `folder` where all went well.

    A link is followed: what it points to is replaced.

    Raises:
        ValueError: where something is in the way that a folder cannot take the place of.
        OSError: where it could not be written.
    """
    folder = folder.resolve()
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"export: {folder} is a file, expected a folder or nothing")
    if folder.is_mount():
        raise ValueError(f"export: {folder} is a mount point, which cannot be replaced")
    partial, old = (folder.with_name(f".{folder.name}.{kind}") for kind in ("partial", "old"))
    _remove(partial)
    _remove(old)
    partial.mkdir(parents=True)
    try:
        yield partial
    except BaseException as error:
        _remove(partial)
        if isinstance(error, OSError):
            raise OSError(f"export: {folder} was not written: {error}") from error
        raise
    if folder.exists():  # a folder cannot be renamed over another
        folder.rename(old)
    partial.rename(folder)
    _remove(old)


def _remove(path: pathlib.Path) -> None:
    """Removes a file, a link or a folder, if there is one."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _write_weights(
    folder: pathlib.Path,
    spec: Spec,
    flat: Mapping[str, Any],
    dtype: str,
    shard_bytes: int,
    kind: str,
) -> None:
    """Writes the tensors in table order, a file at a time; the index where there are several."""
    files: list[list[str]] = [[]]
    tensors, room = names_lib.tensors_of(spec, kind), shard_bytes
    if kind == names_lib.STEPS:
        tensors[names_lib.BIAS.theirs] = (names_lib.BIAS, None)
        flat = {**flat, names_lib.BIAS.ours: np.zeros((), np.float32)}
    for name, (rule, _) in tensors.items():
        size = math.prod(names_lib.their_shape(rule, spec)) * DTYPES[dtype][1].itemsize
        if size > room and files[-1]:
            files.append([])
            room = shard_bytes
        files[-1].append(name)
        room -= size
    weight_map, total = {}, 0
    for i, names in enumerate(files):
        file = (
            f"model-{i + 1:05}-of-{len(files):05}.safetensors"
            if len(files) > 1
            else metadata.WEIGHTS
        )
        weight_map |= dict.fromkeys(names, file)
        total += _write_file(folder / file, {n: tensors[n] for n in names}, spec, flat, dtype)
    if len(files) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        write_json(folder / metadata.INDEX, index)


def _write_file(
    file: pathlib.Path,
    tensors: Mapping[str, tuple[Rule, int | None]],
    spec: Spec,
    flat: Mapping[str, Any],
    dtype: str,
) -> int:
    """Writes one file of safetensors and returns the bytes of its tensors.

    The format: the length of the header in 8 bytes, the header as JSON, padded with spaces to a
    multiple of 8, and the tensors' bytes without gaps, little-endian as all machines that JAX
    runs on.
    """
    code, kind = DTYPES[dtype]
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, (rule, _) in tensors.items():
        shape = names_lib.their_shape(rule, spec)
        begin, end = end, end + math.prod(shape) * kind.itemsize
        header[name] = {"dtype": code, "shape": [*shape], "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        label = f"writing {file.name}"
        with progress.over(tensors.values(), label, len(tensors), "tensors") as rules:
            for rule, layer in rules:
                for part in _parts(flat[rule.ours], layer, rule, spec, kind):
                    out.write(part)
        out.flush()
        os.fsync(out.fileno())
    return end


def _parts(
    x: Any, layer: int | None, rule: Rule, spec: Spec, dtype: np.dtype
) -> Iterator[memoryview]:
    """Yields the bytes of one of their tensors, a part at a time; the rest stays on the devices."""
    if isinstance(x, np.ndarray) and layer is not None:
        x, layer = x[layer], None  # so that a whole stack never moves
    theirs = _theirs(x, layer, rule=names_lib.form(rule), spec=spec, dtype=dtype)
    rows, width = len(theirs), theirs[:1].nbytes
    step = min(rows, max(1, _PULLED // width))
    for start in range(0, rows, step):
        part = np.asarray(_cut(theirs, start, size=min(step, rows - start)))
        yield np.ascontiguousarray(part).view(np.uint8).data


@functools.partial(jax.jit, static_argnames=("rule", "spec", "dtype"))
def _theirs(x: Any, layer: Any, *, rule: Rule, spec: Spec, dtype: np.dtype) -> jax.Array:
    if layer is not None:
        x = jax.lax.dynamic_index_in_dim(x, layer, 0, keepdims=False)
    return names_lib.to_theirs(rule, x, spec).astype(dtype)


@functools.partial(jax.jit, static_argnames="size")
def _cut(x: jax.Array, start: Any, *, size: int) -> jax.Array:
    return jax.lax.dynamic_slice_in_dim(x, start, size)


def _config(
    spec: Spec, tokenizer: Any, end_ids: list[int], dtype: str, source: metadata.Path | None
) -> dict[str, Any]:
    ends: list[int] | int = end_ids[0] if len(end_ids) == 1 else end_ids
    ids = {
        "bos_token_id": getattr(tokenizer, "bos_token_id", None),
        "eos_token_id": ends,
        "pad_token_id": getattr(tokenizer, "pad_token_id", None),
    }
    config = spec.to_hf() | ids | {"torch_dtype": dtype, "max_position_embeddings": MAX_POSITIONS}
    if source is not None:
        known = metadata.read_json(metadata.resolve(source) / "config.json").get(
            "max_position_embeddings"
        )
        config["max_position_embeddings"] = known or MAX_POSITIONS
    return config


def _write_tokenizer(folder: pathlib.Path, tokenizer: Any, chat_template: str | None) -> None:
    tokenizer.save_pretrained(folder)
    file = folder / "tokenizer_config.json"
    config = metadata.read_json(file)
    if config.get("tokenizer_class") == "TokenizersBackend":  # a name that transformers 4 lacks
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
    if chat_template is not None:  # in the place of the tokenizer's, wherever it kept them
        config.pop("chat_template", None)
        _remove(folder / "additional_chat_templates")
        (folder / "chat_template.jinja").write_text(chat_template, encoding="utf-8")
    config.pop("auto_map", None)
    write_json(file, config)


def write_json(file: pathlib.Path, content: Any) -> None:
    """Writes JSON as people read it."""
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def export_report(
    path: metadata.Path, spec: Spec, params: Params, prompts: Sequence[Sequence[int]], *, dtype: str
) -> dict[str, Any]:
    """Returns, and writes as export_report.json, how far an export's logits lie from ours.

    The parameters are rounded to the dtype of the export first, then all compute in float32:
    what is measured is the writing and reading, not the rounding. `against` has the largest
    difference to our own reload, and to transformers where torch can be imported. Beside the
    parameters there is one more copy of the model at a time: ours in the dtype of the export, on
    the devices of the parameters, or that of transformers.
    """
    expected = _logits(spec, rounded(params, dtype), prompts)
    places = places_of(params, metadata.read_spec(path))
    reloaded = importer.load_onto(path, places, dtype)
    found = {"reload": _logits(*reloaded, prompts)}
    del reloaded
    if importlib.util.find_spec("torch") is not None:
        found["transformers"] = _logits_of_transformers(path, prompts)
    return write_report(path, prompts, expected, found)


def write_report(
    path: metadata.Path,
    prompts: Sequence[Sequence[int]],
    expected: Sequence[np.ndarray],
    found: Mapping[str, Sequence[np.ndarray]],
) -> dict[str, Any]:
    """Returns, and writes as export_report.json, how far outputs lie from the expected ones.

    `max_rel_diff` is a share of the `largest` output: rounding grows with what is summed up, so
    that the same arithmetic in another order differs more in a model with large logits.

    Args:
        path: the export.
        prompts: token ids.
        expected: an array for each prompt.
        found: the same by other ways, by name.
    """
    against = {
        name: max(float(np.abs(a - b).max()) for a, b in zip(expected, outputs, strict=True))
        for name, outputs in found.items()
    }
    largest, worst = max(float(np.abs(x).max()) for x in expected), max(against.values())
    report = {
        "max_abs_diff": worst,
        "max_rel_diff": worst / largest,
        "largest": largest,
        "against": against,
        "prompts": len(prompts),
    }
    write_json(pathlib.Path(path) / "export_report.json", report)
    return report


def rounded(params: Params, dtype: str) -> Params:
    """Returns parameters in the dtype of an export; those that have it are not copied."""
    kind = DTYPES[dtype][1]
    return jax.tree.map(lambda x: x if x.dtype == kind else jnp.asarray(x).astype(kind), params)


def places_of(params: Params, spec: Spec, kind: str = names_lib.POLICY) -> Any:
    """Returns where a reload goes: beside the parameters; None where they are on no mesh.

    An axis that a trimmed vocabulary does not divide by is left out.
    """

    def place(path: str, x: Any) -> NamedSharding:
        shape = names_lib.shapes_of(spec, kind)[path]
        try:
            x.sharding.shard_shape(shape)
        except ValueError:
            return NamedSharding(x.sharding.mesh, PartitionSpec(None, *x.sharding.spec[1:]))
        return x.sharding

    flat = names_lib.flat(params)
    if any(not isinstance(getattr(x, "sharding", None), NamedSharding) for x in flat.values()):
        return None
    return flax.traverse_util.unflatten_dict(
        {path: place(path, x) for path, x in flat.items()}, sep="/"
    )


def _logits(spec: Spec, params: Params, prompts: Sequence[Sequence[int]]) -> list[np.ndarray]:
    """Returns our float32 logits [T, vocab] of each prompt."""
    read = functools.partial(heads.logits, spec=spec)
    return [logits[:, : spec.vocab] for logits in outputs(spec, params, prompts, read)]


def outputs(
    spec: Spec,
    params: Params,
    prompts: Sequence[Sequence[int]],
    read: Callable[[Params, jax.Array], jax.Array],
) -> list[np.ndarray]:
    """Returns what `read` makes of the float32 hidden states of each prompt, an entry a token."""
    decoder = transformer.Decoder(spec, jnp.float32)

    @jax.jit
    def run(params: Params, tokens: jax.Array) -> jax.Array:
        return read(params, decoder.apply({"params": params}, tokens)[0])

    width = max(len(ids) for ids in prompts)  # one shape: padding at the right changes nothing
    rows = [np.asarray([[*ids, *[0] * (width - len(ids))]], np.int32) for ids in prompts]
    params = jax.tree.map(jnp.asarray, params)
    pairs = zip(rows, prompts, strict=True)
    return [np.asarray(run(params, row))[0, : len(ids)] for row, ids in pairs]


def _logits_of_transformers(
    path: metadata.Path, prompts: Sequence[Sequence[int]]
) -> list[np.ndarray]:
    """Returns the float32 logits [T, V] that transformers computes for each prompt."""
    import torch  # a heavy import of the parity check alone

    model = transformers.AutoModelForCausalLM.from_pretrained(
        path, dtype=torch.float32, trust_remote_code=False
    ).eval()
    with torch.no_grad():
        return [model(torch.tensor([list(ids)])).logits[0].numpy() for ids in prompts]
