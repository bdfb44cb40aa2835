"""MMLU-Pro as its authors ask it: behind five worked examples of the question's category.

Source: Wang et al. 2024 (arXiv 2406.01574), TIGER-AI-Lab/MMLU-Pro evaluate_from_local.py
(Apache-2.0), data MIT: the examples are the first five rows of the category in the validation
split, whose `cot_content` works them out; options "N/A" are dropped; what comes behind the next
"Question:" is not read, and the letter is found by the cascade. The sentence before the examples is
the authors' where their file `initial_prompt.txt` lies in the folder, else ours.

What differs: the whole is one user turn of a chat, an answer without a letter is wrong and not a
guess, and a prompt without room is missing where the authors leave examples out.
"""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from stair_jax import jsonl
from stair_jax.config import ROW_FILES
from stair_jax.evals import prompt_files
from stair_jax.evals.benchmark import Column, Hub, ReadRows, Row, of_answers
from stair_jax.evals.benchmarks import multiple_choice
from stair_jax.records import Prompt

NAME, SHOTS = "mmlu_pro_5_shot", 5
_SENTENCE = "initial_prompt"  # the authors' file, and the key of its row
_SHA256 = "d7337806b4d84eef7a86bcb20bf3d64b65e72736c1603e16d08cadebac436f0a"
_OWN = (
    "Below are multiple-choice questions about {$}, each but the last with its solution. Solve the"
    ' last one step by step as well, and end with "the answer is (X)", where X is its letter.\n'
)
_TEST = ("test", "mmlu_pro_sample_1400")
_BEGIN = "Answer: Let's think step by step."  # of every solution
_IN_THE_SPLIT = "A: Let's think step by step."  # what the rows have for it


def _rows(place: str, read: ReadRows) -> Sequence[Row]:
    """Returns the rows of both splits from a folder, and the authors' sentence where it is."""
    folder = pathlib.Path(place)
    if not folder.is_dir():
        return read(place)
    rows = [*_split(folder, ("validation",), read), *_split(folder, _TEST, read)]
    path = folder / f"{_SENTENCE}.txt"
    if path.exists():
        rows.append((str(path), {_SENTENCE: prompt_files.official(folder, _SENTENCE, _SHA256)}))
    return rows


def _split(folder: pathlib.Path, names: Sequence[str], read: ReadRows) -> Sequence[Row]:
    for path in (folder / f"{name}{suffix}" for name in names for suffix in ROW_FILES):
        if path.exists():
            return read(str(path))
    kinds = ", ".join(ROW_FILES)
    raise ValueError(f"{folder}: found no split {names[0]!r}, expected {names[0]} with {kinds}")


def _load(rows: Sequence[Row], split: str) -> list[Prompt]:
    sentence, examples, asked = _OWN, {}, []
    for where, row in rows:
        row = jsonl.object_of(where, row)
        if _SENTENCE in row:
            sentence = row[_SENTENCE]
        elif str(row.get("cot_content") or "").strip():
            category = jsonl.text_of(where, row, "category")
            examples.setdefault(category, []).append(_block(where, row, row["cot_content"]))
        else:
            asked.append((where, row))
    return [
        _prompt(number, where, row, sentence, examples)
        for number, (where, row) in enumerate(asked, start=1)
    ]


def _prompt(
    number: int, where: str, row: dict, sentence: str, examples: Mapping[str, list[str]]
) -> Prompt:
    category = jsonl.text_of(where, row, "category")
    shown = examples.get(category, [])[:SHOTS]
    if len(shown) < SHOTS:
        raise ValueError(
            f"{where}: category: found {category!r} with {len(shown)} solved examples, expected"
            f" {SHOTS} rows with cot_content (the validation split)"
        )
    plain = multiple_choice.mmlu_row(number, where, {**row, "options": _options(where, row)})
    blocks = [*shown, _block(where, row, _BEGIN)]
    question = sentence.replace("{$}", category) + "\n" + "".join(blocks)
    return dataclasses.replace(plain, id=f"{NAME}/{number:05d}", question=question.rstrip())


def _options(where: str, row: Mapping[str, Any]) -> list[Any]:
    options = row.get("options")
    if not isinstance(options, list):
        raise ValueError(f"{where}: options: found {options!r}, expected a list of 2 to 10")
    return [option for option in options if option != "N/A"]


def _block(where: str, row: Mapping[str, Any], solution: str) -> str:
    letters = zip(multiple_choice.LETTERS, _options(where, row), strict=False)
    options = "".join(f"{letter}. {option}\n" for letter, option in letters)
    question = jsonl.text_of(where, row, "question")
    solution = solution.replace(_IN_THE_SPLIT, _BEGIN)
    return f"Question:\n{question}\nOptions:\n{options}{solution}\n\n"


def _words(rows: Sequence[Row]) -> str:
    own = not any(_SENTENCE in row for _, row in rows)
    return "own words before them" if own else f"official prompt {_SENTENCE} {_SHA256[:8]}"


def _read(prompt: Prompt, answer: str) -> str:
    return multiple_choice.read(prompt, answer.partition("Question:")[0])


_PLAIN = multiple_choice.BENCHMARKS[0]
BENCHMARKS = (
    dataclasses.replace(
        _PLAIN,
        name=NAME,
        file="mmlu_pro",
        hub=Hub("TIGER-Lab/MMLU-Pro", None, {"test": "validation+test"}),
        read=_rows,
        load=_load,
        words=_words,
        grade=of_answers(_read, multiple_choice.COUNTED),
        columns=(Column("MMLU-Pro 5-shot: right", NAME, "accuracy", up=True),),
        protocol=f"{SHOTS} examples of the category, the authors' cascade without a guess",
    ),
)
