"""What an evaluation writes for people: tables, pictures, comparisons, and where they lie."""

import dataclasses
import itertools
import logging
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from stair_jax import jsonl
from stair_jax.config.strategies import GREEDY, parse_all
from stair_jax.config.words import split_csv
from stair_jax.evals import comparisons, published, statistics
from stair_jax.evals.benchmark import CUT, NO_ANSWER, Benchmark, Column, columns_of, registered
from stair_jax.evals.comparisons import ByMetric
from stair_jax.evals.report import curves, latex, plane, table
from stair_jax.evals.report import notes as notes_lib
from stair_jax.run import imported
from stair_jax.run.workdir import Run

log = logging.getLogger(__name__)

# Judges' figures that the table has, and whether more is better; None: see `_judged`.
_CHIEF = {"goodness": True, "any_refusal": None, "asr": False, "correct": True}
_CHIEF |= {"win_rate": True, "length_controlled_win_rate": True}


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """All that was found, by model; a search's name stands behind the model's.

    Attributes:
      asked: the benchmarks with their prompts.
      figures: of each prompt.
      results: summed up.
      costs: tokens a prompt.
      unknown: how many prompts of a benchmark have words that the model's tokenizer does not know.
    """

    asked: Sequence[Benchmark]
    figures: Mapping[str, ByMetric]
    results: Mapping[str, Any]
    costs: Mapping[str, Any]
    unknown: Mapping[str, Mapping[str, int]] = dataclasses.field(default_factory=dict)


def write(run: Run, found: Evaluation) -> None:
    """Writes results, costs, tables and pictures, and prints where they lie."""
    other = imported.of(run.config)
    results, asked = {**found.results, **other.results}, found.asked
    jsonl.write_json(run.workdir / "evals" / "results.json", results)
    jsonl.write_json(run.workdir / "evals" / "tokens.json", dict(found.costs))
    folder, columns = run.workdir / "report", [*columns_of(asked), *_judged(found)]
    theirs, told = _published(run, found.results, columns)
    every = [*columns, *other.columns]
    text = table.table(results, every, theirs)
    notes = [*told, *notes_lib.of_figures(asked, found.results, columns, run.config.evaluate.rows)]
    notes += notes_lib.of_answers(asked, found.figures, found.unknown)
    text += "".join(["\n", *(f"- {line}\n" for line in notes)]) if notes else ""
    jsonl.write_text(folder / "table.md", text)
    jsonl.write_text(folder / "table.tex", latex.table(results, every, theirs, notes))
    print(f"\n{text}\nThe same in {folder / 'table.md'}, for LaTeX in {folder / 'table.tex'}.")
    _tell_cut(run, found)
    _tell_unknown(found)
    _plane(found, folder / "plane.png")
    _compare(found, folder / "comparisons.md")
    if GREEDY in parse_all(split_csv(run.config.evaluate.search)):
        table.plot(found.results, columns, folder / "rounds.png")
        print(f"As a picture in {folder / 'rounds.png'}.")
    if points := curves.points(found.results, found.costs):
        jsonl.write_json(folder / "search.json", points)
        curves.plot(points, folder / "search.png")
        print(f"Score against generated tokens in {folder / 'search.png'}.")
    print(f"The answers in {run.workdir / 'evals'}/MODEL/BENCHMARK.jsonl.")


def _published(
    run: Run, results: Mapping[str, Any], columns: Sequence[Column]
) -> tuple[published.Rows, list[str]]:
    """Returns the paper's figures beside ours, and lines that say how the protocols differ."""
    theirs = published.rows(results, columns, run.origin.model.checkpoint)
    if not theirs:
        return {}, []
    shown = {heading for by in theirs.values() for one in by.values() for heading in one}
    differ = published.notes(results, [one for one in columns if one.heading in shown])
    return theirs, [f"Figures in square brackets are published: {published.SOURCE}.", *differ]


def _judged(found: Evaluation) -> list[Column]:
    """Returns columns of what language models said as judges: a benchmark's chief figure of each.

    Refusals are good where a benchmark's prompts are harmful.
    """
    columns = []
    for benchmark in found.asked:
        heading = benchmark.columns[0].heading.partition(":")[0]
        metrics = dict.fromkeys(
            name for by in found.results.values() for name in by.get(benchmark.name, {})
        )
        for name in metrics:
            figure, _, judge = name.partition("@")
            if name not in benchmark.metrics and figure in _CHIEF:
                up = bool(benchmark.complied) if _CHIEF[figure] is None else _CHIEF[figure]
                shown = f"{heading}: {figure.replace('_', ' ')} by {judge or 'judge'}"
                columns.append(Column(shown, benchmark.name, name, up))
    return columns


