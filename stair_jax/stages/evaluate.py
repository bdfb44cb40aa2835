"""Stage evaluate: every finished model against every benchmark; table, pictures, results.json."""

import dataclasses
import logging
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from stair_jax import records
from stair_jax.evals import curves, report, statistics
from stair_jax.evals.benchmark import Benchmark
from stair_jax.records import Answer, Rated
from stair_jax.rewards.rubrics import SIDES
from stair_jax.sections import words
from stair_jax.stages import benchmarks, policies, rating
from stair_jax.stages.answerer import Answerer
from stair_jax.stages.answering import Answering
from stair_jax.stages.hashes import digest_of
from stair_jax.stages.rating import Given
from stair_jax.stages.run import Run
from stair_jax.strategies import GREEDY, MCTS, Strategy, parse_all

log = logging.getLogger(__name__)

Ratings = Mapping[str, Rated]


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Answers:
    """What one model found in one way."""

    model: str  # with the strategy's name behind it, where it is not greedy
    artefact: str
    direct: bool
    of: Mapping[str, list[Answer]]  # by benchmark


def run(run: Run) -> None:
    """Answers what is still unanswered, scores it, and writes the report.

    Raises:
      ValueError: where a model that is to be searched, or the reward model, is not there; where
        nobody could be asked to judge.
    """
    strategies, searched = parse_all(words(run.config.evaluate.search)), _searched(run)
    needs = [s.name for s in strategies if s.reads]
    if needs and not run.lineage.finished("prm"):
        raise ValueError(
            f"config.evaluate.search: {needs[0]!r} asks a reward model, and there is none in"
            f" {run.workdir}; run stage prm first"
        )
    asked = benchmarks.of(run.config)
    found: list[_Answers] = []
    for name in _models(run):
        wanted = [s for s in strategies if s == GREEDY or name in searched]
        answerer = Answerer(run, name, wanted)
        answering = Answering(run, answerer, asked, wanted)
        found += [_answers(run, strategy, asked, answerer, answering) for strategy in wanted]
    ratings = _ratings(run, asked, found)
    results = {one.model: _metrics(run, asked, one, ratings) for one in found}
    for one in found:
        digest = digest_of("\n".join(repr(a) for b in asked for a in one.of[b.name]))
        run.lineage.finish(one.artefact, digest, results=results[one.model])
    _tell(run, results, {one.model: _costs(one) for one in found})


def _models(run: Run) -> Sequence[str]:
    """Returns the models that are evaluated."""
    known = (*policies.names(run), *policies.baselines(run))
    return _known(run, "models", known) or known


def _searched(run: Run) -> Sequence[str]:
    """Returns the models that more than greedy is tried on."""
    models = _models(run)
    own = [name for name in models if not policies.is_baseline(name)] or models
    return _known(run, "searched", models) or (own[-1],)


def _known(run: Run, key: str, known: Sequence[str]) -> tuple[str, ...]:
    """Returns the models that a setting names; ValueError where one is unknown."""
    wanted = words(run.config.evaluate[key])
    if unknown := [name for name in wanted if name not in known]:
        raise ValueError(f"config.evaluate.{key}: {unknown} not in {list(known)}")
    return wanted


def _answers(
    run: Run,
    strategy: Strategy,
    asked: Sequence[Benchmark],
    answerer: Answerer,
    answering: Answering,
) -> _Answers:
    """Answers with one strategy what is still unanswered; returns all answers."""
    name = answerer.name
    model = name if strategy == GREEDY else f"{name}/{strategy.name}"
    artefact, parent = f"evals/{model}", policies.artefact_of(name)
    reads = ("prm",) if strategy.reads else ()
    stage = {"greedy": "evaluate", MCTS: "evaluate.mcts"}.get(strategy.kind, "evaluate.guided")
    run.begin(artefact, stage, (*((parent,) if parent else ()), *reads))
    folder = run.workdir / artefact
    folder.mkdir(parents=True, exist_ok=True)
    have = {answer.id: answer for b in asked for answer in _read(folder, b)}
    with records.Journal() as journal:
        answering.answer(
            strategy, have, lambda row: journal.add(folder / f"{row.benchmark}.jsonl", row)
        )
    found = {}
    for benchmark in asked:
        found[benchmark.name] = _read(folder, benchmark)
        records.write_jsonl(folder / f"{benchmark.name}.jsonl", found[benchmark.name])
    return _Answers(model=model, artefact=artefact, direct=answerer.direct, of=found)


