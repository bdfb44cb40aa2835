"""Batches for reward models: pairs of trajectories, or trajectories with values on their steps."""

import itertools
from collections.abc import Iterator, Sequence

import numpy as np

from stair_jax.config.schema import TrainConfig
from stair_jax.data import order, packing
from stair_jax.data.batches import Batch, Data, cut, write
from stair_jax.data.examples import ComparisonExample, Example, Ids, PairExample, ValuedExample
from stair_jax.data.packing import Piece


class ComparisonData(Data):
    """Batches of `ComparisonExample`.

    tokens [A, m, 2, T] int32 (better, worse), read [A, m, 2] int32, the position of the token
    whose score counts, weight [A, m] float32, depth [A, m] int32 (0: whole responses).
    """

    def __init__(
        self,
        examples: Sequence[ComparisonExample],
        config: TrainConfig,
        *,
        seed: int,
        pad_id: int,
        row_shards: int,
    ):
        super().__init__(
            examples, (), config, sides=2, seed=seed, pad_id=pad_id, row_shards=row_shards
        )
        buckets = self._buckets[: len(self.examples)]
        self._by_bucket = order.ByBucket(buckets, config.batch, seed)

    @property
    def _order(self) -> order.Order:
        return self._by_bucket

    def _arrays(self, indices: np.ndarray) -> Batch:
        width = self._width(indices)
        passes, micro = self._shape(width, max(self._most, len(indices)))
        rows = passes * micro
        out = {
            "tokens": np.full((rows, 2, width), self.pad_id, np.int32),
            "read": np.zeros((rows, 2), np.int32),
            "weight": np.zeros(rows, np.float32),
            "depth": np.zeros(rows, np.int32),
        }
        for row, i in enumerate(indices):
            example = self._all[i]
            assert isinstance(example, ComparisonExample)
            for side, response in enumerate((example.better, example.worse)):
                write(out["tokens"][row, side], example.prompt, response)
                out["read"][row, side] = len(example.prompt) + len(response) - 1
            out["weight"][row] = 1
            out["depth"][row] = example.depth
        return cut(out, passes)


def parted(examples: Sequence[ComparisonExample]) -> list[PairExample]:
    """Returns each pair with what all trajectories of its prompt begin with set apart.

    At least a token of each remains: its score is read there.
    """
    begin: dict[Ids, Ids] = {}
    for x in examples:
        first = begin.get(x.prompt, x.better[:-1])
        begin[x.prompt] = _common(_common(first, x.better[:-1]), x.worse[:-1])
    return [
        PairExample(
            id=x.id,
            prompt=x.prompt,
            prefix=(shared := begin[x.prompt]),
            chosen=x.better[len(shared) :],
            rejected=x.worse[len(shared) :],
            depth=x.depth,
        )
        for x in examples
    ]


