"""The report of a run that is unfinished, runs, or was killed: what is whole is there, all told."""

import json
import logging
import os
import signal
import subprocess
import sys

import pytest

from stair_jax import main, pipeline
from stair_jax.evals.report import html
from tests.support import configs, run_files
from tests.support.report_pages import cells_of, page_of, rows_of, sources_of


@pytest.fixture
def made(tmp_path):
    run_files.make(tmp_path)
    return tmp_path


FILES = (
    "round-1/trees/trees.jsonl",
    "round-1/pairs/pairs.jsonl",
    "evals/sft/harmful.jsonl",
    "metrics.jsonl",
)


@pytest.mark.parametrize("name", FILES)
def test_a_torn_last_line_is_passed_over_and_told(made, name):
    whole = (made / name).read_text().splitlines(keepends=True)
    (made / name).write_text("".join(whole)[:-20])
    page = page_of(made)
    told = [name, "a torn last line, of a write that was cut off", "1", f"line {len(whole)}"]
    assert told in cells_of(page, "Lines that are not in this report")


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("{broken", "no JSON"),
        ("[1]", "JSON that is no object"),
        ('{"id": 3}', "a row of another form than this version writes"),
        ("[" * 5000, "no JSON"),
    ],
)
def test_a_broken_line_is_passed_over_and_told_and_the_others_stay(made, name, line, what):
    before = sources_of(page_of(made))
    (made / name).write_text(f"{line}\n{(made / name).read_text()}")
    page = page_of(made)
    assert [name, what, "1", "line 1"] in cells_of(page, "Lines that are not in this report")
    assert {id: one["count"] for id, one in sources_of(page).items()} == {
        id: one["count"] for id, one in before.items()
    }


def test_trees_in_which_a_page_would_go_in_circles_are_passed_over(made):
    path = made / "round-1/trees/trees.jsonl"
    row = json.loads(path.read_text().splitlines()[0])
    row["nodes"]["parent"][1] = 2
    path.write_text(json.dumps(row) + "\n")
    assert ["round-1/trees/trees.jsonl", "a row of another form than this version writes"] in [
        cells[:2] for cells in cells_of(page_of(made), "Lines that are not in this report")
    ]


def test_figures_that_are_no_numbers_reach_the_page_as_words(made):
    path = made / "round-1/trees/trees.jsonl"
    row = json.loads(path.read_text().splitlines()[0])
    row["nodes"]["value_sum"][1] = float("nan")
    path.write_text(json.dumps(row) + "\n")
    (_, shown), *_ = rows_of(made, sources_of(page_of(made))["trees-1"])
    assert shown["nodes"]["value"][1] == "nan"


def test_trees_of_version_0_1_are_read(made):
    path = made / "round-1/trees/trees.jsonl"
    row = json.loads(path.read_text().splitlines()[0])
    columns = row["nodes"]
    del columns["ids"]
    tokens = columns.pop("tokens")
    row["nodes"] = [
        {"ids": [1] * tokens[k], **{name: column[k] for name, column in columns.items()}}
        for k in range(len(tokens))
    ]
    path.write_text(json.dumps(row) + "\n")
    (_, shown), *_ = rows_of(made, sources_of(page_of(made))["trees-1"])
    assert shown["nodes"]["tag"][5] == "0.0.1"
    assert shown["nodes"]["tokens"][5] == 2


def test_an_unfinished_run_says_what_is_open_and_what_was_not_begun(made):
    lineage = json.loads((made / "lineage.json").read_text())
    lineage["round-1/pairs"]["finished"] = False
    del lineage["evals/sft"]
    (made / "lineage.json").write_text(json.dumps(lineage))
    (made / "round-1/trees/in_flight.log").write_text('{"tree": "p7", "name": "a"}\n{"tree": "p')
    page = page_of(made)
    assert "1 of 2 parts that were begun are done." in page
    assert "Begun and not finished: round-1/pairs." in page
    assert "Not begun: evaluate." in page
    assert ["results kept of unfinished trees", "1"] in cells_of(page, "Rounds")


