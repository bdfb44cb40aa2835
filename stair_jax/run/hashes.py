"""Hashes of content: of arrays, of text, of files and of a model's folder."""

import hashlib
import json
import pathlib
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from stair_jax import jsonl
from stair_jax.log import progress

_PART = 1 << 26  # bytes of an array or a file that are hashed at once
_DIGITS = 32
# Of a checkpoint's folder, what a model or its words are read from.
_READ = (".safetensors", ".json", ".jinja", ".model", ".txt")


def digest_of(tree: Any) -> str:
    """Returns a hash of the content of a tree of arrays, or of a string."""
    if isinstance(tree, str):
        return of_text(tree)
    digest, leaves = hashlib.sha256(), jax.tree_util.tree_leaves_with_path(tree)
    with progress.line("hashing weights", _gb(sum(x.nbytes for _, x in leaves)), "GB") as show:
        for path, leaf in leaves:
            digest.update(jax.tree_util.keystr(path).encode())
            for part in _parts(leaf):
                digest.update(np.ascontiguousarray(part).tobytes())
                show(show.done + _gb(part.nbytes))
    return digest.hexdigest()[:_DIGITS]


def _gb(bytes_: int) -> float:
    return bytes_ / 1e9


def _parts(leaf: Any) -> Iterator[Any]:
    """Yields an array in parts, for a large model must not lie on the host a second time."""
    if np.ndim(leaf) == 0 or leaf.nbytes <= _PART:
        yield leaf
        return
    rows = max(1, _PART * len(leaf) // leaf.nbytes)
    for start in range(0, len(leaf), rows):
        yield leaf[start : start + rows]


def of_text(text: str) -> str:
    """Returns a hash of a text."""
    return hashlib.sha256(text.encode()).hexdigest()[:_DIGITS]


def of_file(path: pathlib.Path, show: progress.Line | None = None) -> str:
    """Returns a hash of a file's bytes; the line counts them in GB."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while part := file.read(_PART):
            digest.update(part)
            if show is not None:
                show(show.done + _gb(len(part)))
    return digest.hexdigest()[:_DIGITS]


def _size(path: pathlib.Path) -> int:
    return path.stat().st_size


def of_checkpoint(folder: pathlib.Path, known: pathlib.Path) -> str:
    """Returns a hash of a model's folder: weights, sizes, words, whatever their names' order.

    Args:
      folder: in Hugging Face's layout.
      known: a file that keeps hashes by name, size and time of change, so that weights are read
        for this once.
    """
    before = json.loads(known.read_text(encoding="utf-8")) if known.is_file() else {}
    files = sorted(p for p in folder.iterdir() if p.suffix in _READ and p.is_file())
    now = {}
    marks = {path: f"{path.stat().st_size} {path.stat().st_mtime_ns}" for path in files}
    fresh = [path for path in files if before.get(str(path), [""])[0] != marks[path]]
    with progress.line(f"hashing {folder}", _gb(sum(map(_size, fresh))), "GB") as show:
        for path in files:
            digest = of_file(path, show) if path in fresh else before[str(path)][1]
            now[str(path)] = [marks[path], digest]
    if now != before:
        jsonl.write_json(known, now)
    return of_text(json.dumps([(path.name, now[str(path)][1]) for path in files]))
