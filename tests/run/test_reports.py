"""What an evaluation writes for people."""

import dataclasses
import json
import logging

import pytest

from stair_jax.evals.benchmark import registered
from stair_jax.evals.report import plane, table
from stair_jax.log.metrics import Metrics
from stair_jax.records import Answer, Prompt
from stair_jax.run import reports
from stair_jax.run.judged_figures import Verdicts
from stair_jax.run.lineage import Lineage
from stair_jax.run.reports import Evaluation
from stair_jax.run.results import ModelAnswers, metrics_of, unknown_of
from stair_jax.run.workdir import Run
from tests.support.configs import tiny


def run_in(folder):
    return Run(tiny(workdir=str(folder)), folder, Lineage(folder / "lineage.json"), Metrics(folder))


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Writes an evaluation whose figures are given; returns the points of the plane's picture."""
    drawn = []
    monkeypatch.setattr(plane, "plot", lambda points, path, sides: drawn.append(points))
    monkeypatch.setattr(table, "plot", lambda *_: None)
    run = run_in(tmp_path)

    def go(names, figures, results=None):
        asked = [registered()[name] for name in names]
        results = results or {model: {} for model in figures}
        reports.write(run, Evaluation(asked, figures, results, {}))
        return drawn

    return go


def figures(**shares):
    """Figures of 20 prompts a benchmark: so many ones of a metric, the others 0."""
    found = {}
    for name, ones in shares.items():
        benchmark, metric = name.split("__")
        zeros = {
            m: dict.fromkeys(map(str, range(20)), 0.0) for m in registered()[benchmark].metrics
        }
        zeros[metric] |= {str(i): 1.0 for i in range(ones)}
        found[benchmark] = zeros
    return found


NAMES = ("jbb_pair", "jbb_gcg", "advbench", "xstest_safe")


def test_attacks_answered_stand_against_harmless_prompts_refused(write):
    of = figures(
        jbb_pair__answered=5, jbb_gcg__answered=10, advbench__answered=20, xstest_safe__refusal=4
    )
    ((point,),) = write(NAMES, {"sft": of})
    model, over, success = point
    assert (model, over["value"], over["n"]) == ("sft", 0.2, 20)
    # Plain requests are no attacks: they stand in only where nothing else attacks.
    assert (success["value"], success["n"]) == (15 / 40, 40)


def test_a_model_that_says_nothing_is_not_the_best(write):
    of = figures(jbb_pair__malformed=20, xstest_safe__malformed=12)
    of["xstest_safe"]["cut"] |= {str(i): 1.0 for i in range(12, 20)}
    (((_, over, success),),) = write(("jbb_pair", "xstest_safe"), {"base": of})
    assert (over["value"], over["n"], success["value"]) == (1.0, 20, 0.0)


def test_plain_requests_stand_in_where_nothing_attacks(write):
    of = figures(advbench__answered=20, xstest_safe__refusal=4)
    (((_, _, success),),) = write(("advbench", "xstest_safe"), {"sft": of})
    assert success["value"] == 1.0


def test_attack_success_that_stands_alone_is_told(write, caplog):
    caplog.set_level(logging.WARNING)
    assert write(("advbench",), {"sft": figures(advbench__answered=20)}) == []
    known = ["xstest_safe_framed", "or_bench", "xstest_safe"]
    assert f"a model that refuses all looks best; add one of {known}" in caplog.text
    caplog.clear()
    write(("gsm8k",), {"sft": figures(gsm8k__accuracy=3)})
    assert not caplog.text


def test_each_model_is_compared_with_the_one_before_and_the_last_with_the_first(write, tmp_path):
    of = {
        "base": figures(gsm8k__accuracy=2),
        "sft": figures(gsm8k__accuracy=2),
        "dpo-1": figures(gsm8k__accuracy=12),
        "dpo-1/beam_2x4": figures(gsm8k__accuracy=20),
    }
    write(("gsm8k",), of)
    rows = json.loads((tmp_path / "report" / "comparisons.json").read_text())
    right = [row for row in rows if row["metric"] == "accuracy"]
    assert [(row["model"], row["against"]) for row in right] == [
        ("sft", "base"),
        ("dpo-1", "sft"),
        ("dpo-1", "base"),
    ]
    assert [row["difference"] for row in right] == [0.0, 0.5, 0.5]
    assert right[1]["p"] == pytest.approx(2 / 2**10)  # ten prompts, all for one side
    assert right[1]["p_adjusted"] > right[1]["p"]
    assert {row["metric"] for row in rows} == {"accuracy", "malformed"}  # those of the table
    assert "| dpo-1" in (tmp_path / "report" / "comparisons.md").read_text()


def test_the_picture_says_which_benchmarks_it_pools_and_that_rules_read_them():
    names = ("jbb_pair", "jbb_gcg", "jbb_random_search", "xstest_safe")
    sides = reports._sides(*([registered()[n] for n in some] for some in (names[:3], names[3:])))
    assert sides == plane.Sides(
        "harmless prompts refused or without an answer: xstest_safe",
        "attacks answered (not refused, by a rule): jbb_pair, jbb_gcg and 1 more",
    )
    plain = reports._sides([registered()["harmful"]], [registered()["lookalike"]])
    assert plain.answered == "plain harmful requests answered: harmful"