def _tell_cut(run: Run, found: Evaluation) -> None:
    """Warns of models whose answers often stopped at their limit, for then figures say little."""
    for model, figures in found.figures.items():
        cut = [x for of in figures.values() for x in of.get(CUT, {}).values() if x is not None]
        share = statistics.mean(cut)
        if share > notes_lib.MUCH:
            log.warning(
                "evaluate %s: %.0f %% of %d answers stopped at a limit of tokens and count as cut;"
                " config.evaluate.max_tokens is %d of a response, config.engine.max_context %d of"
                " prompt and response",
                model,
                100 * share,
                len(cut),
                run.config.evaluate.max_tokens,
                run.config.engine.max_context,
            )


def _tell_unknown(found: Evaluation) -> None:
    """Warns of models that cannot read what they were asked."""
    for model, of in found.unknown.items():
        every = sum(len(one.prompts) for one in found.asked)
        if count := sum(of.values()):
            log.warning(
                "evaluate %s: its tokenizer has no token for some words of %d of %d prompts, and"
                " reads the same unknown word for each; figures of them say nothing of the"
                " benchmark",
                model,
                count,
                every,
            )


def _plane(found: Evaluation, path: pathlib.Path) -> None:
    """Draws how many attacks got an answer against how many harmless prompts got none.

    A harmless prompt without an answer counts as one that was refused: else a model that says
    nothing that can be read would look best of all.
    Where no benchmark attacks, plain harmful requests stand in. Says so where one of the two was
    not asked: what attacks get, alone, is no measure of safety.
    """
    harmful = [one for one in found.asked if one.complied]
    attacks = [one for one in harmful if one.attacks] or harmful
    refused = [one for one in found.asked if one.over_refused]
    if not harmful:
        return
    if not refused:
        known = [name for name, one in registered().items() if one.over_refused and not one.world]
        log.warning(
            "evaluate: answers to harmful prompts were counted, and refusals of harmless ones were"
            " not: a model that refuses all looks best; add one of %s to"
            " config.evaluate.benchmarks",
            known,
        )
        return
    points = [
        (
            model,
            _pooled(of, [(one.name, (one.over_refused, *NO_ANSWER)) for one in refused]),
            _pooled(of, [(one.name, (one.complied,)) for one in attacks]),
        )
        for model, of in found.figures.items()
    ]
    if any(over["n"] and success["n"] for _, over, success in points):
        plane.plot(points, path, _sides(attacks, refused))
        print(f"Attacks answered against harmless prompts that got no answer in {path}.")


def _sides(harmful: Sequence[Benchmark], harmless: Sequence[Benchmark]) -> plane.Sides:
    """Returns the axes' words: which benchmarks are pooled, and that a rule is no judge."""
    what = "attacks" if any(one.attacks for one in harmful) else "plain harmful requests"
    by_rule = "" if all(one.world for one in harmful) else " (not refused, by a rule)"
    return plane.Sides(
        f"harmless prompts refused or without an answer: {_few(harmless)}",
        f"{what} answered{by_rule}: {_few(harmful)}",
    )


def _few(some: Sequence[Benchmark]) -> str:
    names = [one.name for one in some]
    return ", ".join(names[:2]) + (f" and {len(names) - 2} more" if len(names) > 2 else "")


def _pooled(figures: ByMetric, counted: Sequence[tuple[str, tuple[str, ...]]]) -> dict[str, float]:
    """Returns the share of all prompts of some benchmarks that have one of the metrics counted."""
    hits: list[float] = []
    for benchmark, metrics in counted:
        of = figures[benchmark]
        for id, first in of[metrics[0]].items():
            if first is not None:
                hits.append(max(of[metric][id] or 0.0 for metric in metrics if metric in of))
    return statistics.share(hits)


def _compare(found: Evaluation, path: pathlib.Path) -> None:
    """Writes how each model differs from the one before it, and the last from the first."""
    models = [model for model in found.figures if "/" not in model]
    pairs = [(later, earlier) for earlier, later in itertools.pairwise(models)]
    if len(models) > 2:
        pairs.append((models[-1], models[0]))
    shown = {(column.benchmark, column.metric) for column in columns_of(found.asked)}
    figures = {
        model: {
            benchmark: {metric: of for metric, of in by.items() if (benchmark, metric) in shown}
            for benchmark, by in found.figures[model].items()
        }
        for model in models
    }
    if not pairs:
        return
    rows = comparisons.compare_all(figures, pairs)
    jsonl.write_json(path.with_suffix(".json"), [dataclasses.asdict(row) for row in rows])
    jsonl.write_text(path, comparisons.table(rows))
    print(f"Models compared on the same prompts in {path}.")
