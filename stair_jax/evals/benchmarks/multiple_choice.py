"""MMLU-Pro and GPQA Diamond: questions with up to ten answers to choose from.

Sources: Wang et al. 2024 (arXiv 2406.01574), TIGER-Lab/MMLU-Pro (MIT); Rein et al. 2023 (arXiv
2311.12022), Idavidrein/gpqa (gated, CC-BY-4.0). Without examples, as a chat model is asked. The
letter is found by MMLU-Pro's cascade, without its random guess: without a letter it is wrong.
GPQA's answers are shuffled by a hash of the question, so their order depends on nothing else.
"""

import hashlib
import random
from collections.abc import Mapping, Sequence
from typing import Any

from stair_jax import jsonl
from stair_jax.evals.benchmark import NO_ANSWER, Benchmark, Column, Hub, Row, of_answers, share
from stair_jax.evals.graders import letters
from stair_jax.records import Prompt

LETTERS = "ABCDEFGHIJ"
COUNTED = {"accuracy": "correct", "no_letter": "no letter"} | NO_ANSWER
_MERITS = {"correct": 1.0, "wrong": 0.5, "no letter": 0.25, "malformed": 0.0, "cut": 0.0}
_ASKED = (
    "{question}\n\n{options}\n\n"
    'Think step by step, and end with "the answer is (X)", where X is the letter of your choice.'
)
_GPQA = ("Correct Answer", "Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3")


def _asked(name: str, number: int, question: str, options: Sequence[str], right: int) -> Prompt:
    lines = (f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=False))
    return Prompt(
        id=f"{name}/{number:05d}",
        question=_ASKED.format(question=question, options="\n".join(lines)),
        type="helpfulness",
        ground_truth=LETTERS[right],
    )


def _mmlu_pro(rows: Sequence[Row], split: str) -> list[Prompt]:
    return [mmlu_row(number, where, row) for number, (where, row) in enumerate(rows, start=1)]


def mmlu_row(number: int, where: str, row: Mapping[str, Any]) -> Prompt:
    """Returns a row of MMLU-Pro as a prompt without examples.

    Raises:
      ValueError: where its options or its answer cannot be, naming the row.
    """
    options, right = row.get("options"), jsonl.text_of(where, row, "answer").strip()
    if not isinstance(options, list) or not 2 <= len(options) <= len(LETTERS):
        raise ValueError(f"{where}: options: found {options!r}, expected a list of 2 to 10")
    if right not in tuple(LETTERS[: len(options)]):
        raise ValueError(f"{where}: answer: found {right!r}, expected a letter of an option")
    question = jsonl.text_of(where, row, "question")
    return _asked("mmlu_pro", number, question, options, LETTERS.index(right))


def _gpqa(rows: Sequence[Row], split: str) -> list[Prompt]:
    found = []
    for number, (where, row) in enumerate(rows, start=1):
        question = jsonl.text_of(where, row, "Question").strip()
        options = [jsonl.text_of(where, row, column).strip() for column in _GPQA]
        order = list(range(len(options)))
        random.Random(hashlib.sha256(question.encode()).hexdigest()).shuffle(order)
        shuffled = [options[i] for i in order]
        found.append(_asked("gpqa_diamond", number, question, shuffled, order.index(0)))
    return found


def read(prompt: Prompt, answer: str) -> str:
    """Returns "correct", "wrong" or "no letter", by MMLU-Pro's cascade."""
    letter = letters.cascade(answer).letter
    if letter is None:
        return "no letter"
    return "correct" if letter == prompt.ground_truth else "wrong"


def _benchmark(name: str, heading: str, load, file: str, hub: Hub, protocol: str) -> Benchmark:
    return Benchmark(
        name=name,
        file=file,
        hub=hub,
        load=load,
        grade=of_answers(read, COUNTED),
        metrics=dict.fromkeys(COUNTED, share),
        columns=(Column(f"{heading}: right", name, "accuracy", up=True),),
        merits=_MERITS,
        protocol=protocol,
    )


BENCHMARKS = (
    _benchmark(
        "mmlu_pro",
        "MMLU-Pro",
        _mmlu_pro,
        "mmlu_pro/mmlu_pro_sample_1400.jsonl",
        Hub("TIGER-Lab/MMLU-Pro", None, {"test": "test", "dev": "validation"}),
        "no examples, the authors' cascade without a guess",
    ),
    _benchmark(
        "gpqa_diamond",
        "GPQA",
        _gpqa,
        "gpqa/gpqa_diamond.csv",
        Hub("Idavidrein/gpqa", "gpqa_diamond", {"test": "train"}),
        "no examples, order by a hash, MMLU-Pro's cascade",
    ),
)
