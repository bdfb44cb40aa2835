"""Results of other evaluation tools: what lm-evaluation-harness and inspect_ai write to disk.

| tool       | file                           | is read                                            |
|------------|--------------------------------|----------------------------------------------------|
| lm-eval    | `results_*.json`               | `results`, `versions`, `n-samples`, `n-shot`,      |
|            |                                | `higher_is_better`, `model_name`, `date`           |
| inspect_ai | `*.json`, or `*.eval`, a zip   | `eval`, `results`, `status`, of the log or of its  |
|            | with a `header.json`           | header                                             |

Sources: EleutherAI/lm-evaluation-harness (MIT) 0.4.13, UKGovernmentBEIS/inspect_ai (MIT) 0.3.285:
their documentation of logs, and files that they wrote.
"""

import json
import math
import pathlib
import zipfile
from collections.abc import Mapping
from typing import Any, NamedTuple

from stair_jax.evals.statistics import Z95

LM_EVAL, INSPECT = "lm-eval", "inspect_ai"
# Metrics that are shares of samples, from 0 to 1; the table shows others on their own scale.
SHARES = frozenset({"acc", "acc_norm", "accuracy", "exact_match"})
_STDERR = "_stderr"
_NO_METRICS = frozenset({"alias", "name", "sample_len", "sample_count"})


class Figure(NamedTuple):
    """One metric of one task.

    Attributes:
      tool: `LM_EVAL` or `INSPECT`.
      version: of the tool.
      model: as the tool calls it.
      task: likewise.
      metric: likewise, with the filter or the scorer behind a comma where it has one.
      value: None where the tool has no number.
      stderr: of the value; None where there is none.
      n: samples that the value is of.
      missing: samples that were asked and are not in it.
      up: whether more is better; None where the tool does not say.
      protocol: version of the task, examples, and the file.
      date: of the run, as text that sorts within the tool.
    """

    tool: str
    version: str
    model: str
    task: str
    metric: str
    value: float | None
    stderr: float | None
    n: int
    missing: int
    up: bool | None
    protocol: str
    date: str

    @property
    def is_share(self) -> bool:
        """Whether the value is a share of samples."""
        return self.metric.partition(",")[0] in SHARES

    def summed(self) -> dict[str, Any]:
        """Returns {value, n, low, high, missing, protocol}, with the normal 95 % interval."""
        low = high = None
        if self.value is not None and self.stderr is not None:
            low, high = (self.value + sign * Z95 * self.stderr for sign in (-1, 1))
            if self.is_share:
                low, high = max(0.0, low), min(1.0, high)
        rest = {"missing": self.missing, "protocol": self.protocol}
        return {"value": self.value, "n": self.n, "low": low, "high": high, **rest}


def read(path: pathlib.Path) -> list[Figure] | None:
    """Returns the figures of a file; None where it is JSON of something else.

    Raises:
      ValueError: where it cannot be read, or lacks what its tool always writes.
    """
    data = _loaded(path)
    if not isinstance(data, Mapping):
        return None
    if "results" in data and "versions" in data:
        return _lm_eval(path, data)
    if isinstance(data.get("eval"), Mapping) and "status" in data:
        return _inspect(path, data)
    return None


def _loaded(path: pathlib.Path) -> Any:
    try:
        if path.suffix == ".eval":
            with zipfile.ZipFile(path) as archive:
                return json.loads(archive.read("header.json"))
        return json.loads(path.read_text(encoding="utf-8"))
    except KeyError:
        raise ValueError(f"{path}: no header.json, expected the log of a finished run") from None
    except (OSError, ValueError, zipfile.BadZipFile, NotImplementedError) as error:
        raise ValueError(f"{path}: expected results of lm-eval or inspect_ai ({error})") from None


