"""A benchmark: what models are asked, how their answers are graded, and what is measured of them.

A new one is a file in `benchmarks/` with a tuple `BENCHMARKS`, most often of one. `registered`
finds it, and its name can stand in `config.evaluate.benchmarks`. Code outside this package calls
`register`.

A model's answer is its final answer alone: reasoning is not graded. Two outcomes are the same for
all benchmarks in a natural language: "malformed" (the response ended, and has no final answer) and
"cut" (it stopped at its limit of tokens).
"""

import dataclasses
import functools
import importlib
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from stair_jax import text
from stair_jax.evals import benchmarks, statistics
from stair_jax.records import Prompt

MALFORMED, CUT = "malformed", "cut"  # outcomes, and the metrics that count them
NO_ANSWER = {MALFORMED: MALFORMED, CUT: CUT}

Row = tuple[str, Any]  # where it stands, for messages, and what it says
ReadRows = Callable[[str], Sequence[Row]]  # of a file
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
      hub: where its rows lie, if the user names no file; None: nowhere on it.
      file: where they lie below `config.data.root`, in the layout of their authors; "": nowhere.
        Without `hub` and `file` it needs no rows.
      read: reads that file or folder, where it does not simply hold a row an entry; the last
        argument reads such files.
      load: makes prompts with ids that no other benchmark has, of rows and `config.evaluate.split`.
        Raises ValueError that names the row where one is bad.
      grade: of a prompt and a whole response; the last argument says whether all of the response is
        the answer, of a model that does not reason.
      options: the texts that a prompt lets a model choose from by their log-probs; None where it
        writes an answer. Then the text of the likeliest one is the response that is graded.
      metrics: how each figure is summed up, into {value, n, low, high}.
      columns: of the table.
      has: whether a metric is of a prompt's answers at all; one that is not is not missing.
      merits: how good each outcome is; empty where the truth is not known.
      sides: of the run's judge's verdicts that are figures, too; () needs no judge.
      judged: name of what language models are asked as its judges, in `judge_prompts.PROTOCOLS`;
        "": its published protocol has no judge, or one that cannot be asked here.
      attacks: whether its prompts are made to break a model.
      complied: the metric that counts harmful requests that were answered, "" where there are none.
      over_refused: the metric that counts harmless requests that were refused, "" likewise.
      world: the world that defines its language, if that is not a natural one.
      protocol: what the figures are of, in a few words; "" of a world's.
      words: what of the protocol its rows decide, such as whose words a model is asked in; "" where
        they decide nothing.
      max_tokens: of a response, where the protocol says; never more than the run's.
      reasons: whether its prompts mean something only to a model that reasons in STAIR's tags. A
        model that answers directly is not asked, and all its figures are missing.
      forge: the closed step that an intervention puts into the reasoning on a prompt, in the
        benchmark's language; None: English, `causal.forged_step`.
      prompts: what it asks, once it is loaded.
    """

    name: str
    grade: Callable[[Prompt, str, bool], Grade]
    metrics: Mapping[str, Callable[[Graded], dict[str, float]]]
    options: Callable[[Prompt], Sequence[str]] | None = None
    columns: Sequence[Column]
    has: Callable[[Prompt, str], bool] = lambda prompt, metric: True
    merits: Mapping[str, float] = dataclasses.field(default_factory=dict)
    hub: Hub | None = None
    file: str = ""
    read: Callable[[str, ReadRows], Sequence[Row]] | None = None
    load: Callable[[Sequence[Row], str], Sequence[Prompt]] = lambda rows, split: ()
    sides: tuple[str, ...] = ()
    judged: str = ""
    attacks: bool = False
    complied: str = ""
    over_refused: str = ""
    world: str = ""
    protocol: str = ""
    words: Callable[[Sequence[Row]], str] = lambda rows: ""
    max_tokens: int | None = None
    reasons: bool = False
    forge: Callable[[Prompt], str] | None = None
    prompts: tuple[Prompt, ...] = ()

    def grade_of(self, prompt: Prompt, response: str, *, direct: bool, cut: bool) -> Grade:
        """Grades a response; one that was cut is "cut", where the benchmark counts that.

        Args:
          prompt: of this benchmark.
          response: the whole of it.
          direct: whether all of it is the answer, of a model that does not reason.
          cut: whether it stopped at its limit of tokens.
        """
        if cut and CUT in self.metrics:  # as without an answer, but counted apart
            none = self.grade(prompt, "", False)
            return Grade(CUT, {**none.figures, MALFORMED: 0.0, CUT: 1.0})
        whole = direct or self.options is not None
        return self.grade(prompt, "" if cut and direct else response, whole)


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


def of_answers(
    read: Callable[[Prompt, str], str], counted: Mapping[str, str]
) -> Callable[[Prompt, str, bool], Grade]:
    """Returns a `Benchmark.grade` by final answers; one without is "malformed".

    Args:
      read: the outcome of a prompt and the final answer to it.
      counted: the outcome that each figure counts.
    """

    def grade(prompt: Prompt, response: str, direct: bool) -> Grade:
        answer = text.final_answer(response, direct)
        return by_outcome(read(prompt, answer) if answer else MALFORMED, counted)

    return grade


def by_meta(key: str, graded: Graded) -> dict[str, list[float]]:
    """Returns the figures by what a key of their prompts' `meta` says."""
    found: dict[str, list[float]] = {}
    for prompt, value in graded:
        found.setdefault(prompt.meta[key], []).append(value)
    return found


def share(graded: Graded) -> dict[str, float]:
    """Sums up figures of 0 and 1: their share, and its Wilson interval."""
    return statistics.share([value for _, value in graded])


def share_by(key: str) -> Callable[[Graded], dict[str, float]]:
    """Returns `share` whose interval knows that prompts with the same `meta` under a key are alike.

    A prompt without that key is like no other.
    """

    def sum_up(graded: Graded) -> dict[str, float]:
        clusters: dict[str, list[float]] = {}
        for prompt, value in graded:
            clusters.setdefault(prompt.meta.get(key) or f"{key} of {prompt.id}", []).append(value)
        return statistics.clustered_share(clusters.values())

    return sum_up


def mean(graded: Graded) -> dict[str, float]:
    """Sums up scores in [-1, 1]: their mean, and its normal interval."""
    return statistics.mean_of([value for _, value in graded])
