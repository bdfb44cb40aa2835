"""Imports go one way: down the floors, and never across the two wings."""

import ast
import graphlib
import pathlib
import re

from docs.house import FLOOR_OF, FLOORS, SEARCH_WING, TRAINING_WING
from stair_jax.config import stages

ROOT = pathlib.Path(__file__).parents[1] / "stair_jax"
LINES, STAGE_LINES = 600, 180


def imported_rooms(source):
    """Yields the rooms of stair_jax that a module's source imports."""
    for node in ast.walk(ast.parse(source)):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for name in names:
            if name.startswith("stair_jax."):
                yield name.split(".")[1]


def room_of(path):
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imports():
    """All (room, imported room, file) of the package."""
    for path in ROOT.rglob("*.py"):
        if room_of(path) != "__init__":
            yield from ((room_of(path), there, path) for there in imported_rooms(path.read_text()))


def test_the_walk_sees_every_form_of_import():
    source = (
        "import stair_jax.text\nfrom stair_jax import ops\nfrom stair_jax.hf.metadata import load\n"
    )
    assert list(imported_rooms(source)) == ["text", "ops", "hf"]


def test_every_room_has_a_floor():
    assert {room_of(path) for path in ROOT.rglob("*.py")} - {"__init__"} == set(FLOOR_OF)


def test_no_module_imports_a_higher_floor():
    found = list(imports())
    assert len(found) > 50
    for here, there, path in found:
        assert FLOOR_OF[there] <= FLOOR_OF[here], f"{path}: {here} imports {there}"


def modules():
    """{module: those of stair_jax that it imports}; a package stands for its `__init__`."""
    paths = {
        ".".join(path.relative_to(ROOT.parent).with_suffix("").parts).removesuffix(
            ".__init__"
        ): path
        for path in ROOT.rglob("*.py")
    }
    found = {}
    for module, path in paths.items():
        names = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module:
                parts = [f"{node.module}.{alias.name}" for alias in node.names]
                names |= {part if part in paths else node.module for part in parts}
            elif isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
        found[module] = names & set(paths) - {module}
    return found


def circle_in(graph):
    """Returns nodes of a graph that lead to one another; [] where there are none."""
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return error.args[1]
    return []


def test_nothing_imports_in_a_circle():
    graph = modules()
    assert graph["stair_jax.main"] >= {"stair_jax.pipeline", "stair_jax.chat"}
    assert circle_in({"a": {"b"}, "b": {"c"}, "c": {"a"}})
    assert circle_in(graph) == []
    rooms = {room: set() for room in FLOOR_OF}
    for here, there, _ in imports():
        rooms[here] |= {there} - {here}
    assert circle_in(rooms) == []


def test_no_test_imports_another():
    for path, source in sources().items():
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("tests"):
                named = [*str(node.module).split("."), *(alias.name for alias in node.names)]
                assert not [name for name in named if name.startswith("test_")], path


def test_the_two_wings_meet_only_above_them():
    for here, there, path in imports():
        assert not (here in SEARCH_WING and there in TRAINING_WING), path
        assert not (here in TRAINING_WING and there in SEARCH_WING), path


def test_only_ops_imports_kernels():
    assert {here for here, there, _ in imports() if there == "kernels"} <= {"ops"}


def test_the_lowest_floor_does_not_import_jax():
    paths = [path for path in ROOT.rglob("*.py") if room_of(path) in FLOORS[0]]
    assert len(paths) > len(FLOORS[0])
    for path in paths:
        assert "import jax" not in path.read_text(), path


def sources():
    """The text of every Python file of the repository by its path."""
    folders = "stair_jax", "kernels", "configs", "benchmarks", "docs", "examples", "tests"
    paths = [path for name in folders for path in (ROOT.parent / name).rglob("*.py")]
    return {path.relative_to(ROOT.parent): path.read_text(encoding="utf-8") for path in paths}


def test_files_stay_short():
    lines = {path: len(text.splitlines()) for path, text in sources().items()}
    assert len(lines) > 200
    assert {str(path): n for path, n in lines.items() if n > LINES} == {}


def test_stages_are_short_files_of_their_own():
    lines = {
        path.stem: len(text.splitlines())
        for path, text in sources().items()
        if path.parts[:2] == ("stair_jax", "stages")
    }
    assert set(lines) - {"__init__"} == set(stages.NAMES)
    assert {name: n for name, n in lines.items() if n > STAGE_LINES} == {}


def test_the_formatter_is_on_everywhere():
    off = re.compile(r"#\s*(fmt:\s*(skip|off)|yapf:\s*disable)")
    assert [str(path) for path, text in sources().items() if off.search(text)] == []
