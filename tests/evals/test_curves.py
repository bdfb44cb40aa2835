"""What a search costs and gains: the points by hand, and the lines drawn through them."""

import math

import pytest

from stair_jax.evals.report import curves, table
from tests.support.evaluation import BENCHMARKS, COLUMNS


def share(value, spread):
    return {"value": value, "n": 9.0, "low": value - spread, "high": value + spread}


def measured(compliance, malformed, accuracy):
    return {
        "jailbreak": {"compliance": share(compliance, 0.02), "malformed": share(malformed, 0.03)},
        "harmless": {"accuracy": share(accuracy, 0.06)},
    }


def test_the_points_of_the_curve_by_hand():
    results = {
        "sft": measured(0.9, 0.1, 0.5),
        "dpo-1": measured(0.4, 0.1, 0.5),
        "dpo-1/best_of_8": measured(0.2, 0.0, 0.6),
        "dpo-1/beam_2x4": measured(0.1, 0.0, 0.7),
        "dpo-1/best_of_2": measured(0.3, 0.1, 0.55),
        "dpo-1/odd": {"harmless": {}},
    }
    costs = {
        name: {b: {"tokens": t} for b, t in zip(BENCHMARKS, (30.0, 50.0), strict=True)}
        for name in results
    }
    costs["dpo-1/best_of_8"] = {"jailbreak": {"tokens": 240.0}, "harmless": {"tokens": 400.0}}
    found = {point["strategy"]: point for point in curves.points(results, costs)}
    assert list(found) == ["greedy", "best_of_8", "beam_2x4", "best_of_2"]
    assert [point["score"] for point in found.values()] == pytest.approx([1.0, 1.4, 1.6, 1.15])
    assert found["greedy"]["cost"] == 0
    assert found["best_of_8"]["cost"] == pytest.approx(3)
    assert found["best_of_8"]["tokens"] == 320
    assert found["beam_2x4"]["spread"] == pytest.approx(math.sqrt(0.02**2 + 0.03**2 + 0.06**2))
    families = [point["family"] for point in found.values()]
    assert families == ["greedy", "best_of", "beam", "best_of"]
    assert curves.points({k: v for k, v in results.items() if "/" not in k}, costs) == []


def test_the_curve_has_a_line_a_family_and_the_rounds_no_searched_model(tmp_path, monkeypatch):
    from matplotlib import axes

    lines, ticks = {}, []
    plain = axes.Axes.plot, axes.Axes.set_xticks

    def plot(self, *args, **kwargs):
        if "label" in kwargs:
            lines[kwargs["label"]] = len(args[0]), kwargs["linewidth"]
        return plain[0](self, *args, **kwargs)

    def set_xticks(self, at, names):
        ticks.append(names)
        return plain[1](self, at, names)

    monkeypatch.setattr(axes.Axes, "plot", plot)
    results = {"dpo-1": measured(0.4, 0.1, 0.5)}
    for name in ("best_of_2", "best_of_8", "oracle_of_8", "beam_2x4"):
        results[f"dpo-1/{name}"] = measured(0.2, 0.0, 0.6)
    costs = {name: {b: {"tokens": 7.0} for b in BENCHMARKS} for name in results}
    curves.plot(curves.points(results, costs), tmp_path / "p.png")
    assert (tmp_path / "p.png").read_bytes()[:4] == b"\x89PNG"
    assert {family: count for family, (count, _) in lines.items()} == {
        "best_of": 2,
        "oracle_of": 1,
        "beam": 1,
    }
    assert lines["oracle_of"][1] < lines["best_of"][1]  # only for comparison
    monkeypatch.setattr(axes.Axes, "set_xticks", set_xticks)
    table.plot(results, COLUMNS, tmp_path / "rounds.png")
    assert ticks == [["dpo-1"]]
