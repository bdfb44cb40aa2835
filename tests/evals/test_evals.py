import json
import math

import pytest
from scipy import stats

from stair_jax.evals import statistics
from stair_jax.evals.benchmark import by_outcome, registered
from stair_jax.evals.benchmarks import miniature
from stair_jax.evals.report import table
from stair_jax.records import Prompt
from stair_jax.text import OUTPUT, OUTPUT_END, STEP, STEP_END
from tests.support.evaluation import COLUMNS


@pytest.mark.parametrize(("hits", "count"), [(0, 9), (3, 9), (9, 9), (157, 320), (1, 1000)])
def test_wilson_equals_scipy(hits, count):
    want = stats.binomtest(hits, count).proportion_ci(0.95, method="wilson")
    low, high = statistics.wilson(hits, count)
    assert low == pytest.approx(want.low, abs=1e-9)
    assert high == pytest.approx(want.high, abs=1e-9)


def test_a_share_lies_in_its_interval_whatever_the_rounding():
    for count in range(1, 500):
        assert statistics.wilson(0, count)[0] == 0.0
        assert statistics.wilson(count, count)[1] == 1.0


def test_wilson_of_nothing_says_nothing():
    assert statistics.wilson(0, 0) == (0.0, 1.0)
    with pytest.raises(ValueError, match="5 successes of 4"):
        statistics.wilson(5, 4)


def test_a_share_is_of_all_answers():
    grades = [by_outcome(outcome, {"first": "a", "none": "z"}) for outcome in "abac"]
    assert [grade.outcome for grade in grades] == list("abac")
    found = statistics.share([float(grade.figures["first"] or 0) for grade in grades])
    assert (found["value"], found["n"]) == (0.5, 4)
    assert (found["low"], found["high"]) == statistics.wilson(2, 4)
    assert {grade.figures["none"] for grade in grades} == {0.0}
    assert math.isnan(statistics.share([])["value"])


def say(answer):
    return (
        f"{STEP} problem analysis : this is safe , plan : x {STEP_END} {STEP} solve : x {STEP_END}"
        f" {OUTPUT} final answer : {answer} {OUTPUT_END}"
    )


HARM = Prompt(id="a", question="q", type="safety", meta={"kind": "harmful"})
SUM = Prompt(id="b", question="q", type="helpfulness", ground_truth="4", meta={"kind": "add"})


@pytest.mark.parametrize(
    ("prompt", "response", "want"),
    [
        (HARM, say("sorry , i can not help with that"), "refusal"),
        (HARM, say("first take the saw then cut"), "compliance"),
        (HARM, "sorry", "malformed"),
        (SUM, say("4"), "correct"),
        (SUM, say("5"), "wrong"),
        (SUM, say("sorry , i can not help with that"), "refusal"),
        (SUM, say("4") + " 4", "malformed"),
    ],
)
def test_outcomes(prompt, response, want):
    assert miniature.outcome(prompt, response) == want
    benchmark = registered()["harmful" if prompt is HARM else "harmless"]
    grade = benchmark.grade(prompt, response, False)
    assert grade.outcome == want
    assert set(grade.figures) == set(benchmark.metrics)
    counted = "accuracy" if want == "correct" else want
    hit = {figure for figure, value in grade.figures.items() if value}
    assert hit == {counted} & set(grade.figures)  # of "wrong" there is no figure
    assert want in benchmark.merits


def results():
    share = lambda v: {"value": v, "n": 100, "low": v - 0.05, "high": v + 0.05}  # noqa: E731
    return {
        model: {
            "jailbreak": {"compliance": share(v), "refusal": share(1 - v), "malformed": share(0.0)},
            "harmless": {"accuracy": share(0.5), "refusal": share(0.1), "malformed": share(0.05)},
        }
        for model, v in (("sft", 0.95), ("dpo-1", 0.3))
    }


def test_the_table_holds_every_model_and_share():
    text = table.table(json.loads(json.dumps(results())), COLUMNS)
    lines = text.strip().splitlines()
    assert len(lines) == 4
    assert "jailbreak: complied" in lines[0]
    assert "look-alike" not in lines[0]  # was not measured
    assert lines[2].split("|")[1].strip() == "sft"
    assert "95.0 (90-100)" in lines[2]
    assert "30.0 (25-35)" in lines[3]
    assert len({line.count("|") for line in lines}) == 1


def test_the_plot_is_a_picture(tmp_path):
    table.plot(results(), COLUMNS, tmp_path / "report" / "p.png")
    assert (tmp_path / "report" / "p.png").read_bytes()[:4] == b"\x89PNG"


def test_baselines_are_drawn_apart_from_the_rounds(tmp_path, monkeypatch):
    from matplotlib import axes

    lines, ticks = [], []
    plain = axes.Axes.plot, axes.Axes.set_xticks
    monkeypatch.setattr(
        axes.Axes,
        "plot",
        lambda self, *a, **k: (lines.append(len(a[0])), plain[0](self, *a, **k))[1],
    )
    monkeypatch.setattr(
        axes.Axes,
        "set_xticks",
        lambda self, at, names: (ticks.append(names), plain[1](self, at, names))[1],
    )
    found = results()
    found |= {"baseline-sft": found["sft"], "baseline-dpo": found["dpo-1"]}
    table.plot(found, COLUMNS, tmp_path / "p.png")
    assert ticks == [["sft", "dpo-1", "sft", "dpo"]]
    assert len(lines) == len(COLUMNS)
    assert set(lines) == {2}  # of the four models
    rows = table.table(found, COLUMNS).splitlines()[2:]
    assert [row.split("|")[1].strip() for row in rows] == [
        "sft",
        "dpo-1",
        "baseline-sft",
        "baseline-dpo",
    ]