class ComparisonTrees(Data):
    """Batches of `ComparisonExample` by prompt: what its trajectories share is there once.

    P pairs a row: tokens, positions, reach, parent [A, m, T] int32, read [A, m, P, 2] int32
    (better, worse), weight [A, m, P] float32, depth [A, m, P] int32. The pairs of a prompt stay in
    one optimiser step, as far as it has room for them.
    """

    def __init__(
        self,
        examples: Sequence[ComparisonExample],
        config: TrainConfig,
        *,
        seed: int,
        pad_id: int,
        row_shards: int,
    ):
        super().__init__(
            examples, (), config, sides=1, seed=seed, pad_id=pad_id, row_shards=row_shards
        )
        self._parted = parted([x for x in self._all if isinstance(x, ComparisonExample)])
        keys = packing.group_keys(self._parted[: len(self.examples)])
        self._by_group = order.ByGroup(keys, config.batch, seed)
        self._packer = self._packer_for(self.pieces)

    @property
    def _order(self) -> order.Order:
        return self._by_group

    def pieces(self, indices: np.ndarray) -> list[Piece]:
        """Returns these rows as pieces of packed batches, those of a prompt together."""
        families: dict[tuple[Ids, Ids], list[tuple[int, PairExample]]] = {}
        for i in indices.tolist():
            pair = self._parted[i]
            families.setdefault((pair.prompt, pair.prefix), []).append((i, pair))
        longest = self.config.buckets[-1]
        return [
            piece for members in families.values() for piece in packing.family(members, longest)
        ]

    def _fault(self, example: Example) -> str:
        reason = super()._fault(example)
        if reason or not isinstance(example, ComparisonExample):
            return reason
        shared = len(_common(example.better[:-1], example.worse[:-1]))
        both = len(example.prompt + example.better + example.worse) - shared
        return "too long with both sides" if both > self.config.buckets[-1] else ""

    def _eval_parts(self) -> list[np.ndarray]:
        first, batch = len(self.examples), self.config.batch
        rows = first + np.argsort(packing.group_keys(self._parted[first:]), kind="stable")
        return [rows[at : at + batch] for at in range(0, len(rows), batch)]

    def _arrays(self, indices: np.ndarray) -> Batch:
        packer = self._packer
        out, places = packer.layout(self.pieces(indices))
        slots = max(packer.slots, max((place.number + 1 for place in places), default=1))
        shape = (len(out["tokens"]), slots)
        out |= {
            "read": np.zeros((*shape, 2), np.int32),
            "weight": np.zeros(shape, np.float32),
            "depth": np.zeros(shape, np.int32),
        }
        for row, number, start, slot in places:
            at = row, number
            out["read"][at] = [start + side.stop - 1 for side in (slot.chosen, slot.rejected)]
            out["weight"][at], out["depth"][at] = 1, self._parted[slot.row].depth
        return cut(out, shape[0] // packer.micro)


class ValuedData(Data):
    """Batches of `ValuedExample`, whose R labels at most are those of the fullest row.

    tokens [A, m, T] int32; start [A, m] int32, tokens of the prompt; read [A, m, R] int32, the
    positions of the tokens whose scores count; target [A, m, R] float32 in [0, 1], weight
    [A, m, R] float32 (0: no label), depth [A, m, R] int32.
    """

    def __init__(
        self,
        examples: Sequence[ValuedExample],
        config: TrainConfig,
        *,
        seed: int,
        pad_id: int,
        row_shards: int,
    ):
        super().__init__(
            examples, (), config, sides=1, seed=seed, pad_id=pad_id, row_shards=row_shards
        )
        self._reads = max((len(x.reads) for x in self._valued(range(len(self._all)))), default=1)
        buckets = self._buckets[: len(self.examples)]
        self._by_bucket = order.ByBucket(buckets, config.batch, seed)

    @property
    def _order(self) -> order.Order:
        return self._by_bucket

    def in_order(self) -> Iterator[tuple[list[ValuedExample], Batch]]:
        """Yields all rows once, those set aside too, each batch with its rows: row by row.

        The rows of a batch are the first ones of its arrays, once [A, m] is one axis.
        """
        every = np.argsort(self._buckets, kind="stable")
        for at in range(0, len(every), self.config.batch):
            part = every[at : at + self.config.batch]
            yield self._valued(part), self._arrays(part)

    def _valued(self, indices: Sequence[int] | np.ndarray) -> list[ValuedExample]:
        rows = [self._all[i] for i in indices]
        return [row for row in rows if isinstance(row, ValuedExample)]

    def _arrays(self, indices: np.ndarray) -> Batch:
        width = self._width(indices)
        passes, micro = self._shape(width, max(self._most, len(indices)))
        rows, reads = passes * micro, self._reads
        out = {
            "tokens": np.full((rows, width), self.pad_id, np.int32),
            "start": np.zeros(rows, np.int32),
            "read": np.zeros((rows, reads), np.int32),
            "target": np.zeros((rows, reads), np.float32),
            "weight": np.zeros((rows, reads), np.float32),
            "depth": np.zeros((rows, reads), np.int32),
        }
        for row, example in enumerate(self._valued(indices)):
            write(out["tokens"][row], example.prompt, example.response)
            out["start"][row] = len(example.prompt)
            write(out["read"][row], example.reads)
            write(out["target"][row], example.targets)
            write(out["weight"][row], example.weights)
            write(out["depth"][row], example.depths)
        return cut(out, passes)


def _common(first: Ids, second: Ids) -> Ids:
    """Returns the tokens that two rows begin with."""
    both = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=False))
    return tuple(token for token, _ in both)
