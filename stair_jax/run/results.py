"""What answers come to: metrics, the judge's means, and what they cost."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from stair_jax.evals import statistics
from stair_jax.evals.benchmark import Benchmark
from stair_jax.judges.rubrics import SIDES
from stair_jax.records import Answer, Rated
from stair_jax.run import rating
from stair_jax.run.rating import Given
from stair_jax.run.workdir import Run

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
        Given(
            benchmark=benchmark.name,
            prompt=prompts[answer.id],
            response=answer.response,
            direct=one.direct,
        )
        for answer in one.of[benchmark.name]
        if not answer.cut
    ]


def metrics_of(
    run: Run, asked: Sequence[Benchmark], one: ModelAnswers, ratings: Ratings
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
            metrics |= _judged(run, for_judge(benchmark, one), ratings)
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


def costs_of(one: ModelAnswers) -> dict[str, dict[str, float]]:
    """Returns {benchmark: {tokens, scored}}, means a prompt."""
    return {
        benchmark: {
            "tokens": statistics.mean([float(answer.tokens) for answer in answers]),
            "scored": statistics.mean([float(answer.scored) for answer in answers]),
        }
        for benchmark, answers in one.of.items()
    }
