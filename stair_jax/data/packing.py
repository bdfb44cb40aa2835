"""Many pieces in one row: chains for SFT, sibling groups for DPO, and where their tokens lie.

A piece is a context with one or more branches after it. Its tokens lie in depth-first order: the
context once, then every branch. `reach` is the end of what a token is an ancestor of, so that
query q sees key s where s <= q < reach[s]: its own path, nothing of its siblings, nothing of the
pieces beside it.
"""

import dataclasses
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple, TypeVar

import numpy as np

from stair_jax.data.examples import Ids, SftExample
from stair_jax.model.layout import Layout


@dataclasses.dataclass(frozen=True)
class Slot:
    """Where one row of the data set lies: ranges of tokens of its piece, or of a row of a batch."""

    row: int  # number in the data set
    shared: range  # the response's tokens in the context
    chosen: range  # the step, or an SFT row's response
    rejected: range  # empty for SFT rows

    def moved(self, by: int) -> "Slot":
        """Returns it behind `by` further tokens."""
        ranges = (self.shared, self.chosen, self.rejected)
        return Slot(self.row, *(range(x.start + by, x.stop + by) for x in ranges))


@dataclasses.dataclass(frozen=True)
class Piece:
    """A context, the branches after it, and the rows that are read from them."""

    context: Ids
    branches: tuple[Ids, ...]
    slots: tuple[Slot, ...]

    @property
    def length(self) -> int:
        """Tokens."""
        return len(self.context) + sum(map(len, self.branches))

    @property
    def rows(self) -> int:
        """Rows of the data set that are read from it."""
        return len(self.slots)


class Outline(NamedTuple):
    """What planning needs of a piece: its sizes without its tokens."""

    length: int
    rows: int


Sized = TypeVar("Sized", Piece, Outline)


def chain(example: SftExample, row: int) -> Piece:
    """Returns an SFT row as a piece: no branch beside another."""
    slot = Slot(row, range(0), range(len(example.prompt), example.length), range(0))
    return Piece(example.prompt, (example.response,), (slot,))


def group_keys(groups: Iterable[Hashable]) -> np.ndarray:
    """Returns [rows] the number of each row's group, in order of appearance."""
    known: dict[Hashable, int] = {}
    return np.array([known.setdefault(group, len(known)) for group in groups], np.int64)


Branches = tuple[int, Ids, Ids]  # a row's number in the data set, its chosen and rejected tokens


def families(groups: Mapping[tuple[Ids, Ids], Sequence[Branches]], longest: int) -> Iterator[Piece]:
    """Yields the pieces of sibling groups, every distinct branch once in each.

    Args:
      groups: what branches off, by (prompt, shared tokens of the response); each row is no longer
        than `longest` with both its branches.
      longest: tokens of a piece; a group beyond it becomes several.
    """
    for (prompt, prefix), members in groups.items():
        context = prompt + prefix
        rows: list[Branches] = []
        steps: dict[Ids, None] = {}  # in order of appearance
        for row in members:
            wider = steps | dict.fromkeys(row[1:])
            if rows and len(context) + sum(map(len, wider)) > longest:
                yield _family(context, len(prompt), rows, tuple(steps))
                rows, wider = [], dict.fromkeys(row[1:])
            rows.append(row)
            steps = wider
        yield _family(context, len(prompt), rows, tuple(steps))


def _family(context: Ids, prompt: int, rows: Sequence[Branches], steps: tuple[Ids, ...]) -> Piece:
    ends = np.cumsum([len(context), *map(len, steps)]).tolist()
    where = {step: range(ends[i], ends[i + 1]) for i, step in enumerate(steps)}
    shared = range(prompt, len(context))
    slots = [Slot(row, shared, where[chosen], where[rejected]) for row, chosen, rejected in rows]
    return Piece(context, steps, tuple(slots))


def fit(pieces: Sequence[Sized], width: int) -> list[list[Sized]]:
    """Returns rows of pieces of `width` tokens at most: longest piece first, first row that fits.

    Raises:
      ValueError: for a piece that is longer than a row.
    """
    rows: list[list[Sized]] = []
    free: list[int] = []
    for piece in sorted(pieces, key=lambda piece: -piece.length):
        if piece.length > width:
            raise ValueError(f"a piece of {piece.length} tokens, expected {width} at most")
        at = next((i for i, left in enumerate(free) if left >= piece.length), len(rows))
        if at == len(rows):
            rows.append([])
            free.append(width)
        rows[at].append(piece)
        free[at] -= piece.length
    return rows


