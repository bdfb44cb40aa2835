"""The files of a workdir, read beside a run that writes them, or after one was killed."""

import collections
import json
import pathlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeVar

Made = TypeVar("Made")
_SHOWN = 3  # examples of a problem

TORN = "a torn last line, of a write that was cut off"
NO_JSON = "no JSON"
NO_OBJECT = "JSON that is no object"
OTHER_FORM = "a row of another form than this version writes"


class Problem(NamedTuple):
    """What kept lines of a file out of the report."""

    file: str
    what: str
    lines: int
    examples: str  # numbers of lines, from 1, or what was wrong with the whole file


class Files:
    """Reads files of a workdir, writes nothing, and passes over what is broken.

    A run may append while its report is made, and may have been killed while it did. Lines that
    cannot be read are counted, by file and reason, and `problems` names them: no line is left out
    silently. Bytes that are not UTF-8 become U+FFFD.

    Args:
      workdir: of the run.
    """

    def __init__(self, workdir: pathlib.Path):
        self.workdir = workdir
        self._problems: dict[tuple[str, str], list[str]] = collections.defaultdict(list)

    @property
    def problems(self) -> list[Problem]:
        """What was passed over so far, by file and reason."""
        return [
            Problem(file, what, len(found), ", ".join(found[:_SHOWN]))
            for (file, what), found in sorted(self._problems.items())
        ]

    def name(self, path: pathlib.Path) -> str:
        """Returns a path as the page names it: from the workdir on."""
        return path.relative_to(self.workdir).as_posix()

    def glob(self, pattern: str) -> list[pathlib.Path]:
        """Returns the files of a pattern, in order; hidden ones are of a write under way."""
        found = self.workdir.glob(pattern)
        return sorted(path for path in found if path.is_file() and path.name[0] != ".")

    def rows(self, path: pathlib.Path, make: Callable[[dict[str, Any]], Made]) -> Iterator[Made]:
        """Yields what `make` makes of each line's object; nothing where there is no file.

        Args:
          path: of a JSONL file.
          make: of one object; it may raise KeyError, TypeError, ValueError, IndexError or
            AttributeError, which count as a row of another form.
        """
        if not path.is_file():
            return
        name = self.name(path)
        with open(path, encoding="utf-8", errors="replace", newline="\n") as file:
            for number, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                try:
                    row = json.loads(line)
                except (json.JSONDecodeError, RecursionError):
                    torn = not line.endswith("\n")
                    self._problems[name, TORN if torn else NO_JSON].append(f"line {number}")
                    continue
                if not isinstance(row, dict):
                    self._problems[name, NO_OBJECT].append(f"line {number}")
                    continue
                try:
                    made = make(row)
                except (KeyError, TypeError, ValueError, IndexError, AttributeError):
                    self._problems[name, OTHER_FORM].append(f"line {number}")
                else:
                    yield made

    def object(self, path: pathlib.Path) -> dict[str, Any]:
        """Returns the object of a JSON file; {} where there is no file, or none in it."""
        if not path.is_file():
            return {}
        try:
            found = json.loads(path.read_text(encoding="utf-8", errors="replace"))
        except (json.JSONDecodeError, RecursionError) as error:
            self.note(path, NO_JSON, str(error))
            return {}
        if not isinstance(found, dict):
            self.note(path, NO_OBJECT, type(found).__name__)
            return {}
        return found

    def text(self, path: pathlib.Path) -> str:
        """Returns the text of a file; "" where there is none."""
        return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""

    def note(self, path: pathlib.Path, what: str, example: str) -> None:
        """Counts a problem of a file."""
        self._problems[self.name(path), what].append(example)
