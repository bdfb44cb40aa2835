"""Hugging Face folders: import, export, and the proof that an export is right."""

import importlib.util
import json
import logging
import math
import os
import pathlib
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import flax.traverse_util
import huggingface_hub
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy
import transformers

from stair_jax.io import hf_names
from stair_jax.model import heads, transformer
from stair_jax.model.spec import Spec

log = logging.getLogger(__name__)

Params = Any  # the tree of `transformer.init`
Path = str | os.PathLike[str]
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
FLOATS = {"F32", "F16", "BF16", "F64"}
DTYPES = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(ml_dtypes.bfloat16)}
SHARD_BYTES = 5_000_000_000  # of one exported file, as transformers cuts them
MAX_POSITIONS = 8192  # of an export that was imported from nowhere


def resolve(name: Path) -> pathlib.Path:
    """Returns the folder of a checkpoint: the path itself, or a snapshot of a hub model.

    Raises:
        ValueError: no such folder, and nothing that the hub (or its local cache) can hand out.
    """
    folder = pathlib.Path(name).expanduser()
    if folder.is_dir():
        return folder
    wanted = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
    try:
        return pathlib.Path(huggingface_hub.snapshot_download(str(name), allow_patterns=wanted))
    except Exception as error:  # the hub's client raises its own, httpx's and OS errors
        reason = (str(error).splitlines() or [""])[0]
        raise ValueError(
            f"checkpoint {str(name)!r} is no folder, and as a hub name it cannot be fetched or "
            f"found in the local cache (no network?): {type(error).__name__}: {reason}"
        ) from error


def dtype_of(path: Path) -> str:
    """Returns the dtype that loses nothing of a checkpoint: its own, or float32 for others."""
    config = _read_json(resolve(path) / "config.json")
    named = config.get("dtype", config.get("torch_dtype"))  # transformers 5, transformers 4
    return "bfloat16" if named == "bfloat16" else "float32"


def load(path: Path) -> tuple[Spec, Params, Any]:
    """Returns the sizes, the float32 numpy parameters and the tokenizer of a checkpoint.

    Raises:
        ValueError: whatever makes the folder unusable, in one line that names the file.
    """
    spec, params = load_weights(path)
    return spec, params, load_frame(path)[1]


def load_frame(path: Path) -> tuple[Spec, Any]:
    """Returns the sizes and the tokenizer of a checkpoint, without reading its weights.

    Raises:
        ValueError: see `load`.
    """
    folder = resolve(path)
    spec = _read_spec(folder)
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    except Exception as error:  # OSError, ValueError, and whatever the parsers below it raise
        reason = (str(error).splitlines() or [""])[0]
        raise ValueError(f"{folder}: the tokenizer cannot be read: {reason}") from error
    if len(tokenizer) > spec.V:
        raise ValueError(
            f"{folder}: tokenizer and weights disagree, found {len(tokenizer)} tokens, expected at "
            f"most the {spec.V} rows of the embedding"
        )
    return spec, tokenizer


def _read_spec(folder: pathlib.Path) -> Spec:
    config = _read_json(folder / "config.json")
    try:
        return Spec.from_hf(config)
    except ValueError as error:
        raise ValueError(f"{folder / 'config.json'}: {error}") from error


def load_weights(path: Path) -> tuple[Spec, Params]:
    """Returns the sizes and the float32 numpy parameters of a checkpoint folder.

    Raises:
        ValueError: see `load`.
    """
    folder = resolve(path)
    spec = _read_spec(folder)
    wanted = hf_names.tensors_of(spec)
    found = _files_of(folder)
    _check_names(folder, found, set(wanted), spec)
    flat = {name: np.empty(shape, np.float32) for name, shape in hf_names.shapes_of(spec).items()}
    for file, name, x in _read({name: found[name] for name in wanted}):
        rule, layer = wanted[name]
        _check_shape(file, name, x.shape, hf_names.their_shape(rule, spec))
        flat[rule.ours][... if layer is None else layer] = hf_names.to_ours(rule, x, spec)
    repeated = {hf_names.HEAD} & set(found) if spec.tied else ()
    for file, name, x in _read({name: found[name] for name in repeated}):
        if x.shape != flat["embed"].shape or not np.array_equal(x, flat["embed"]):
            raise ValueError(
                f"{file}: {name} differs from the embedding that config.json ties it to"
            )
    return spec, flax.traverse_util.unflatten_dict(flat, sep="/")


