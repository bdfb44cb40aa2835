"""Rows in small files of a page, which it loads when somebody looks: 10,000 trees are no burden.

A file is a script of one call, for a page that was opened from a disk may load scripts and nothing
else: `stairShard("NAME","...")`. What it hands over is base64 of gzip of JSON, so that no letter of
what models wrote is in a script at all.
"""

import base64
import dataclasses
import gzip
import hashlib
import json
import math
import pathlib
from collections.abc import Sequence
from typing import Any

_PART = 200_000  # letters of JSON of what is shown when a row is opened
_INDEX_ROWS = 2000  # of a file of what is shown before
_LEVEL = 6
_LONGEST_TITLE = 200  # letters


@dataclasses.dataclass(kw_only=True)
class Source:
    """A list of rows that a page can show.

    Attributes:
      id: "trees-1", ... of letters, digits, "-" and "_".
      group: "trees", "pairs", "answers" or "rows": which section shows it, and how.
      title: for its menu.
      facets: names of the words that rows can be filtered by.
      numbers: names of the numbers that they can be sorted by.
      of: what sources have in common that have rows of the same ids, such as a benchmark.
      who: which of those it is, such as a model.
      count: of rows.
      index: names of files with [id, title, words, numbers, part, place] a row, and
      parts: with the rest; `part` and `place` say where.
      letters: of all JSON in `parts`.
    """

    id: str
    group: str
    title: str
    facets: Sequence[str] = ()
    numbers: Sequence[str] = ()
    of: str = ""
    who: str = ""
    count: int = 0
    index: list[str] = dataclasses.field(default_factory=list)
    parts: list[str] = dataclasses.field(default_factory=list)
    letters: int = 0


class Writer:
    """Writes the rows of one source, a file at a time.

    Args:
      folder: of all files.
      source: that is filled.
    """

    def __init__(self, folder: pathlib.Path, source: Source):
        self._folder, self.source = folder, source
        self._lines: list[Any] = []  # of the index
        self._part: list[str] = []  # as JSON
        self._letters = 0

    def add(
        self,
        id: str,
        title: str,
        words: Sequence[str],
        numbers: Sequence[int | float | None],
        row: Any,
    ) -> None:
        """Takes a row.

        Args:
          id: of the row.
          title: that the list shows; a long one is cut.
          words: one for each of the source's facets.
          numbers: one for each of its numbers; None where there is none.
          row: what is shown when it is opened, as JSON types.
        """
        assert len(words) == len(self.source.facets), self.source.id
        assert len(numbers) == len(self.source.numbers), self.source.id
        place = len(self.source.parts), len(self._part)
        shown = title if len(title) <= _LONGEST_TITLE else f"{title[:_LONGEST_TITLE]}..."
        self._lines.append([id, shown, list(words), list(numbers), *place])
        text = to_json(row)
        self._part.append(text)
        self._letters += len(text)
        self.source.count += 1
        self.source.letters += len(text)
        if self._letters >= _PART:
            self._close_part()
        if len(self._lines) == _INDEX_ROWS:
            self._close_index()

    def close(self) -> Source:
        """Writes what waits; returns the source."""
        self._close_part()
        self._close_index()
        return self.source

    def _close_part(self) -> None:
        if self._part:
            self.source.parts.append(self._write(f"[{','.join(self._part)}]"))
            self._part, self._letters = [], 0

    def _close_index(self) -> None:
        if self._lines:
            self.source.index.append(self._write(to_json(self._lines)))
            self._lines = []

    def _write(self, text: str) -> str:
        """Returns the name of a new file; it tells the content, so that pages never mix."""
        digest = hashlib.sha256(text.encode()).hexdigest()[:12]
        number = len(self.source.parts) + len(self.source.index)
        name = f"{self.source.id}-{number}-{digest}"
        packed = base64.b64encode(gzip.compress(text.encode(), _LEVEL, mtime=0)).decode()
        path = self._folder / f"{name}.js"
        path.write_text(f'stairShard("{name}","{packed}");\n', encoding="ascii")
        return name


def to_json(data: Any) -> str:
    """Returns ASCII JSON that a browser reads: what is no finite number is a word."""
    try:
        return json.dumps(data, separators=(",", ":"), allow_nan=False)
    except ValueError:
        return json.dumps(_with_words(data), separators=(",", ":"), allow_nan=False)


def _with_words(data: Any) -> Any:
    if isinstance(data, dict):
        return {key: _with_words(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_with_words(value) for value in data]
    return str(data) if isinstance(data, float) and not math.isfinite(data) else data


def read(path: pathlib.Path) -> Any:
    """Returns what a file hands over, as a page reads it."""
    packed = path.read_text(encoding="ascii").split('"')[3]
    return json.loads(gzip.decompress(base64.b64decode(packed)))
