"""Batches of responses that are imitated: one a row, or packed."""

import numpy as np

from stair_jax.data import packing
from stair_jax.data.batches import SftBatch
from stair_jax.data.dataset import Dataset, write
from stair_jax.data.examples import SftExample
from stair_jax.data.packing import Piece


class SftData(Dataset[SftExample, SftBatch]):
    """Batches of `SftExample`; packed ones hold several examples a row."""

    @property
    def teacher_rows(self) -> list[SftExample]:
        """What the trained model is looked at on: the rows set aside, or all where none are."""
        return self.eval_examples or self.examples

    def pieces(self, indices: np.ndarray) -> list[Piece]:
        """Returns these rows as pieces of packed batches."""
        return [packing.chain(self._all[i], i) for i in indices.tolist()]

    def _arrays(self, indices: np.ndarray) -> SftBatch:
        return self._packed(indices) if self.config.batching == "pack" else self._plain(indices)

    def _plain(self, indices: np.ndarray) -> SftBatch:
        passes, shape = self._room(indices)
        out = SftBatch.empty(np.full(shape, self.pad_id, np.int32))
        for row, i in enumerate(indices):
            example = self._all[i]
            write(out.tokens[row], example.prompt, example.response)
            out.loss_mask[row, len(example.prompt) : example.length] = True
            out.weight[row] = 1
        return out.cut(passes)

    def _packed(self, indices: np.ndarray) -> SftBatch:
        packed = self._packer.pack(self.pieces(indices))
        out = SftBatch.empty(packed.tokens, packed.layout)
        for (row, _), slot in packed.slots.items():
            out.weight[row] = 1
            packing.mark(out.loss_mask[row], slot.chosen)
        return out.cut(packed.passes)
