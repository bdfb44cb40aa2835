"""The house: floors and wings of the package, and what is said of each of its files.

`tests/test_layering.py` holds every import to this table, and the page on the architecture is made
of it: neither can say something else than the other.
"""

import ast
import functools
import pathlib
import re
from collections.abc import Iterator

PACKAGE = pathlib.Path(__file__).parents[1] / "stair_jax"
FLOORS = (  # from the lowest; a module imports its own floor and lower ones
    ("config", "records", "jsonl", "text", "interrupt"),
    ("ops", "kernels", "mesh", "program", "startup", "xla_flags", "world", "miniature"),
    ("model",),
    ("engine", "remote", "log", "data", "hf"),
    ("judges", "prm", "train"),
    ("search", "guided", "evals"),
    ("run", "plan"),
    ("stages",),
    ("pipeline",),
    ("main", "chat", "serve"),
)
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
SEARCH_WING = frozenset({"engine", "judges", "prm", "search", "guided", "evals"})
TRAINING_WING = frozenset({"train", "data", "hf"})

_FLOOR_NOTE = re.compile(r"\s*Floor \d\b[^.]*\.")  # the page says it once for all


def files_of(room: str) -> list[pathlib.Path]:
    """Returns the Python files of a room: a package's, its own first, or one module."""
    if (PACKAGE / f"{room}.py").is_file():
        return [PACKAGE / f"{room}.py"]
    folder = PACKAGE.parent / "kernels" if room == "kernels" else PACKAGE / room
    return sorted(
        folder.rglob("*.py"), key=lambda path: (len(path.relative_to(folder).parts), path)
    )


def said_of(path: pathlib.Path) -> str:
    """Returns the first paragraph of a module's docstring, in one line.

    Raises:
      ValueError: where it has none.
    """
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    if not docstring:
        raise ValueError(f"{path}: found no docstring, expected one that says what the module is")
    return _FLOOR_NOTE.sub("", " ".join(docstring.split("\n\n")[0].split()))


@functools.cache
def listing() -> str:
    """Returns the rooms as Markdown, from the top floor down: each file and what it is."""
    return "\n".join(line for floor in reversed(range(len(FLOORS))) for line in _floor(floor))


def _floor(floor: int) -> Iterator[str]:
    yield f"### Floor {floor}\n"
    for room in FLOORS[floor]:
        modules = files_of(room)
        about = [path for path in modules if path.name != "__init__.py"]
        if len(modules) == 1:
            yield f"- `{room}.py`: {said_of(modules[0])}"
            continue
        own = [path for path in modules if path.name == "__init__.py"]
        yield f"- **`{room}/`**" + (f" {said_of(own[0])}" if own else "")
        for path in about:
            yield f"    - `{_name_in(room, path)}`: {said_of(path)}"
    yield ""


def _name_in(room: str, path: pathlib.Path) -> str:
    parts = path.parts
    return "/".join(parts[parts.index(room, len(PACKAGE.parent.parts)) + 1 :])
