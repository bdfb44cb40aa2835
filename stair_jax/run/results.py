"""What answers come to: metrics, and what they cost."""

import dataclasses
import logging
from collections.abc import Mapping, Sequence

from stair_jax import jsonl
from stair_jax.evals import judge_agreement, statistics
from stair_jax.evals.benchmark import Benchmark
from stair_jax.evals.comparisons import ByMetric
from stair_jax.evals.report import judges as judges_page
from stair_jax.records import Answer, Prompt, Rated
from stair_jax.run import judge_models, judged_figures, preferences, rating, verdicts
from stair_jax.run.judged_figures import Verdicts
from stair_jax.run.rating import Given
from stair_jax.run.workdir import Run

log = logging.getLogger(__name__)

Ratings = Mapping[str, Rated]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelAnswers:
    """What one model found in one way."""

    model: str  # with the strategy's name behind it, where it is not greedy
    artefact: str
    direct: bool
    of: Mapping[str, list[Answer]]  # by benchmark


def for_judge(benchmark: Benchmark, one: ModelAnswers) -> list[Given]:
    """Returns the answers to a benchmark as a judge is given them; none that was cut."""
    prompts = {prompt.id: prompt for prompt in benchmark.prompts}
    return [
        _given(benchmark, prompts[answer.id], answer, one)
        for answer in one.of[benchmark.name]
        if not answer.cut and any(benchmark.has(prompts[answer.id], s) for s in benchmark.sides)
    ]


def _given(benchmark: Benchmark, prompt: Prompt, answer: Answer, one: ModelAnswers) -> Given:
    return Given(
        benchmark=benchmark.name, prompt=prompt, response=answer.response, direct=one.direct
    )


def figures_of(
    run: Run, asked: Sequence[Benchmark], one: ModelAnswers, ratings: Ratings
) -> ByMetric:
    """Returns {benchmark: {metric: {prompt id: figure}}}, the judge's figures among them.

    A figure that an answer lacks is None.
    """
    scope = run.config.judge.scope
    found: dict[str, dict[str, dict[str, float | None]]] = {}
    for benchmark in asked:
        prompts = {prompt.id: prompt for prompt in benchmark.prompts}
        metrics = found[benchmark.name] = {name: {} for name in benchmark.metrics}
        for answer in one.of[benchmark.name]:
            prompt = prompts[answer.id]
            grade = benchmark.grade_of(prompt, answer.response, direct=one.direct, cut=answer.cut)
            figures = dict(grade.figures)
            for side in benchmark.sides:
                judged = not answer.cut and benchmark.has(prompt, side)
                judged = judged and (scope == "all" or prompt.type == side)
                rated = ratings[_given(benchmark, prompt, answer, one).id] if judged else None
                figures[side] = getattr(rated, side, None)
            for name, of in metrics.items():
                if benchmark.has(prompt, name):
                    of[answer.id] = figures.get(name)
    return found


def verdicts_of(run: Run, asked: Sequence[Benchmark], found: Sequence[ModelAnswers]) -> Verdicts:
    """Returns what the published benchmarks' judges say of all answers.

    Raises:
      ValueError: where their prompts cannot be read.
      LeftOpen: where answers are left open, because no judge could be reached.
    """
    models, words = judge_models.of(run.config), judge_models.wordings(run.config, asked)
    if not models:
        return Verdicts()
    given = [
        question
        for one in found
        for b in asked
        for question in judged_figures.questions(b, one.of[b.name], words, direct=one.direct)
    ]
    replies = verdicts.ask(run, given)
    return Verdicts(
        judges=[one.name for one in models], wordings=words, replies=replies, asked=given
    )


def tell_verdicts(run: Run, *said: Verdicts) -> None:
    """Writes how judges agree, evals/agreement.json and report/judges.md; nothing without judges.

    Args:
      run: the run.
      said: of the answers to benchmarks, and of those under attack.
    """
    if not any(one.judges for one in said):
        return
    replies = {key: reply for one in said for key, reply in one.replies.items()}
    given = [question for one in said for question in one.asked]
    report = judge_agreement.report(judged_figures.judged(given, replies))
    jsonl.write_json(run.workdir / "evals" / "agreement.json", report)
    page = run.workdir / "report" / "judges.md"
    jsonl.write_text(page, judges_page.markdown(report))
    for line in report["warnings"]:
        log.warning("judge %s", line)
    print(f"\nWhat the judges said is in {page}, with {len(report['warnings'])} warnings.")


def metrics_of(
    run: Run,
    asked: Sequence[Benchmark],
    one: ModelAnswers,
    figures: ByMetric,
    published: Verdicts,
) -> dict[str, dict]:
    """Returns {benchmark: {metric: {value, n, low, high}}}, with what published judges say.

    Beside them `missing` and `protocol` where prompts are not a world's: how many prompts have
    none, and what the figures are of.
    """
    found: dict[str, dict] = {}
    for benchmark in asked:
        prompts = {prompt.id: prompt for prompt in benchmark.prompts}
        metrics = found[benchmark.name] = {
            name: sum_up(
                [
                    (prompts[id], x)
                    for id, x in figures[benchmark.name][name].items()
                    if x is not None
                ]
            )
            for name, sum_up in benchmark.metrics.items()
        }
        if benchmark.protocol:
            protocol = benchmark.protocol
            if benchmark.sides:
                protocol += f", judged by {rating.judge_name(run)}"
            for name, metric in metrics.items():
                of = sum(benchmark.has(prompt, name) for prompt in benchmark.prompts)
                metric |= {"missing": of - metric["n"], "protocol": protocol}
        judged = published.metrics(benchmark, one.of[benchmark.name], direct=one.direct)
        won = preferences.metrics(
            run, benchmark, one.artefact, one.of[benchmark.name], direct=one.direct
        )
        found[benchmark.name] = {**metrics, **judged, **won}
    return found


def costs_of(one: ModelAnswers) -> dict[str, dict[str, float]]:
    """Returns {benchmark: {tokens, scored}}, means a prompt."""
    return {
        benchmark: {
            "tokens": statistics.mean([float(answer.tokens) for answer in answers]),
            "scored": statistics.mean([float(answer.scored) for answer in answers]),
        }
        for benchmark, answers in one.of.items()
    }


def unknown_of(one: ModelAnswers) -> dict[str, int]:
    """Returns how many answered prompts have words that the tokenizer lacks, by benchmark."""
    counts = {name: sum(answer.unknown > 0 for answer in of) for name, of in one.of.items()}
    return {name: count for name, count in counts.items() if count}
