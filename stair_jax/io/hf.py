"""Hugging Face folders: where they lie, and what of them can be told without the weights."""

import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import huggingface_hub
import transformers

from stair_jax.model.spec import Spec

Path = str | os.PathLike[str]
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
DTYPES = ("float32", "bfloat16")  # of weights, in a file or in memory


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
    config = read_json(resolve(path) / "config.json")
    named = config.get("dtype", config.get("torch_dtype"))  # transformers 5, transformers 4
    return "bfloat16" if named == "bfloat16" else "float32"


def load_frame(path: Path) -> tuple[Spec, Any]:
    """Returns the sizes and the tokenizer of a checkpoint, without reading its weights.

    Raises:
        ValueError: whatever makes the folder unusable, in one line that names the file.
    """
    folder = resolve(path)
    spec = read_spec(folder)
    return spec, load_tokenizer(folder, spec)


def load_tokenizer(folder: pathlib.Path, spec: Spec) -> Any:
    """Returns the tokenizer of a checkpoint of these sizes.

    Raises:
        ValueError: see `load_frame`.
    """
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
    return tokenizer


def read_spec(path: Path) -> Spec:
    """Returns the sizes of a checkpoint.

    Raises:
        ValueError: see `load_frame`.
    """
    file = resolve(path) / "config.json"
    return spec_of(file, read_json(file))


def spec_of(file: pathlib.Path, config: Mapping[str, Any]) -> Spec:
    """Returns the sizes that a configuration states, which was read from `file`.

    Raises:
        ValueError: see `load_frame`.
    """
    try:
        return Spec.from_hf(config)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error


def read_json(file: pathlib.Path) -> dict[str, Any]:
    """Returns the object that a file holds.

    Raises:
        ValueError: there is no such file, or something else is in it.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{file} is missing") from None
    except ValueError as error:
        raise ValueError(f"{file} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file}: found a {type(content).__name__}, expected an object")
    return content
