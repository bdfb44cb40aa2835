"""HarmBench: harmful behaviours, those with a context among them, and those about copyright.

Source: Mazeika et al. 2024 (arXiv 2402.04249), centerforaisafety/HarmBench (MIT). A behaviour with
a context has it before it, as the authors put it. Their judge is a classifier of 13B parameters
(copyright: hashes of the texts, which are not here). Without a judge the share of refusals is
reported, by a rule.
"""

import dataclasses
from collections.abc import Sequence

from stair_jax.evals import harmful
from stair_jax.evals.benchmark import Benchmark, Row
from stair_jax.records import Prompt

_RULE_OF_CONTEXTS = "\n\n---\n\n"


def _benchmark(part: str, file: str, heading: str) -> Benchmark:
    def load(rows: Sequence[Row], split: str) -> list[Prompt]:
        meta = ("FunctionalCategory", "SemanticCategory", "BehaviorID")
        found = harmful.prompts_of(part, rows, "Behavior", meta=meta)
        return [_behaviour(prompt, row) for prompt, (_, row) in zip(found, rows, strict=True)]

    return harmful.benchmark(
        part, heading, load, file=file, protocol="plain behaviours", judged="harmbench"
    )


def _behaviour(prompt: Prompt, row: dict[str, str]) -> Prompt:
    context = row.get("ContextString") or ""
    if not context:
        return prompt
    return dataclasses.replace(
        prompt,
        question=f"{context}{_RULE_OF_CONTEXTS}{prompt.question}",
        meta={**prompt.meta, "goal": prompt.question, "context": context},
    )


BENCHMARKS = (
    _benchmark("harmbench", "harmbench/harmbench_behaviors_text_test.csv", "HarmBench"),
    _benchmark("harmbench_val", "harmbench/harmbench_behaviors_text_val.csv", "HarmBench val"),
)
