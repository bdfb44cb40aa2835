"""The Markdown that a run writes, as parts of a page: headings, lists, tables and lines of text."""

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

_CELLS = re.compile(r"(?<!\\)\|")
_RULE = re.compile(r"^\|[\s:|-]+\|$")
_ESCAPED = re.compile(r"\\([\\|`*<_])")
_MARKED = re.compile(r"`([^`]*)`|\*\*([^*]+)\*\*")


class Piece(NamedTuple):
    """A piece of a line: its mark, "code", "strong" or "", and its text."""

    mark: str
    text: str


Inline = list[Piece]


class Part(NamedTuple):
    """A part of a page: "heading", "list", "table" or "text", and what it says.

    A heading's and a text's content are its pieces, a list's those of each item, a table's (head,
    rows) with those of each cell.
    """

    kind: str
    content: Any


def parts(text: str) -> Iterator[Part]:
    """Yields the parts of a page in the little Markdown that `evals.report` and `hf.card` write."""
    lines = text.split("\n")
    at = 0
    while at < len(lines):
        line = lines[at].strip()
        end = at + 1
        if line.startswith("#"):
            yield Part("heading", inline(line.lstrip("# ")))
        elif line.startswith("- "):
            while end < len(lines) and lines[end].startswith("- "):
                end += 1
            yield Part("list", [inline(item.strip()[2:]) for item in lines[at:end]])
        elif line.startswith("|"):
            while end < len(lines) and lines[end].strip().startswith("|"):
                end += 1
            rows = [_cells(row.strip()) for row in lines[at:end] if not _RULE.match(row.strip())]
            yield Part("table", (rows[0], rows[1:]) if rows else ([], []))
        elif line:
            yield Part("text", inline(line))
        at = end


def _cells(row: str) -> list[Inline]:
    return [inline(cell.strip()) for cell in _CELLS.split(row)[1:-1]]


def inline(text: str) -> Inline:
    """Returns the pieces of a line; what its writers escaped is plain text again."""
    made, at = list[Piece](), 0
    for found in _MARKED.finditer(text):
        made.append(Piece("", _plain(text[at : found.start()])))
        code, strong = found.groups()
        made.append(Piece("code", code) if code is not None else Piece("strong", strong))
        at = found.end()
    made.append(Piece("", _plain(text[at:])))
    return [piece for piece in made if piece.text]


def _plain(text: str) -> str:
    return _ESCAPED.sub(r"\1", text).replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")
