"""Stage evaluate: every finished model against every benchmark; table, pictures, results.json."""

import pathlib
from collections.abc import Sequence

from stair_jax import jsonl
from stair_jax.config.stages import PRM
from stair_jax.config.strategies import GREEDY, MCTS, Strategy, parse_all
from stair_jax.config.words import split_csv
from stair_jax.evals.benchmark import Benchmark
from stair_jax.records import Answer
from stair_jax.run import (
    attacks,
    benchmarks,
    cards,
    imported,
    interventions,
    judge_models,
    judges,
    known_models,
    preferences,
    rating,
    reports,
)
from stair_jax.run.answerer import Answerer
from stair_jax.run.answers import AnswerGenerator, answers
from stair_jax.run.hashes import digest_of
from stair_jax.run.judged_figures import Verdicts
from stair_jax.run.known_models import Model
from stair_jax.run.results import (
    ModelAnswers,
    Ratings,
    costs_of,
    figures_of,
    for_judge,
    metrics_of,
    tell_verdicts,
    unknown_of,
    verdicts_of,
)
from stair_jax.run.workdir import Run


def look(run: Run) -> None:
    """Reads prompts, templates of the judges that are to be asked, and files of other tools."""
    asked = benchmarks.of(run.config)
    if any(benchmark.sides for benchmark in asked):
        judges.facts(run.config)
        judges.check_room(run, run.config.evaluate.max_tokens)
    judge_models.wordings(run.config, asked)
    attacks.look(run)
    preferences.recorded(run.config)
    preferences.gamed(run.config)
    imported.of(run.config)


def run(run: Run) -> None:
    """Answers what is still unanswered, scores it, and writes the report.

    Raises:
      ValueError: where a model that is to be searched, or the reward model, is not there; where
        nobody could be asked to judge.
    """
    strategies, searched = parse_all(split_csv(run.config.evaluate.search)), _searched(run)
    needs = [s.name for s in strategies if s.of.reads]
    if needs and not run.lineage.finished(PRM.artefact()):
        raise ValueError(
            f"config.evaluate.search: {needs[0]!r} asks a reward model, and there is none in"
            f" {run.workdir}; run stage prm first"
        )
    asked = benchmarks.of(run.config)
    limits = {p.id: b.max_tokens for b in asked if b.max_tokens for p in b.prompts}
    attacker = attacks.Attacker(run, asked)
    found: list[ModelAnswers] = []
    changed: dict[str, interventions.Found] = {}
    for model in _models(run):
        wanted = [s for s in strategies if s == GREEDY or model in searched]
        answerer = Answerer(run, model, wanted, limits=limits)
        answering = AnswerGenerator(run, answerer, asked, wanted)
        for strategy in wanted:
            found.append(_answers(run, strategy, asked, answerer, answering))
            if strategy == GREEDY and (
                moved := interventions.intervene(run, answerer, asked, found[-1])
            ):
                changed[model.name] = moved
            if strategy == GREEDY:
                attacker.attack(answerer)
    ratings = _ratings(run, asked, found)
    verdicts = verdicts_of(run, asked, found)
    figures = {one.model: figures_of(run, asked, one, ratings) for one in found}
    results = {
        one.model: metrics_of(run, asked, one, figures[one.model], verdicts) for one in found
    }
    for one in found:
        digest = digest_of("\n".join(repr(a) for b in asked for a in one.of[b.name]))
        run.lineage.finish(one.artefact, digest, results=results[one.model])
    costs = {one.model: costs_of(one) for one in found}
    unknown = {one.model: unknown_of(one) for one in found}
    reports.write(run, reports.Evaluation(asked, figures, results, costs, unknown))
    interventions.tell(run, changed)
    under_attack = Verdicts()
    try:
        under_attack = attacker.verdicts()
    finally:  # where no judge can be reached, what they said before is told all the same
        tell_verdicts(run, verdicts, under_attack)
    attacker.tell(results, under_attack)
    cards.update_all(run)


def _models(run: Run) -> Sequence[Model]:
    """Returns the models that are evaluated."""
    known = [*known_models.stair_models(run), *known_models.baselines(run)]
    return _known(run, "models", known) or known


def _searched(run: Run) -> Sequence[Model]:
    """Returns the models that more than greedy is tried on."""
    models = _models(run)
    own = [model for model in models if not model.is_baseline] or models
    return _known(run, "searched", models) or own[-1:]


def _known(run: Run, key: str, known: Sequence[Model]) -> list[Model]:
    """Returns the models that a setting names; ValueError where one is unknown."""
    wanted, models = split_csv(run.config.evaluate[key]), {model.name: model for model in known}
    if unknown := [name for name in wanted if name not in models]:
        raise ValueError(f"config.evaluate.{key}: {unknown} not in {list(models)}")
    return [models[name] for name in wanted]


def _answers(
    run: Run,
    strategy: Strategy,
    asked: Sequence[Benchmark],
    answerer: Answerer,
    answering: AnswerGenerator,
) -> ModelAnswers:
    """Answers with one strategy what is still unanswered; returns all answers."""
    model = answerer.model
    name = model.name if strategy == GREEDY else f"{model.name}/{strategy.name}"
    artefact = f"evals/{name}"
    reads = (PRM.artefact(),) if strategy.of.reads else ()
    stage = {"greedy": "evaluate", MCTS: "evaluate.mcts"}.get(strategy.kind, "evaluate.guided")
    run.begin(artefact, stage, (*model.parents, *reads))
    folder = run.workdir / artefact
    folder.mkdir(parents=True, exist_ok=True)
    have = {answer.id: answer for b in asked for answer in _read(folder, b)}
    with jsonl.Journal() as journal:
        answering.answer(
            strategy, have, lambda row: journal.add(folder / f"{row.benchmark}.jsonl", row)
        )
    found = {}
    for benchmark in asked:
        found[benchmark.name] = _read(folder, benchmark)
        jsonl.write_jsonl(folder / f"{benchmark.name}.jsonl", found[benchmark.name])
    return ModelAnswers(model=name, artefact=artefact, direct=model.direct, of=found)


def _read(folder: pathlib.Path, benchmark: Benchmark) -> list[Answer]:
    """Returns the answers to what a benchmark asks today, by prompt id; of two the later."""
    path, asked = folder / f"{benchmark.name}.jsonl", {p.id: p for p in benchmark.prompts}
    jsonl.mend_jsonl(path)
    rows = jsonl.read_jsonl(path, Answer) if path.exists() else []
    found = {row.id: row for row in rows if row.id in asked and answers(row, asked[row.id])}
    return [found[id] for id in sorted(found)]


def _ratings(run: Run, asked: Sequence[Benchmark], found: Sequence[ModelAnswers]) -> Ratings:
    """Returns what the judge says of the answers to the benchmarks that want one, by answer."""
    judged = [benchmark for benchmark in asked if benchmark.sides]
    given = [row for one in found for benchmark in judged for row in for_judge(benchmark, one)]
    return rating.rate(run, given) if given else {}
