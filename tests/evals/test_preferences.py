"""Recorded preferences of AlpacaEval: which answers they count for, and the rates by hand."""

import json
import math

import pytest

from stair_jax import config as config_lib
from stair_jax.config.checks import validate
from stair_jax.evals import length_control, preferences
from stair_jax.evals.benchmark import registered
from stair_jax.evals.report import table
from stair_jax.log.metrics import Metrics
from stair_jax.records import Answer
from stair_jax.run import preferences as of_run
from stair_jax.run import reports
from stair_jax.run.lineage import Lineage
from stair_jax.run.workdir import Run
from stair_jax.text import OUTPUT, OUTPUT_END
from tests.support.configs import tiny

ASKED = [("Q1", "a"), ("Q2", "b"), ("Q3", "c"), ("Q4", "d"), ("Q5", "e")]


def row(instruction, answer, preference, **more):
    found = {"instruction": instruction, "output_1": "x", "generator_1": "gpt4_1106_preview"}
    return found | {"output_2": answer, "annotator": "weighted", "preference": preference} | more


ROWS = [
    row("Q1", " a\n", 1.9),
    row("Q2", "b", 0),  # a draw
    row("Q3", "c", 1.0),
    row("Q4", "d", None),
    row("Q5", "another model's", 2.0),
    row("Q9", "a", 2.0),
]


def read(rows):
    return [preferences.of_row(f"x.json:{number}", one) for number, one in enumerate(rows, 1)]


def test_win_rates_are_of_the_answers_that_were_judged():
    found = preferences.metrics(ASKED, read(ROWS), "x.json")
    assert set(found) == {"win_rate@weighted", "discrete_win_rate@weighted"}
    raw, discrete = found["win_rate@weighted"], found["discrete_win_rate@weighted"]
    assert raw["value"] == pytest.approx((0.9 + 0.5 + 0) / 3)
    assert discrete["value"] == pytest.approx((1 + 0.5 + 0) / 3)
    half = 1.959964 * math.sqrt(((0.9 - 7 / 15) ** 2 + (0.5 - 7 / 15) ** 2 + (7 / 15) ** 2) / 6)
    assert raw["low"] == 0.0  # 7 / 15 - half is below
    assert half > 7 / 15
    assert raw["high"] == pytest.approx(7 / 15 + half)
    for one in (raw, discrete):
        assert (one["n"], one["missing"]) == (3, 2)
        assert one["protocol"] == "against gpt4_1106_preview, as recorded in x.json"


def test_annotators_are_apart():
    rows = [row("Q1", "a", 2.0), row("Q1", "a", 1.0, annotator="other"), row("Q2", "b", 1.25)]
    found = preferences.metrics(ASKED, read(rows), "x.json")
    assert found["win_rate@weighted"]["value"] == pytest.approx(0.625)
    assert found["discrete_win_rate@weighted"]["value"] == 0.5
    assert found["win_rate@other"]["value"] == 0.0
    nameless = [row("Q1", "a", 2.0, annotator=None)]
    assert set(preferences.metrics(ASKED, read(nameless), "")) == {"win_rate", "discrete_win_rate"}


REFUSED = [
    ({"output_2": None}, r"x:7: output_2: found None, expected a text"),
    ({"preference": 2.5}, r"x:7: preference: found 2.5, expected a number from 1 to 2"),
    ({"preference": "m"}, r"x:7: preference: found 'm', expected a number from 1 to 2"),
    ({"preference": True}, r"x:7: preference: found True, expected a number from 1 to 2"),
    ({"preference": False}, r"x:7: preference: found False, expected a number from 1 to 2"),
    ({"instruction": ""}, r"x:7: no text under 'instruction'"),
]


@pytest.mark.parametrize(("change", "message"), REFUSED)
def test_a_row_that_is_no_annotation_is_named(change, message):
    with pytest.raises(ValueError, match=message):
        preferences.of_row("x:7", row("Q1", "a", 1.5) | change)
    without = row("Q1", "a", 1.5)
    del without["preference"]
    with pytest.raises(ValueError, match="x:7: preference: not there, expected a number"):
        preferences.of_row("x:7", without)


def test_a_preference_that_could_not_be_read_is_missing():
    assert preferences.of_row("x", row("Q1", "a", math.nan)).value is None


@pytest.fixture
def run(tmp_path):
    config = tiny(workdir=str(tmp_path))
    config.evaluate.annotations = str(tmp_path / "annotations.json")
    (tmp_path / "annotations.json").write_text(json.dumps(ROWS))
    return Run(config, tmp_path, Lineage(tmp_path / "lineage.json"), Metrics(tmp_path))


def answer(number, response):
    return Answer(
        id=str(number),
        benchmark="alpaca_eval",
        question=f"Q{number}",
        response=response,
        outcome="answered",
        tokens=3,
    )


SAID = [answer(1, f"thought{OUTPUT} Final Answer: a {OUTPUT_END}"), answer(2, "no answer: b")]


