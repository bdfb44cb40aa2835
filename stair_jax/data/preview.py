"""The first rows of a training run as the model will see them: what is shown, trained, compared."""

import itertools
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
from rich import console, text

from stair_jax import jsonl
from stair_jax.data.batches import (
    ComparisonBatch,
    PairBatch,
    SftBatch,
    TrainingBatch,
    ValuedBatch,
)
from stair_jax.data.dataset import Dataset
from stair_jax.text import Codec

ROWS = 3
_RANKS = "better", "worse"
_STYLES = {
    "prompt": "dim",
    "context": "dim",
    "trained": "green",
    "compared": "yellow",
    "compared, trained": "bold yellow",
    "rejected": "red",
    "read": "bold magenta",
}


class Part(NamedTuple):
    """A run of tokens of one kind."""

    kind: str  # a key of _STYLES
    ids: list[int]


class Side(NamedTuple):
    """One sequence of a row, from its first token to the last one that counts."""

    name: str  # "response", "chosen" or "rejected"; "better", "worse", "values 0.50 0.75"
    parts: list[Part]


def show(data: Dataset, codec: Codec, path: str | os.PathLike) -> None:
    """Prints three rows of the first batch with their masks in colour, and writes them plain.

    Pairs go before the responses that are trained beside them.

    What is told comes from the arrays that training gets, so it is what the masks say, whatever
    the rows were meant to be. Colours go to a terminal only.
    """
    shown = sorted(rows(data.batch_at(0)), key=len, reverse=True)[:ROWS]
    lines, screen = [], text.Text()
    for number, row in enumerate(shown, start=1):
        for side in row:
            lines.append(f"row {number}, {side.name}")
            screen.append(f"row {number}, {side.name}\n", "bold")
            for kind, ids in side.parts:
                words = codec.decode(ids)
                lines.append(f"  {kind}: {words!r}")
                screen.append(words, _STYLES[kind])
            screen.append("\n")
    jsonl.write_text(path, "".join(line + "\n" for line in lines))
    out = console.Console(stderr=True)
    if out.is_terminal:
        screen.append(
            "prompt dim, trained green, compared yellow, rejected red, score read at magenta; also"
            f" in {path}\n"
        )
        out.print(screen, soft_wrap=True)


def rows(batch: TrainingBatch) -> Iterator[list[Side]]:
    """Yields the rows of a batch [A, m, ...] that count: one side, or two that are compared."""
    for row in batch.one_by_one():
        if np.any(row.present):
            yield from _SIDES[type(row)](row)


def _responses(row: SftBatch) -> Iterator[list[Side]]:
    """Yields the examples of one row: several where it is packed."""
    mask, parent = row.loss_mask, None if row.layout is None else row.layout.parent
    # An example ends where a trained token is followed by none of its own.
    follows = np.append(mask[1:], False)
    if parent is not None:
        follows &= np.append(parent[1:] == np.arange(len(parent) - 1), False)
    for end in np.flatnonzero(mask & ~follows).tolist():
        yield [_side("response", row.tokens, mask, np.zeros_like(mask), end, parent)]


def _pairs(row: PairBatch) -> Iterator[list[Side]]:
    """Yields the pair of a row, or those of a tree."""
    if row.layout is None:
        yield _pair(row.tokens, row.step_mask, row.sft_mask, None)
        return
    both = np.stack([row.tokens, row.tokens])
    for p in np.flatnonzero(row.present):
        yield _pair(both, row.step_mask[p], row.sft_mask[p], row.layout.parent)


def _comparisons(row: ComparisonBatch) -> Iterator[list[Side]]:
    """Yields the pair of a row, or those of a prompt."""
    if row.layout is None:
        sides = zip(_RANKS, row.tokens, row.read.tolist(), strict=True)
        yield [Side(name, _read_parts(ids, [at])) for name, ids, at in sides]
        return
    for pair in row.read[row.present].tolist():
        paths = [_path(row.layout.parent, at) for at in pair]
        yield [
            Side(rank, _read_parts(row.tokens[path], [len(path) - 1]))
            for rank, path in zip(_RANKS, paths, strict=True)
        ]


def _values(row: ValuedBatch) -> Iterator[list[Side]]:
    """Yields a trajectory with its labels."""
    values = " ".join(f"{x:.2f}" for x in row.target[row.present])
    yield [Side(f"values {values}", _read_parts(row.tokens, row.read[row.present].tolist()))]


_SIDES: dict[type, Callable[[Any], Iterator[list[Side]]]] = {
    SftBatch: _responses,
    PairBatch: _pairs,
    ComparisonBatch: _comparisons,
    ValuedBatch: _values,
}


def _read_parts(tokens: np.ndarray, reads: Iterable[int]) -> list[Part]:
    """The tokens up to the last one whose score is read; these apart from what is between them."""
    parts, start = [], 0
    for at in reads:
        before = Part("context", tokens[start:at].tolist())
        parts += [*([before] if before.ids else []), Part("read", [int(tokens[at])])]
        start = at + 1
    return parts


def _pair(
    tokens: np.ndarray, step_mask: np.ndarray, sft_mask: np.ndarray, parent: np.ndarray | None
) -> list[Side]:
    """Returns a pair's sides from tokens [2, T] and masks, or the one side of an anchor."""
    chosen, rejected = tokens
    end = int(np.flatnonzero(sft_mask | step_mask[0])[-1])
    if not step_mask.any():  # an anchor
        return [_side("response", chosen, sft_mask, step_mask[0], end, parent)]
    other = int(np.flatnonzero(step_mask[1])[-1])
    none = np.zeros_like(sft_mask)
    return [
        _side("chosen", chosen, sft_mask, step_mask[0], end, parent),
        _side("rejected", rejected, none, step_mask[1], other, parent),
    ]


def _path(parent: np.ndarray | None, end: int) -> list[int]:
    """Returns the indices of a sequence's tokens in its row, up to `end`."""
    if parent is None:
        return list(range(end + 1))
    path = [end]
    while (before := int(parent[path[-1]])) != path[-1]:
        path.append(before)
    return path[::-1]


def _side(
    name: str,
    tokens: np.ndarray,
    trained: np.ndarray,
    compared: np.ndarray,
    end: int,
    parent: np.ndarray | None,
) -> Side:
    path = _path(parent, end)
    marks = [(bool(trained[t]), bool(compared[t])) for t in path]
    begun = next((i for i, mark in enumerate(marks) if any(mark)), len(path))
    kinds = []
    for i, (is_trained, is_compared) in enumerate(marks):
        if is_compared:
            kind = "rejected" if name == "rejected" else "compared"
            kinds.append(f"{kind}, trained" if is_trained else kind)
        else:
            kinds.append("trained" if is_trained else "prompt" if i < begun else "context")
    groups = itertools.groupby(zip(kinds, path, strict=True), key=lambda item: item[0])
    return Side(name, [Part(kind, [int(tokens[t]) for _, t in run]) for kind, run in groups])
