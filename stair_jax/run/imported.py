"""Results of other tools in a run's table: rows and columns of their own, marked by the tool."""

import pathlib
from typing import Any, NamedTuple

from stair_jax.config import Config
from stair_jax.config.words import split_csv
from stair_jax.evals import imported
from stair_jax.evals.benchmark import Column

_KEY = "config.evaluate.imported"


class Imported(NamedTuple):
    """What stands beside a run's own results.

    Attributes:
      results: {"MODEL (TOOL VERSION)": {"TOOL/TASK": {metric: {value, n, low, high, ...}}}}.
      columns: of the table, one a metric.
    """

    results: dict[str, dict[str, dict[str, Any]]]
    columns: list[Column]


def of(config: Config) -> Imported:
    """Returns what the files and folders of `config.evaluate.imported` hold.

    Of two runs of a task on a model the later one counts.

    Raises:
      ValueError: where a file is not of such a tool, or a folder has none, naming it.
    """
    figures = [one for word in split_csv(config.evaluate.imported) for one in _read(word)]
    results: dict[str, dict[str, dict[str, Any]]] = {}
    columns: dict[tuple[str, str], Column] = {}
    for one in sorted(figures, key=lambda one: one.date):
        task, (name, _, part) = f"{one.tool}/{one.task}", one.metric.partition(",")
        shown = f"{one.tool} {one.task}: {name}" + (f" ({part})" if part else "")
        of_model = results.setdefault(f"{_model(one.model)} ({one.tool} {one.version})", {})
        of_model.setdefault(task, {})[one.metric] = one.summed()
        columns[task, one.metric] = Column(shown, task, one.metric, one.up, one.is_share)
    return Imported(results, list(columns.values()))


def _model(name: str) -> str:
    """Returns what a row is called: of a folder its last part, of a name on a hub the name."""
    path = pathlib.PurePath(name)
    return path.name if path.is_absolute() else name


def _read(word: str) -> list[imported.Figure]:
    path = pathlib.Path(word)
    if not path.exists():
        raise ValueError(f"{_KEY}: {word!r} is not there, expected a file or a folder")
    if path.is_file():
        found = imported.read(path)
        if not found:
            raise ValueError(
                f"{_KEY}: {path}: found no results, expected results_*.json of lm-eval, or a log"
                " of inspect_ai"
            )
        return found
    files = sorted(one for one in path.rglob("*") if one.suffix in (".json", ".eval"))
    every = [figure for file in files for figure in imported.read(file) or []]
    if not every:
        raise ValueError(
            f"{_KEY}: {path}: none of {len(files)} files .json or .eval below it has results of"
            " lm-eval or inspect_ai"
        )
    return every
