"""Lines as SVG of a page's own text and colours, which a screen reader can say in a sentence."""

import math
from collections.abc import Sequence
from typing import NamedTuple

_WIDTH, _HEIGHT = 320, 120  # of the field, in units of the picture
_MOST = 300  # points of a line


class Chart(NamedTuple):
    """One line.

    Attributes:
      title: what it shows.
      said: the same in a sentence, with its ends.
      points: for SVG's `polyline`, in the field of `width` and `height`.
      low: the label of the field's bottom, and
      high: of its top.
      first: the label of its left end, and
      last: of its right one.
    """

    title: str
    said: str
    points: str
    low: str
    high: str
    first: str
    last: str
    width: int = _WIDTH
    height: int = _HEIGHT


def line(title: str, steps: Sequence[float], values: Sequence[float]) -> Chart | None:
    """Returns a chart of values over steps; None where fewer than two of them are numbers."""
    known = [
        (step, value)
        for step, value in zip(steps, values, strict=True)
        if math.isfinite(step) and math.isfinite(value)
    ]
    if len(known) < 2:
        return None
    low, high = min(value for _, value in known), max(value for _, value in known)
    first, last = min(step for step, _ in known), max(step for step, _ in known)
    every = -(-len(known) // _MOST)
    drawn = [*known[::every], known[-1]]

    def place(step: float, value: float) -> str:
        x = _WIDTH * (step - first) / ((last - first) or 1)
        y = _HEIGHT * (1 - ((value - low) / (high - low) if high > low else 0.5))
        return f"{x:.1f},{y:.1f}"

    return Chart(
        title=title,
        said=(
            f"{title}: {known[0][1]:.4g} at step {first:g}, {known[-1][1]:.4g} at step {last:g};"
            f" least {low:.4g}, most {high:.4g}"
        ),
        points=" ".join(place(*point) for point in drawn),
        low=f"{low:.4g}",
        high=f"{high:.4g}",
        first=f"step {first:g}",
        last=f"step {last:g}",
    )
