"""SimpleQA: short questions of fact, each with one answer.

Source: Wei et al. 2024 (arXiv 2411.04368), openai/simple-evals (MIT). The official grader is a
language model. Without one, what can be said is whether the answer holds the gold one, as text
without case, accents and punctuation: `contains_answer`, which is not SimpleQA's accuracy.
"""

import string
import unicodedata
from collections.abc import Sequence

from stair_jax import jsonl
from stair_jax.evals.benchmark import NO_ANSWER, Benchmark, Column, Hub, Row, of_answers, share
from stair_jax.evals.graders import refusals
from stair_jax.records import Prompt

NAME = "simpleqa"
_COUNTED = {"contains_answer": "contains", "refusal_rate": "refusal"} | NO_ANSWER
_SPACES = str.maketrans(dict.fromkeys(string.punctuation, " "))


def _load(rows: Sequence[Row], split: str) -> list[Prompt]:
    return [
        Prompt(
            id=f"{NAME}/{number:04d}",
            question=jsonl.text_of(where, row, "problem"),
            type="helpfulness",
            ground_truth=jsonl.text_of(where, row, "answer"),
        )
        for number, (where, row) in enumerate(rows, start=1)
    ]


def plain(text: str) -> str:
    """Returns a text as words between single blanks, without case, accents and punctuation."""
    bare = (c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))
    return f" {' '.join(''.join(bare).casefold().translate(_SPACES).split())} "


def _read(prompt: Prompt, answer: str) -> str:
    if plain(str(prompt.ground_truth)) in plain(answer):
        return "contains"
    return "refusal" if refusals.RULES["xstest"](answer) else "other"


BENCHMARKS = (
    Benchmark(
        name=NAME,
        file="simpleqa/simple_qa_test_set.csv",
        hub=Hub("basicv8vc/SimpleQA", None, {"test": "test"}),
        load=_load,
        grade=of_answers(_read, _COUNTED),
        metrics=dict.fromkeys(_COUNTED, share),
        columns=(Column("SimpleQA: contains answer", NAME, "contains_answer", up=True),),
        merits={"contains": 1.0, "refusal": 0.5, "other": 0.25, "malformed": 0.0, "cut": 0.0},
        judged=NAME,
        protocol="stand-in without a judge: the answer holds the gold one",
    ),
)
