"""What a reader of the table has to know, as lines below it: what its figures are of.

A table cell has a value and an interval. That a judge was asked in other words than its authors',
that half of the answers had no end, or that prompts were left out, changes what the value means.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from stair_jax.evals import statistics
from stair_jax.evals.benchmark import CUT, MALFORMED, Benchmark, Column
from stair_jax.evals.comparisons import ByMetric

MUCH = 0.05  # of a model's answers to a benchmark: more is told
OWN_WORDS = "own words"  # how the protocol of such a judge's figure begins

Results = Mapping[str, Mapping[str, Mapping[str, Any]]]


def of_figures(
    asked: Sequence[Benchmark], results: Results, columns: Sequence[Column], rows: int
) -> list[str]:
    """Returns what the figures are and are not: rules, judges in other words, a part of the rows.

    Args:
      asked: the benchmarks.
      results: {model: {benchmark: {metric: {protocol, ...}}}}.
      columns: of the table.
      rows: at most so many of each benchmark; 0 is all.
    """
    lines = []
    own = {one.name: one for one in asked}
    if ruled := [one.name for one in asked if one.judged and not _judged(one, columns)]:
        lines.append(
            f"{', '.join(ruled)}: the authors' judge was not asked (config.evaluate.judges). These"
            " figures are of rules, which see words and not what an answer is worth."
        )
    other = [
        column.heading
        for column in columns
        if column.benchmark in own
        and any(
            of.get(column.benchmark, {})
            .get(column.metric, {})
            .get("protocol", "")
            .startswith(OWN_WORDS)
            for of in results.values()
        )
    ]
    if other:
        lines.append(
            f"{', '.join(other)}: the judge was asked in our words, not in the authors'"
            " (config.evaluate.prompts). No published figure can be set beside these."
        )
    if rows:
        lines.append(f"At most {rows} prompts of each benchmark were asked (config.evaluate.rows).")
    return lines


def _judged(benchmark: Benchmark, columns: Sequence[Column]) -> bool:
    """Returns whether a column of a benchmark is none of its rules'."""
    return any(
        column.metric not in benchmark.metrics
        for column in columns
        if column.benchmark == benchmark.name
    )


def of_answers(
    asked: Sequence[Benchmark],
    figures: Mapping[str, ByMetric],
    unknown: Mapping[str, Mapping[str, int]],
) -> list[str]:
    """Returns a line for each benchmark that a model answered in part only, or could not read.

    Args:
      asked: the benchmarks with their prompts.
      figures: {model: {benchmark: {metric: {prompt id: figure}}}}.
      unknown: {model: {benchmark: prompts with words that its tokenizer does not know}}.
    """
    lines = []
    for benchmark in asked:
        said = []
        for model, by in figures.items():
            parts = _parts(benchmark, by[benchmark.name])
            if count := unknown.get(model, {}).get(benchmark.name, 0):
                every = len(benchmark.prompts)
                parts.append(f"{count} of {every} prompts have words that its tokenizer lacks")
            if parts:
                said.append(f"{model}: {', '.join(parts)}")
        if said:
            lines.append(f"{benchmark.name}: {'; '.join(said)}.")
    return lines


def _parts(benchmark: Benchmark, figures: Mapping[str, Mapping[str, float | None]]) -> list[str]:
    """Returns what the answers to a benchmark lack."""
    found = []
    for metric, what in ((CUT, "of answers cut"), (MALFORMED, "without a final answer")):
        hits = [hit for hit in figures.get(metric, {}).values() if hit is not None]
        if hits and (share := statistics.mean(hits)) > MUCH:
            found.append(f"{100 * share:.0f} % {what}")
    every, answered = len(benchmark.prompts), {id for of in figures.values() for id in of}
    if every > len(answered):
        found.append(f"{every - len(answered)} of {every} prompts have no answer")
    return found
