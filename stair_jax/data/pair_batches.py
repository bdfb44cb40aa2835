"""Batches of preference pairs: two rows a pair, or one tree a sibling group."""

import copy
from collections.abc import Mapping, Sequence

import numpy as np

from stair_jax.config.schema import DpoConfig, TrainConfig
from stair_jax.data import order, packing, trajectories
from stair_jax.data.batches import Batch, Data, cut, write
from stair_jax.data.examples import Example, Ids, PairExample, SftExample
from stair_jax.data.packing import Packer, Piece, Slot
from stair_jax.data.trajectories import Key


class DpoData(Data):
    """Batches of pairs and anchors.

    An epoch holds every pair once, and `anchors_per_pair` times as many anchors: good responses
    that join the SFT term only (weight 0, sft_weight 1).

    As "bucket": tokens, step_mask [A, m, 2, T] (chosen, rejected), sft_mask [A, m, T], weight,
    sft_weight, depth [A, m], ref_logp [A, m, 2].
    As "tree", P pairs a row: tokens, positions, reach, parent [A, m, T], step_mask [A, m, P, 2, T],
    sft_mask [A, m, P, T], weight, sft_weight, depth [A, m, P], ref_logp [A, m, P, 2].

    `step_mask` holds the compared tokens, the whole responses under scope="response"; `sft_mask`
    the chosen response, its step alone under sft_scope="step". `ref_logp` is there once
    `with_reference` was called.
    """

    def __init__(
        self,
        pairs: Sequence[PairExample],
        anchors: Sequence[SftExample],
        config: TrainConfig,
        loss: DpoConfig,
        *,
        seed: int,
        pad_id: int,
        row_shards: int,
    ):
        self.loss, self._tree = loss, config.batching == "tree"
        super().__init__(
            pairs,
            anchors if loss.anchors_per_pair else (),
            config,
            sides=1 if self._tree else 2,
            seed=seed,
            pad_id=pad_id,
            row_shards=row_shards,
        )
        self.pairs = len(self.examples) - self._spare
        self.anchors = round(self.pairs * loss.anchors_per_pair) if self._spare else 0
        self.reference: np.ndarray | None = None  # [rows, 2] sums over the compared tokens
        more = {"anchors": self._spare, "anchors_per_epoch": self.anchors}
        if self._tree:
            keys = packing.group_keys([self._pair(i) for i in range(self.pairs)])
            self._by: order.Order = order.ByGroup(keys, config.batch, seed, **more)
        else:
            buckets = self._buckets[: len(self.examples)]
            self._by = order.ByBucket(buckets, config.batch, seed, **more)
        self._packer = self._packer_for(self.pieces) if self._tree else None

    @property
    def _order(self) -> order.Order:
        return self._by

    def trajectories(self) -> dict[Key, tuple[Ids, Ids]]:
        """Returns all distinct whole trajectories, those set aside too, as (prompt, response)."""
        pairs = [x for x in self._all if isinstance(x, PairExample)]
        both = [(x.prompt, side) for x in pairs for side in x.sides]
        return {trajectories.key_of(*each): each for each in both}

    def with_reference(self, table: Mapping[Key, np.ndarray]) -> "DpoData":
        """Returns the same data with the reference's log-probs of the compared tokens.

        Args:
          table: log-probs [tokens of the response] in nats, for every key of `trajectories`.

        Raises:
          ValueError: for a trajectory that the table lacks, or has in another length.
        """
        out = copy.copy(self)
        out.reference = np.zeros((len(self._all), 2), np.float32)
        for row, example in enumerate(self._all):
            if not isinstance(example, PairExample):
                continue
            skip = len(example.prefix) if self.loss.scope == "step" else 0
            for side, response in enumerate(example.sides):
                logp = table.get(trajectories.key_of(example.prompt, response))
                if logp is None or len(logp) != len(response):
                    found = "none" if logp is None else len(logp)
                    raise ValueError(
                        f"reference log-probs of {example.id}: found {found}, expected"
                        f" {len(response)} tokens"
                    )
                out.reference[row, side] = np.sum(logp[skip:], dtype=np.float64)
        return out

    def pieces(self, indices: np.ndarray) -> list[Piece]:
        """Returns these rows as pieces of packed batches: a sibling group is one, an anchor too."""
        out, families = [], {}
        for i in indices.tolist():
            example = self._all[i]
            if isinstance(example, PairExample):
                families.setdefault((example.prompt, example.prefix), []).append((i, example))
            else:
                out.append(packing.chain(example, i))
        for members in families.values():
            out += packing.family(members, self.config.buckets[-1])
        return out

    def _pair(self, i: int) -> PairExample:
        example = self._all[i]
        assert isinstance(example, PairExample)
        return example

    def _fault(self, example: Example) -> str:
        reason = super()._fault(example)
        if not reason and self._tree and isinstance(example, PairExample):
            both = len(example.prompt + example.prefix) + len(example.chosen + example.rejected)
            # The shortest tree of a pair is its context with both of its steps.
            reason = "too long with both steps" if both > self.config.buckets[-1] else ""
        return reason

    def _eval_parts(self) -> list[np.ndarray]:
        if not self._tree:
            return super()._eval_parts()
        first = len(self.examples)
        keys = packing.group_keys([self._pair(i) for i in range(first, len(self._all))])
        rows, batch = first + np.argsort(keys, kind="stable"), self.config.batch
        return [rows[at : at + batch] for at in range(0, len(rows), batch)]

    def _arrays(self, indices: np.ndarray) -> Batch:
        return self._trees(self._packer, indices) if self._packer else self._pairwise(indices)

    def _pairwise(self, indices: np.ndarray) -> Batch:
        width = self._width(indices)
        passes, micro = self._shape(width, max(self._most, len(indices)))
        tokens = np.full((passes * micro, 2, width), self.pad_id, np.int32)
        out = self._empty(width, passes * micro) | {"tokens": tokens}
        for row, i in enumerate(indices.tolist()):
            example = self._all[i]
            if isinstance(example, PairExample):
                for side, response in enumerate(example.sides):
                    write(tokens[row, side], example.prompt, response)
                start, end = len(example.prompt), len(example.prompt + example.prefix)
                steps = [range(end, end + len(x)) for x in (example.chosen, example.rejected)]
                slot = Slot(i, range(start, end), *steps)
            else:
                write(tokens[row, 0], example.prompt, example.response)
                slot = Slot(i, range(0), range(len(example.prompt), example.length), range(0))
            self._fill(out, (row,), slot, 0)
        return cut(out, passes)

    def _trees(self, packer: Packer, indices: np.ndarray) -> Batch:
        out, places = packer.layout(self.pieces(indices))
        slots = max(packer.slots, max((place.number + 1 for place in places), default=1))
        out |= self._empty(packer.width, len(out["tokens"]), slots)
        for row, number, start, slot in places:
            self._fill(out, (row, number), slot, start)
        return cut(out, len(out["tokens"]) // packer.micro)

    def _empty(self, width: int, *slots: int) -> Batch:
        """Masks, weights and log-probs of slots [*slots] without a row."""
        out = {
            "step_mask": np.zeros((*slots, 2, width), bool),
            "sft_mask": np.zeros((*slots, width), bool),
            "weight": np.zeros(slots, np.float32),
            "sft_weight": np.zeros(slots, np.float32),
            "depth": np.zeros(slots, np.int32),
        }
        if self.reference is not None:
            out["ref_logp"] = np.zeros((*slots, 2), np.float32)
        return out

    def _fill(self, out: Batch, at: tuple[int, ...], slot: Slot, start: int) -> None:
        """Writes masks and numbers of a row at index `at`; its piece begins at `start`."""
        example = self._all[slot.row]
        out["sft_weight"][at] = 1
        trained = (slot.chosen,)
        if isinstance(example, PairExample):
            out["weight"][at] = 1
            out["depth"][at] = example.depth
            if self.reference is not None:
                out["ref_logp"][at] = self.reference[slot.row]
            shared = (slot.shared,) if self.loss.scope == "response" else ()
            for side, step in enumerate((slot.chosen, slot.rejected)):
                packing.mark(out["step_mask"][at][side], start, *shared, step)
            if self.loss.sft_scope == "response":
                trained = (slot.shared, slot.chosen)
        packing.mark(out["sft_mask"][at], start, *trained)
