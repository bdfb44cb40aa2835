"""Batches of preference pairs: two rows a pair, or one tree a sibling group."""

import copy
from collections.abc import Mapping, Sequence

import numpy as np

from stair_jax.config.schema import DpoConfig, TrainConfig
from stair_jax.data import order, packing, trajectories
from stair_jax.data.batches import PairBatch
from stair_jax.data.dataset import Dataset, write
from stair_jax.data.examples import Ids, PairExample, SftExample
from stair_jax.data.packing import Branches, Piece, Slot
from stair_jax.data.trajectories import Key


class DpoData(Dataset[PairExample | SftExample, PairBatch]):
    """Batches of pairs and anchors, as pairs of rows ("bucket") or as trees ("tree").

    An epoch holds every pair once, and `anchors_per_pair` times as many anchors: good responses
    that join the SFT term only.

    What is compared are the steps, the whole responses under scope="response"; what is trained the
    chosen response, its step alone under sft_scope="step". The reference's log-probs are there
    once `with_reference` was called.
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
        self.reference: np.ndarray | None = None  # [rows, 2] sums over the compared tokens
        super().__init__(
            pairs,
            config,
            anchors if loss.anchors_per_pair else (),
            seed=seed,
            pad_id=pad_id,
            row_shards=row_shards,
        )

    @property
    def pairs(self) -> int:
        """Pairs of an epoch."""
        return len(self.examples) - self._spare

    @property
    def anchors(self) -> int:
        """Anchors of an epoch."""
        return round(self.pairs * self.loss.anchors_per_pair) if self._spare else 0

    @property
    def _sides(self) -> int:
        return 1 if self._tree else 2

    def _ordered(self) -> order.Order:
        batch, seed = self.config.batch, self.seed
        more = {"anchors": self._spare, "anchors_per_epoch": self.anchors}
        if self._tree:
            return order.ByGroup(self._groups(0, self.pairs), batch, seed, **more)
        return order.ByBucket(self._buckets[: len(self.examples)], batch, seed, **more)

    def _groups(self, first: int, end: int) -> np.ndarray:
        """Returns the sibling groups of these rows, none of which is an anchor."""
        pairs = [x for x in self._all[first:end] if isinstance(x, PairExample)]
        return packing.group_keys((x.prompt, x.prefix) for x in pairs)

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
        out: list[Piece] = []
        groups: dict[tuple[Ids, Ids], list[Branches]] = {}
        for i in indices.tolist():
            example = self._all[i]
            if isinstance(example, PairExample):
                branches = i, example.chosen, example.rejected
                groups.setdefault((example.prompt, example.prefix), []).append(branches)
            else:
                out.append(packing.chain(example, i))
        return [*out, *packing.families(groups, self.config.buckets[-1])]

    def _fault(self, example: PairExample | SftExample) -> str:
        reason = super()._fault(example)
        if not reason and self._tree and isinstance(example, PairExample):
            both = len(example.prompt + example.prefix) + len(example.chosen + example.rejected)
            # The shortest tree of a pair is its context with both of its steps.
            reason = "too long with both steps" if both > self.config.buckets[-1] else ""
        return reason

    def _eval_keys(self) -> np.ndarray:
        if not self._tree:
            return super()._eval_keys()
        return self._groups(len(self.examples), len(self._all))

    def _arrays(self, indices: np.ndarray) -> PairBatch:
        return self._trees(indices) if self._tree else self._pairwise(indices)

    def _pairwise(self, indices: np.ndarray) -> PairBatch:
        passes, (rows, width) = self._room(indices)
        tokens = np.full((rows, 2, width), self.pad_id, np.int32)
        out = PairBatch.empty(tokens, reference=self.reference is not None)
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
                (slot,) = packing.chain(example, i).slots
            self._fill(out, (row,), slot)
        return out.cut(passes)

    def _trees(self, indices: np.ndarray) -> PairBatch:
        packed = self._packer.pack(self.pieces(indices))
        out = PairBatch.empty(
            packed.tokens,
            packed.layout,
            pairs=packed.pairs,
            reference=self.reference is not None,
        )
        for at, slot in packed.slots.items():
            self._fill(out, at, slot)
        return out.cut(packed.passes)

    def _fill(self, out: PairBatch, at: tuple[int, ...], slot: Slot) -> None:
        """Writes masks and numbers of a row of the data at index `at`."""
        example = self._all[slot.row]
        out.sft_weight[at] = 1
        trained = (slot.chosen,)
        if isinstance(example, PairExample):
            out.weight[at] = 1
            out.depth[at] = example.depth
            if self.reference is not None:
                out.ref_logp[at] = self.reference[slot.row]
            shared = (slot.shared,) if self.loss.scope == "response" else ()
            for side, step in enumerate((slot.chosen, slot.rejected)):
                packing.mark(out.step_mask[at][side], *shared, step)
            if self.loss.sft_scope == "response":
                trained = (slot.shared, slot.chosen)
        packing.mark(out.sft_mask[at], *trained)
