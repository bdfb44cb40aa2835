"""The figures of an evaluation as a page draws them: a dot on a scale for each model."""

import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from stair_jax.evals.benchmark import Column, columns_of, registered
from stair_jax.evals.statistics import number

_SCALE = 200  # units of a picture from 0 to 1


class Dot(NamedTuple):
    """A model's figure.

    Attributes:
      model: its name.
      value: in percent.
      interval: its ends in percent, or "".
      n: how many prompts.
      x: where the dot lies, from 0 to 200, and
      left: where its bar begins, and
      right: where it ends.
    """

    model: str
    value: str
    interval: str
    n: str
    x: float
    left: float
    right: float


class Scale(NamedTuple):
    """One share of all models, with what is good: "more is better", "less is better" or ""."""

    title: str
    good: str
    dots: list[Dot]


class Figure(NamedTuple):
    """A line of the table of all figures."""

    model: str
    benchmark: str
    metric: str
    value: str
    interval: str
    n: str
    missing: str
    protocol: str


def columns(results: Mapping[str, Any]) -> list[Column]:
    """Returns the columns of a results.json: of benchmarks that are known, then of all others."""
    names = list(dict.fromkeys(name for by in results.values() for name in _mapping(by)))
    known = registered()
    found = columns_of([known[name] for name in names if name in known])
    for name in names:
        if name not in known:
            metrics = dict.fromkeys(
                key for by in results.values() for key in _mapping(by.get(name))
            )
            found += [Column(f"{name}: {key}", name, key, None) for key in metrics]
    return found


def _mapping(found: Any) -> Mapping[str, Any]:
    return found if isinstance(found, dict) else {}


def scales(results: Mapping[str, Any]) -> list[Scale]:
    """Returns the shares of the table's columns, each over all models that have it."""
    words = {True: "more is better", False: "less is better", None: ""}
    made = []
    for column in columns(results):
        dots = [
            _dot(model, figure)
            for model, by in results.items()
            if (figure := _figure(by, column.benchmark, column.metric)) and column.share
        ]
        if dots := [dot for dot in dots if dot]:
            made.append(Scale(column.heading, words[column.up], dots))
    return made


def _figure(by: Any, benchmark: str, metric: str) -> Mapping[str, Any]:
    return _mapping(_mapping(_mapping(by).get(benchmark)).get(metric))


def _dot(model: str, figure: Mapping[str, Any]) -> Dot | None:
    """Returns a figure as a dot; None where nothing was counted, or it is no share."""
    value, low, high = (_number(figure, key) for key in ("value", "low", "high"))
    if not 0 <= value <= 1 or not _number(figure, "n"):
        return None
    known = not math.isnan(low + high)
    ends = (low, high) if known else (value, value)
    left, right = (_SCALE * min(max(end, 0.0), 1.0) for end in ends)
    interval = f"{100 * low:.0f}-{100 * high:.0f}" if known else ""
    shown = f"{100 * value:.1f}", interval, f"{_number(figure, 'n'):.0f}"
    return Dot(model, *shown, _SCALE * value, left, right)


def _number(figure: Mapping[str, Any], key: str) -> float:
    found = figure.get(key)
    return number(figure, key) if isinstance(found, int | float) else math.nan


def every(results: Mapping[str, Any]) -> Iterator[Figure]:
    """Yields all figures of a results.json, those that the table leaves out too."""
    for model, benchmarks in results.items():
        for benchmark, metrics in _mapping(benchmarks).items():
            for metric, figure in _mapping(metrics).items():
                known = _mapping(figure)
                value, low, high = (_number(known, key) for key in ("value", "low", "high"))
                yield Figure(
                    model=model,
                    benchmark=benchmark,
                    metric=metric,
                    value="-" if math.isnan(value) else f"{value:.4g}",
                    interval="" if math.isnan(low + high) else f"{low:.4g} to {high:.4g}",
                    n=str(known.get("n", "")),
                    missing=str(known.get("missing", "")),
                    protocol=str(known.get("protocol", "")),
                )
