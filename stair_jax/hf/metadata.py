"""Hugging Face folders: where they lie, and what can be read of them without the weights."""

import collections
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import huggingface_hub
import transformers

from stair_jax.model.spec import Spec, agreed

Path = str | os.PathLike[str]
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
CONFIG, GENERATION = "config.json", "generation_config.json"
DTYPES = ("float32", "bfloat16")  # of weights, in a file or in memory
_NAMED = ("float32", "bfloat16", "float16", "float64", "auto")  # dtypes of configurations


def resolve(name: Path) -> pathlib.Path:
    """Returns the folder of a checkpoint: the path itself, or a snapshot of a hub model.

    Raises:
        ValueError: no such folder, and nothing that the hub (or its local cache) can hand out.
    """
    folder = pathlib.Path(name).expanduser()
    if folder.is_dir():
        return folder
    if folder.is_absolute() or str(name).startswith((".", "~")):
        raise ValueError(f"checkpoint {str(name)!r}: no such folder")
    wanted = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "README.md"]
    try:
        return pathlib.Path(huggingface_hub.snapshot_download(str(name), allow_patterns=wanted))
    except Exception as error:  # the hub's client raises its own, httpx's and OS errors
        reason = (str(error).splitlines() or [""])[0]
        raise ValueError(
            f"checkpoint {str(name)!r} is no folder, and as a hub name it cannot be fetched or "
            f"found in the local cache (no network?): {type(error).__name__}: {reason}"
        ) from error


def load_spec_and_tokenizer(path: Path) -> tuple[Spec, Any]:
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
        ValueError: see `load_spec_and_tokenizer`.
    """
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # OSError, ValueError, and whatever the parsers below it raise
        reason = (str(error).splitlines() or [""])[0]
        raise ValueError(f"{folder}: the tokenizer cannot be read: {reason}") from error
    if len(tokenizer) > spec.V:
        raise ValueError(
            f"{folder}: tokenizer and weights disagree, found {len(tokenizer)} tokens, expected at "
            f"most the {spec.V} rows of the embedding"
        )
    _check_ids(folder, tokenizer, spec)
    return tokenizer


def _check_ids(folder: pathlib.Path, tokenizer: Any, spec: Spec) -> None:
    """Raises ValueError where a token has no row in the embedding, or shares it with another.

    Vocabularies may have holes, so that there are ids beyond the number of tokens. Two words of
    one id do no harm unless one of them is special.
    """
    words = collections.defaultdict(list)
    for word, id in tokenizer.get_vocab().items():
        words[id].append(word)
    last = max(words, default=0)
    if last >= spec.V:
        raise ValueError(
            f"{folder}: tokenizer and weights disagree, found token {words[last][0]!r} with id"
            f" {last}, expected ids below the {spec.V} rows of the embedding"
        )
    for added, id in sorted(tokenizer.get_added_vocab().items()):
        if others := [word for word in words[id] if word != added]:
            raise ValueError(
                f"{folder}: the tokenizer has id {id} for both {added!r} and {others[0]!r},"
                " expected an id of its own for each"
            )


def ends_of(path: Path, spec: Spec) -> frozenset[int]:
    """Returns the ids at which transformers ends a generation: of both configurations of a model.

    Raises:
        ValueError: see `load_spec_and_tokenizer`.
    """
    folder, ends = resolve(path), set()
    for name in (CONFIG, GENERATION):
        if name == GENERATION and not (folder / name).exists():
            continue
        found = read_json(folder / name).get("eos_token_id")
        for id in found if isinstance(found, list) else [] if found is None else [found]:
            if type(id) is not int or not 0 <= id < spec.vocab:
                raise ValueError(
                    f"{folder / name}: eos_token_id is {found!r:.80}, expected ids of 0 to"
                    f" {spec.vocab - 1}"
                )
            ends.add(id)
    return frozenset(ends)


def read_spec(path: Path) -> Spec:
    """Returns the sizes of a checkpoint.

    Raises:
        ValueError: see `load_spec_and_tokenizer`.
    """
    file = resolve(path) / CONFIG
    return spec_of(file, read_json(file))


def spec_of(file: pathlib.Path, config: Mapping[str, Any]) -> Spec:
    """Returns the sizes that a configuration states, which was read from `file`.

    Raises:
        ValueError: see `load_spec_and_tokenizer`.
    """
    try:
        _check_dtype(config)
        return Spec.from_hf(config)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error


def names_code(path: Path) -> list[str]:
    """Returns the files of a checkpoint that name Python of its own, which never runs here."""
    folder = resolve(path)
    files = [folder / name for name in (CONFIG, "tokenizer_config.json")]
    return [file.name for file in files if file.exists() and read_json(file).get("auto_map")]


def _check_dtype(config: Mapping[str, Any]) -> None:
    """Raises ValueError for a dtype that is none, or two; what counts is that of the weights."""
    keys = "dtype", "torch_dtype"  # of transformers 5 and 4
    found = {key: str(config[key]).removeprefix("torch.") for key in keys if config.get(key)}
    for key, name in found.items():
        if name not in _NAMED:
            raise ValueError(f"{key} is {name!r:.80}, expected one of {list(_NAMED)}")
    agreed(found)


def read_json(file: pathlib.Path) -> dict[str, Any]:
    """Returns the object that a file holds.

    Raises:
        ValueError: there is no such file, or something else is in it.
    """
    try:
        return parse_json(file, file.read_bytes())
    except FileNotFoundError:
        raise ValueError(f"{file} is missing") from None
    except OSError as error:
        raise ValueError(f"{file} cannot be read: {error.strerror}") from None


def parse_json(file: pathlib.Path, raw: bytes) -> dict[str, Any]:
    """Returns the object that bytes of `file` hold.

    Raises:
        ValueError: they hold something else, or a key twice with two values.
    """
    try:
        content = json.loads(raw.decode(), object_pairs_hook=_object)
    except ValueError as error:
        raise ValueError(f"{file} is not JSON: {error}") from error
    except RecursionError:
        raise ValueError(f"{file} is not JSON that can be read: it is nested too deeply") from None
    if not isinstance(content, dict):
        raise ValueError(f"{file}: found a {type(content).__name__}, expected an object")
    return content


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    for key, value in pairs:
        if content[key] is not value and content[key] != value:
            raise ValueError(f"key {key!r:.80} stands there twice, with two values")
    return content
