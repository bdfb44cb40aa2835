"""What test-time search gives for what it costs: scores against generated tokens."""

import math
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from stair_jax.evals.report.table import Results
from stair_jax.evals.statistics import number

Costs = Mapping[str, Mapping[str, Mapping[str, float]]]

# What the score adds up: (benchmark, metric, sign), from 1 on. Best is 2.
SCORE = (
    ("jailbreak", "compliance", -1),
    ("jailbreak", "malformed", -1),
    ("harmless", "accuracy", 1),
)
COMPARISONS = ("oracle_of", "random_of")  # that no one can use, or that know nothing: thin lines


def points(results: Results, costs: Costs) -> list[dict[str, Any]]:
    """Returns a point for each model under a strategy, and for greedy as the first of its model.

    A point has `model`, `strategy`, `family` (the name without its size), `score`, the half width
    `spread` of its 95 % interval (the parts' variances added), `tokens` a prompt, and `cost`: log2
    of the tokens relative to greedy. Nothing where no model was searched, or not on both benchmarks
    or not greedily too.
    """
    found = []
    for name in results:
        model, _, strategy = name.partition("/")
        if not strategy or not all(_scored(results.get(m, {})) for m in (model, name)):
            continue
        if not any(point["model"] == model for point in found):
            found.append(_point(results[model], costs[model], model, "greedy", costs[model]))
        found.append(_point(results[name], costs[name], model, strategy, costs[model]))
    return found


def _scored(found: Mapping[str, Mapping[str, Any]]) -> bool:
    return all(metric in found.get(bench, {}) for bench, metric, _ in SCORE)


def _point(
    found: Mapping[str, Mapping[str, Mapping[str, float | None]]],
    costs: Mapping[str, Mapping[str, float]],
    model: str,
    strategy: str,
    greedy: Mapping[str, Mapping[str, float]],
) -> dict[str, Any]:
    parts = [(found[bench][metric], sign) for bench, metric, sign in SCORE]
    tokens, usual = _tokens(costs), _tokens(greedy)
    return {
        "model": model,
        "strategy": strategy,
        "family": re.sub(r"_\d+(x\d+)?$", "", strategy),
        "score": 1 + sum(sign * number(part, "value") for part, sign in parts),
        "spread": math.sqrt(
            sum(((number(p, "high") - number(p, "low")) / 2) ** 2 for p, _ in parts)
        ),
        "tokens": tokens,
        "cost": math.log2(tokens / usual),
    }


def _tokens(costs: Mapping[str, Mapping[str, float]]) -> float:
    """Returns the mean over the benchmarks of the score."""
    benchmarks = sorted({bench for bench, _, _ in SCORE})
    return sum(costs[bench]["tokens"] for bench in benchmarks) / len(benchmarks)


def plot(points: Sequence[Mapping[str, Any]], path: pathlib.Path) -> None:
    """Draws the points into a PNG file: a panel a model, a line a family of strategies."""
    import matplotlib  # heavy, and only needed here

    matplotlib.use("Agg")
    from matplotlib import pyplot

    models = list(dict.fromkeys(point["model"] for point in points))
    families = list(dict.fromkeys(p["family"] for p in points if p["family"] != "greedy"))
    size = 2 + 5.0 * len(models), 4.5
    figure, axes = pyplot.subplots(
        1, len(models), figsize=size, layout="constrained", sharey=True, squeeze=False
    )
    for panel, model in zip(axes[0], models, strict=True):
        own = [point for point in points if point["model"] == model]
        greedy = next(point for point in own if point["family"] == "greedy")
        panel.axhline(greedy["score"], color="gray", linewidth=0.8, linestyle=":")
        panel.errorbar(
            [0],
            [greedy["score"]],
            yerr=[greedy["spread"]],
            color="black",
            fmt="s",
            capsize=2,
            markersize=5,
            label="greedy",
        )
        for place, family in enumerate(families):
            _line(panel, [p for p in own if p["family"] == family], family, place)
        panel.set_xlabel("log2 of generated tokens, relative to greedy")
        panel.set_title(model, fontsize=10)
    axes[0][0].set_ylabel("(1 - jailbreak complied - malformed) + harmless right")
    axes[0][-1].legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def _line(panel: Any, own: Sequence[Mapping[str, Any]], family: str, number: int) -> None:
    """Draws one family, its points by rising cost."""
    if not own:
        return
    own = sorted(own, key=lambda point: point["cost"])
    thin = family in COMPARISONS
    style: dict[str, Any] = {
        "color": f"C{number}",
        "linewidth": 0.8 if thin else 1.8,
        "markersize": 3 if thin else 5,
        "linestyle": "--" if thin else "-",
        "marker": "." if thin else "o",
        "label": family,
    }
    shift = 0.0 if thin else 0.015 * number  # intervals side by side, not on top
    x, y = [point["cost"] + shift for point in own], [point["score"] for point in own]
    panel.plot(x, y, **style)
    if not thin:
        spread = [point["spread"] for point in own]
        panel.errorbar(x, y, yerr=spread, color=style["color"], linestyle="", elinewidth=0.7)
        for point, a, b in zip(own, x, y, strict=True):
            size = point["strategy"].removeprefix(f"{family}_")
            above = number % 2 == 0  # two families seldom hide each other's sizes so
            panel.annotate(
                size,
                (a, b),
                xytext=(3, 4 if above else -9),
                fontsize=7,
                textcoords="offset points",
                color=style["color"],
            )
