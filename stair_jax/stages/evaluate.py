"""Stage evaluate: every finished model against every benchmark; table, pictures, results.json."""

import json
import logging
import pathlib
from typing import Any

from stair_jax import records
from stair_jax.evals import curves, miniature, report, statistics
from stair_jax.records import Answer
from stair_jax.sections import words
from stair_jax.stages import policies
from stair_jax.stages.answering import Answering
from stair_jax.stages.hashes import digest_of
from stair_jax.stages.run import Run
from stair_jax.strategies import GREEDY, MCTS, Strategy, parse_all

log = logging.getLogger(__name__)


def run(run: Run) -> None:
    """Answers what is still unanswered, scores it, and writes the report.

    Raises:
      ValueError: where a model that is to be searched, or the reward model, is not there.
    """
    strategies, searched = parse_all(words(run.config.evaluate.search)), _searched(run)
    needs = [s.name for s in strategies if s.reads]
    if needs and not run.lineage.finished("prm"):
        raise ValueError(
            f"config.evaluate.search: {needs[0]!r} asks a reward model, and there is none in"
            f" {run.workdir}; run stage prm first"
        )
    results: dict[str, dict] = {}
    costs: dict[str, dict] = {}
    for name in (*policies.names(run), *policies.baselines(run)):
        wanted = [s for s in strategies if s == GREEDY or name in searched]
        answering = Answering(run, name, wanted)
        for strategy in wanted:
            model = name if strategy == GREEDY else f"{name}/{strategy.name}"
            results[model], costs[model] = _evaluate(run, model, strategy, answering)
    _tell(run, results, costs)


def _searched(run: Run) -> tuple[str, ...]:
    """Returns the models that more than greedy is tried on."""
    known = (*policies.names(run), *policies.baselines(run))
    wanted = words(run.config.evaluate.searched) or (policies.names(run)[-1],)
    if unknown := [name for name in wanted if name not in known]:
        raise ValueError(f"config.evaluate.searched: {unknown} not in {list(known)}")
    return wanted


def _evaluate(
    run: Run, model: str, strategy: Strategy, answering: Answering
) -> tuple[dict[str, dict], dict[str, dict]]:
    """Answers with one strategy.

    Returns {benchmark: {metric: {value, n, low, high}}}, and {benchmark: {tokens, scored}}, means
    a prompt.
    """
    artefact, parent = f"evals/{model}", policies.artefact_of(model.partition("/")[0])
    reads = ("prm",) if strategy.reads else ()
    stage = {"greedy": "evaluate", MCTS: "evaluate.mcts"}.get(strategy.kind, "evaluate.guided")
    run.begin(artefact, stage, (*((parent,) if parent else ()), *reads))
    folder = run.workdir / artefact
    folder.mkdir(parents=True, exist_ok=True)
    benchmarks = words(run.config.evaluate.benchmarks)
    have = {answer.id for bench in benchmarks for answer in _answers(folder, bench)}
    with records.Journal() as journal:
        answering.answer(
            strategy, have, lambda row: journal.add(folder / f"{row.benchmark}.jsonl", row)
        )
    found, costs, content = {}, {}, ""
    for benchmark in benchmarks:
        answers = sorted(_answers(folder, benchmark), key=lambda answer: answer.id)
        records.write_jsonl(folder / f"{benchmark}.jsonl", answers)
        metrics = miniature.METRICS[benchmark]
        found[benchmark] = statistics.shares([a.outcome for a in answers], metrics)
        costs[benchmark] = {
            "tokens": statistics.mean([float(answer.tokens) for answer in answers]),
            "scored": statistics.mean([float(answer.scored) for answer in answers]),
        }
        content += "\n".join(map(repr, answers))
    run.lineage.finish(artefact, digest_of(content), results=json.loads(json.dumps(found)))
    return found, costs


def _answers(folder: pathlib.Path, benchmark: str) -> list[Answer]:
    path = folder / f"{benchmark}.jsonl"
    records.mend_jsonl(path)
    return records.read_jsonl(path, Answer) if path.exists() else []


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
