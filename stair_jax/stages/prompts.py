"""Where questions and teacher rows come from: the miniature, or files of the user's."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

from stair_jax import records
from stair_jax.config import Config
from stair_jax.miniature import splits
from stair_jax.records import Prompt, SftRow

TYPES = ("safety", "helpfulness")


def for_round(config: Config, number: int) -> list[Prompt]:
    """Returns the prompts of a round.

    Raises:
      ValueError: for a file without such rows, naming file, row and key.
    """
    count = config.data.round_prompts
    if config.data.prompts == "miniature":
        return splits.round_prompts(number, config.seed, count)
    path = config.data.prompts.replace("{round}", str(number))
    rows = [_prompt(f"{path}:{i}", i, row) for i, row in enumerate(_rows(path), start=1)]
    return rows[:count] if count else rows


def for_sft(config: Config) -> list[SftRow]:
    """Returns the teacher rows of stage 1; raises as `for_round`."""
    count = config.data.sft_rows
    if config.data.sft == "miniature":
        return splits.sft_rows(config.seed, count)
    path = config.data.sft
    rows = [_sft_row(f"{path}:{i}", i, row) for i, row in enumerate(_rows(path), start=1)]
    return rows[:count] if count else rows


def _rows(path: str) -> list[Any]:
    """Reads a JSON list or a JSONL file."""
    file = pathlib.Path(path)
    if not file.is_file():
        raise ValueError(f"{path}: no such file, expected .json or .jsonl with one row a prompt")
    if file.suffix == ".jsonl":
        rows = records.read_json_lines(file)
    else:
        try:
            rows = json.loads(file.read_text(encoding="utf-8"))
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}:{error.lineno}: not JSON ({error.msg})") from None
    if not isinstance(rows, list) or not rows:
        raise ValueError(f"{path}: found no rows, expected a list of at least one")
    return rows


def _text(where: str, row: Any, *keys: str) -> str:
    """Returns the first of `keys` that the row has as a text that is not blank."""
    if not isinstance(row, Mapping):
        raise ValueError(f"{where}: found {type(row).__name__}, expected an object")
    for key in keys:
        if isinstance(row.get(key), str) and row[key].strip():
            return row[key]
    raise ValueError(f"{where}: no text under {' or '.join(map(repr, keys))}, found {sorted(row)}")


def _prompt(where: str, number: int, row: Any) -> Prompt:
    question = _text(where, row, "question", "prompt")
    kind = row.get("type")
    if kind not in TYPES:
        raise ValueError(f"{where}: type is {kind!r}, expected one of {list(TYPES)}")
    truth = row.get("ground_truth")
    return Prompt(
        id=str(row.get("id", f"p{number:05d}")), question=question, type=kind,
        ground_truth=None if truth is None else str(truth),
    )  # fmt: skip


def _sft_row(where: str, number: int, row: Any) -> SftRow:
    question = _text(where, row, "prompt", "question")
    response = _text(where, row, "answer", "response")
    return SftRow(id=str(row.get("id", f"s{number:05d}")), question=question, response=response)
