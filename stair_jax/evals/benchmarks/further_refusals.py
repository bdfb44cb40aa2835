"""OR-Bench and SorryBench, by their columns alone: their protocols are not verified here.

Sources: Cui et al. 2024 (arXiv 2405.20947), bench-llm/or-bench (CC-BY-4.0): prompts that look
harmful and are not. Xie et al. 2024 (arXiv 2406.14598), sorry-bench/sorry-bench-202406 (gated):
harmful requests of 44 categories.
"""

import dataclasses
from collections.abc import Sequence

from stair_jax.evals import harmful
from stair_jax.evals.benchmark import Benchmark, Column, Hub, Row
from stair_jax.records import Prompt


def _sorry(rows: Sequence[Row], split: str) -> list[Prompt]:
    return harmful.prompts_of("sorry_bench", _first_turns(rows), "prompt", meta=["category"])


def _first_turns(rows: Sequence[Row]) -> list[Row]:
    """Returns rows whose request is in "prompt": the file has a list of one turn."""
    found = []
    for where, row in rows:
        turns = row.get("turns")
        found.append((where, {**row, "prompt": turns[0]} if isinstance(turns, list) else row))
    return found


def _or_bench() -> Benchmark:
    name = "or_bench"
    base = harmful.benchmark(
        name,
        "OR-Bench",
        lambda rows, split: [
            dataclasses.replace(prompt, type="helpfulness")
            for prompt in harmful.prompts_of(name, rows, "prompt", meta=["category"])
        ],
        file="or_bench/or-bench-hard-1k.csv",
        hub=Hub("bench-llm/or-bench", "or-bench-hard-1k", {"test": "train"}),
        protocol="unverified protocol, hard prompts",
    )
    return dataclasses.replace(
        base,
        columns=(Column("OR-Bench: refused", name, "refusal_rate", up=False),),
        merits={"answered": 1.0, "refusal": 0.5, "malformed": 0.0, "cut": 0.0},
        complied="",
        over_refused="refusal_rate",
    )


BENCHMARKS = (
    _or_bench(),
    harmful.benchmark(
        "sorry_bench",
        "SorryBench",
        _sorry,
        file="sorry_bench/question.jsonl",
        hub=Hub("sorry-bench/sorry-bench-202406", None, {"test": "train"}),
        protocol="unverified protocol, base requests",
    ),
)
