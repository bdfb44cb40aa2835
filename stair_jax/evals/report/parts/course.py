"""How a run went: rates, how busy slots were, memory, and the lines of its trainings."""

import collections
import math
import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple

from stair_jax.evals.report.parts import charts
from stair_jax.evals.report.parts.charts import Chart
from stair_jax.evals.report.parts.files import Files

# What is said of a stage: name, key of metrics.jsonl, how rows are summed up, a unit.
_SUMMED = {
    "last": lambda x: x[-1],
    "most": max,
    "median": statistics.median,
    "first": lambda x: x[0],
}
_CHIEF = (
    ("trees", "trees", "last", ""),
    ("trees an hour", "trees_per_hour", "last", ""),
    ("tokens generated", "tokens", "last", ""),
    ("slots busy", "engine/busy_share", "last", "%"),
    ("slots idle", "engine/idle_share", "last", "%"),
    ("work of slots behind the end of a response", "engine/overshoot_share", "last", "%"),
    ("work lost to preemption", "engine/preempted_share", "last", "%"),
    ("prompt tokens whose keys were there", "engine/reuse_share", "last", "%"),
    ("pages of keys in use, at most", "engine/pages_high_water", "most", ""),
    ("time of the device", "engine/device_s", "last", "s"),
    ("time of the host", "engine/host_s", "last", "s"),
    ("answers judged", "judged", "last", ""),
    ("answers without a score", "missing", "last", ""),
    ("steps that were cut", "cut_steps", "last", ""),
    ("rollouts that were cut", "cut_rollouts", "last", ""),
    ("optimiser steps", "step", "most", ""),
    ("loss at first", "loss", "first", ""),
    ("loss at last", "loss", "last", ""),
    ("tokens a second, median", "tokens_per_s", "median", ""),
    ("padding, median", "padding_share", "median", "%"),
    ("waiting for data a step, median", "data_wait_ms", "median", "ms"),
    ("share of the device's peak, median", "mfu", "median", "%"),
    ("memory of a device, at most", "peak_memory_gb", "most", "GB"),
    ("batches passed over", "skipped_steps", "last", ""),
)
# Keys that other stages have with another meaning, and what those that count here have beside it.
_OF = {"step": "loss", "trees": "trees_per_hour"}
_LINES = (
    "loss",
    "eval_loss",
    "mean_token_accuracy",
    "rewards/accuracies",
    "rewards/margins",
    "kl_per_token",
    "grad_norm",
    "tokens_per_s",
)


class Stage(NamedTuple):
    """What metrics.jsonl says of an artefact.

    Attributes:
      name: of the artefact.
      chief: (what, value), as far as it was measured.
      every: the same of all figures, each the last one.
      lines: of the figures that change from step to step.
      ended: unix seconds of its last row.
    """

    name: str
    chief: list[tuple[str, str]]
    every: list[tuple[str, str]]
    lines: list[Chart]
    ended: float


class Table(NamedTuple):
    """Stages of one kind beside each other: a row a figure."""

    kind: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]


def stages(files: Files) -> list[Stage]:
    """Returns what was measured, by stage, in the order in which they first were."""
    found: dict[str, list[dict[str, Any]]] = collections.defaultdict(list)
    for row in files.rows(files.workdir / "metrics.jsonl", _checked):
        found[row["stage"]].append(row)
    return [_stage(name, rows) for name, rows in found.items()]


def _checked(row: dict[str, Any]) -> dict[str, Any]:
    """Returns a row of metrics.jsonl; raises where it is none."""
    if not isinstance(row["stage"], str):
        raise TypeError("stage")
    return {"stage": row["stage"]} | {
        key: float(value) for key, value in row.items() if key != "stage"
    }


def _stage(name: str, rows: Sequence[dict[str, Any]]) -> Stage:
    series: dict[str, list[tuple[float, float]]] = collections.defaultdict(list)
    for row in rows:
        for key, value in row.items():
            if key not in ("stage", "time"):
                series[key].append((row["step"], value))
    chief = [
        (what, said(_SUMMED[how]([value for _, value in series[key]]), unit))
        for what, key, how, unit in _CHIEF
        if key in series and _OF.get(key, key) in series
    ]
    lines = [
        charts.line(
            _words(key), [step for step, _ in series[key]], [value for _, value in series[key]]
        )
        for key in _LINES
        if key in series
    ]
    every = [(key, said(of[-1][1])) for key, of in sorted(series.items()) if key != "step"]
    ended = max((row.get("time", 0.0) for row in rows), default=0.0)
    return Stage(name, chief, every, [one for one in lines if one], ended)


def _words(key: str) -> str:
    return key.replace("_", " ").replace("/", ", ")


def tables(found: Sequence[Stage]) -> list[Table]:
    """Returns the chief figures of stages of one kind side by side: those of rounds together."""
    kinds: dict[str, list[Stage]] = collections.defaultdict(list)
    for stage in found:
        kinds[stage.name.rpartition("/")[2]].append(stage)
    made = []
    for kind, some in kinds.items():
        names = dict.fromkeys(what for stage in some for what, _ in stage.chief)
        rows = [[what, *(dict(stage.chief).get(what, "-") for stage in some)] for what in names]
        if rows:
            made.append(Table(kind, ["figure", *(stage.name for stage in some)], rows))
    return made


def said(value: float, unit: str = "") -> str:
    """Returns a number for people, with its unit; shares are given in percent."""
    if not math.isfinite(value):
        return str(value)
    if unit == "%":
        return f"{100 * value:.1f} %"
    if value == int(value) and abs(value) < 1e15:
        text = f"{int(value):,}"
    else:
        text = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return f"{text} {unit}".strip()
