"""AlpacaEval 2: instructions whose answers a judge compares with GPT-4's.

Source: Dubois et al. 2024 (arXiv 2404.04475), tatsu-lab/alpaca_eval (data CC-BY-NC-4.0): 805
instructions. The win rate needs a judge that gives log-probs. A run writes its answers for the
official annotators and reads their preferences back (`run.preferences`); without them, shares of
refusals and unfinished answers are reported.
"""

from collections.abc import Sequence

from stair_jax import jsonl
from stair_jax.evals import harmful
from stair_jax.evals.benchmark import Benchmark, Column, Hub, Row, of_answers, share
from stair_jax.records import Prompt

NAME = "alpaca_eval"


def _load(rows: Sequence[Row], split: str) -> list[Prompt]:
    return [
        Prompt(
            id=f"{NAME}/{number:04d}",
            question=jsonl.text_of(where, row, "instruction"),
            type="helpfulness",
        )
        for number, (where, row) in enumerate(rows, start=1)
    ]


BENCHMARKS = (
    Benchmark(
        name=NAME,
        file="alpaca_eval/alpaca_eval.json",
        hub=Hub("tatsu-lab/alpaca_eval", "alpaca_eval", {"test": "eval"}),
        load=_load,
        grade=of_answers(harmful.read("xstest"), harmful.COUNTED),
        metrics=dict.fromkeys(harmful.COUNTED, share),
        columns=(Column("AlpacaEval: refused", NAME, "refusal_rate", up=False),),
        protocol="answers alone, win rates by recorded preferences",
    ),
)