def _read(folder: pathlib.Path, benchmark: Benchmark) -> list[Answer]:
    """Returns the answers to what a benchmark asks today, by prompt id; of two the later."""
    path, asked = folder / f"{benchmark.name}.jsonl", {p.id: p.question for p in benchmark.prompts}
    records.mend_jsonl(path)
    rows = records.read_jsonl(path, Answer) if path.exists() else []
    found = {row.id: row for row in rows if asked.get(row.id) == row.question}
    return [found[id] for id in sorted(found)]


def _ratings(run: Run, asked: Sequence[Benchmark], found: Sequence[_Answers]) -> Ratings:
    """Returns what the judge says of the answers to the benchmarks that want one, by answer."""
    judged = [benchmark for benchmark in asked if benchmark.judged]
    given = [row for one in found for benchmark in judged for row in _given(benchmark, one)]
    return rating.rate(run, given) if given else {}


def _given(benchmark: Benchmark, one: _Answers) -> list[Given]:
    """Returns the answers to a benchmark as a judge is given them."""
    prompts = {prompt.id: prompt for prompt in benchmark.prompts}
    return [
        Given(
            benchmark=benchmark.name,
            prompt=prompts[answer.id],
            response=answer.response,
            direct=one.direct,
        )
        for answer in one.of[benchmark.name]
    ]


def _metrics(
    run: Run, asked: Sequence[Benchmark], one: _Answers, ratings: Ratings
) -> dict[str, dict]:
    """Returns {benchmark: {metric: {value, n, low, high}}}.

    Beside them `missing` and `protocol` where prompts are not the miniature's: how many prompts
    have none, and what the figures are of.
    """
    found: dict[str, dict] = {}
    for benchmark in asked:
        answers = one.of[benchmark.name]
        metrics = statistics.shares([answer.outcome for answer in answers], benchmark.metrics)
        if benchmark.judged:
            metrics |= _judged(run, _given(benchmark, one), ratings)
        if benchmark.merit is None:
            protocol = benchmark.source
            if benchmark.judged:
                protocol += f", judged by {rating.judge_name(run)}"
            for metric in metrics.values():
                metric |= {"missing": len(benchmark.prompts) - metric["n"], "protocol": protocol}
        found[benchmark.name] = metrics
    return found


def _judged(run: Run, given: Sequence[Given], ratings: Ratings) -> dict[str, dict[str, Any]]:
    """Returns the mean of each side of the judge's verdicts, over the answers that it rated."""
    c, found = run.config.judge, {}
    for side in SIDES:
        if side == "helpfulness" and c.helpfulness == "none":
            continue
        some = [row for row in given if c.scope == "all" or row.prompt.type == side]
        said = [getattr(ratings[row.id], side) for row in some]
        found[side] = statistics.mean_of([score for score in said if score is not None])
    return found


def _costs(one: _Answers) -> dict[str, dict[str, float]]:
    """Returns {benchmark: {tokens, scored}}, means a prompt."""
    return {
        benchmark: {
            "tokens": statistics.mean([float(answer.tokens) for answer in answers]),
            "scored": statistics.mean([float(answer.scored) for answer in answers]),
        }
        for benchmark, answers in one.of.items()
    }


def _tell(run: Run, results: dict[str, Any], costs: dict[str, Any]) -> None:
    """Writes results, costs, table and pictures, and prints where they lie."""
    records.write_json(run.workdir / "evals" / "results.json", results)
    records.write_json(run.workdir / "evals" / "tokens.json", costs)
    folder = run.workdir / "report"
    text = report.table(results)
    records.write_text(folder / "table.md", text)
    print(f"\n{text}\nThe same in {folder / 'table.md'}.")
    if GREEDY in parse_all(words(run.config.evaluate.search)):
        report.plot(results, folder / "rounds.png")
        print(f"As a picture in {folder / 'rounds.png'}.")
    if points := curves.points(results, costs):
        records.write_json(folder / "search.json", points)
        curves.plot(points, folder / "search.png")
        print(f"Score against generated tokens in {folder / 'search.png'}.")
    print(f"The answers in {run.workdir / 'evals'}/MODEL/BENCHMARK.jsonl.")