def test_models_whose_answers_are_often_cut_are_told(write, caplog):
    caplog.set_level(logging.WARNING)
    of = {"sft": figures(gsm8k__cut=2), "dpo-1": figures(gsm8k__cut=1)}
    write(("gsm8k",), of)
    assert "evaluate sft: 10 % of 20 answers stopped at a limit" in caplog.text
    assert "dpo-1" not in caplog.text


def test_prompts_that_a_model_cannot_read_are_told(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(plane, "plot", lambda *_: None)
    monkeypatch.setattr(table, "plot", lambda *_: None)
    caplog.set_level(logging.WARNING)
    prompts = tuple(Prompt(id=str(i), question="q", type="safety") for i in range(20))
    asked = [dataclasses.replace(registered()["gsm8k"], prompts=prompts)]
    answers = [
        Answer(id=str(i), benchmark="gsm8k", question="q", response="r", outcome="o", tokens=1)
        for i in range(20)
    ]
    answers[3] = dataclasses.replace(answers[3], unknown=2)
    one = ModelAnswers(model="base", artefact="a", direct=True, of={"gsm8k": answers})
    assert unknown_of(one) == {"gsm8k": 1}
    of = {"base": figures(gsm8k__accuracy=2)}
    reports.write(run_in(tmp_path), Evaluation(asked, of, {"base": {}}, {}, {"base": {"gsm8k": 1}}))
    assert "evaluate base: its tokenizer has no token for some words of 1 of 20" in caplog.text
    for name in ("table.md", "table.tex"):
        told = (tmp_path / "report" / name).read_text()
        assert "base: 1 of 20 prompts have words that its tokenizer lacks" in told


def test_the_table_is_there_for_latex_too(write, tmp_path, capsys):
    write(("gsm8k",), {"sft": figures(gsm8k__accuracy=2)})
    assert r"\toprule" in (tmp_path / "report" / "table.tex").read_text()
    assert "table.tex" in capsys.readouterr().out


def test_what_judges_say_has_columns(write, tmp_path):
    said = {"value": 0.25, "n": 4, "low": 0.1, "high": 0.5}
    of = {
        "strongreject": {"goodness@a": said, "goodness@b": said, "score_suite@a": said},
        "xstest_safe": {"any_refusal": said},
        "xstest_unsafe": {"any_refusal": said},
        "harmbench": {"asr": said},
        "gsm8k": {"accuracy": said},
    }
    write(tuple(of), {"sft": figures(gsm8k__accuracy=1) | figures(**_NONE)}, {"sft": of})
    rows = (tmp_path / "report" / "table.md").read_text().splitlines()
    judged = {row.split("|")[1].strip() for row in rows if " by " in row}
    assert judged == {
        "StrongREJECT: goodness by a ↑",
        "StrongREJECT: goodness by b ↑",
        "XSTest safe: any refusal by judge ↓",
        "XSTest unsafe: any refusal by judge ↑",
        "HarmBench: asr by judge ↓",
    }


_NONE = {
    "strongreject__answered": 0,
    "xstest_safe__refusal": 0,
    "xstest_unsafe__refusal": 0,
    "harmbench__answered": 0,
}


def test_a_table_of_many_columns_has_a_metric_a_row():
    names = ("math500", "mmlu_pro", "gpqa_diamond", "hhh", "hhh_likelihood", "advglue", "simpleqa")
    columns = [column for name in names for column in registered()[name].columns]
    columns += registered()["xstest_safe"].columns
    assert len(columns) == table.WIDEST
    found = {"value": 0.25, "n": 4, "low": 0.1, "high": 0.5}
    of = {column.benchmark: {column.metric: found} for column in columns}
    wide = table.table({"base": of, "sft": of}, columns).splitlines()
    long = table.table({"base": of, "sft": of}, [*columns, columns[0]]).splitlines()
    assert (len(wide), len(long)) == (4, 2 + len(columns) + 1)
    assert [cell.strip() for cell in long[0].split("|")[1:-1]] == ["model", "base", "sft"]
    assert [cell.strip() for cell in wide[2].split("|")[1:3]] == ["base", "25.0 (10-50)"]
    assert long[2].split("|")[2].strip() == "25.0 (10-50)"


def test_a_figure_without_an_interval_stands_alone_and_one_without_a_value_is_a_dash():
    (column,) = registered()["math500"].columns
    of = {"value": 0.25, "n": 4, "low": None, "high": float("nan")}
    for figure, cell in ((of, "| 25.0 "), ({**of, "value": None}, "| -  ")):
        results = {"base": {"math500": {"accuracy": figure}}}
        assert cell in table.table(results, [column])


def test_results_are_summed_up_over_the_figures_that_are_there(tmp_path):
    run = run_in(tmp_path)
    prompts = tuple(Prompt(id=str(i), question="q", type="safety") for i in range(25))
    benchmark = dataclasses.replace(registered()["math500"], prompts=prompts)
    of = figures(math500__accuracy=5)
    of["math500"]["accuracy"]["19"] = None
    answers = ModelAnswers(model="base", artefact="a", direct=False, of={"math500": []})
    found = metrics_of(run, [benchmark], answers, of, Verdicts())["math500"]["accuracy"]
    assert (found["n"], found["missing"], found["value"]) == (19, 6, 5 / 19)
