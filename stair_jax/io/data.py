"""From rows to batches: what is trained, in which order, padded to which length.

The data position of a run is its step number: `batch_at(step)` is a pure function of the rows, the
seed and the step. Rows are shuffled every epoch, then sorted by length bucket and cut into
batches, which are shuffled again: the rows of a batch share a bucket wherever enough of them do.
"""

import copy
import dataclasses
import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from stair_jax.records import Pair, Response, SftRow
from stair_jax.text import Codec

Ids = tuple[int, ...]
Batch = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SftExample:
    """A prompt and what is trained after it; a finished response ends in end-of-sequence."""

    id: str
    prompt: Ids
    response: Ids

    @property
    def length(self) -> int:
        """Tokens of the whole row."""
        return len(self.prompt) + len(self.response)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairExample:
    """Two steps after one context; a step that finishes its trajectory ends in end-of-sequence."""

    id: str
    prompt: Ids
    prefix: Ids  # of the response, shared by both
    chosen: Ids
    rejected: Ids

    @property
    def length(self) -> int:
        """Tokens of the longer side."""
        both = max(len(self.chosen), len(self.rejected))
        return len(self.prompt) + len(self.prefix) + both


def closed(ids: Iterable[int], terminal: bool, codec: Codec) -> Ids:
    """Returns `ids`, with end-of-sequence behind a finished trajectory and only there.

    After an unfinished step it would teach the model to stop there, through the preference and
    the SFT term alike. A trajectory that the model itself has ended stays as it is.
    """
    ids = tuple(ids)
    ended = bool(ids) and ids[-1] in codec.end_ids
    return (*ids, codec.eos_id) if terminal and not ended else ids


def sft_examples(rows: Iterable[SftRow], codec: Codec) -> list[SftExample]:
    """Tokenizes teacher rows; a response without its Output block is not finished: no ending."""
    examples = []
    for row in rows:
        ids = codec.response_ids(row.response)
        terminal = bool(ids) and ids[-1] in codec.end_stop
        prompt = tuple(codec.prompt_ids(row.question))
        response = closed(ids, terminal, codec)
        examples.append(SftExample(id=row.id, prompt=prompt, response=response))
    return examples


def response_examples(rows: Iterable[Response], codec: Codec) -> list[SftExample]:
    """Takes good responses of trees over, as the ids that were sampled."""
    return [
        SftExample(
            id=row.id, prompt=tuple(codec.prompt_ids(row.question)),
            response=closed(row.ids, row.terminal, codec),
        )
        for row in rows
    ]  # fmt: skip


def pair_examples(rows: Iterable[Pair], codec: Codec) -> list[PairExample]:
    """Takes preference pairs over, as the ids that were sampled."""
    return [
        PairExample(
            id=row.id, prompt=tuple(codec.prompt_ids(row.question)), prefix=row.prefix,
            chosen=closed(row.chosen, row.chosen_terminal, codec),
            rejected=closed(row.rejected, row.rejected_terminal, codec),
        )
        for row in rows
    ]  # fmt: skip


def epoch_batches(
    lengths: np.ndarray, *, buckets: Sequence[int], batch: int, key: Sequence[int]
) -> list[np.ndarray]:
    """Returns the row indices of every batch of an epoch; each row occurs exactly once.

    Only one batch is incomplete. Rows that do not fill a batch of their bucket join longer ones.

    Args:
      lengths: [rows] tokens.
      buckets: rising lengths.
      batch: rows in a batch.
      key: numbers that the order is drawn from, such as (seed, epoch).
    """
    rng = np.random.default_rng(list(key))
    order = rng.permutation(len(lengths))
    bucket = np.searchsorted(buckets, lengths[order])
    order = order[np.argsort(bucket, kind="stable")]
    parts = [order[at : at + batch] for at in range(0, len(order), batch)]
    return [parts[i] for i in rng.permutation(len(parts))]