def test_a_run_writes_its_answers_and_reads_preferences_of_them(run):
    bench = registered()["alpaca_eval"]
    found = of_run.metrics(run, bench, "evals/dpo-1", SAID, direct=False)
    assert found["win_rate@weighted"]["value"] == pytest.approx(0.9)
    assert found["win_rate@weighted"]["missing"] == 1
    assert found["win_rate@weighted"]["protocol"].endswith("annotations.json")
    written = json.loads((run.workdir / "evals/dpo-1/alpaca_eval_outputs.json").read_text())
    assert written == [
        {"instruction": "Q1", "output": "a", "generator": "dpo-1"},
        {"instruction": "Q2", "output": "", "generator": "dpo-1"},
    ]
    assert of_run.metrics(run, registered()["gsm8k"], "evals/dpo-1", SAID, direct=False) == {}


def test_preferences_of_other_answers_are_told(run, caplog):
    bench = registered()["alpaca_eval"]
    found = of_run.metrics(run, bench, "evals/base", [answer(1, "new")], direct=True)
    assert found["win_rate@weighted"]["n"] == 0
    assert "none of its 1 answers has a preference in" in caplog.text


def test_without_a_file_there_is_no_win_rate(run):
    run.config.evaluate.annotations = ""
    bench = registered()["alpaca_eval"]
    assert of_run.metrics(run, bench, "evals/base", SAID, direct=True) == {}
    assert (run.workdir / "evals/base/alpaca_eval_outputs.json").exists()


def test_the_win_rate_has_a_column(run, monkeypatch):
    monkeypatch.setattr(table, "plot", lambda *_: None)
    bench = registered()["alpaca_eval"]
    won = of_run.metrics(run, bench, "evals/base", SAID[:1], direct=False)
    won = {name: {k: of[k] for k in ("value", "n", "low", "high")} for name, of in won.items()}
    figures = {"base": {bench.name: {name: {"1": 0.0} for name in bench.metrics}}}
    reports.write(run, reports.Evaluation([bench], figures, {"base": {bench.name: won}}, {}))
    page = (run.workdir / "report" / "table.md").read_text()
    assert "AlpacaEval: win rate by weighted ↑" in page
    assert "| 90.0 (0-100)" in page


def gamed_file(folder, count):
    lines = ["index,preference,std_delta_len,instruction_difficulty,not_gamed_baseline,model"]
    for name, delta, preference in (("concise", -1.0, 0.3), ("verbose", 1.0, 0.2)):
        lines += [f"{n},{preference},{delta},{n / 10},False,{name}" for n in range(count)]
    path = folder / "df_gamed.csv"
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def test_lengths_are_controlled_where_the_gamed_baselines_are_there(run, caplog):
    said = [answer(n, f"answer {'x' * n}") for n in range(1, 9)]
    rows = [
        row(f"Q{n}", f"answer {'x' * n}", None if n == 2 else 1 + n / 10, output_1="y" * (20 - n))
        for n in range(1, 9)
    ]
    (run.workdir / "annotations.json").write_text(json.dumps(rows))
    run.config.evaluate.gamed = gamed_file(run.workdir, 8)
    bench = registered()["alpaca_eval"]

    def found(answers):
        of = of_run.metrics(run, bench, "evals/base", answers, direct=True)
        return of["length_controlled_win_rate@weighted"]

    got = found(said)
    control = of_run.gamed(run.config)
    assert control is not None
    want = length_control.win_rate(
        [None if n == 2 else n / 10 for n in range(1, 9)],
        [(20 - n, len("answer ") + n) for n in range(1, 9)],
        range(8),
        control,
    )
    assert {key: got[key] for key in want} == pytest.approx(want)
    assert (got["n"], got["missing"]) == (8, 0)
    assert "lengths controlled by" in got["protocol"]
    assert caplog.text == ""
    # Of a part of the instructions there is none: lengths are standardised over all of them.
    part = found(said[:7])
    assert (part["n"], part["missing"], math.isnan(part["value"])) == (0, 1, True)
    assert "no length-controlled win rate: it needs an annotation of each of the 8" in caplog.text
    run.config.evaluate.gamed = ""
    assert set(of_run.metrics(run, bench, "evals/base", said, direct=True)) == {
        "win_rate@weighted",
        "discrete_win_rate@weighted",
    }


def test_the_length_controlled_rate_has_a_column(run, monkeypatch):
    monkeypatch.setattr(table, "plot", lambda *_: None)
    bench = registered()["alpaca_eval"]
    won = {"length_controlled_win_rate@w": {"value": 0.25, "n": 4, "low": 0.1, "high": 0.5}}
    figures = {"base": {bench.name: {name: {"1": 0.0} for name in bench.metrics}}}
    reports.write(run, reports.Evaluation([bench], figures, {"base": {bench.name: won}}, {}))
    page = (run.workdir / "report" / "table.md").read_text()
    assert "AlpacaEval: length controlled win rate by w ↑" in page
    assert "| 25.0 (10-50)" in page


def test_a_file_that_nothing_reads_is_refused():
    c = config_lib.default()
    c.workdir, c.stages, c.model.checkpoint = "x", "evaluate", "x/y"
    c.evaluate.update(annotations="annotations.json", benchmarks="gsm8k")
    with pytest.raises(ValueError, match=r"annotations.*alpaca_eval in config.evaluate.benchmarks"):
        validate(c)
