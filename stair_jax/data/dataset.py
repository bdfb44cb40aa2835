"""From rows to batches [A, m, ...]: A micro-batches of m rows, which one optimiser step adds up.

The data position of a run is its step number: `batch_at(step)` is a pure function of the rows, the
settings, the seed and the step. The number of devices changes how a batch is cut into
micro-batches, never which rows are in it.
"""

import abc
import functools
from collections.abc import Sequence
from typing import Generic, TypeVar

import grain
import numpy as np

from stair_jax.config.schema import TrainConfig
from stair_jax.data import examples as examples_lib
from stair_jax.data import order
from stair_jax.data.batches import BatchT
from stair_jax.data.examples import Example, Ids
from stair_jax.data.packing import Packer, Piece

RowT = TypeVar("RowT", bound=Example)
PREFETCH = 4  # batches made ahead, on a thread


class Dataset(abc.ABC, Generic[RowT, BatchT]):
    """What all kinds of data share: dropping, setting aside, ordering, shapes, the stream.

    Args:
      rows: that an epoch shows once each.
      config: batch, batching, buckets, micro_tokens, eval_rows; epochs and max_steps bound the
        steps that the shapes of packed batches are planned for.
      anchors: of which an epoch shows some; they come after `rows` in `examples`.
      seed: of the order, and of the rows that are set aside.
      pad_id: written where there is no token.
      row_shards: devices that rows are spread over.

    Raises:
      ValueError: where eval_rows leaves nothing to train on.
    """

    def __init__(
        self,
        rows: Sequence[RowT],
        config: TrainConfig,
        anchors: Sequence[RowT] = (),
        /,
        *,
        seed: int,
        pad_id: int,
        row_shards: int,
    ):
        self.config, self.seed, self.pad_id, self.row_shards = config, seed, pad_id, row_shards
        self.dropped: dict[str, list[str]] = {}  # reason -> ids, nothing is cut short
        kept = [x for x in rows if self._keep(x, self._fault(x))]
        held = _held_prompts(kept, config.eval_rows, seed)
        train = [x for x in kept if x.prompt not in held]
        self.eval_examples = [x for x in kept if x.prompt in held]
        if kept and not train:
            raise ValueError(
                f"config train.eval_rows: {config.eval_rows} sets all {len(kept)} rows aside,"
                " expected fewer"
            )
        spare = [x for x in anchors if self._keep(x, self._fault(x))]
        spare = [x for x in spare if self._keep(x, "prompt set aside" if x.prompt in held else "")]
        self._spare = len(spare)
        self.examples: list[RowT] = [*train, *spare]
        self._all = [*self.examples, *self.eval_examples]
        self._buckets = np.searchsorted(config.buckets, [x.length for x in self._all])
        self.digest = examples_lib.digest([*self.examples, *self.eval_examples])
        self._order = self._ordered()

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps that an epoch takes."""
        return self._order.steps_per_epoch

    def rows_at(self, step: int) -> list[RowT]:
        """Returns the examples of the batch of 0-based `step`."""
        return [self.examples[i] for i in self._order.at(step)]

    def batch_at(self, step: int) -> BatchT:
        """Returns the batch of 0-based `step`; what is absent has weight 0."""
        return self._arrays(self._order.at(step))

    def eval_batches(self) -> list[BatchT]:
        """Returns the rows that are set aside, in batches of the shapes that training has."""
        return [self._arrays(part) for part in self._eval_parts()]

    def stream(self, start: int = 0) -> grain.DatasetIterator:
        """Returns an endless iterator over the batches from 0-based `start` on.

        Its state is one number, the next step, as JSON-able get_state() and set_state() know it.
        """
        steps = self._order.parts().map_with_index(lambda step, _: self.batch_at(step))
        options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=PREFETCH)
        batches = iter(steps.to_iter_dataset(options))
        batches.set_state({**batches.get_state(), "next_index": start})
        return batches

    def pieces(self, indices: np.ndarray) -> list[Piece]:
        """Returns these rows of `_all` as pieces of packed batches, for data that has such."""
        raise NotImplementedError

    @abc.abstractmethod
    def _arrays(self, indices: np.ndarray) -> BatchT:
        """Returns the batch of these rows of `_all`."""

    def _ordered(self) -> order.Order:
        """Returns which rows a step takes: those of a length."""
        buckets = self._buckets[: len(self.examples)]
        return order.ByBucket(buckets, self.config.batch, self.seed)

    @property
    def _sides(self) -> int:
        """Rows of tokens that one row of a batch holds."""
        return 1

    def _fault(self, example: RowT) -> str:
        return examples_lib.fault(example, self.config.buckets[-1])

    def _keep(self, example: RowT, reason: str) -> bool:
        if reason:
            self.dropped.setdefault(reason, []).append(example.id)
        return not reason

    def _eval_parts(self) -> list[np.ndarray]:
        """Returns the rows set aside, those that belong together side by side, as batches."""
        first, batch = len(self.examples), self.config.batch
        rows = first + np.argsort(self._eval_keys(), kind="stable")
        return [rows[at : at + batch] for at in range(0, len(rows), batch)]

    def _eval_keys(self) -> np.ndarray:
        """Returns what the rows set aside are sorted by."""
        return self._buckets[len(self.examples) :]

    def _planned(self) -> list[np.ndarray]:
        """Every batch of the epochs that this run goes through, and those set aside."""
        epochs = int(np.ceil(self.config.epochs))
        if self.config.max_steps and self.steps_per_epoch:
            epochs = min(epochs, -(-self.config.max_steps // self.steps_per_epoch))
        parts = [part for epoch in range(epochs) for part in self._order.batches_of(epoch)]
        return [*parts, *self._eval_parts()]

    @functools.cached_property
    def _packer(self) -> Packer:
        """What packs the pieces of every batch of the run into one shape."""
        parts = (self.pieces(part) for part in self._planned())
        return Packer.plan(parts, self.config.buckets, self._shape, self.pad_id)

    def _room(self, indices: np.ndarray) -> tuple[int, tuple[int, int]]:
        """Returns A, and the (rows, tokens) of a batch that holds these examples one a row.

        The tokens are those of the smallest bucket, the rows those of a batch that is whole.
        """
        width = self.config.buckets[int(self._buckets[indices].max())]
        rows = max(min(self.config.batch, self._order.size), len(indices))
        passes, micro = self._shape(width, rows)
        return passes, (passes * micro, width)

    def _shape(self, width: int, rows: int) -> tuple[int, int]:
        tokens = width * self._sides
        return rows_and_passes(rows, tokens, self.config.micro_tokens, self.row_shards)


def rows_and_passes(rows: int, tokens: int, micro_tokens: int, row_shards: int) -> tuple[int, int]:
    """Returns (A, m) for `rows` rows of `tokens` tokens: as few passes as fit, of equal size.

    One row a shard is the least, whatever `micro_tokens` says.
    """
    most = max(micro_tokens // tokens // row_shards, 1) * row_shards
    passes = -(-rows // most)
    each = -(-rows // passes)
    return passes, -(-each // row_shards) * row_shards


def write(row: np.ndarray, *pieces: Sequence[int] | Sequence[float]) -> None:
    """Writes the pieces one after another from the row's start."""
    at = 0
    for ids in pieces:
        row[at : at + len(ids)] = ids
        at += len(ids)


def _held_prompts(rows: Sequence[Example], count: int, seed: int) -> set[Ids]:
    """Draws whole prompts until they have `count` rows or more."""
    if not count or not rows:
        return set()
    sizes: dict[Ids, int] = {}
    for row in rows:
        sizes[row.prompt] = sizes.get(row.prompt, 0) + 1
    prompts, held, total = list(sizes), set(), 0
    draws = order.shuffled(len(prompts), seed + 0xE7A1)
    for i in range(len(prompts)):
        if total >= count:
            break
        prompt = prompts[order.draw(draws, i)]
        held.add(prompt)
        total += sizes[prompt]
    return held