class PackedRows(NamedTuple):
    """Pieces side by side in rows; rows in use come first."""

    tokens: np.ndarray  # [A * m, T]
    layout: Layout  # [A * m, T]
    slots: dict[tuple[int, int], Slot]  # by row, and number among those of the row
    pairs: int  # P, slots of one row at most
    passes: int  # A


@dataclasses.dataclass(frozen=True)
class Packer:
    """Shapes of packed batches: the same for every batch of a run, so that one program serves."""

    width: int
    passes: int  # A
    micro: int  # m
    slots: int  # P, data-set rows in one row at most
    pad_id: int

    @classmethod
    def plan(
        cls,
        batches: Iterable[Sequence[Piece]],
        buckets: Sequence[int],
        shape: Callable[[int, int], tuple[int, int]],
        pad_id: int,
    ) -> "Packer":
        """Returns what holds all of `batches`; `shape` cuts (width, rows) into (A, m)."""
        outlines = [[Outline(x.length, x.rows) for x in batch] for batch in batches]
        total = max((sum(x.length for x in batch) for batch in outlines), default=1)
        width = min((b for b in buckets if b >= total), default=buckets[-1])
        packed = [fit(batch, width) for batch in outlines]
        rows = max((len(x) for x in packed), default=1)
        slots = max((sum(x.rows for x in row) for batch in packed for row in batch), default=1)
        passes, micro = shape(width, max(rows, 1))
        return cls(width, passes, micro, max(slots, 1), pad_id)

    def pack(self, pieces: Sequence[Piece]) -> PackedRows:
        """Returns rows of these pieces; what was not planned for gets further micro-batches."""
        packed = fit(pieces, self.width)
        passes = max(self.passes, -(-len(packed) // self.micro))
        shape = (passes * self.micro, self.width)
        tokens = np.full(shape, self.pad_id, np.int32)
        layout = [np.empty(shape, np.int32) for _ in dataclasses.fields(Layout)]
        slots: dict[tuple[int, int], Slot] = {}
        for row in range(shape[0]):
            inside = packed[row] if row < len(packed) else ()
            own = write_layout(inside, tokens[row], *(x[row] for x in layout))
            slots |= {(row, number): slot for number, slot in enumerate(own)}
        pairs = max([self.slots, *(number + 1 for _, number in slots)])
        return PackedRows(tokens, Layout(*layout), slots, pairs, passes)


def write_layout(
    pieces: Sequence[Piece],
    tokens: np.ndarray,
    positions: np.ndarray,
    reach: np.ndarray,
    parent: np.ndarray,
) -> list[Slot]:
    """Writes the pieces into one row [T], one after another; returns the slots of the row.

    Padding keeps to itself: it sees nothing else and nothing else sees it.
    """
    width = len(tokens)
    positions[:] = 0
    reach[:] = np.arange(1, width + 1)
    parent[:] = np.arange(width)
    slots = []
    at = 0
    for piece in pieces:
        start, at = at, at + len(piece.context)
        _write(tokens, start, piece.context)
        positions[start:at] = np.arange(len(piece.context))
        reach[start:at] = start + piece.length
        parent[start + 1 : at] = np.arange(start, at - 1)
        fork = at - 1
        for branch in piece.branches:
            begin, at = at, at + len(branch)
            _write(tokens, begin, branch)
            positions[begin:at] = len(piece.context) + np.arange(len(branch))
            reach[begin:at] = at
            parent[begin:at] = [fork, *range(begin, at - 1)]
        slots += [slot.moved(start) for slot in piece.slots]
    return slots


def _write(row: np.ndarray, at: int, ids: Ids) -> None:
    row[at : at + len(ids)] = ids


def mark(row: np.ndarray, *parts: range) -> None:
    """Sets a mask [T] on ranges of tokens."""
    for part in parts:
        row[part.start : part.stop] = True
