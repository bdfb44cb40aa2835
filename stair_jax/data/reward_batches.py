"""Batches for reward models: pairs of trajectories, or trajectories with values on their steps."""

import functools
from collections.abc import Iterator

import numpy as np

from stair_jax.data import order, packing
from stair_jax.data.batches import ComparisonBatch, ValuedBatch
from stair_jax.data.dataset import Dataset, write
from stair_jax.data.examples import ComparisonExample, Ids, ValuedExample, common, shared_by_prompt
from stair_jax.data.packing import Branches, Piece


class ComparisonData(Dataset[ComparisonExample, ComparisonBatch]):
    """Batches of `ComparisonExample`, two rows each."""

    @property
    def _sides(self) -> int:
        return 2

    def _arrays(self, indices: np.ndarray) -> ComparisonBatch:
        passes, (rows, width) = self._room(indices)
        out = ComparisonBatch.empty(np.full((rows, 2, width), self.pad_id, np.int32))
        for row, i in enumerate(indices):
            example = self._all[i]
            for side, response in enumerate((example.better, example.worse)):
                write(out.tokens[row, side], example.prompt, response)
                out.read[row, side] = len(example.prompt) + len(response) - 1
            out.weight[row] = 1
            out.depth[row] = example.depth
        return out.cut(passes)


class ComparisonTrees(Dataset[ComparisonExample, ComparisonBatch]):
    """Batches of `ComparisonExample` by prompt: what its trajectories share is there once.

    The pairs of a prompt stay in one optimiser step, as far as it has room for them.
    """

    def _ordered(self) -> order.Order:
        groups = packing.group_keys(x.prompt for x in self.examples)
        return order.ByGroup(groups, self.config.batch, self.seed)

    @functools.cached_property
    def _shared(self) -> dict[Ids, Ids]:
        """What all trajectories of a prompt begin with."""
        return shared_by_prompt((x.prompt, (x.better, x.worse)) for x in self._all)

    def pieces(self, indices: np.ndarray) -> list[Piece]:
        """Returns these rows as pieces of packed batches, those of a prompt together."""
        groups: dict[tuple[Ids, Ids], list[Branches]] = {}
        for i in indices.tolist():
            example = self._all[i]
            shared = self._shared[example.prompt]
            own = i, example.better[len(shared) :], example.worse[len(shared) :]
            groups.setdefault((example.prompt, shared), []).append(own)
        return [*packing.families(groups, self.config.buckets[-1])]

    def _fault(self, example: ComparisonExample) -> str:
        if reason := super()._fault(example):
            return reason
        shared = len(common(example.better[:-1], example.worse[:-1]))
        both = len(example.prompt + example.better + example.worse) - shared
        return "too long with both sides" if both > self.config.buckets[-1] else ""

    def _eval_keys(self) -> np.ndarray:
        return packing.group_keys(x.prompt for x in self.eval_examples)

    def _arrays(self, indices: np.ndarray) -> ComparisonBatch:
        packed = self._packer.pack(self.pieces(indices))
        out = ComparisonBatch.empty(packed.tokens, packed.layout, pairs=packed.pairs)
        for at, slot in packed.slots.items():
            out.read[at] = [side.stop - 1 for side in (slot.chosen, slot.rejected)]
            out.weight[at], out.depth[at] = 1, self._all[slot.row].depth
        return out.cut(packed.passes)


class ValuedData(Dataset[ValuedExample, ValuedBatch]):
    """Batches of `ValuedExample`, with room for the labels of the fullest row."""

    def in_order(self) -> Iterator[tuple[list[ValuedExample], ValuedBatch]]:
        """Yields all rows once, those set aside too, each batch with its rows: row by row.

        The rows of a batch are the first ones of its arrays, once [A, m] is one axis.
        """
        every = np.argsort(self._buckets, kind="stable")
        for at in range(0, len(every), self.config.batch):
            part = every[at : at + self.config.batch]
            yield [self._all[i] for i in part], self._arrays(part)

    @functools.cached_property
    def _labels(self) -> int:
        """Labels of the fullest row."""
        return max((len(x.reads) for x in self._all), default=1)

    def _arrays(self, indices: np.ndarray) -> ValuedBatch:
        passes, shape = self._room(indices)
        out = ValuedBatch.empty(np.full(shape, self.pad_id, np.int32), self._labels)
        for row, i in enumerate(indices):
            example = self._all[i]
            write(out.tokens[row], example.prompt, example.response)
            out.start[row] = len(example.prompt)
            write(out.read[row], example.reads)
            write(out.target[row], example.targets)
            write(out.weight[row], example.weights)
            write(out.depth[row], example.depths)
        return out.cut(passes)
