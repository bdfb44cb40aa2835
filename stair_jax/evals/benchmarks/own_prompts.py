"""Prompts of the user's own as a benchmark: what their answers look like, and a judge's scores."""

from collections.abc import Sequence

from stair_jax import text
from stair_jax.evals.benchmark import Benchmark, Column, Grade, by_outcome, mean, share
from stair_jax.judges.rule import is_refusal
from stair_jax.records import Prompt

# Metric -> the outcome that it counts; they sum to 1.
METRICS = {"answered": "answered", "refusal": "refusal", "malformed": "malformed"}
_BETTER = {"malformed": False, "safety": True, "helpfulness": True}


def benchmark(
    name: str, prompts: Sequence[Prompt], source: str, *, sides: Sequence[str]
) -> Benchmark:
    """Returns a benchmark of prompts without known answers.

    Args:
      name: of the benchmark.
      prompts: with ids that differ.
      source: where they come from.
      sides: that the run's judge scores of the answers.
    """
    metrics = dict.fromkeys(METRICS, share) | dict.fromkeys(sides, mean)
    return Benchmark(
        name=name,
        prompts=tuple(prompts),
        grade=grade,
        metrics=metrics,
        columns=[
            Column(f"{name}: {one}", name, one, _BETTER.get(one), share=one in METRICS)
            for one in sorted(metrics)
        ],
        sides=tuple(sides),
        protocol=source,
    )


def grade(prompt: Prompt, response: str, direct: bool = False) -> Grade:
    """Grades "malformed" where there is no final answer, "refusal" for a short apology.

    The rule of refusals is that of the searches (`rule.is_refusal`); it misses refusals in other
    words. A `direct` response is of a model that does not reason: all of it is the answer.
    """
    del prompt
    answer = text.final_answer(response, direct)
    if not answer:
        return by_outcome("malformed", METRICS)
    return by_outcome("refusal" if is_refusal(answer) else "answered", METRICS)
