"""The paper's figures beside our own, by figures of its tables written out by hand."""

import dataclasses

import pytest

from stair_jax.evals import published
from stair_jax.evals.benchmark import Column, registered
from stair_jax.evals.published import LLAMA, QWEN
from stair_jax.evals.report import plane, table
from stair_jax.log.metrics import Metrics
from stair_jax.run import reports
from stair_jax.run.lineage import Lineage
from stair_jax.run.workdir import Run
from tests.support.configs import tiny

GSM = Column("GSM8K: right", "gsm8k", "accuracy", up=True)
XSTEST = Column("XSTest unsafe: refused", "xstest_unsafe", "refusal", up=True)
JUDGED = Column("XSTest unsafe: any refusal by a", "xstest_unsafe", "any_refusal@a", up=True)
FLOW = Column("InfoFlow 2a: correlation", "infoflow_2a", "correlation", up=True, share=False)
PLAIN = Column("StrongREJECT: goodness by judge", "strongreject", "goodness", up=True)
RULE = Column("StrongREJECT: refused", "strongreject", "refusal_rate", up=True)
SAFE = Column("XSTest safe: refused", "xstest_safe", "refusal", up=False)
EVERY = [GSM, XSTEST, JUDGED, FLOW, PLAIN, RULE, SAFE]


def results(*models, n=4, **more):
    figure = {"value": 0.5, "n": n, "low": 0.0, "high": 1.0} | more
    found = {}
    for column in EVERY:
        found.setdefault(column.benchmark, {})[column.metric] = figure
    return dict.fromkeys(models, found)


def test_figures_of_the_papers_tables_stand_under_our_models():
    found = published.rows(results("base", "dpo-3"), EVERY, "meta-llama/Llama-3.1-8B-Instruct")
    label = f"published, {LLAMA}"
    of_base = {GSM.heading: 85.6, XSTEST.heading: 88.0, JUDGED.heading: 88.0, FLOW.heading: 0.4229}
    of_last = {GSM.heading: 87.64, XSTEST.heading: 99.0, JUDGED.heading: 99.0}
    of_last |= {FLOW.heading: 0.7395, PLAIN.heading: 100.0}
    assert found == {"base": {label: of_base}, "dpo-3": {label: of_last}}


HAND = [  # of Table 1, a figure for each row and for each column
    (LLAMA, "sft", "wildchat_toxic", "refusal_rate", 50.68),
    (LLAMA, "dpo-1", "stereotype", "any_refusal", 97.89),
    (LLAMA, "dpo-2", "simpleqa", "correct", 6.00),
    (LLAMA, "dpo-3", "alpaca_eval", "win_rate@a", 38.66),
    (LLAMA, "baseline-sft", "gsm8k", "accuracy", 72.02),
    (LLAMA, "baseline-dpo", "advglue", "accuracy", 66.27),
    (LLAMA, "baseline-sacpo", "hhh", "accuracy", 85.21),
    (LLAMA, "baseline-self-rewarding-3", "hhh_likelihood", "accuracy", 82.09),
    (QWEN, "base", "infoflow_1", "correlation", 0.7221),
    (QWEN, "sft", "infoflow_2b", "correlation", 0.8215),
    (QWEN, "dpo-1", "hhh", "accuracy", 90.21),
    (QWEN, "dpo-2", "simpleqa", "correct", 3.79),
    (QWEN, "dpo-3", "wildchat_toxic", "any_refusal", 80.56),
    (QWEN, "baseline-sft", "stereotype", "refusal_rate", 91.58),
    (QWEN, "baseline-dpo", "gsm8k", "accuracy", 81.43),
    (QWEN, "baseline-sacpo", "xstest_unsafe", "refusal", 75.0),
    (QWEN, "baseline-self-rewarding-3", "advglue", "accuracy", 66.13),
]


@pytest.mark.parametrize(("family", "model", "benchmark", "metric", "want"), HAND)
def test_each_row_and_column_has_the_papers_figure(family, model, benchmark, metric, want):
    column = Column("x", benchmark, metric, up=True)
    ours = {model: {benchmark: {metric: {"n": 1}}}}
    assert published.rows(ours, [column], family) == {model: {f"published, {family}": {"x": want}}}


def test_every_comparable_figure_is_one_of_ours():
    judged = {"goodness", "any_refusal", "correct", "win_rate", "length_controlled_win_rate"}
    for benchmark, metric in published.COMPARABLE:
        assert metric in judged or metric in registered()[benchmark].metrics


def test_the_checkpoints_name_says_whose_figures_they_are():
    assert published.families("Qwen/Qwen2-7B-Instruct") == (QWEN,)
    assert published.families("/models/LLAMA-3.1") == (LLAMA,)
    assert published.families("/models/mine") == (LLAMA, QWEN)
    assert published.families("") == ()


@pytest.mark.parametrize("model", ["dpo-4", "dpo-3/beam_2x4", "baseline-start"])
def test_models_that_the_paper_has_not_have_no_row(model):
    assert published.rows(results(model), EVERY, LLAMA) == {}


def test_what_was_not_measured_has_no_figure_beside_it():
    assert published.rows(results("dpo-3", n=0), EVERY, LLAMA) == {}
    assert published.rows({"dpo-3": {}}, EVERY, LLAMA) == {}


def test_protocols_that_differ_are_named():
    lines = published.notes(results("base", "dpo-3", n=190, missing=10), [XSTEST, JUDGED, GSM])
    assert lines == [
        "XSTest unsafe: refused: the paper's GPT-4 counts full and partial refusals, here a rule"
        " reads refusals",
        "XSTest unsafe: any refusal by a: the paper's judge is GPT-4",
        "GSM8K: right: the paper does not give its wording, nor how it finds the number; 200"
        " prompts here, 1319 in the paper",
    ]


def test_a_report_shows_them_with_their_source(tmp_path, monkeypatch):
    for drawn in (plane, table):
        monkeypatch.setattr(drawn, "plot", lambda *_: None)
    config = tiny(workdir=str(tmp_path))
    config.model.checkpoint = "Qwen2-7B-Instruct"
    run = Run(config, tmp_path, Lineage(tmp_path / "lineage.json"), Metrics(tmp_path))
    asked = [dataclasses.replace(registered()["gsm8k"])]
    figure = {"value": 0.5, "n": 4, "low": 0.0, "high": 1.0}
    of = {"dpo-3": {"gsm8k": {"accuracy": figure, "malformed": figure}}}
    ids = dict.fromkeys(map(str, range(4)), 0.0)
    figures = {"dpo-3": {"gsm8k": dict.fromkeys(asked[0].metrics, ids)}}
    reports.write(run, reports.Evaluation(asked, figures, of, {}))
    page = (tmp_path / "report" / "table.md").read_text()
    assert "| dpo-3, published, Qwen2-7B-Instruct | [85.8]" in page
    assert "- Figures in square brackets are published: STAIR (arXiv 2502.02384).\n- GSM8K" in page
    paper = (tmp_path / "report" / "table.tex").read_text()
    assert r"\quad published, Qwen2-7B-Instruct & [85.8] & -- \\" in paper
    assert "\n% GSM8K: right: the paper does not give its wording" in paper
