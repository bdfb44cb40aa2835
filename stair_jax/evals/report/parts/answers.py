"""The answers of an evaluation, with what judges say of them, as rows that a page shows."""

import hashlib
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from stair_jax.evals.report.parts.files import Files
from stair_jax.evals.report.parts.shards import Source, Writer

_FACETS = ("outcome",)
_NUMBERS = ("tokens", "score", "safety", "helpfulness")
RATINGS = "ratings"
_NO_MODEL = (RATINGS, "verdicts")  # folders of evals/
_NO_ANSWERS = ("attacks", "interventions", "samples")  # folders of a model
_ID_DIGITS = 24  # as `run.rating` has it

Ratings = Mapping[str, Mapping[str, Any]]


def rating_id(question: str, type: str, response: str, direct: bool, before: Any) -> str:
    """Returns what `run.rating` knows an answer by, whichever model gave it."""
    asked: tuple[Any, ...] = question, type, response, direct
    asked += (tuple(map(tuple, before)),) if before else ()
    return hashlib.sha256(repr(asked).encode(errors="replace")).hexdigest()[:_ID_DIGITS]


def ratings_of(files: Files) -> dict[str, dict[str, Any]]:
    """Returns what the run's judge said of answers, by `rating_id`."""
    found = {}
    for path in files.glob(f"evals/{RATINGS}/*.jsonl"):
        found |= {row["id"]: row for row in files.rows(path, lambda row: row | {"id": row["id"]})}
    return found


def sources(
    files: Files, folder: pathlib.Path, ratings: Ratings, models: Sequence[str]
) -> Iterator[Source]:
    """Yields the answers of each model to each benchmark.

    Args:
      files: of the workdir.
      folder: that the rows are written to.
      ratings: of the run's judge.
      models: names in the order in which they are shown; others follow.
    """
    order = {name: place for place, name in enumerate(models)}
    evals = files.workdir / "evals"
    found = [
        (path.parent.relative_to(evals).as_posix(), path)
        for path in files.glob("evals/**/*.jsonl")
        if _of_model(files, path)
    ]
    found.sort(key=lambda one: (one[1].stem, order.get(one[0], len(order)), one[0]))
    for number, (model, path) in enumerate(found):
        source = Source(
            id=f"answers-{number}",
            group="answers",
            title=f"{path.stem}: {model}",
            facets=_FACETS,
            numbers=_NUMBERS,
            of=path.stem,
            who=model,
        )
        writer = Writer(folder, source)
        for row in files.rows(path, lambda row, model=model: _shown(row, ratings, model)):
            writer.add(row["id"], row["question"], [row["outcome"]], _numbers(row), row)
        if writer.close().count:
            yield source


def is_shown(files: Files, path: pathlib.Path) -> bool:
    """Returns whether a file holds a model's answers to a benchmark, or the judge's scores."""
    parts = path.relative_to(files.workdir).parts
    return parts[:2] == ("evals", RATINGS) or _of_model(files, path)


def _of_model(files: Files, path: pathlib.Path) -> bool:
    parts = path.relative_to(files.workdir).parts
    found = parts[0] == "evals" and len(parts) > 2 and parts[1] not in _NO_MODEL
    return found and not set(parts) & set(_NO_ANSWERS)


def _numbers(row: Mapping[str, Any]) -> list[float | None]:
    return [row[name] for name in _NUMBERS]


def _shown(row: dict[str, Any], ratings: Ratings, model: str) -> dict[str, Any]:
    """Returns an answer as the page shows it; raises where the row is none."""
    for key in ("id", "question", "response", "outcome"):
        if not isinstance(row[key], str):
            raise TypeError(key)
    rated = _rating(row, ratings)
    return {
        "id": row["id"],
        "model": model,
        "question": row["question"],
        "before": row.get("before") or [],
        "prefill": row.get("prefill") or "",
        "response": row["response"],
        "outcome": row["outcome"],
        "tokens": _number(row["tokens"]),
        "scored": _number(row.get("scored")),
        "score": _number(row.get("score")),
        "cut": bool(row.get("cut")),
        "logps": list(row.get("logps") or []),
        "safety": _number(rated.get("safety")),
        "helpfulness": _number(rated.get("helpfulness")),
    }


def _number(value: Any) -> float | None:
    return None if value is None else float(value)


def _rating(row: Mapping[str, Any], ratings: Ratings) -> Mapping[str, Any]:
    """Returns what the judge said of an answer; {} where it was not asked.

    Rows of answers do not say the type of their prompt, nor whether the model reasons.
    """
    if not ratings:
        return {}
    for kind in ("safety", "helpfulness", ""):
        for direct in (False, True):
            said = row["question"], kind, row["response"], direct, row.get("before")
            if found := ratings.get(rating_id(*said)):
                return found
    return {}