def test_a_run_that_has_only_begun_has_a_page(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    page = page_of(tmp_path)
    assert "Nothing was begun here yet." in page
    assert "No whole tree so far." in page


def test_what_is_no_workdir_is_refused_and_gets_no_file(tmp_path):
    with pytest.raises(ValueError, match=r"no config\.json, expected the workdir of a run"):
        html.write(tmp_path)
    assert not list(tmp_path.iterdir())


def test_json_of_another_form_is_told_and_ends_nothing(made):
    (made / "evals/results.json").write_text('{"sft": 3, "dpo-1": {"harmful": [1]}}')
    (made / "evals/agreement.json").write_text('{"agreement": [7, {"disagreements": 7}]}')
    (made / "prm/report.json").write_text("[]")
    (made / "lineage.json").write_text('{"sft": 7, "prm": {"settings": [], "begun": 7}}')
    page = page_of(made)
    assert ["prm/report.json", "JSON that is no object", "1", "list"] in cells_of(
        page, "Lines that are not in this report"
    )


def test_a_report_touches_nothing_but_its_own_folder(made):
    def state():
        return {
            path: (path.read_bytes(), path.stat().st_mtime_ns)
            for path in made.rglob("*")
            if path.is_file() and "report" not in path.relative_to(made).parts
        }

    before = state()
    html.write(made)
    assert state() == before


def test_a_later_report_leaves_no_file_of_an_earlier_one(made):
    html.write(made)
    before = {path.name for path in (made / "report/data").iterdir()}
    path = made / "evals/sft/harmful.jsonl"
    path.write_text(path.read_text().replace("sft-q0-response", "another"))
    html.write(made)
    after = {path.name for path in (made / "report/data").iterdir()}
    assert len(after) == len(before)
    assert len(after - before) == 1  # its part; the index says the same


def test_large_lists_come_in_parts_of_which_one_is_loaded_at_a_time(tmp_path):
    run_files.make(tmp_path, trees=2100)
    source = sources_of(page_of(tmp_path))["trees-1"]
    assert source["count"] == 2100
    assert len(source["index"]) == 2
    assert len(source["parts"]) > 5
    rows = rows_of(tmp_path, source)
    assert [line[0] for line, _ in rows] == [row["id"] for _, row in rows]
    assert len({line[0] for line, _ in rows}) == 2100
    sizes = [(tmp_path / "report/data" / f"{name}.js").stat().st_size for name in source["parts"]]
    assert max(sizes) < 100_000


_APPENDS = """
import json, sys, time
row = open(sys.argv[1]).readline()
with open(sys.argv[1], "a") as file:
    for number in range(10**9):
        file.write(row[: len(row) // 2]); file.flush()
        print(number, flush=True)
        time.sleep(0.01)
        file.write(row[len(row) // 2 :]); file.flush()
"""


def test_a_report_is_made_beside_a_run_that_writes_and_after_it_was_killed(made):
    path = made / "evals/sft/harmful.jsonl"
    with subprocess.Popen(
        [sys.executable, "-c", _APPENDS, str(path)], stdout=subprocess.PIPE, text=True
    ) as writer:
        assert writer.stdout
        for _ in range(3):
            writer.stdout.readline()
        during = sources_of(page_of(made))
        os.kill(writer.pid, signal.SIGKILL)
    after = sources_of(page_of(made))["answers-1"]
    assert during["answers-1"]["count"] >= 4  # three, and what was whole by then
    assert after["count"] == path.read_text().count("\n")
    assert after["count"] >= during["answers-1"]["count"]


def test_the_command_writes_the_page_and_prints_where_it_lies(made, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["stair-jax", "report", str(made)])
    main.command_line()
    path = made / "report" / "index.html"
    assert capsys.readouterr().out == f"{path}\n"
    assert path.is_file()


def test_the_command_ends_in_one_line_where_there_is_no_run(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["stair-jax", "report", str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        main.command_line()
    assert str(ended.value) == (f"error: {tmp_path}: no config.json, expected the workdir of a run")


def test_the_last_line_of_a_run_says_where_its_report_lies(tmp_path, monkeypatch, caplog):
    config = configs.tiny(workdir=str(tmp_path / "run"), stages="evaluate")
    monkeypatch.setattr(pipeline, "items_of", lambda config: [])  # nothing is left to be done
    with caplog.at_level(logging.INFO):
        pipeline.run(config)
    path = tmp_path / "run" / "report" / "index.html"
    assert caplog.messages[-1] == f"report: {path}"
    assert "Nothing was begun here yet." in path.read_text()


def test_a_run_is_not_lost_over_its_report(made, caplog, monkeypatch):
    def broken(workdir):
        raise KeyError("x")

    monkeypatch.setattr(html, "write", broken)
    pipeline._report(made)
    [said] = caplog.messages
    assert said == f"no report, stair-jax report {made} says more: KeyError: 'x'"
