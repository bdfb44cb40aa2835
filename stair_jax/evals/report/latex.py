"""The table at the end of a run as LaTeX, beside published figures where there are some."""

import math
import re
from collections.abc import Mapping, Sequence

from stair_jax.evals.benchmark import Column
from stair_jax.evals.report.table import Published
from stair_jax.evals.statistics import number

Figure = Mapping[str, float | None]  # value, n, low, high
ByMetric = Mapping[str, Mapping[str, Figure]]  # by benchmark and metric, of one model

_ARROWS = {True: r" $\uparrow$", False: r" $\downarrow$", None: ""}
_SPECIAL = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "[": "{[}",  # behind a line's end it would begin a length
    "*": "{*}",  # and this would forbid a page's end
    **{character: f"\\{character}" for character in "&%$#_{}"},
}
_ANY = re.compile("|".join(map(re.escape, _SPECIAL)))


def escape(text: str) -> str:
    """Returns plain text as LaTeX that prints it."""
    return _ANY.sub(lambda found: _SPECIAL[found[0]], text)


def table(
    results: Mapping[str, ByMetric],
    columns: Sequence[Column],
    published: Published | None = None,
    notes: Sequence[str] = (),
) -> str:
    """Returns the results as a LaTeX tabular: a model a row, 95 % intervals in brackets.

    It needs the package booktabs. The rows are those of the Markdown table: shares are in percent,
    a judge's scores on their scale.

    Args:
      results: {model: {benchmark: {metric: {value, n, low, high}}}}.
      columns: of the table.
      published: figures of others by the model's name, a label and the column's heading, as the
        table shows them: shares in percent. Each label is a row under its model, in square
        brackets. What is not in the table is left out.
      notes: lines that follow as comments.

    Raises:
      ValueError: where a published figure is not finite, naming model and heading.
    """
    head = ["Model", *(escape(column.heading) + _ARROWS[column.up] for column in columns)]
    lines = [rf"\begin{{tabular}}{{l{'r' * len(columns)}}}", r"\toprule", _line(head), r"\midrule"]
    for model, found in results.items():
        lines.append(_line([escape(model), *(_cell(found, column) for column in columns)]))
        for label, figures in (published or {}).get(model, {}).items():
            theirs = _published(model, columns, figures)
            if any(cell != "--" for cell in theirs):
                lines.append(_line([rf"\quad {escape(label)}", *theirs]))
    lines += [r"\bottomrule", r"\end{tabular}", *(f"% {note}" for note in notes)]
    return "\n".join(lines) + "\n"


def _line(cells: Sequence[str]) -> str:
    return " & ".join(cells) + r" \\"


def _cell(found: ByMetric, column: Column) -> str:
    """Returns a figure with its interval; what has none, or none that is a number, is a dash."""
    f = found.get(column.benchmark, {}).get(column.metric)
    value, low, high = (number(f, key) for key in ("value", "low", "high"))
    if math.isnan(value) or not number(f, "n"):
        return "--"
    if math.isnan(low) or math.isnan(high):
        return _figure(value, column)
    if column.share:
        return f"{_figure(value, column)} ({100 * low:.0f}--{100 * high:.0f})"
    return f"{_figure(value, column)} ({_signed(low)} to {_signed(high)})"


def _figure(value: float, column: Column) -> str:
    return f"{100 * value:.1f}" if column.share else _signed(value)


def _signed(value: float) -> str:
    """Returns a score, its minus sign as long as one is in mathematics."""
    return f"{value:.2f}".replace("-", "$-$")


def _published(model: str, columns: Sequence[Column], figures: Mapping[str, float]) -> list[str]:
    cells = []
    for column in columns:
        value = figures.get(column.heading)
        if value is None:
            cells.append("--")
            continue
        if not math.isfinite(value):
            where = f"published {column.heading!r} of {model!r}"
            raise ValueError(f"{where} is {value}, expected a finite number")
        cells.append(f"[{value:.1f}]" if column.share else f"[{_signed(value)}]")
    return cells
