"""Rows on disk, a line each, and other files that must be whole: written, mended, read."""

import errno
import io
import json
import math
import os
import pathlib
import time
from collections.abc import Iterable, Mapping
from typing import Any

from stair_jax.records import Row, from_json, to_json


def append_jsonl(path: str | os.PathLike, *rows: Any) -> None:
    """Appends each row as one line, flushed to the file system before returning.

    Raises:
      OSError: where not all of it could be written; the file is as it was before.
    """
    text = "".join(json.dumps(to_json(row), ensure_ascii=False) + "\n" for row in rows)
    with open(path, "ab", buffering=0) as file:
        append(file, text.encode())
        os.fsync(file.fileno())


def append(file: io.RawIOBase, data: bytes) -> None:
    """Writes all of `data` at the end of an unbuffered file, or nothing.

    A full disk takes a part of a write without an error: what follows would be glued to it.

    Raises:
      OSError: where not all of it could be written; what was is cut off again, if it is still the
        end of the file.
    """
    begun = file.seek(0, os.SEEK_END)
    written = 0
    try:
        while written < len(data):
            if not (part := file.write(data[written:])):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            written += part
    except OSError:
        if file.seek(0, os.SEEK_END) == begun + written:
            file.truncate(begun)
        raise


class Journal:
    """Appends rows to JSONL files, those of a second at once: each flush costs milliseconds.

    As a context manager it leaves nothing unwritten, also where an exception ends it.
    """

    EVERY = 1.0  # seconds

    def __init__(self):
        self._rows: dict[pathlib.Path, list[Any]] = {}
        self._written = time.monotonic()

    def add(self, path: pathlib.Path, row: Any) -> None:
        """Takes a row for a file."""
        self._rows.setdefault(path, []).append(row)
        if time.monotonic() - self._written >= self.EVERY:
            self.flush()

    def flush(self) -> None:
        """Writes what is waiting."""
        for path, rows in self._rows.items():
            append_jsonl(path, *rows)
        self._rows, self._written = {}, time.monotonic()

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *_: object) -> None:
        self.flush()


def read_jsonl(path: str | os.PathLike, kind: type[Row]) -> list[Row]:
    """Reads rows of `kind`; a torn last line (a killed append) is passed over.

    Raises:
      ValueError: for a line that is broken and not the last, naming file and line.
    """
    return [from_json(kind, data) for data in read_json_lines(path)]


def read_json_lines(path: str | os.PathLike) -> list[dict[str, Any]]:
    """Reads a JSONL file's objects; a torn last line is passed over, as in `read_jsonl`."""
    rows, lines = [], pathlib.Path(path).read_text(encoding="utf-8").split("\n")
    for number, line in enumerate(lines, start=1):
        # Every whole line ends in a newline, so only the piece after the last one can be torn.
        torn = number == len(lines)
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            if torn:
                break
            raise ValueError(f"{path}:{number}: not JSON ({error.msg}): {line[:60]!r}") from None
        rows.append(row)
    return rows


def mend_jsonl(path: str | os.PathLike) -> None:
    """Cuts a torn last line off, so that the next append starts a line of its own."""
    path = pathlib.Path(path)
    if not path.exists():
        return
    data = path.read_bytes()
    if data and not data.endswith(b"\n"):
        with open(path, "r+b") as file:
            file.truncate(data.rfind(b"\n") + 1)


def write_jsonl(path: str | os.PathLike, rows: Iterable[Any]) -> None:
    """Writes all rows at once: the file appears whole or not at all."""
    lines = (json.dumps(to_json(row), ensure_ascii=False) + "\n" for row in rows)
    write_text(path, "".join(lines))


def write_json(path: str | os.PathLike, data: Any) -> None:
    """Writes a JSON document for people to read, atomically.

    A number that is not finite becomes null: JSON has none, and strict readers refuse it.
    """
    text = json.dumps(_with_null(data), indent=1, ensure_ascii=False, allow_nan=False)
    write_text(path, text + "\n")


def _with_null(data: Any) -> Any:
    """Returns JSON data with None in place of numbers that are not finite."""
    if isinstance(data, dict):
        return {key: _with_null(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_with_null(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data


def write_text(path: str | os.PathLike, text: str) -> None:
    """Writes a temporary neighbour first and renames it: a killed writer leaves the old file.

    The neighbour always has the same name: the next writer takes up what a killed one left.
    """
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def object_of(where: str, row: Any) -> Mapping[str, Any]:
    """Returns a row that must be an object; ValueError that names its place where it is none."""
    if not isinstance(row, Mapping):
        raise ValueError(f"{where}: found {type(row).__name__}, expected an object")
    return row


def text_of(where: str, row: Any, *keys: str) -> str:
    """Returns the first of `keys` that a row has as a text that is not blank.

    Raises:
      ValueError: where there is none, or the row is no object.
    """
    row = object_of(where, row)
    for key in keys:
        if isinstance(row.get(key), str) and row[key].strip():
            return row[key]
    raise ValueError(f"{where}: no text under {' or '.join(map(repr, keys))}, found {sorted(row)}")
