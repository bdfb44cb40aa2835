"""From rows to batches [A, m, ...]: A micro-batches of m rows, which one optimiser step adds up.

The data position of a run is its step number: `batch_at(step)` is a pure function of the rows, the
settings, the seed and the step. The number of devices changes how a batch is cut into
micro-batches, never which rows are in it.
"""

import abc
from collections.abc import Callable, Sequence

import grain
import numpy as np

from stair_jax.config.schema import TrainConfig
from stair_jax.data import examples as examples_lib
from stair_jax.data import order, packing
from stair_jax.data.examples import Example, Ids, SftExample
from stair_jax.data.packing import Packer, Piece

Batch = dict[str, np.ndarray]
PREFETCH = 4  # batches made ahead, on a thread


class Data(abc.ABC):
    """What both kinds of data share: dropping, setting aside, ordering, shapes, the stream.

    Args:
      rows: that an epoch shows once each.
      anchors: of which an epoch shows some; they come after `rows` in `examples`.
      config: batch, batching, buckets, micro_tokens, eval_rows; epochs and max_steps bound the
        steps that the shapes of packed batches are planned for.
      sides: rows of tokens that one row of a batch holds.
      seed: of the order, and of the rows that are set aside.
      pad_id: written where there is no token.
      row_shards: devices that rows are spread over.

    Raises:
      ValueError: where eval_rows leaves nothing to train on.
    """

    def __init__(
        self,
        rows: Sequence[Example],
        anchors: Sequence[SftExample],
        config: TrainConfig,
        *,
        sides: int,
        seed: int,
        pad_id: int,
        row_shards: int,
    ):
        self.config, self.seed, self.pad_id, self.row_shards = config, seed, pad_id, row_shards
        self._sides = sides
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
        self.examples: list[Example] = [*train, *spare]
        self._all = [*self.examples, *self.eval_examples]
        self._buckets = np.searchsorted(config.buckets, [x.length for x in self._all])
        self.digest = examples_lib.digest([*self.examples, *self.eval_examples])

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps that an epoch takes."""
        return self._order.steps_per_epoch

    @property
    @abc.abstractmethod
    def _order(self) -> order.Order:
        """Which rows a step takes."""

    def rows_at(self, step: int) -> list[Example]:
        """Returns the examples of the batch of 0-based `step`."""
        return [self.examples[i] for i in self._order.at(step)]

    def batch_at(self, step: int) -> Batch:
        """Returns the arrays of the batch of 0-based `step`; what is absent has weight 0."""
        return self._arrays(self._order.at(step))

    def eval_batches(self) -> list[Batch]:
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

    @abc.abstractmethod
    def _arrays(self, indices: np.ndarray) -> Batch:
        """Returns the batch of these rows of `_all`."""

    def _fault(self, example: Example) -> str:
        return examples_lib.fault(example, self.config.buckets[-1])

    def _keep(self, example: Example, reason: str) -> bool:
        if reason:
            self.dropped.setdefault(reason, []).append(example.id)
        return not reason

    def _eval_parts(self) -> list[np.ndarray]:
        first = len(self.examples)
        rows = first + np.argsort(self._buckets[first:], kind="stable")
        return [rows[at : at + self.config.batch] for at in range(0, len(rows), self.config.batch)]

    def _planned(self) -> list[np.ndarray]:
        """Every batch of the epochs that this run goes through, and those set aside."""
        epochs = int(np.ceil(self.config.epochs))
        if self.config.max_steps and self.steps_per_epoch:
            epochs = min(epochs, -(-self.config.max_steps // self.steps_per_epoch))
        parts = [part for epoch in range(epochs) for part in self._order.batches_of(epoch)]
        return [*parts, *self._eval_parts()]

    @property
    def _most(self) -> int:
        """Rows of a batch that is whole."""
        return min(self.config.batch, self._order.size)

    def _packer_for(self, pieces: Callable[[np.ndarray], list[Piece]]) -> Packer:
        """Plans packed batches that hold every batch of the run."""
        parts = (pieces(part) for part in self._planned())
        return Packer.plan(parts, self.config.buckets, self._shape, self.pad_id)

    def _width(self, indices: np.ndarray) -> int:
        """The smallest bucket that holds these rows."""
        return self.config.buckets[int(self._buckets[indices].max())]

    def _shape(self, width: int, rows: int) -> tuple[int, int]:
        tokens = width * self._sides
        return rows_and_passes(rows, tokens, self.config.micro_tokens, self.row_shards)


class SftData(Data):
    """Batches of `SftExample`: tokens, loss_mask [A, m, T] and weight [A, m].

    Packed ones hold several examples a row, and positions, reach, parent [A, m, T] besides.
    """

    def __init__(
        self,
        examples: Sequence[SftExample],
        config: TrainConfig,
        *,
        seed: int,
        pad_id: int,
        row_shards: int,
    ):
        super().__init__(
            examples, (), config, sides=1, seed=seed, pad_id=pad_id, row_shards=row_shards
        )
        buckets = self._buckets[: len(self.examples)]
        self._by_bucket = order.ByBucket(buckets, config.batch, seed)
        self._packer = self._packer_for(self.pieces) if config.batching == "pack" else None

    @property
    def _order(self) -> order.Order:
        return self._by_bucket

    @property
    def teacher_rows(self) -> list[SftExample]:
        """What the trained model is looked at on: the rows set aside, or all where none are."""
        rows = self.eval_examples or self.examples
        return [row for row in rows if isinstance(row, SftExample)]

    def pieces(self, indices: np.ndarray) -> list[Piece]:
        """Returns these rows as pieces of packed batches."""
        rows = [(self._all[i], int(i)) for i in indices]
        return [packing.chain(x, i) for x, i in rows if isinstance(x, SftExample)]

    def _arrays(self, indices: np.ndarray) -> Batch:
        if self._packer:
            return self._packed(self._packer, indices)
        width = self._width(indices)
        passes, micro = self._shape(width, max(self._most, len(indices)))
        shape = (passes * micro, width)
        out = {
            "tokens": np.full(shape, self.pad_id, np.int32),
            "loss_mask": np.zeros(shape, bool),
            "weight": np.zeros(shape[0], np.float32),
        }
        for row, i in enumerate(indices):
            example = self._all[i]
            assert isinstance(example, SftExample)
            write(out["tokens"][row], example.prompt, example.response)
            out["loss_mask"][row, len(example.prompt) : example.length] = True
            out["weight"][row] = 1
        return cut(out, passes)

    def _packed(self, packer: Packer, indices: np.ndarray) -> Batch:
        out, places = packer.layout(self.pieces(indices))
        out["loss_mask"] = np.zeros(out["tokens"].shape, bool)
        out["weight"] = np.zeros(len(out["tokens"]), np.float32)
        for place in places:
            out["weight"][place.row] = 1
            packing.mark(out["loss_mask"][place.row], place.start, place.slot.chosen)
        return cut(out, len(out["tokens"]) // packer.micro)


def rows_and_passes(rows: int, tokens: int, micro_tokens: int, row_shards: int) -> tuple[int, int]:
    """Returns (A, m) for `rows` rows of `tokens` tokens: as few passes as fit, of equal size.

    One row a shard is the least, whatever `micro_tokens` says.
    """
    most = max(micro_tokens // tokens // row_shards, 1) * row_shards
    passes = -(-rows // most)
    each = -(-rows // passes)
    return passes, -(-each // row_shards) * row_shards


def cut(arrays: Batch, passes: int) -> Batch:
    """Returns arrays [A * m, ...] as [A, m, ...]."""
    return {name: x.reshape(passes, -1, *x.shape[1:]) for name, x in arrays.items()}


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
