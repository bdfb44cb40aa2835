"""Our preference pairs as other trainers read them: LLaMA-Factory, OpenRLHF, TRL.

All three hold whole responses, the steps that both sides share included, and all three put
end-of-sequence behind each of them: a step that finishes nothing is then taught to stop. What our
own trainer keeps apart they cannot; `unfinished` counts the pairs that this touches. How a response
began before the search (`Pair.prefill`) is part of both sides there, as a shared step is: in a
comparison it cancels out, but a trainer that also imitates what was chosen imitates that beginning.
"""

import json
import pathlib
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from stair_jax import jsonl
from stair_jax.records import Pair
from stair_jax.text import Turn, escape

_SHAREGPT = {"system": "system", "user": "human", "assistant": "gpt"}


def write(
    names: Sequence[str], pairs: Sequence[Pair], folder: pathlib.Path, specials: Collection[str]
) -> None:
    """Writes the pairs into `folder/NAME/`, for every name of `WRITERS`.

    Args:
      names: of trainers.
      pairs: in the order of the rows.
      folder: made where it is not there.
      specials: tokens that are broken up in questions, so that no tokenizer takes them for its own.
    """
    for name in names:
        into = folder / name
        into.mkdir(parents=True, exist_ok=True)
        WRITERS[name](into, [(_asked(pair, specials), pair) for pair in pairs])


def unfinished(pairs: Sequence[Pair]) -> int:
    """Returns how many pairs have a side that does not finish its trajectory."""
    return sum(not (pair.chosen_terminal and pair.rejected_terminal) for pair in pairs)


Rows = Sequence[tuple[Sequence[Turn], Pair]]  # turns as they are written, pair


def _asked(pair: Pair, specials: Collection[str]) -> list[Turn]:
    turns = [*pair.before, ("user", pair.question)]
    return [(role, escape(content, specials)) for role, content in turns]


def _llamafactory(folder: pathlib.Path, rows: Rows) -> None:
    """A ShareGPT ranking, and the entry that makes it known; `--dataset_dir` is this folder."""
    turn = lambda role, text: {"from": _SHAREGPT[role], "value": text}  # noqa: E731
    jsonl.write_json(
        folder / "pairs.json",
        [
            {
                "conversations": [turn(*one) for one in turns],
                "chosen": turn("assistant", pair.prefill + pair.chosen_text),
                "rejected": turn("assistant", pair.prefill + pair.rejected_text),
            }
            for turns, pair in rows
        ],
    )
    columns = {"messages": "conversations", "chosen": "chosen", "rejected": "rejected"}
    about = {"file_name": "pairs.json", "formatting": "sharegpt", "ranking": True}
    jsonl.write_json(folder / "dataset_info.json", {"stair": {**about, "columns": columns}})


def _messages(turns: Sequence[Turn], pair: Pair) -> Mapping[str, Any]:
    turn = lambda role, text: {"role": role, "content": text}  # noqa: E731
    return {
        "id": pair.id,
        "type": pair.type,
        "prompt": [turn(*one) for one in turns],
        "chosen": [turn("assistant", pair.prefill + pair.chosen_text)],
        "rejected": [turn("assistant", pair.prefill + pair.rejected_text)],
    }


def _openrlhf(folder: pathlib.Path, rows: Rows) -> None:
    """Messages under --prompt_key, --chosen_key and --rejected_key, for --apply_chat_template."""
    lines = (json.dumps(_messages(*row), ensure_ascii=False) + "\n" for row in rows)
    jsonl.write_text(folder / "pairs.jsonl", "".join(lines))


def _trl(folder: pathlib.Path, rows: Rows) -> None:
    """Conversational preferences with an explicit prompt, as Parquet."""
    import pyarrow  # only where this is asked for
    from pyarrow import parquet

    text = pyarrow.string()
    turns = pyarrow.list_(pyarrow.struct([("role", text), ("content", text)]))
    schema = pyarrow.schema(
        [("id", text), ("type", text), ("prompt", turns), ("chosen", turns), ("rejected", turns)]
    )
    table = pyarrow.Table.from_pylist([dict(_messages(*row)) for row in rows], schema=schema)
    temporary = folder / ".pairs.parquet.tmp"
    parquet.write_table(table, temporary)
    temporary.replace(folder / "pairs.parquet")


WRITERS: Mapping[str, Callable[[pathlib.Path, Rows], None]] = {
    "llamafactory": _llamafactory,
    "openrlhf": _openrlhf,
    "trl": _trl,
}
