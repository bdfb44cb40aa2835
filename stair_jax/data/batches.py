"""What a training step is given: tokens, and what is trained on them.

A batch is a pytree of arrays, of numpy as the data makes it and of JAX on the mesh. Its class says
what its rows are for, its layout whether a row holds several sequences.

Shape letters: *B leading axes, [A, m] (micro-batches of m rows) or [m] within one of them
T tokens of a row  P pairs that share a row  R labels of a row
"""

import abc
from collections.abc import Iterator
from typing import Any, TypeVar

import jax
import numpy as np
from flax import struct

from stair_jax.model import layout as layout_lib
from stair_jax.model.layout import Layout

BatchT = TypeVar("BatchT", bound="TrainingBatch")


class TrainingBatch(struct.PyTreeNode, abc.ABC, kw_only=True):
    """What all batches have."""

    tokens: Any  # [*B, T] int32; [*B, 2, T] of pairs without a layout: each side is a row
    weight: Any  # float32 of a row [*B], a pair [*B, P] or a label [*B, R]; 0 where it is absent
    layout: Layout | None = None  # of rows that hold several sequences

    @property
    def present(self) -> Any:
        """Which rows, pairs or labels are no padding: bool, of the shape of `weight`."""
        return self.weight > 0

    @property
    def filled(self) -> Any:
        """Which of the A micro-batches have a row at all: bool [A]. The others cost nothing."""
        return self.present.reshape(len(self.weight), -1).any(axis=1)

    @property
    def rows(self) -> Any:
        """The tokens as rows of one forward pass: [all rows, T] int32."""
        return self.tokens.reshape(-1, self.tokens.shape[-1])

    def cut(self: BatchT, passes: int) -> BatchT:
        """Returns arrays [A * m, ...] as [A, m, ...]."""
        return jax.tree.map(lambda x: x.reshape(passes, -1, *x.shape[1:]), self)

    def joined(self: BatchT) -> BatchT:
        """Returns arrays [A, m, ...] as [A * m, ...]."""
        return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), self)

    def one_by_one(self: BatchT) -> Iterator[BatchT]:
        """Yields the rows of a batch [A, m, ...], each without leading axes."""
        joined = self.joined()
        for row in range(len(joined.tokens)):
            yield jax.tree.map(lambda x, row=row: x[row], joined)

    @abc.abstractmethod
    def lengths(self) -> np.ndarray:
        """Returns the tokens of every sequence, 0 of an absent one; for batches without layout.

        A sequence ends with the last token that is trained or compared, or whose score is read.
        """

    def scored(self) -> int:
        """Returns how many tokens' log-probabilities the loss reads."""
        return 0

    def real_tokens(self) -> int:
        """Returns how many positions hold a token of a sequence; the rest is padding."""
        return int(np.sum(self.lengths() if self.layout is None else layout_lib.real(self.layout)))

    def visible_keys(self) -> int:
        """Returns how many keys all real tokens see together, each itself included."""
        if self.layout is None:
            lengths = self.lengths().astype(np.int64)
            return int(np.sum(lengths * (lengths + 1) // 2))
        return int(np.sum((self.layout.positions + 1) * layout_lib.real(self.layout)))

    def padding_share(self) -> float:
        """Returns the share of padding in the positions of the micro-batches that are filled."""
        positions = int(np.sum(self.filled)) * self.tokens[0].size
        return 1 - self.real_tokens() / max(positions, 1)


class SftBatch(TrainingBatch, kw_only=True):
    """Responses that are imitated: one a row, or several where rows are packed."""

    loss_mask: Any  # [*B, T] bool, the token is a trained target

    @classmethod
    def empty(cls, tokens: np.ndarray, layout: Layout | None = None) -> "SftBatch":
        """Returns rows of these tokens, all of them absent."""
        return cls(
            tokens=tokens,
            layout=layout,
            loss_mask=np.zeros(tokens.shape, bool),
            weight=np.zeros(tokens.shape[:-1], np.float32),
        )

    def lengths(self) -> np.ndarray:
        """Returns lengths [*B]."""
        return _ends(self.loss_mask)

    def scored(self) -> int:
        """Returns the number of trained tokens."""
        return int(np.sum(self.loss_mask))


class PairBatch(TrainingBatch, kw_only=True):
    """Preferences: two rows a pair, or trees of siblings, P pairs a row, which have a layout.

    An anchor is a response that joins the SFT term only: weight 0, sft_weight 1.
    """

    step_mask: Any  # [*B, 2, T] or [*B, P, 2, T] bool, what is compared: chosen, rejected
    sft_mask: Any  # [*B, T] or [*B, P, T] bool, what is trained of the chosen side
    sft_weight: Any  # [*B] or [*B, P] float32, of the SFT term
    depth: Any  # [*B] or [*B, P] int32, steps from the prompt; 0: not of a tree
    ref_logp: Any = None  # [*B, 2] or [*B, P, 2] float32 nats summed over step_mask, where known

    @classmethod
    def empty(
        cls,
        tokens: np.ndarray,
        layout: Layout | None = None,
        *,
        pairs: int = 0,
        reference: bool = False,
    ) -> "PairBatch":
        """Returns rows of these tokens without a pair.

        Args:
          tokens: [*B, 2, T], or [*B, T] of trees.
          layout: of trees.
          pairs: P, of trees.
          reference: whether the reference's log-probs are known.
        """
        lead = _pairs_shape(tokens, layout, pairs)
        return cls(
            tokens=tokens,
            layout=layout,
            step_mask=np.zeros((*lead, 2, tokens.shape[-1]), bool),
            sft_mask=np.zeros((*lead, tokens.shape[-1]), bool),
            weight=np.zeros(lead, np.float32),
            sft_weight=np.zeros(lead, np.float32),
            depth=np.zeros(lead, np.int32),
            ref_logp=np.zeros((*lead, 2), np.float32) if reference else None,
        )

    @property
    def present(self) -> Any:
        """Which pairs or anchors are no padding."""
        return (self.weight > 0) | (self.sft_weight > 0)

    def wanted(self, *, sft: bool = True) -> Any:
        """Returns the tokens that are compared, and with `sft` those trained: bool as `tokens`."""
        compared = self.step_mask & (self.weight > 0)[..., None, None]
        if sft:
            trained = self.sft_mask & (self.sft_weight > 0)[..., None]
            is_chosen = np.zeros((*compared.shape[:-1], 1), bool)
            is_chosen[..., 0, :] = True
            compared = compared | (trained[..., None, :] & is_chosen)
        return compared if self.layout is None else compared.any(axis=(-3, -2))

    def lengths(self) -> np.ndarray:
        """Returns lengths [*B, 2]."""
        return _ends(self.wanted())

    def scored(self) -> int:
        """Returns the number of tokens compared or trained; siblings share those of their row."""
        return int(np.sum(self.wanted()))


class ComparisonBatch(TrainingBatch, kw_only=True):
    """Pairs of trajectories that a reward model tells apart: two rows a pair, or P pairs a row.

    With P pairs a row, those of a prompt, what they share is there once, and a layout says where.
    """

    read: Any  # [*B, 2] or [*B, P, 2] int32, the position whose score counts: better, worse
    depth: Any  # [*B] or [*B, P] int32, steps of both; 0: whole responses

    @classmethod
    def empty(
        cls, tokens: np.ndarray, layout: Layout | None = None, *, pairs: int = 0
    ) -> "ComparisonBatch":
        """Returns rows of these tokens without a pair; arguments as those of `PairBatch.empty`."""
        lead = _pairs_shape(tokens, layout, pairs)
        return cls(
            tokens=tokens,
            layout=layout,
            read=np.zeros((*lead, 2), np.int32),
            weight=np.zeros(lead, np.float32),
            depth=np.zeros(lead, np.int32),
        )

    def lengths(self) -> np.ndarray:
        """Returns lengths [*B, 2]."""
        return np.where(self.present[..., None], self.read + 1, 0)


class ValuedBatch(TrainingBatch, kw_only=True):
    """Trajectories with values on some of their tokens, one a row."""

    start: Any  # [*B] int32, tokens of the prompt
    read: Any  # [*B, R] int32, positions whose scores count
    target: Any  # [*B, R] float32 in [0, 1]
    depth: Any  # [*B, R] int32, from 1

    @classmethod
    def empty(cls, tokens: np.ndarray, labels: int) -> "ValuedBatch":
        """Returns rows of these tokens with room for `labels` labels each."""
        lead = tokens.shape[:-1]
        return cls(
            tokens=tokens,
            start=np.zeros(lead, np.int32),
            read=np.zeros((*lead, labels), np.int32),
            target=np.zeros((*lead, labels), np.float32),
            weight=np.zeros((*lead, labels), np.float32),
            depth=np.zeros((*lead, labels), np.int32),
        )

    def lengths(self) -> np.ndarray:
        """Returns lengths [*B]."""
        return np.where(self.present, self.read + 1, 0).max(axis=-1)


def _pairs_shape(tokens: np.ndarray, layout: Layout | None, pairs: int) -> tuple[int, ...]:
    """Returns the axes of pairs: each has two rows, or `pairs` of them share one."""
    return tokens.shape[:-2] if layout is None else (*tokens.shape[:-1], pairs)


def _ends(mask: np.ndarray) -> np.ndarray:
    """Returns the end (exclusive) of what is marked in masks [..., T], 0 where nothing is."""
    ends = mask.shape[-1] - np.argmax(mask[..., ::-1], axis=-1)
    return np.where(mask.any(axis=-1), ends, 0)
