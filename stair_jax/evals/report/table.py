"""The table at the end of a run, and the picture of its rounds."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from stair_jax.evals.benchmark import Column

Results = Mapping[str, Mapping[str, Mapping[str, Mapping[str, float]]]]

BASELINE = "baseline-"  # what the names of models begin with that are none of STAIR's

_ARROWS = {True: " ↑", False: " ↓", None: ""}
_MARKERS = {True: "o", False: "v", None: "s"}


def table(results: Results, columns: Sequence[Column]) -> str:
    """Returns the results as a Markdown table: a model a row, 95 % intervals in brackets.

    Shares are in percent, a judge's scores on their scale.
    """
    rows = [["model", *(f"{column.heading}{_ARROWS[column.up]}" for column in columns)]]
    rows += [[model, *(_cell(found, c) for c in columns)] for model, found in results.items()]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]

    def line(row: list[str]) -> str:
        return "| " + " | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) + " |"

    rule = "|" + "|".join("-" * (w + 2) for w in widths) + "|"
    return "\n".join([line(rows[0]), rule, *map(line, rows[1:])]) + "\n"


def _cell(found: Mapping[str, Mapping[str, Mapping[str, float]]], column: Column) -> str:
    f = found.get(column.benchmark, {}).get(column.metric)
    if f is None or not f["n"]:
        return "-"
    if column.share:
        return f"{100 * f['value']:.1f} ({100 * f['low']:.0f}-{100 * f['high']:.0f})"
    return f"{f['value']:.2f} ({f['low']:.2f} to {f['high']:.2f})"


def plot(results: Results, columns: Sequence[Column], path: pathlib.Path) -> None:
    """Draws each share over the models, with its intervals, into a PNG file.

    Lines join STAIR's models, whose order is that of the rounds; baselines come after them. Models
    under a strategy of test-time search ("dpo-3/beam_2x4") are for `curves`, and are left out.
    """
    import matplotlib  # heavy, and only needed here

    matplotlib.use("Agg")
    from matplotlib import pyplot

    models = [m for m in results if "/" not in m]
    rounds = sum(not m.startswith(BASELINE) for m in models)  # joined by lines; baselines are not
    width = 8 + 0.6 * (len(models) - rounds)
    figure, axes = pyplot.subplots(figsize=(width, 4.5), layout="constrained")
    columns = [column for column in columns if column.share]
    for index, column in enumerate(columns):
        points = [
            (i, results[m][column.benchmark][column.metric])
            for i, m in enumerate(models)
            if column.metric in results[m].get(column.benchmark, {})
        ]
        shift = 0.03 * (index - len(columns) / 2)  # intervals side by side, not on top
        x, found = [i + shift for i, _ in points], [f for _, f in points]
        y = [f["value"] for f in found]
        spread = [
            [max(0.0, f["value"] - f["low"]) for f in found],
            [max(0.0, f["high"] - f["value"]) for f in found],
        ]
        style: dict[str, Any] = {"marker": _MARKERS[column.up], "markersize": 4}
        bars = axes.errorbar(
            x, y, yerr=spread, capsize=2, label=column.heading, linestyle="", **style
        )
        joined = sum(i < rounds for i, _ in points)
        line = "-" if column.up else "--"
        axes.plot(x[:joined], y[:joined], line, color=bars[0].get_color())
    axes.set_xticks(range(len(models)), [m.removeprefix(BASELINE) for m in models])
    if rounds < len(models):
        axes.axvline(rounds - 0.5, color="gray", linewidth=0.8)
        axes.tick_params(axis="x", labelrotation=20)
    axes.set_ylim(-0.02, 1.02)
    axes.set_ylabel("share of held-out prompts")
    title = "Dots: more is better. Triangles: less is better."
    title += " Squares: neither." if any(column.up is None for column in columns) else ""
    title += " Right of the line: baselines." if rounds < len(models) else ""
    axes.set_title(title, fontsize=9)
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
