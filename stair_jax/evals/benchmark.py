"""A benchmark: what models are asked, how their answers are graded, and what is measured of them.

A new one is a file in `benchmarks/` with a tuple `BENCHMARKS`, most often of one. `registered`
finds it, and its name can stand in `config.evaluate.benchmarks`. Code outside this package calls
`register`.
"""

import dataclasses
import functools
import importlib
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from stair_jax.evals import benchmarks, statistics
from stair_jax.records import Prompt

Row = tuple[str, Any]  # where it stands, for messages, and what it says
Graded = Sequence[tuple[Prompt, float]]  # one figure of all answers that have it


class Hub(NamedTuple):
    """Where the rows of a benchmark lie on the Hugging Face hub."""

    name: str
    subset: str | None
    splits: Mapping[str, str]  # by `config.evaluate.split`


class Grade(NamedTuple):
    """What one answer comes to.

    Attributes:
      outcome: a word for it; the reason, where a figure is missing.
      figures: by name; None is missing.
    """

    outcome: str
    figures: Mapping[str, float | None]


class Column(NamedTuple):
    """A column of the table: a metric of a benchmark."""

    heading: str
    benchmark: str
    metric: str
    up: bool | None  # whether more is better; None where that depends on the prompts
    share: bool = True  # of the answers, from 0 to 1; else a score of a judge


@dataclasses.dataclass(frozen=True, kw_only=True)
class Benchmark:
    """What models are asked, and how their answers are read.

    Attributes:
      name: in settings, results and names of files.
      hub: where its rows lie, if the user names no file; None: it needs no rows.
      load: makes prompts with ids that no other benchmark has, of rows and `config.evaluate.split`.
        Raises ValueError that names the row where one is bad.
      grade: of a prompt and a whole response; the last argument says whether all of the response is
        the answer, of a model that does not reason.
      metrics: how each figure is summed up, into {value, n, low, high}.
      columns: of the table.
      merits: how good each outcome is; empty where the truth is not known.
      sides: of the run's judge's verdicts that are figures, too; () needs no judge.
      attacks: whether its prompts are made to break a model.
      world: the world that defines its language, if that is not a natural one.
      protocol: what the figures are of, in a few words; "" of a world's.
      max_tokens: of a response, where the protocol says; never more than the run's.
      prompts: what it asks, once it is loaded.
    """

    name: str
    grade: Callable[[Prompt, str, bool], Grade]
    metrics: Mapping[str, Callable[[Graded], dict[str, float]]]
    columns: Sequence[Column]
    merits: Mapping[str, float] = dataclasses.field(default_factory=dict)
    hub: Hub | None = None
    load: Callable[[Sequence[Row], str], Sequence[Prompt]] = lambda rows, split: ()
    sides: tuple[str, ...] = ()
    attacks: bool = False
    world: str = ""
    protocol: str = ""
    max_tokens: int | None = None
    prompts: tuple[Prompt, ...] = ()


@functools.cache
def registered() -> dict[str, Benchmark]:
    """Returns the benchmarks that settings can name, in the order of their files."""
    files = [found.name for found in pkgutil.iter_modules(benchmarks.__path__)]
    modules = [importlib.import_module(f"{benchmarks.__name__}.{name}") for name in files]
    return {one.name: one for module in modules for one in getattr(module, "BENCHMARKS", ())}


def register(benchmark: Benchmark) -> None:
    """Makes a benchmark of code outside this package known under its name.

    Raises:
      ValueError: where another one has that name.
    """
    known = registered()
    if benchmark.name in known:
        raise ValueError(f"benchmark {benchmark.name!r} is there already, expected another name")
    known[benchmark.name] = benchmark


def columns_of(asked: Sequence[Benchmark]) -> list[Column]:
    """Returns the table's columns: of registered benchmarks first, then of the user's by name."""
    order = list(registered())

    def place(benchmark: Benchmark) -> tuple[int, str]:
        known = benchmark.name in order
        return (order.index(benchmark.name) if known else len(order)), benchmark.name

    return [column for one in sorted(asked, key=place) for column in one.columns]


def by_outcome(outcome: str, counted: Mapping[str, str]) -> Grade:
    """Returns a grade whose figures are 1 where `outcome` is the one that they count, else 0."""
    return Grade(outcome, {figure: float(outcome == one) for figure, one in counted.items()})


def share(graded: Graded) -> dict[str, float]:
    """Sums up figures of 0 and 1: their share, and its Wilson interval."""
    return statistics.share([value for _, value in graded])


def mean(graded: Graded) -> dict[str, float]:
    """Sums up scores in [-1, 1]: their mean, and its normal interval."""
    return statistics.mean_of([value for _, value in graded])
