"""Prompts of the user's own as a benchmark: what their answers look like, and a judge's scores."""

from collections.abc import Sequence

from stair_jax import text
from stair_jax.evals.benchmark import Benchmark
from stair_jax.judges.rule import is_refusal
from stair_jax.records import Prompt

# Metric -> the outcome that it counts; they sum to 1.
METRICS = {"answered": "answered", "refusal": "refusal", "malformed": "malformed"}


def benchmark(name: str, prompts: Sequence[Prompt], source: str, *, judged: bool) -> Benchmark:
    """Returns a benchmark of prompts whose right answers nobody here knows.

    Args:
      name: of the benchmark.
      prompts: with ids that differ.
      source: where they come from.
      judged: whether the run's judge scores the answers.
    """
    return Benchmark(
        name=name,
        prompts=tuple(prompts),
        metrics=METRICS,
        outcome=outcome,
        merit=None,
        judged=judged,
        source=source,
    )


def outcome(prompt: Prompt, response: str, direct: bool = False) -> str:
    """Returns "malformed" where there is no final answer, "refusal" for a short apology.

    The rule of refusals is that of the searches (`rule.is_refusal`); it misses refusals in other
    words. A `direct` response is of a model that does not reason: all of it is the answer.
    """
    del prompt
    answer = response.strip() if direct else text.final_answer(response)
    if not answer:
        return "malformed"
    return "refusal" if is_refusal(answer) else "answered"
