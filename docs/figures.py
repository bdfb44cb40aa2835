"""The pictures of the pages, drawn as SVG: `python -m docs.figures` writes them anew.

The miniature's is drawn from `benchmarks/results/miniature_seed_0.json`, the house from
`docs/house.py`. Both are committed; a test draws them once more and compares.
"""

import json
import pathlib
from collections.abc import Sequence
from typing import Any
from xml.sax.saxutils import escape

from docs import house

ROOT = pathlib.Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "miniature_seed_0.json"
FOLDER = ROOT / "docs" / "figures"

_INK, _FAINT, _PAPER = "#263238", "#b0bec5", "#ffffff"
_SEARCH, _TRAINING, _SHARED = "#1565c0", "#c2410c", "#546e7a"
_FONT = "font-family='system-ui, -apple-system, Segoe UI, Roboto, Helvetica, Arial, sans-serif'"


def _svg(width: int, height: int, title: str, parts: Sequence[str]) -> str:
    """Returns a picture on paper of its own: pages may be dark."""
    head = (
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {width} {height}' {_FONT}"
        f" role='img'>\n<title>{escape(title)}</title>"
    )
    paper = f"<rect width='{width}' height='{height}' rx='8' fill='{_PAPER}'/>"
    return "\n".join([head, paper, *parts, "</svg>\n"])


def _text(
    x: float, y: float, words: str, *, size: int = 16, fill: str = _INK, more: str = ""
) -> str:
    return (
        f"<text x='{x:.1f}' y='{y:.1f}' font-size='{size}' fill='{fill}' {more}>"
        f"{escape(words)}</text>"
    )


# The miniature: three shares of answers, model by model.

_MODELS = {
    "sft": "SFT",
    "dpo-1": "DPO 1",
    "dpo-2": "DPO 2",
    "dpo-3": "DPO 3",
    "dpo-3/best_of_8": "best of 8",
}
_CURVES = (
    ("jailbreak", "compliance", "jailbreaks answered", "#c62828"),
    ("harmless", "accuracy", "harmless ones right", "#2e7d32"),
    ("lookalike", "refusal", "look-alikes refused", "#6a1b9a"),
)
_WIDTH, _HEIGHT = 640, 400
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 24, 76, 50


def miniature(results: dict[str, Any]) -> str:
    """Returns the picture of the miniature's results: shares in %, with 95 % intervals."""
    parts = [
        _text(16, 30, "The miniature: held-out prompts, in %", size=18, more="font-weight='600'")
    ]
    for place, (_, _, label, colour) in enumerate(_CURVES):
        x = 20 + 205 * place
        parts.append(f"<circle cx='{x}' cy='52' r='5' fill='{colour}'/>")
        parts.append(_text(x + 11, 57, label, size=15, fill=colour))
    for share in (0, 25, 50, 75, 100):
        y = _y(share / 100)
        parts.append(
            f"<path d='M{_LEFT} {y:.1f}H{_WIDTH - _RIGHT}' stroke='{_FAINT}' stroke-width='.7'/>"
        )
        parts.append(_text(_LEFT - 10, y + 5, str(share), size=14, more="text-anchor='end'"))
    for place, name in enumerate(_MODELS.values()):
        more = "text-anchor='middle'"
        parts.append(_text(_x(place), _HEIGHT - _BOTTOM + 32, name, size=15, more=more))
    for number, (benchmark, metric, _, colour) in enumerate(_CURVES):
        found = [results[model][benchmark][metric] for model in _MODELS]
        parts += _curve(found, colour, shift=6 * (number - 1))
    return _svg(_WIDTH, _HEIGHT, "Results of the miniature by model", parts)


def _curve(found: Sequence[dict[str, float]], colour: str, shift: float) -> list[str]:
    """Returns a line through values, each with its interval; `shift` keeps intervals apart."""
    points = [(_x(place) + shift, one) for place, one in enumerate(found)]
    line = "L".join(f"{x:.1f} {_y(one['value']):.1f}" for x, one in points)
    parts = [f"<path d='M{line}' fill='none' stroke='{colour}' stroke-width='2.5'/>"]
    for x, one in points:
        span = f"M{x:.1f} {_y(one['low']):.1f}V{_y(one['high']):.1f}"
        parts.append(f"<path d='{span}' stroke='{colour}' stroke-width='6' opacity='.3'/>")
        parts.append(f"<circle cx='{x:.1f}' cy='{_y(one['value']):.1f}' r='4' fill='{colour}'/>")
    return parts


def _x(place: int) -> float:
    width = (_WIDTH - _LEFT - _RIGHT) / len(_MODELS)
    return _LEFT + width * (place + 0.5)