def _read_json(file: pathlib.Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{file} is missing") from None
    except ValueError as error:
        raise ValueError(f"{file} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file}: found a {type(content).__name__}, expected an object")
    return content


def _files_of(folder: pathlib.Path) -> dict[str, pathlib.Path]:
    """Returns the file that holds each tensor of a folder."""
    if (folder / INDEX).exists():
        names = _read_json(folder / INDEX).get("weight_map") or {}
        absent = sorted({file for file in names.values() if not (folder / file).exists()})
        if absent or not names:
            raise ValueError(f"{folder / INDEX} names missing files {absent}")
        files = [folder / file for file in sorted(set(names.values()))]
    elif (folder / WEIGHTS).exists():
        files = [folder / WEIGHTS]
    else:
        binary = sorted(p.name for p in folder.glob("*.bin"))
        hint = f", found {binary[0]}: .bin weights are not read, convert them" if binary else ""
        raise ValueError(f"{folder}: expected {WEIGHTS} or {INDEX}{hint}")
    found = {}
    for file in files:
        with _open(file) as handle:
            found |= dict.fromkeys(handle.keys(), file)
    return found


def _open(file: pathlib.Path) -> Any:
    try:
        return safetensors.safe_open(file, framework="numpy")
    except safetensors.SafetensorError as error:
        raise ValueError(f"{file} is broken: {error}") from error


def _check_names(folder: pathlib.Path, found: Iterable[str], want: set[str], spec: Spec) -> None:
    """Raises ValueError, naming the difference, where a checkpoint has other tensors."""
    names = {name for name in found if not name.endswith("rotary_emb.inv_freq")}
    if spec.tied:
        names.discard(hf_names.HEAD)  # some files repeat the embedding; compared when loaded
    missing, unknown = sorted(want - names), sorted(names - want)
    if missing or unknown:
        raise ValueError(
            f"{folder}: {len(missing)} tensors are missing {missing[:3]} and {len(unknown)} are "
            f"unknown {unknown[:3]} for a {spec.family} of {spec.L} layers"
        )


def _read(files: Mapping[str, pathlib.Path]) -> Iterator[tuple[pathlib.Path, str, np.ndarray]]:
    """Yields (file, tensor name, float32 array), one tensor in memory at a time."""
    for file in sorted(set(files.values())):
        with _open(file) as handle:
            for name in (n for n, f in files.items() if f == file):
                dtype = handle.get_slice(name).get_dtype()
                if dtype not in FLOATS:
                    raise ValueError(
                        f"{file}: {name} is {dtype}, expected one of {sorted(FLOATS)} (quantised "
                        f"weights are not supported)"
                    )
                yield file, name, np.asarray(handle.get_tensor(name), np.float32)


def _check_shape(where: Any, name: str, found: tuple[int, ...], expected: tuple[int, ...]) -> None:
    if tuple(found) != tuple(expected):
        raise ValueError(f"{where}: {name} has shape {tuple(found)}, expected {tuple(expected)}")


def save(
    path: Path,
    spec: Spec,
    params: Params,
    tokenizer: Any,
    *,
    end_ids: Iterable[int],
    dtype: str,
    chat_template: str | None = None,
    source: Path | None = None,
    shard_bytes: int = SHARD_BYTES,
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

    Raises:
        ValueError: an unknown dtype, or parameters that do not fit the sizes.
    """
    if dtype not in DTYPES:
        raise ValueError(f"export dtype {dtype!r} is unknown, expected one of {[*DTYPES]}")
    flat, shapes = hf_names.flat(params), hf_names.shapes_of(spec)
    if set(flat) != set(shapes):
        raise ValueError(
            f"export: parameters {sorted(set(flat) ^ set(shapes))} do not fit the spec"
        )
    for name, x in flat.items():
        _check_shape("export", name, x.shape, shapes[name])
    folder = pathlib.Path(path)
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    _write_weights(partial, spec, flat, DTYPES[dtype], shard_bytes)
    _write_configs(partial, spec, tokenizer, sorted(end_ids), dtype, source)
    if tokenizer is not None:
        _write_tokenizer(partial, tokenizer, chat_template)
    if folder.exists():  # a folder cannot be renamed over another
        old = folder.with_name(f".{folder.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        folder.rename(old)
        partial.rename(folder)
        shutil.rmtree(old)
    else:
        partial.rename(folder)


def _write_weights(
    folder: pathlib.Path, spec: Spec, flat: Mapping[str, Any], dtype: np.dtype, shard_bytes: int
) -> None:
    """Writes the tensors in table order, a file at a time; the index where there are several."""
    shards: list[list[str]] = [[]]
    sizes, room = {}, shard_bytes
    tensors = hf_names.tensors_of(spec)
    for name, (rule, _) in tensors.items():
        sizes[name] = math.prod(hf_names.their_shape(rule, spec)) * dtype.itemsize
        if sizes[name] > room and shards[-1]:
            shards.append([])
            room = shard_bytes
        shards[-1].append(name)
        room -= sizes[name]
    weight_map = {}
    for i, names in enumerate(shards):
        file = WEIGHTS
        if len(shards) > 1:
            file = f"model-{i + 1:05}-of-{len(shards):05}.safetensors"
        block = {}
        for name in names:
            rule, layer = tensors[name]
            x = np.asarray(flat[rule.ours] if layer is None else flat[rule.ours][layer])
            block[name] = hf_names.to_theirs(rule, x, spec).astype(dtype)
            weight_map[name] = file
        safetensors.numpy.save_file(block, folder / file, metadata={"format": "pt"})
    if len(shards) > 1:
        total = {"total_size": sum(sizes.values())}
        _write_json(folder / INDEX, {"metadata": total, "weight_map": weight_map})


def _write_configs(
    folder: pathlib.Path, spec: Spec, tokenizer: Any, end_ids: list[int], dtype: str,
    source: Path | None,
) -> None:  # fmt: skip
    ends: list[int] | int = end_ids[0] if len(end_ids) == 1 else end_ids
    ids = {
        "bos_token_id": getattr(tokenizer, "bos_token_id", None), "eos_token_id": ends,
        "pad_token_id": getattr(tokenizer, "pad_token_id", None),
    }  # fmt: skip
    config = spec.to_hf() | ids | {"torch_dtype": dtype, "max_position_embeddings": MAX_POSITIONS}
    if source is not None:
        known = _read_json(resolve(source) / "config.json").get("max_position_embeddings")
        config["max_position_embeddings"] = known or MAX_POSITIONS
    _write_json(folder / "config.json", config)
    _write_json(folder / "generation_config.json", {**ids, "do_sample": False})


def _write_tokenizer(folder: pathlib.Path, tokenizer: Any, chat_template: str | None) -> None:
    tokenizer.save_pretrained(folder)
    if chat_template is not None:
        (folder / "chat_template.jinja").write_text(chat_template, encoding="utf-8")
    file = folder / "tokenizer_config.json"
    config = _read_json(file)
    if config.get("tokenizer_class") == "TokenizersBackend":  # a name that transformers 4 lacks
        _write_json(file, config | {"tokenizer_class": "PreTrainedTokenizerFast"})


def _write_json(file: pathlib.Path, content: Any) -> None:
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def export_report(
    path: Path, spec: Spec, params: Params, prompts: Sequence[Sequence[int]], *, dtype: str
) -> dict[str, Any]:
    """Returns, and writes as export_report.json, how far an export's logits lie from ours.

    The parameters are rounded to the dtype of the export first, then all compute in float32:
    what is measured is the writing and reading, not the rounding. `against` has the largest
    difference to our own reload, and to transformers where torch can be imported.
    """
    rounded = jax.tree.map(lambda x: np.asarray(x).astype(DTYPES[dtype]).astype(np.float32), params)
    expected = _logits(spec, rounded, prompts)
    found = {"reload": _logits(*load_weights(path), prompts)}
    if importlib.util.find_spec("torch") is not None:
        found["transformers"] = _logits_of_transformers(path, prompts)
    against = {
        name: max(float(np.abs(a - b).max()) for a, b in zip(expected, logits, strict=True))
        for name, logits in found.items()
    }
    report = {
        "max_abs_diff": max(against.values()), "against": against, "prompts": len(prompts)
    }  # fmt: skip
    _write_json(pathlib.Path(path) / "export_report.json", report)
    return report


def _logits(spec: Spec, params: Params, prompts: Sequence[Sequence[int]]) -> list[np.ndarray]:
    """Returns our float32 logits [T, V] of each prompt."""
    decoder = transformer.Decoder(spec, jnp.float32)

    @jax.jit
    def run(params: Params, tokens: jax.Array) -> jax.Array:
        return heads.logits(params, decoder.apply({"params": params}, tokens)[0], spec)

    width = max(len(ids) for ids in prompts)  # one shape: padding at the right changes nothing
    rows = [np.asarray([[*ids, *[0] * (width - len(ids))]], np.int32) for ids in prompts]
    params = jax.tree.map(jnp.asarray, params)
    pairs = zip(rows, prompts, strict=True)
    return [np.asarray(run(params, row)[0, : len(ids)]) for row, ids in pairs]


def _logits_of_transformers(path: Path, prompts: Sequence[Sequence[int]]) -> list[np.ndarray]:
    """Returns the float32 logits [T, V] that transformers computes for each prompt."""
    import torch  # a heavy import of the parity check alone

    model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    with torch.no_grad():
        return [model(torch.tensor([list(ids)])).logits[0].numpy() for ids in prompts]
