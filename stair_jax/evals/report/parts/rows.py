"""All other rows of a workdir, of whatever form, as rows that a page shows field by field."""

import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from stair_jax.evals.report.parts import answers
from stair_jax.evals.report.parts.files import Files
from stair_jax.evals.report.parts.shards import Source, Writer

_SHOWN_ELSEWHERE = ("pairs.jsonl", "trees.jsonl", "metrics.jsonl")
_TITLES = ("question", "prompt", "instruction", "request", "reply", "key", "id")
_FACETS = (
    "reason",
    "outcome",
    "how",
    "benchmark",
    "judge",
    "corpus",
    "source",
    "type",
    "attack",
    "ended",
)
_NUMBERS = ("value", "reward", "score", "tokens")
_MOVE = ("improvement", "prompt", "response", "verdict", "rating")  # of a transcript
_LONGEST_WORD = 60  # letters of what rows can be filtered by
_KINDS = (  # what a file is, by the end of its name
    ("pairs/responses.jsonl", "responses to imitate"),
    ("candidates.jsonl", "sampled responses"),
    ("dropped.jsonl", "rows that were dropped"),
    ("removed.jsonl", "rows that were removed: they overlap with a benchmark"),
    ("rejected.jsonl", "rejected responses"),
)
_FOLDERS = {
    "verdicts": "what judges replied",
    "interventions": "answers behind changed steps",
    "attacks": "attacks, all that was said",
    "samples": "samples to choose from",
}


def sources(files: Files, folder: pathlib.Path) -> Iterator[Source]:
    """Yields every file of rows that no other section shows.

    Args:
      files: of the workdir.
      folder: that the rows are written to.
    """
    number = 0
    for path in files.glob("**/*.jsonl"):
        if path.name in _SHOWN_ELSEWHERE or answers.is_shown(files, path):
            continue
        if source := _source(files, folder, path, f"rows-{number}"):
            number += 1
            yield source


def disagreements(files: Files, folder: pathlib.Path) -> Iterator[Source]:
    """Yields the answers on which two judges differ, as far as evals/agreement.json has them."""
    source = Source(
        id="disagreements",
        group="judges",
        title="answers on which judges differ",
        facets=("benchmark", "verdicts"),
    )
    writer, agreement = Writer(folder, source), files.object(files.workdir / "evals/agreement.json")
    for compared in _objects(agreement.get("agreement")):
        for one in _objects(compared.get("disagreements")):
            said = "; ".join(f"{judge}: {_text(x)}" for judge, x in one["verdicts"].items())
            blocks = [[key, _text(one[key])] for key in ("request", "answer")]
            words = [_text(one["benchmark"]), said]
            title, blocks = _text(one["request"]), [*blocks, ["verdicts", said]]
            writer.add(_text(compared.get("prompt")), title, words, [], {"blocks": blocks})
    if writer.close().count:
        yield source


def _objects(found: Any) -> list[dict[str, Any]]:
    return [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []


def _source(files: Files, folder: pathlib.Path, path: pathlib.Path, id: str) -> Source | None:
    """Returns the rows of a file; None where there are none."""
    name, writer = files.name(path), None
    for row in files.rows(path, _unfolded):
        if writer is None:
            source = Source(
                id=id,
                group="judges" if "verdicts" in name.split("/") else "rows",
                title=f"{name}: {_kind(name)}" if _kind(name) else name,
                facets=[key for key in _FACETS if isinstance(row.get(key), str)],
                numbers=[key for key in _NUMBERS if _is_number(row.get(key))],
            )
            writer = Writer(folder, source)
        _add(writer, row)
    return writer.close() if writer else None


def _unfolded(row: dict[str, Any]) -> dict[str, Any]:
    """Returns a row with an attack's moves as fields of their own, in the order they were made."""
    said = row.get("transcript")
    if not isinstance(said, dict):
        return row
    found = {key: value for key, value in row.items() if key != "transcript"}
    found["ended"] = str(said.get("ended", ""))
    for number, stream in enumerate(_objects(said.get("streams"))):
        for move in _objects(stream.get("moves")):
            place = f"{stream.get('name', '')} {number}.{move.get('iteration', '')}"
            for key in _MOVE:
                if move.get(key) not in (None, ""):
                    found[f"{key} of {place}"] = move[key]
    return {**found, "transcript": said}


def _kind(name: str) -> str:
    for end, kind in _KINDS:
        if name.endswith(end):
            return kind
    return next((kind for part, kind in _FOLDERS.items() if part in name.split("/")), "")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _add(writer: Writer, row: Mapping[str, Any]) -> None:
    title = next((row[key] for key in _TITLES if isinstance(row.get(key), str)), "")
    words = [str(row.get(key, ""))[:_LONGEST_WORD] for key in writer.source.facets]
    numbers = [row[key] if _is_number(row.get(key)) else None for key in writer.source.numbers]
    blocks = [[key, _text(value)] for key, value in row.items() if not _is_tokens(value)]
    writer.add(str(row.get("id", "")), title, words, numbers, {"blocks": blocks})


def _is_tokens(value: Any) -> bool:
    """Returns whether a value is token ids, which tell a reader nothing."""
    return isinstance(value, list) and bool(value) and all(type(x) is int for x in value)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, indent=1, ensure_ascii=False)
