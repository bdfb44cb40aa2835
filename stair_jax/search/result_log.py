"""What an engine and a judge delivered to trees that still grow, on disk as it comes."""

import json
import logging
import os
import pathlib
from collections.abc import Collection
from typing import Any

from stair_jax import jsonl

log = logging.getLogger(__name__)

FILE = "in_flight.log"  # of a round's folder; there is none once all trees are whole
WASTE = 1 << 20  # bytes of whole trees at least, before the file is written anew


class ResultLog:
    """Entries by tree and name, in a file that is appended to and written anew now and then.

    A line is {"tree": id, "name": text, ...}. What is added waits for `flush`, so that a chunk's
    results are one write; a killed process loses what it has not flushed. A torn last line is cut
    off when the file is opened, and other broken lines are passed over: an entry that is missing
    costs its work, nothing else. The file never has more than twice the bytes of growing trees,
    and `WASTE`.

    Args:
      path: of the file, made where it is missing.
      trees: ids of those that may still grow; entries of others are dropped.

    Raises:
      OSError: where a write came out short, naming the file; what it wrote is cut off again.
    """

    def __init__(self, path: pathlib.Path, trees: Collection[str]):
        self._path = path
        self._places: dict[str, dict[str, tuple[int, int]]] = {}  # tree -> name -> (offset, bytes)
        self._waiting: list[tuple[str, str, bytes]] = []  # (tree, name, line)
        self._size = self._live = 0  # bytes in the file; those of entries that can be found
        self._file = open(path, "a+b", buffering=0)  # noqa: SIM115
        self._read(trees)

    def _read(self, trees: Collection[str]) -> None:
        wanted, broken = frozenset(trees), 0
        with open(self._path, "rb") as file:
            for line in file:
                if not line.endswith(b"\n"):
                    self._file.truncate(self._size)
                    break
                try:
                    row = json.loads(line)
                    tree, name = row["tree"], row["name"]
                except (ValueError, KeyError, TypeError):
                    broken += 1
                else:
                    if tree in wanted:
                        self._note(tree, name, self._size, len(line))
                self._size += len(line)
        if broken:
            log.warning("%s: %d broken lines passed over", self._path, broken)
        self._tidy()

    def _note(self, tree: str, name: str, offset: int, size: int) -> None:
        """Notes where an entry lies; it takes the place of an earlier one of its name."""
        entries = self._places.setdefault(tree, {})
        self._live += size - entries.get(name, (0, 0))[1]
        entries[name] = offset, size

    def find(self, tree: str, name: str) -> dict[str, Any] | None:
        """Returns an entry of a growing tree that was flushed; None where there is none."""
        place = self._places.get(tree, {}).get(name)
        if place is None:
            return None
        offset, size = place
        return json.loads(os.pread(self._file.fileno(), size, offset))

    def add(self, tree: str, name: str, members: str) -> None:
        """Takes an entry, to be written by the next `flush`.

        Args:
          tree: its id.
          name: in hexadecimal digits.
          members: what else the line's object holds, as JSON: '"key":value,...'. Most of a line is
            base64, and a JSON encoder would look at each of its letters.
        """
        line = f'{{"tree":{json.dumps(tree)},"name":"{name}",{members}}}\n'
        self._waiting.append((tree, name, line.encode()))

    def flush(self) -> None:
        """Writes what waits."""
        if not self._waiting:
            return
        waiting, self._waiting = self._waiting, []
        self._write(b"".join(line for *_, line in waiting))
        for tree, name, line in waiting:
            self._note(tree, name, self._size, len(line))
            self._size += len(line)

    def _write(self, data: bytes) -> None:
        """Appends whole lines, or nothing."""
        try:
            jsonl.append(self._file, data)
        except OSError as error:
            raise OSError(error.errno, f"{self._path}: {error.strerror}") from error

    def drop(self, tree: str) -> None:
        """Forgets the entries of a tree that is whole, and on disk."""
        self.flush()
        self._live -= sum(size for _, size in self._places.pop(tree, {}).values())
        self._tidy()

    def _tidy(self) -> None:
        """Writes the file anew where most of it is of no use any more."""
        if self._size - self._live <= max(self._live, WASTE):
            return
        anew = self._path.with_name(f".{self._path.name}.tmp")
        places, self._places = self._places, {}
        self._size = self._live = 0
        with open(anew, "wb") as file:
            for tree, entries in places.items():
                for name, (offset, size) in entries.items():
                    file.write(os.pread(self._file.fileno(), size, offset))
                    self._note(tree, name, self._size, size)
                    self._size += size
            file.flush()
            os.fsync(file.fileno())
        os.replace(anew, self._path)
        self._file.close()
        self._file = open(self._path, "a+b", buffering=0)  # noqa: SIM115

    def close(self) -> None:
        """Writes what waits, and closes the file."""
        try:
            self.flush()
        finally:
            self._file.close()