def _y(share: float) -> float:
    return _HEIGHT - _BOTTOM - share * (_HEIGHT - _TOP - _BOTTOM)


# The house: a box a room, a storey a floor.

_WALL_LEFT, _WALL_RIGHT, _EAVES = 44, 596, 92
_ROW, _BOX, _GAP = 40, 28, 8  # of a row of boxes: its height, theirs, and between them
_LETTER = 8.6  # width of one, about


def picture() -> str:
    """Returns the picture of the house: rooms on their floors, the wings in their colours."""
    parts, y = _roof(), float(_EAVES)
    for floor in reversed(range(len(house.FLOORS))):
        rows = _rows_of(house.FLOORS[floor])
        parts.append(
            _text(20, y + 25, str(floor), size=15, fill=_SHARED, more="text-anchor='middle'")
        )
        for row in rows:
            parts += _row(row, y)
            y += _ROW
        end = f"M{_WALL_LEFT} {y:.1f}H{_WALL_RIGHT}"
        parts.append(f"<path d='{end}' stroke='{_FAINT}'/>")
    walls = f"M{_WALL_LEFT} {_EAVES}V{y:.1f}H{_WALL_RIGHT}V{_EAVES}"
    parts.append(f"<path d='{walls}' fill='none' stroke='{_INK}' stroke-width='2'/>")
    parts += _legend(y + 28)
    return _svg(640, round(y + 46), "The rooms of stair_jax on their floors", parts)


def _roof() -> list[str]:
    middle = (_WALL_LEFT + _WALL_RIGHT) / 2
    path = f"M{_WALL_LEFT - 18} {_EAVES}L{middle} 14L{_WALL_RIGHT + 18} {_EAVES}Z"
    roof = f"<path d='{path}' fill='#eceff1' stroke='{_INK}' stroke-width='2'/>"
    more = "text-anchor='middle' font-weight='600'"
    return [roof, _text(middle, 70, "stair_jax", size=20, more=more)]


def _rows_of(rooms: Sequence[str]) -> list[list[str]]:
    """Returns rooms in rows that fit between the walls."""
    rows: list[list[str]] = [[]]
    for room in rooms:
        if sum(map(_width, [*rows[-1], room])) > _WALL_RIGHT - _WALL_LEFT - 2 * _GAP:
            rows.append([])
        rows[-1].append(room)
    return rows


def _width(room: str) -> float:
    return len(room) * _LETTER + 26 + _GAP


def _row(rooms: Sequence[str], y: float) -> list[str]:
    """Returns a row of boxes: the search wing's on the left, the training wing's on the right."""
    left = [room for room in rooms if room in house.SEARCH_WING]
    right = [room for room in rooms if room in house.TRAINING_WING]
    middle = [room for room in rooms if room not in (*left, *right)]
    span, start = sum(map(_width, middle)) - _GAP, _WALL_LEFT + _GAP
    end = _WALL_RIGHT - sum(map(_width, right))
    centre = (_WALL_LEFT + _WALL_RIGHT - span) / 2
    return [
        *_boxes(left, start, y, _SEARCH),
        *_boxes(middle, centre, y, _SHARED),
        *_boxes(right, end, y, _TRAINING),
    ]


def _boxes(rooms: Sequence[str], x: float, y: float, colour: str) -> list[str]:
    parts = []
    for room in rooms:
        width = _width(room) - _GAP
        place = f"x='{x:.1f}' y='{y + 6:.1f}' width='{width:.1f}' height='{_BOX}' rx='4'"
        parts.append(f"<rect {place} fill='{colour}' fill-opacity='.1' stroke='{colour}'/>")
        more = "text-anchor='middle'"
        parts.append(_text(x + width / 2, y + 25, room, fill=colour, more=more))
        x += width + _GAP
    return parts


def _legend(y: float) -> list[str]:
    middle = "text-anchor='middle'"
    return [
        _text(_WALL_LEFT, y, "search: text into trees", size=15, fill=_SEARCH),
        _text(320, y, "both use it", size=15, fill=_SHARED, more=middle),
        _text(
            _WALL_RIGHT,
            y,
            "training: rows into weights",
            size=15,
            fill=_TRAINING,
            more="text-anchor='end'",
        ),
    ]


def drawn() -> dict[str, str]:
    """Returns each picture by the name of its file."""
    results = json.loads(RESULTS.read_text(encoding="utf-8"))
    return {"miniature.svg": miniature(results), "house.svg": picture()}


if __name__ == "__main__":
    for file, text in drawn().items():
        (FOLDER / file).write_text(text, encoding="utf-8")
