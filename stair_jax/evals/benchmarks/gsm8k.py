"""GSM8K: word problems of grade-school mathematics, each with a number as its answer.

Source: Cobbe et al. 2021 (arXiv 2110.14168), openai/grade-school-math (MIT): the gold number
follows "#### ", commas do not count, and an answer without a number is wrong. Official answers end
as the gold ones do; STAIR's end in words. So an answer's number is the one behind "####", and the
last number where there is none. It is compared as a number: 18.00 is 18.
"""

import re
from collections.abc import Sequence

from stair_jax import jsonl
from stair_jax.evals.benchmark import NO_ANSWER, Benchmark, Column, Hub, Row, of_answers, share
from stair_jax.records import Prompt

NAME = "gsm8k"
_NUMBER = r"(?:(?<!\d)-)?(?:\d[\d,]*(?:\.\d+)?|\.\d+)"
_MARKED = re.compile(rf"#### *\$?({_NUMBER})")
_COUNTED = {"accuracy": "correct", "no_number": "no number"} | NO_ANSWER


def _prompts(rows: Sequence[Row], split: str) -> list[Prompt]:
    return [_prompt(number, *row) for number, row in enumerate(rows, start=1)]


def _prompt(number: int, where: str, row: object) -> Prompt:
    marked = _MARKED.search(jsonl.text_of(where, row, "answer"))
    if not marked:
        raise ValueError(f"{where}: answer has no number behind '#### '")
    return Prompt(
        id=f"{NAME}/{number:04d}",
        question=jsonl.text_of(where, row, "question"),
        type="helpfulness",
        ground_truth=marked[1],
    )


def number_of(answer: str) -> float | None:
    """Returns the number that an answer comes to; None where it has none."""
    found = _MARKED.findall(answer) or re.findall(_NUMBER, answer)
    return float(found[-1].replace(",", "")) if found else None


def _read(prompt: Prompt, answer: str) -> str:
    number = number_of(answer)
    if number is None:
        return "no number"
    return "correct" if number == number_of(str(prompt.ground_truth)) else "wrong"


grade = of_answers(_read, _COUNTED)

BENCHMARKS = (
    Benchmark(
        name=NAME,
        file="gsm8k/test.jsonl",
        hub=Hub("openai/gsm8k", "main", {"test": "test", "dev": "train"}),
        load=_prompts,
        grade=grade,
        metrics=dict.fromkeys(_COUNTED, share),
        columns=(
            Column("GSM8K: right", NAME, "accuracy", up=True),
            Column("GSM8K: malformed", NAME, "malformed", up=False),
        ),
        merits={"correct": 1.0, "wrong": 0.5, "no number": 0.25, "malformed": 0.0, "cut": 0.0},
        protocol="no examples, last number of the final answer",
    ),
)