def _of(path: pathlib.Path, data: Any, *keys: str, kind: type | tuple[type, ...]) -> Any:
    """Returns what lies under nested keys; ValueError that names them where it is no `kind`."""
    found = data
    for key in keys:
        found = found.get(key) if isinstance(found, Mapping) else None
    if not isinstance(found, kind) or isinstance(found, bool):
        names = kind if isinstance(kind, tuple) else (kind,)
        expected = " or ".join(one.__name__ for one in names)
        raise ValueError(f"{path}: {'.'.join(keys)}: found {found!r:.60}, expected {expected}")
    return found


def _number(found: Any) -> float | None:
    known = isinstance(found, int | float) and not isinstance(found, bool)
    return float(found) if known and math.isfinite(found) else None


def _lm_eval(path: pathlib.Path, data: Mapping[str, Any]) -> list[Figure]:
    model = _of(path, data, "model_name", kind=str)
    version = str(data.get("lm_eval_version") or "of unknown version")
    found = []
    for task, metrics in _of(path, data, "results", kind=dict).items():
        better = (data.get("higher_is_better") or {}).get(task) or {}
        counts = _counts(path, data, task)
        told = f"task {task} version {data['versions'].get(task, 'unknown')}"
        if (shots := (data.get("n-shot") or {}).get(task)) is not None:
            told += f", {shots} examples"
        told += f", {counts[0]} of {counts[1]} samples" if counts[0] != counts[1] else ""
        for key in metrics:
            name, _, chosen = key.partition(",")
            if key in _NO_METRICS or name.endswith(_STDERR):
                continue
            found.append(
                Figure(
                    tool=LM_EVAL,
                    version=version,
                    model=model,
                    task=task,
                    metric=name if chosen in ("", "none") else key,
                    value=_number(metrics[key]),
                    stderr=_number(metrics.get(f"{name}{_STDERR},{chosen}")),
                    n=counts[0],
                    missing=0,  # it has a value of every sample that it was asked for
                    up=better.get(name),
                    protocol=f"{LM_EVAL} {version}, {told}, from {path}",
                    date=f"{_number(data.get('date')) or 0.0:020.6f}",
                )
            )
    return found


def _counts(path: pathlib.Path, data: Mapping[str, Any], task: str) -> tuple[int, int]:
    """Returns the samples of a task, or of all tasks of a group: counted, and there in all."""
    tasks = (data.get("group_subtasks") or {}).get(task) or [task]
    counts = [
        [_of(path, data, "n-samples", one, key, kind=int) for key in ("effective", "original")]
        for one in tasks
        if one == task or one in (data.get("n-samples") or {})
    ]
    return sum(count for count, _ in counts), sum(every for _, every in counts)


def _inspect(path: pathlib.Path, data: Mapping[str, Any]) -> list[Figure]:
    if data["status"] != "success":
        raise ValueError(f"{path}: status: found {data['status']!r}, expected 'success'")
    task, model = (_of(path, data, "eval", key, kind=str) for key in ("task", "model"))
    packages = data["eval"].get("packages") or {}
    version = str(packages.get("inspect_ai") or "of unknown version")
    total = _of(path, data, "results", "total_samples", kind=int)
    told = f"task {task} version {data['eval'].get('task_version', 'unknown')}"
    found = []
    for score in _of(path, data, "results", "scores", kind=list):
        metrics, scorer = _of(path, score, "metrics", kind=dict), _of(path, score, "name", kind=str)
        scored = score.get("scored_samples")
        count = data["results"].get("completed_samples", 0) if scored is None else scored
        values = {name: _number((one or {}).get("value")) for name, one in metrics.items()}
        for name, value in values.items():
            if name == "stderr":
                continue
            found.append(
                Figure(
                    tool=INSPECT,
                    version=version,
                    model=model,
                    task=task,
                    metric=f"{name},{scorer}",
                    value=value,
                    # It is of the mean of a sample's score, which these two are.
                    stderr=values.get("stderr") if name in ("accuracy", "mean") else None,
                    n=count,
                    missing=total - count,
                    up=True if name == "accuracy" else None,
                    protocol=f"{INSPECT} {version}, {told}, from {path}",
                    date=str(data["eval"].get("created", "")),
                )
            )
    return found
