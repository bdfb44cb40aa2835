"""Imports go one way: down the floors, and never across the two wings."""

import ast
import pathlib

ROOT = pathlib.Path(__file__).parents[1] / "stair_jax"
FLOORS = [
    {
        "config",
        "config_keys",
        "sections",
        "strategies",
        "validate",
        "validate_rewards",
        "validate_thresholds",
        "ranges",
        "ignored",
        "reward_forms",
        "text",
        "records",
        "trees",
        "interrupt",
        "progress",
        "redaction",
    },
    {
        "mesh",
        "startup",
        "compiling",
        "xla_flags",
        "ops",
        "products",
        "linear_logp",
        "miniature",
        "kernels",
    },
    {"model"},
    {"engine", "io"},
    {"rewards", "train"},
    {"search", "evals"},
    {"stages"},
    {"pipeline"},
    {"main", "chat"},
]
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
TRAINING_WING = {"train", "io"}
SEARCH_WING = {"engine", "rewards", "search", "evals"}
LINES = 600
UNFORMATTED = 553  # statements laid out by hand; lower it when some are gone, never raise it


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
    source = "import stair_jax.text\nfrom stair_jax import ops\nfrom stair_jax.io.hf import load\n"
    assert list(imported_rooms(source)) == ["text", "ops", "io"]


def test_every_room_has_a_floor():
    assert {room_of(path) for path in ROOT.rglob("*.py")} - {"__init__"} == set(FLOOR_OF)


def test_no_module_imports_a_higher_floor():
    found = list(imports())
    assert len(found) > 50
    for here, there, path in found:
        assert FLOOR_OF[there] <= FLOOR_OF[here], f"{path}: {here} imports {there}"


def test_the_two_wings_meet_only_in_stages():
    for here, there, path in imports():
        assert not (here in SEARCH_WING and there in TRAINING_WING), path
        assert not (here in TRAINING_WING and there in SEARCH_WING), path


def test_only_ops_imports_kernels():
    assert {here for here, there, _ in imports() if there == "kernels"} <= {"ops"}


def test_the_lowest_floor_does_not_import_jax():
    for name in FLOORS[0]:
        source = (ROOT / f"{name}.py").read_text()
        assert "import jax" not in source, name


def sources():
    """The text of every Python file of the repository by its path."""
    folders = "stair_jax", "kernels", "configs", "benchmarks", "tests"
    paths = [path for name in folders for path in (ROOT.parent / name).rglob("*.py")]
    return {path.relative_to(ROOT.parent): path.read_text(encoding="utf-8") for path in paths}


def test_files_stay_short():
    lines = {path: len(text.splitlines()) for path, text in sources().items()}
    assert len(lines) > 200
    assert {str(path): n for path, n in lines.items() if n > LINES} == {}


def test_the_formatter_is_switched_off_no_more_often_than_it_was():
    marker = "# fmt: " + "skip"  # parted, or this line would count
    assert sum(text.count(marker) for text in sources().values()) <= UNFORMATTED
