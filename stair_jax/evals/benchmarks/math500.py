"""MATH-500: competition problems, each with one expression as its answer.

Source: Hendrycks et al. 2021 (arXiv 2103.03874), of which these are the 500 of Lightman et al. 2023
(arXiv 2305.20050), HuggingFaceH4/MATH-500 (MIT). An answer is its last box, else its last "Answer:"
line; both sides are normalised, then compared as texts and as numbers.
"""

from collections.abc import Sequence

from stair_jax import jsonl
from stair_jax.evals.benchmark import NO_ANSWER, Benchmark, Column, Hub, Row, of_answers, share
from stair_jax.evals.graders import boxed
from stair_jax.records import Prompt

NAME = "math500"
_COUNTED = {"accuracy": "correct", "no_expression": "no expression"} | NO_ANSWER
_ASKED = "{problem}\n\nPut your final answer in \\boxed{{}}."


def _load(rows: Sequence[Row], split: str) -> list[Prompt]:
    return [
        Prompt(
            id=f"{NAME}/{number:04d}",
            question=_ASKED.format(problem=jsonl.text_of(where, row, "problem")),
            type="helpfulness",
            ground_truth=jsonl.text_of(where, row, "answer"),
            meta={key: str(row[key]) for key in ("subject", "level") if key in row},
        )
        for number, (where, row) in enumerate(rows, start=1)
    ]


def _read(prompt: Prompt, answer: str) -> str:
    right = boxed.grade(answer, str(prompt.ground_truth)).right
    return "no expression" if right is None else "correct" if right else "wrong"


BENCHMARKS = (
    Benchmark(
        name=NAME,
        file="math500/test.jsonl",
        hub=Hub("HuggingFaceH4/MATH-500", None, {"test": "test"}),
        load=_load,
        grade=of_answers(_read, _COUNTED),
        metrics=dict.fromkeys(_COUNTED, share),
        columns=(Column("MATH-500: right", NAME, "accuracy", up=True),),
        merits={"correct": 1.0, "wrong": 0.5, "no expression": 0.25, "malformed": 0.0, "cut": 0.0},
        protocol="no examples, last box or 'Answer:' line",
    ),
)
