"""The golden files (see golden/README.md), checked by the commands that others run."""

import json
import pathlib
import shutil

import pytest

from tests import golden_pairs, golden_trees

GOLDEN = pathlib.Path(__file__).parent / "golden"
TREES, PAIRS = GOLDEN / "trees", GOLDEN / "preference_data.json"


@pytest.mark.slow  # seven settings compile; launch/test.sh runs the one below
@pytest.mark.parametrize("in_flight", ["1", "100"])
def test_golden_trees_grow_whatever_is_in_flight(in_flight, capsys):
    assert golden_trees.main([str(TREES), "--in-flight", in_flight]) == 0
    assert capsys.readouterr().out == "7 passed, 0 failed\n"


@pytest.fixture(scope="module")
def grown():
    cases = {path.name: json.loads(path.read_text()) for path in sorted(TREES.glob("*.json"))}
    assert len(cases) == 7
    return cases, golden_trees.grow_cases(cases, 3)


def test_golden_trees_grow_node_for_node(grown):
    cases, trees = grown
    assert {name: golden_trees.differences(case, trees[name]) for name, case in cases.items()} == {
        name: [] for name in cases
    }


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("visited_times", 2),
        ("value_sum", -2.001),
        ("is_terminal", True),
        ("depth", 2),
        ("p", 0.9),
        ("reward", 0.0),
        ("trajectory", ["other"]),
    ],
)
def test_a_difference_in_any_key_is_found(grown, key, value):
    cases, trees = grown
    case = json.loads(json.dumps(cases["0.json"]))
    assert case["nodes"]["0.0"][key] != value
    case["nodes"]["0.0"][key] = value
    [line] = golden_trees.differences(case, trees["0.json"])
    assert f"0.0.{key}" in line


def test_a_missing_and_an_extra_node_are_found(grown):
    cases, trees = grown
    case = json.loads(json.dumps(cases["2.json"]))
    case["nodes"]["0.9"] = case["nodes"].pop("0.0")
    assert "['0.0', '0.9']" in golden_trees.differences(case, trees["2.json"])[0]


def test_the_commands_say_how_they_ended(tmp_path, capsys):
    assert golden_trees.main([str(tmp_path)]) == 2
    assert capsys.readouterr().out == "0 passed, 0 failed\n"
    case = json.loads((TREES / "2.json").read_text())
    case["nodes"]["0"]["visited_times"] += 1
    (tmp_path / "bad.json").write_text(json.dumps(case))
    shutil.copy(TREES / "2.json", tmp_path)
    assert golden_trees.main([str(tmp_path)]) == 1
    assert capsys.readouterr().out.endswith("1 passed, 1 failed\n")


def test_golden_pairs_are_built(capsys):
    assert golden_pairs.main([str(PAIRS), str(TREES)]) == 0
    assert capsys.readouterr().out == "42 passed, 0 failed\n"


@pytest.mark.parametrize("key", ["pairs", "responses", "good", "bad", "count"])
def test_a_difference_in_any_row_is_found(tmp_path, capsys, key):
    cases = json.loads(PAIRS.read_text())
    changed = next(case for case in cases if case.get(key))
    if key == "count":
        changed[key] += 1
    elif key in ("pairs", "responses"):
        changed[key][0][-1] += 0.001
    else:
        changed[key][0] += "!"
    file = tmp_path / "cases.json"
    file.write_text(json.dumps(cases))
    assert golden_pairs.main([str(file), str(TREES)]) == 1
    assert capsys.readouterr().out.endswith("41 passed, 1 failed\n")
    file.write_text("[]")
    assert golden_pairs.main([str(file), str(TREES)]) == 2
