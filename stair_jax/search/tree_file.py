"""The whole trees of a round on disk: a line each, and an index of where they lie. No JAX."""

import hashlib
import json
import os
import pathlib
from collections.abc import Collection, Iterable, Iterator
from typing import Any

from stair_jax import jsonl, records
from stair_jax.records import Prompt, Tree

FILE, INDEX = "trees.jsonl", "trees.index"
_HEAD = 4096  # bytes that nearly always hold a line's prompt and counters
_START = b'{"prompt": '


class TreeFile:
    """The trees of a folder, by the ids of their prompts; one is in memory at a time.

    A line of the index is [id, offset, bytes] of a line of the trees' file. It saves reading that
    file for its ids, and is never needed: each place is looked at, and where the index does not fit
    the file it is made anew, as far as it is missing. A torn last line is passed over.

    Args:
      folder: of both files.

    Raises:
      ValueError: for a line that is not a tree's, or an id that is there twice, naming file and
        line.
    """

    def __init__(self, folder: pathlib.Path):
        self.path, self._index = folder / FILE, folder / INDEX
        self._places: dict[str, tuple[int, int]] = {}  # id -> (offset, bytes), as in the file
        self._end = 0  # of the last whole line
        with open(self.path, "rb") as file:
            fits = self._look_up(file.fileno())
            self._scan(file)
        if not fits:
            self._write_index()

    def _look_up(self, file: int) -> bool:
        """Takes what the index says; returns whether that was all of the file, and nothing else."""
        data = self._index.read_bytes() if self._index.exists() else b""
        for line in data.splitlines(keepends=True):
            try:
                id, offset, length = json.loads(line)
                if (
                    not line.endswith(b"\n")
                    or offset != self._end
                    or not _is_line(file, id, offset, length)
                ):
                    raise ValueError("somewhere else")
            except (ValueError, TypeError, OSError):
                self._places, self._end = {}, 0
                return False
            self._places[id], self._end = (offset, length), offset + length
        return self._end == os.fstat(file).st_size

    def _scan(self, file: Any) -> None:
        """Notes the lines that the index does not have."""
        file.seek(self._end)
        for line in file:
            if not line.endswith(b"\n"):
                break
            number = len(self._places) + 1
            try:
                id = (_head(line) or json.loads(line))["prompt"]["id"]
            except json.JSONDecodeError as error:
                start = line[:60].decode(errors="replace")
                raise ValueError(
                    f"{self.path}:{number}: not JSON ({error.msg}): {start!r}"
                ) from None
            except (KeyError, TypeError):
                raise ValueError(f"{self.path}:{number}: not a tree, expected a prompt") from None
            if id in self._places:
                raise ValueError(f"{self.path}:{number}: a second tree of prompt {id!r}")
            self._places[id], self._end = (self._end, len(line)), self._end + len(line)

    def _write_index(self) -> None:
        lines = (json.dumps([id, *place]) + "\n" for id, place in self._places.items())
        jsonl.write_text(self._index, "".join(lines))

    @property
    def ids(self) -> Collection[str]:
        """The ids of the prompts whose trees are here."""
        return self._places.keys()

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[Tree]:
        """Yields the trees in the order of their prompts' ids."""
        for id, line in self._lines():
            try:
                yield records.from_json(Tree, json.loads(line))
            except (ValueError, TypeError) as error:
                raise ValueError(f"{self.path}: tree of prompt {id!r}: {error}") from None

    def _lines(self) -> Iterator[tuple[str, bytes]]:
        """Yields ids and whole lines, in the order of the ids."""
        with open(self.path, "rb") as file:
            for id, (offset, length) in sorted(self._places.items()):
                yield id, os.pread(file.fileno(), length, offset)

    def counters(self) -> Iterator[dict[str, float]]:
        """Yields the trees' counters, without reading their nodes where the file allows that."""
        with open(self.path, "rb") as file:
            for offset, length in self._places.values():
                head = _head(os.pread(file.fileno(), min(_HEAD, length), offset))
                if "counters" not in head:
                    head = json.loads(os.pread(file.fileno(), length, offset))
                yield head["counters"]

    def digest(self) -> str:
        """Returns a hash of the trees' lines, in the order of their ids."""
        digest = hashlib.sha256()
        for _, line in self._lines():
            digest.update(line)
        return digest.hexdigest()[:32]

    def keep(self, asked: Iterable[Prompt]) -> int:
        """Drops the trees of all prompts but those that are asked, as they are asked now.

        Returns how many went.
        """
        by_id, kept = {prompt.id: prompt for prompt in asked}, set()
        for id, line in self._lines():
            found = (_head(line) or json.loads(line))["prompt"]
            if by_id.get(id) == records.from_json(Prompt, found):
                kept.add(id)
        gone = len(self) - len(kept)
        if gone:
            anew = self.path.with_name(f".{self.path.name}.tmp")
            with open(anew, "wb") as file:
                file.writelines(line for id, line in self._lines() if id in kept)
                file.flush()
                os.fsync(file.fileno())
            os.replace(anew, self.path)
            self._places, self._end = {}, 0  # the index is of the old file
            with open(self.path, "rb") as file:
                self._scan(file)
            self._write_index()
        return gone

    def mend(self) -> None:
        """Cuts a torn last line off, so that the next tree has a line of its own."""
        if self.path.stat().st_size > self._end:
            os.truncate(self.path, self._end)

    def append(self, tree: Tree) -> None:
        """Adds a tree; it is on disk when this returns.

        Raises:
          ValueError: where its prompt has one already.
          OSError: where it could not be written.
        """
        if tree.prompt.id in self._places:
            raise ValueError(f"{self.path}: a second tree of prompt {tree.prompt.id!r}")
        jsonl.append_jsonl(self.path, tree)
        place = self._end, self.path.stat().st_size - self._end
        self._places[tree.prompt.id], self._end = place, sum(place)
        with open(self._index, "a", encoding="utf-8") as file:
            file.write(json.dumps([tree.prompt.id, *place]) + "\n")


def open_to_append(folder: pathlib.Path) -> TreeFile:
    """Returns the trees of a folder, ready for more; an empty file where there is none."""
    (folder / FILE).touch()
    found = TreeFile(folder)
    found.mend()
    return found


def _is_line(file: int, id: str, offset: int, length: int) -> bool:
    """Returns whether a place holds one line's ends, and they are those of a prompt's tree."""
    start = _START + json.dumps({"id": id}, ensure_ascii=False)[:-1].encode()
    last = os.pread(file, 1, offset + length - 1)
    return os.pread(file, len(start), offset) == start and last == b"\n"


def _head(line: bytes) -> dict[str, Any]:
    """Returns the prompt and the counters that a line begins with, as far as they are found."""
    text, decoder = line[:_HEAD].decode(errors="ignore"), json.JSONDecoder()
    found: dict[str, Any] = {}
    try:
        for key in ("prompt", "counters"):
            opening = ("{" if key == "prompt" else ", ") + json.dumps(key) + ": "
            if not text.startswith(opening):
                break
            found[key], end = decoder.raw_decode(text, len(opening))
            text = text[end:]
    except json.JSONDecodeError:  # cut off in the middle, or no JSON at all
        pass
    return found
