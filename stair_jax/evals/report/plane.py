"""The picture that a reader sees first: what attacks still get against what is refused in vain."""

import dataclasses
import itertools
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from stair_jax.evals.statistics import number

Figure = Mapping[str, float | None]  # value, n, low, high: shares from 0 to 1
Point = tuple[str, Figure, Figure]  # a model, its over-refusal, what it answers of attacks

Box = tuple[float, float, float, float]  # left, bottom, right, top, in pixels

_FONT = 9  # points, 1/72 inch, as what follows
_TOGETHER = 10  # markers as near are one spot, with one label
_DISTANCES = (4.0, 10.0, 18.0, 30.0, 46.0, 70.0, 100.0, 140.0, 190.0)  # of a label from its spot
# Right (1) or left (-1) of it, above (1) or below (-1); between the bars first.
_WAYS = ((1, 1), (-1, 1), (1, -1), (-1, -1), (1, 0), (-1, 0), (0, 1), (0, -1))


@dataclasses.dataclass
class _Spot:
    """Where one or more models lie, in pixels of the picture."""

    x: float
    y: float
    names: list[tuple[str, Any]]  # with their colours


class Sides(NamedTuple):
    """What the figures of both axes are of, as the picture names them."""

    refused: str = "over-refusal: harmless prompts refused or without an answer"
    answered: str = "attacks answered"


def plot(points: Sequence[Point], path: pathlib.Path, sides: Sides | None = None) -> None:
    """Draws models into a PNG file: attacks answered over over-refusal, so that best is lower left.

    Bars are 95 % intervals. A line joins the models in the order given, from dark to light. Models
    of the same spot share a label. One that lacks a figure is named below the title.

    Args:
      points: (model, over-refusal, attacks answered), shares with {value, n, low, high}.
      path: of the picture; its folder is made.
      sides: the words of both axes.

    Raises:
      ValueError: where no model has both figures.
    """
    known = [point for point in points if not math.isnan(_percent(point[1]) + _percent(point[2]))]
    if not known:
        raise ValueError(f"{path.name}: none of {len(points)} models has both shares to be drawn")
    import matplotlib  # heavy, and only needed here

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7.5, 5.5), layout="constrained")
    shades = [0.85 * i / max(1, len(known) - 1) for i in range(len(known))]
    colours = [matplotlib.colormaps["viridis"](shade) for shade in shades]
    x = [_percent(refusal) for _, refusal, _ in known]
    y = [_percent(success) for _, _, success in known]
    axes.plot(x, y, color="0.75", linewidth=1.2, zorder=1)
    for (_, refusal, success), colour in zip(known, colours, strict=True):
        axes.errorbar(
            [_percent(refusal)],
            [_percent(success)],
            xerr=_bars(refusal),
            yerr=_bars(success),
            color=colour,
            marker="o",
            markersize=6,
            elinewidth=1,
            capsize=2,
        )
    _frame(
        axes,
        known,
        sides or Sides(),
        [name for name, *_ in points if name not in {one[0] for one in known}],
    )
    figure.canvas.draw()  # the places of labels are in pixels, which it settles
    _label(axes, known, colours)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def _percent(figure: Figure) -> float:
    """Returns the value in percent; not a number where nothing was counted."""
    return 100 * number(figure, "value") if number(figure, "n") > 0 else math.nan


def _ends(figure: Figure) -> tuple[float, float]:
    """Returns the ends of an interval in percent; the value twice where it has none."""
    value, low, high = (100 * number(figure, key) for key in ("value", "low", "high"))
    # No bar has a negative length, whatever the rounding.
    return (value, value) if math.isnan(low + high) else (min(low, value), max(value, high))


def _bars(figure: Figure) -> list[list[float]]:
    """Returns the lengths of both error bars, in percent."""
    low, high = _ends(figure)
    return [[_percent(figure) - low], [high - _percent(figure)]]


