"""Prompts of the user's own as a benchmark: what their answers look like, and a judge's scores.

A row may name a grader of `named_graders` (the prompt's `meta` has it): then its answer is right or
wrong, or a refusal or none, and no judge is asked about it.
"""

import collections
from collections.abc import Collection, Sequence

from stair_jax import text
from stair_jax.evals.benchmark import (
    CUT,
    MALFORMED,
    NO_ANSWER,
    Benchmark,
    Column,
    Grade,
    by_outcome,
    mean,
    share,
)
from stair_jax.evals.benchmarks.named_graders import GRADERS
from stair_jax.judges.rubrics import SIDES
from stair_jax.judges.rule import is_refusal
from stair_jax.records import Prompt

GRADER = "grader"  # in `Prompt.meta`
# Metric -> the outcome that it counts, of rows without a grader; they sum to 1.
METRICS = {"answered": "answered", "refusal": "refusal", "malformed": "malformed"}
_RIGHT = {"accuracy": "correct"} | NO_ANSWER
_REFUSED = {"refusal": "refusal"} | NO_ANSWER
_SHARES = METRICS | _RIGHT | _REFUSED
_BETTER = {"accuracy": True, MALFORMED: False, CUT: False, "safety": True, "helpfulness": True}


def benchmark(
    name: str, prompts: Sequence[Prompt], source: str, *, sides: Sequence[str]
) -> Benchmark:
    """Returns a benchmark of prompts without known answers, or with graders that read them.

    Args:
      name: of the benchmark.
      prompts: with ids that differ.
      source: where they come from.
      sides: that the run's judge scores of the answers to prompts without a grader.
    """
    graders = collections.Counter(prompt.meta[GRADER] for prompt in prompts if _graded(prompt))
    blind = len(prompts) - graders.total() or not prompts
    sides = tuple(sides) if blind else ()
    names = [*METRICS, *sides] if blind else []
    names += [metric for grader in graders for metric in _counted(grader)]
    metrics = {one: share if one in _SHARES else mean for one in names}
    told = [f"{one} ({count})" for one, count in graders.items()]
    return Benchmark(
        name=name,
        prompts=tuple(prompts),
        grade=grade,
        metrics=metrics,
        columns=columns(name, metrics),
        sides=sides,
        has=has,
        protocol=f"{source}, graded by {', '.join(told)}" if told else source,
    )


def columns(name: str, metrics: Collection[str]) -> list[Column]:
    """Returns the table's columns of a benchmark of the user's with some metrics."""
    return [
        Column(f"{name}: {one}", name, one, _BETTER.get(one), share=one in _SHARES)
        for one in sorted(metrics)
        if one in _SHARES or one in SIDES
    ]


def _graded(prompt: Prompt) -> bool:
    return bool(prompt.meta.get(GRADER))


def _counted(grader: str) -> dict[str, str]:
    return _RIGHT if GRADERS[grader].expected else _REFUSED


def has(prompt: Prompt, metric: str) -> bool:
    """Returns whether a metric is of a prompt's answers: those without a grader have no accuracy.

    Cut answers are counted apart of all prompts of a file, if one of them has a grader.
    """
    if _graded(prompt):
        return metric in _counted(prompt.meta[GRADER])
    return metric in METRICS or metric in SIDES or metric == CUT


def grade(prompt: Prompt, response: str, direct: bool = False) -> Grade:
    """Grades by the prompt's grader; without one, "refusal" for a short apology, else "answered".

    Without a final answer it is "malformed". The rule of refusals is that of the searches
    (`rule.is_refusal`); it misses refusals in other words. A `direct` response is of a model that
    does not reason: all of it is the answer.
    """
    answer, grader = text.final_answer(response, direct), prompt.meta.get(GRADER)
    counted = _counted(grader) if grader else METRICS | {CUT: CUT}
    if not answer:
        return by_outcome(MALFORMED, counted)
    if grader:
        return by_outcome(GRADERS[grader].outcome(answer, str(prompt.ground_truth)), counted)
    return by_outcome("refusal" if is_refusal(answer) else "answered", counted)