class _Data:
    """What both kinds of data share: dropping, ordering, random access."""

    def __init__(self, examples: Sequence, *, buckets: tuple[int, ...], batch: int, seed: int,
                 pad_id: int):  # fmt: skip
        self.buckets, self.batch, self.seed, self.pad_id = buckets, batch, seed, pad_id
        self.dropped: dict[str, list[str]] = {}  # reason -> ids, nothing is cut short
        self.examples = [x for x in examples if self._keep(x)]
        self._lengths = np.array([x.length for x in self.examples], np.int64)
        self._plan: tuple[int, list[np.ndarray]] = (-1, [])
        text = json.dumps([dataclasses.astuple(x) for x in self.examples])
        self.digest = hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

    def _keep(self, example) -> bool:
        if reason := self._reason(example):
            self.dropped.setdefault(reason, []).append(example.id)
        return not reason

    def _reason(self, example) -> str:
        return "too long" if example.length > self.buckets[-1] else ""

    def _epoch(self, epoch: int) -> np.ndarray:
        """Indices of the rows that take part in `epoch`."""
        del epoch
        return np.arange(len(self.examples))

    @property
    def steps_per_epoch(self) -> int:
        """Batches that an epoch takes."""
        return -(-len(self._epoch(0)) // self.batch)

    def rows_at(self, step: int) -> list:
        """Returns the examples of the batch of 0-based `step`."""
        return [self.examples[i] for i in self._indices(step)]

    def batch_at(self, step: int) -> Batch:
        """Returns the batch of 0-based `step`; absent rows are padding of weight 0."""
        return self._arrays(self._indices(step), self.batch)

    def _indices(self, step: int) -> np.ndarray:
        epoch, at = divmod(step, self.steps_per_epoch)
        if self._plan[0] != epoch:
            rows = self._epoch(epoch)
            parts = epoch_batches(
                self._lengths[rows], buckets=self.buckets, batch=self.batch, key=(self.seed, epoch)
            )
            self._plan = (epoch, [rows[part] for part in parts])
        return self._plan[1][at]

    def _width(self, indices: np.ndarray) -> int:
        """The smallest bucket that holds these rows."""
        return self.buckets[int(np.searchsorted(self.buckets, self._lengths[indices].max()))]

    def _arrays(self, indices: np.ndarray, rows: int) -> Batch:
        raise NotImplementedError


class SftData(_Data):
    """Batches of `SftExample`: tokens [B, T], loss_mask [B, T], weight [B]."""

    def _reason(self, example: SftExample) -> str:
        return "empty response" if not example.response else super()._reason(example)

    def _arrays(self, indices: np.ndarray, rows: int) -> Batch:
        shape = (rows, self._width(indices))
        out = {
            "tokens": np.full(shape, self.pad_id, np.int32),
            "loss_mask": np.zeros(shape, bool),
            "weight": np.zeros(rows, np.float32),
        }
        for row, i in enumerate(indices):
            example = self.examples[i]
            _write(out["tokens"][row], example.prompt, example.response)
            out["loss_mask"][row, len(example.prompt) : example.length] = True
            out["weight"][row] = 1
        return out


class DpoData(_Data):
    """Batches of pairs and anchors; see `train.losses.Dpo` for the arrays.

    An epoch holds every pair once, and `anchors_per_pair` times as many anchors: good responses
    that join the SFT term only. Anchors are taken in turn, so that epochs use them evenly.
    """

    def __init__(
        self, pairs: Sequence[PairExample], anchors: Sequence[SftExample] = (), *,
        anchors_per_pair: float, buckets: tuple[int, ...], batch: int, seed: int, pad_id: int,
    ):  # fmt: skip
        super().__init__([*pairs, *anchors], buckets=buckets, batch=batch, seed=seed, pad_id=pad_id)
        self.pairs = sum(isinstance(x, PairExample) for x in self.examples)
        spare = len(self.examples) - self.pairs
        self.anchors = round(self.pairs * anchors_per_pair) if spare else 0  # of an epoch
        self.reference: np.ndarray | None = None  # [pairs, 2] summed step log-probs

    def with_reference(self, logp: np.ndarray) -> "DpoData":
        """Returns the same data, with the reference model's log-probs [pairs, 2] of every step."""
        if logp.shape != (self.pairs, 2):
            raise ValueError(f"reference log-probs: {logp.shape}, expected {(self.pairs, 2)}")
        out = copy.copy(self)
        out.reference = np.asarray(logp, np.float32)
        return out

    def pair_batches(self, rows: int) -> Iterator[tuple[np.ndarray, Batch]]:
        """Yields all pairs once, shortest first: their indices and arrays of `rows` rows."""
        order = np.argsort(self._lengths[: self.pairs], kind="stable")
        for at in range(0, len(order), rows):
            yield order[at : at + rows], self._arrays(order[at : at + rows], rows)

    def batch_at(self, step: int) -> Batch:
        """Returns the batch of 0-based `step`, the reference's log-probs included."""
        if self.reference is None:
            raise RuntimeError("DpoData has no reference log-probs: call with_reference first")
        indices = self._indices(step)
        out = self._arrays(indices, self.batch)
        out["ref_logp"] = np.zeros((self.batch, 2), np.float32)
        is_pair = indices < self.pairs
        out["ref_logp"][np.flatnonzero(is_pair)] = self.reference[indices[is_pair]]
        return out

    def _reason(self, example: PairExample | SftExample) -> str:
        if isinstance(example, SftExample):
            return "empty response" if not example.response else super()._reason(example)
        if not example.chosen or not example.rejected:
            return "empty step"
        if example.chosen == example.rejected:
            return "equal steps"
        return super()._reason(example)

    def _epoch(self, epoch: int) -> np.ndarray:
        spare = len(self.examples) - self.pairs
        turns = np.arange(epoch * self.anchors, (epoch + 1) * self.anchors)
        drawn = [
            self.pairs + np.random.default_rng([self.seed, cycle, 1]).permutation(spare)[
                turns[turns // spare == cycle] % spare]
            for cycle in np.unique(turns // max(spare, 1))
        ]  # fmt: skip
        return np.concatenate([np.arange(self.pairs), *drawn])

    def _arrays(self, indices: np.ndarray, rows: int) -> Batch:
        width = self._width(indices)
        out = {
            "tokens": np.full((rows, 2, width), self.pad_id, np.int32),
            "step_mask": np.zeros((rows, 2, width), bool),
            "sft_mask": np.zeros((rows, width), bool),
            "weight": np.zeros(rows, np.float32),
            "sft_weight": np.zeros(rows, np.float32),
        }
        for row, i in enumerate(indices):
            example = self.examples[i]
            out["sft_weight"][row] = 1
            start = len(example.prompt)
            if isinstance(example, SftExample):
                _write(out["tokens"][row, 0], example.prompt, example.response)
                out["sft_mask"][row, start : example.length] = True
                continue
            out["weight"][row] = 1
            context = start + len(example.prefix)
            for side, ids in enumerate((example.chosen, example.rejected)):
                _write(out["tokens"][row, side], example.prompt, example.prefix, ids)
                out["step_mask"][row, side, context : context + len(ids)] = True
            out["sft_mask"][row, start : context + len(example.chosen)] = True
        return out


def _write(row: np.ndarray, *pieces: Ids) -> None:
    """Writes the pieces one after another from the row's start."""
    at = 0
    for ids in pieces:
        row[at : at + len(ids)] = ids
        at += len(ids)