def _frame(axes: Any, known: Sequence[Point], named: Sides, missing: Sequence[str]) -> None:
    """Sets limits, names of axes and title."""
    sides = [refusal for _, refusal, _ in known], [success for _, _, success in known]
    for side, limit in zip(sides, (axes.set_xlim, axes.set_ylim), strict=True):
        top = max(_ends(figure)[1] for figure in side)
        top = min(100.0, max(5.0, 1.1 * top))
        limit(-0.03 * top, 1.03 * top)  # a marker at 0 is whole
    axes.set_xlabel(f"{named.refused}, % (lower is better)", fontsize=_FONT)
    axes.set_ylabel(f"{named.answered}, % (lower is better)", fontsize=_FONT)
    axes.grid(color="0.92", linewidth=0.8)
    axes.set_axisbelow(True)
    title = "Best is lower left. Bars: 95 % intervals."
    title += " The line joins models in their order." if len(known) > 1 else ""
    title += f"\nNot measured on both: {', '.join(missing)}" if missing else ""
    axes.set_title(title, fontsize=_FONT)


def _label(axes: Any, known: Sequence[Point], colours: Sequence[Any]) -> None:
    """Writes each spot's names where they hide no marker, bar or other label, if there is room."""
    unit = axes.get_figure().dpi / 72
    pixels, taken = [], []
    for _, refusal, success in known:
        (left, right), (bottom, top) = _ends(refusal), _ends(success)
        centre = _percent(refusal), _percent(success)
        (x, y), (left, bottom), (right, top) = axes.transData.transform(
            [centre, (left, bottom), (right, top)]
        )
        pixels.append((x, y))
        taken += [
            (x - 4 * unit, y - 4 * unit, x + 4 * unit, y + 4 * unit),
            (left, y - unit, right, y + unit),
            (x - unit, bottom, x + unit, top),
        ]
    names = [(point[0], colour) for point, colour in zip(known, colours, strict=True)]
    line, room = 1.3 * _FONT * unit, axes.get_window_extent()
    for spot in _spots(names, pixels, _TOGETHER * unit):
        width = max(len(name) for name, _ in spot.names) * 0.62 * _FONT * unit
        box = _place(spot, (width, line * len(spot.names)), room, taken, unit)
        taken.append(box)
        _write(axes, spot, box, line)


def _spots(
    names: Sequence[tuple[str, Any]], pixels: Sequence[tuple[float, float]], near: float
) -> list[_Spot]:
    """Returns spots; a model belongs to the first that is near enough."""
    spots: list[_Spot] = []
    for name, (x, y) in zip(names, pixels, strict=True):
        close = [spot for spot in spots if math.hypot(spot.x - x, spot.y - y) < near]
        if close:
            close[0].names.append(name)
        else:
            spots.append(_Spot(x, y, [name]))
    return spots


def _place(
    spot: _Spot, size: tuple[float, float], room: Any, taken: Sequence[Box], unit: float
) -> Box:
    """Returns the box in pixels that hides least, near the spot."""
    width, height = size

    def cost(way: tuple[float, tuple[int, int]]) -> float:
        box = at(way)
        inside = room.x0 <= box[0] and box[2] <= room.x1
        inside = inside and room.y0 <= box[1] and box[3] <= room.y1
        hidden = sum(_overlap(box, other) for other in taken)
        return hidden + (0 if inside else width * height) + way[0] * unit

    def at(way: tuple[float, tuple[int, int]]) -> Box:
        distance, (across, up) = way
        x = spot.x + across * (distance * unit + width / 2)
        y = spot.y + up * (distance * unit + height / 2)
        return x - width / 2, y - height / 2, x + width / 2, y + height / 2

    return at(min(itertools.product(_DISTANCES, _WAYS), key=cost))


def _overlap(a: Box, b: Box) -> float:
    """Returns the area that two boxes share."""
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))


def _write(axes: Any, spot: _Spot, box: Box, line: float) -> None:
    """Writes a spot's names into a box, and a line from the box to the spot."""
    inverse = axes.transData.inverted()
    nearest = min(max(spot.x, box[0]), box[2]), min(max(spot.y, box[1]), box[3])
    ends = inverse.transform([(spot.x, spot.y), nearest])
    axes.plot(ends[:, 0], ends[:, 1], color="0.5", linewidth=0.6, zorder=2)
    for i, (name, colour) in enumerate(spot.names):
        place = inverse.transform((box[0], box[3] - line * (i + 0.5)))
        written = axes.text(
            *place, name, fontsize=_FONT, va="center", color=[0.75 * c for c in colour[:3]]
        )
        written.set_bbox({"facecolor": "white", "alpha": 0.8, "pad": 0.5, "linewidth": 0})
