"""The table at the end of a run, and the picture of its rounds."""

import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from stair_jax.evals.benchmark import Column
from stair_jax.evals.statistics import number

# By model, benchmark and metric; None stands where a file had no number.
Results = Mapping[str, Mapping[str, Mapping[str, Mapping[str, float | None]]]]

# Figures of others by our model's name, a label and the column's heading; shares in percent.
Published = Mapping[str, Mapping[str, Mapping[str, float]]]

WIDEST = 8  # columns of the table with a model a row
BASELINE = "baseline-"  # what the names of models begin with that are none of STAIR's

_ARROWS = {True: " ↑", False: " ↓", None: ""}
_BESIDE = 4  # fields of a picture with one for each share
_MARKERS = {True: "o", False: "v", None: "s"}


def table(results: Results, columns: Sequence[Column], published: Published | None = None) -> str:
    """Returns the results as a Markdown table: a model a row, 95 % intervals in brackets.

    With more than `WIDEST` columns it is turned: a metric a row. Shares are in percent, a judge's
    scores on their scale.

    Args:
      results: of all models.
      columns: of the table.
      published: figures of others that follow under their model, as in `latex.table`.
    """
    rows = [["model", *(f"{column.heading}{_ARROWS[column.up]}" for column in columns)]]
    for model, found in results.items():
        rows.append([model, *(_cell(found, c) for c in columns)])
        for label, figures in (published or {}).get(model, {}).items():
            rows.append([f"{model}, {label}", *(_published(figures, c) for c in columns)])
    if len(columns) > WIDEST:
        rows = [list(row) for row in zip(*rows, strict=True)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]

    def line(row: list[str]) -> str:
        return "| " + " | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) + " |"

    rule = "|" + "|".join("-" * (w + 2) for w in widths) + "|"
    return "\n".join([line(rows[0]), rule, *map(line, rows[1:])]) + "\n"


def _cell(found: Mapping[str, Mapping[str, Mapping[str, float | None]]], column: Column) -> str:
    f = found.get(column.benchmark, {}).get(column.metric)
    value, low, high = (number(f, key) for key in ("value", "low", "high"))
    if math.isnan(value) or not number(f, "n"):
        return "-"
    known = not math.isnan(low + high)
    if column.share:
        return f"{100 * value:.1f}" + (f" ({100 * low:.0f}-{100 * high:.0f})" if known else "")
    return f"{value:.2f}" + (f" ({low:.2f} to {high:.2f})" if known else "")


def _published(figures: Mapping[str, float], column: Column) -> str:
    value = figures.get(column.heading)
    return "-" if value is None else f"[{value:.{1 if column.share else 2}f}]"


def plot(results: Results, columns: Sequence[Column], path: pathlib.Path) -> None:
    """Draws each share over the models, with its intervals, into a PNG file.

    Up to `WIDEST` shares stand in one field, more in a field each. Lines join STAIR's models, whose
    order is that of the rounds; baselines come after them. Models under a strategy of test-time
    search ("dpo-3/beam_2x4") are for `curves`, and are left out.
    """
    import matplotlib  # heavy, and only needed here

    matplotlib.use("Agg")
    from matplotlib import pyplot

    models = [m for m in results if "/" not in m]
    rounds = sum(not m.startswith(BASELINE) for m in models)  # joined by lines; baselines are not
    columns = [column for column in columns if column.share]
    apart = len(columns) > WIDEST
    width = 8 + 0.6 * (len(models) - rounds)
    rows = -(-len(columns) // _BESIDE) if apart else 1
    figure, fields = pyplot.subplots(
        rows,
        _BESIDE if apart else 1,
        figsize=(1.6 * width, 2.4 * rows) if apart else (width, 4.5),
        layout="constrained",
        squeeze=False,
        sharey=True,
    )
    every = fields.flatten().tolist()
    for index, column in enumerate(columns):
        axes = every[index if apart else 0]
        # Side by side where they share a field, not on top.
        _draw(axes, column, results, models, rounds, 0 if apart else index - len(columns) / 2)
        if apart:
            axes.set_title(column.heading, fontsize=8)
    for axes in every[len(columns) if apart else 1 :]:
        axes.set_visible(False)
    for axes in every:
        axes.set_xticks(range(len(models)), [m.removeprefix(BASELINE) for m in models])
        axes.set_xlim(-0.5, len(models) - 0.5)
        if rounds < len(models):
            axes.axvline(rounds - 0.5, color="gray", linewidth=0.8)
        if rounds < len(models) or apart:
            axes.tick_params(axis="x", labelrotation=20)
        axes.set_ylim(-0.02, 1.02)
    for row in fields:
        row[0].set_ylabel("share" if apart else "share of held-out prompts")
    title = "Dots: more is better. Triangles: less is better."
    title += " Squares: neither." if any(column.up is None for column in columns) else ""
    title += " Right of the line: baselines." if rounds < len(models) else ""
    if apart:
        figure.suptitle(title, fontsize=9)
    else:
        every[0].set_title(title, fontsize=9)
        every[0].legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def _draw(
    axes: Any, column: Column, results: Results, models: Sequence[str], rounds: int, place: float
) -> None:
    """Draws one share over the models, so many places beside them."""
    points = [
        (i, results[m][column.benchmark][column.metric])
        for i, m in enumerate(models)
        if column.metric in results[m].get(column.benchmark, {})
    ]
    x, found = [i + 0.03 * place for i, _ in points], [f for _, f in points]
    y = [number(f, "value") for f in found]
    spread = [
        [max(0.0, number(f, "value") - number(f, "low")) for f in found],
        [max(0.0, number(f, "high") - number(f, "value")) for f in found],
    ]
    bars = axes.errorbar(
        x,
        y,
        yerr=spread,
        capsize=2,
        label=column.heading,
        linestyle="",
        marker=_MARKERS[column.up],
        markersize=4,
    )
    joined = sum(i < rounds for i, _ in points)
    axes.plot(x[:joined], y[:joined], "-" if column.up else "--", color=bars[0].get_color())
