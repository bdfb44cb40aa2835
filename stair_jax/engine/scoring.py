"""Scores of given tokens under a reward model, with prefixes computed once and shared.

The engine's sequences lack the keys of their last token; here all are there, since that token's
hidden state was needed for its score.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from stair_jax.config.schema import EngineConfig
from stair_jax.engine.kv_filler import Job, KvFiller
from stair_jax.engine.pages import Pages
from stair_jax.engine.prefill import Block, PagedModel
from stair_jax.engine.request import Prefix
from stair_jax.engine.sequences import Held, Store
from stair_jax.log import compiling, progress
from stair_jax.model import reward
from stair_jax.model.cache import Fresh, KVPool, Rows
from stair_jax.model.spec import Spec
from stair_jax.model.transformer import Decoder
from stair_jax.program import Program, distinct

SHARE = 0.4  # of a device's free memory that the pool takes: the policy's lies there too, or will


@functools.partial(jax.jit, static_argnames=("decoder", "fresh"), donate_argnames="pool")
def score(
    params: Any,
    pool: KVPool,
    tokens: jax.Array,
    length: jax.Array,
    count: jax.Array,
    table: jax.Array,
    *,
    decoder: Decoder,
    fresh: bool,
) -> tuple[KVPool, jax.Array]:
    """Returns the pool with the keys of `tokens` [X, T], and their raw scores [X, T] float32.

    The pool is donated. The arguments are those of `decode.extend`; what a row scores beyond its
    `count` means nothing.
    """
    cache, rows = Fresh(pool) if fresh else pool, Rows(table, length, count)
    hidden, cache = apply(decoder, params, tokens, cache, rows)
    return cache.pool if fresh else cache, reward.scores(params, hidden)


def apply(decoder: Decoder, params: Any, tokens: jax.Array, cache: Any, rows: Rows) -> Any:
    """Returns hidden states and the grown cache; Flax itself does not say what `apply` returns."""
    return decoder.apply({"params": params}, tokens, cache, rows)


class ReadSequence(Held):
    """A sequence with the scores of its last tokens, until they are delivered."""

    raw: np.ndarray | None = None


class ScoredSequence(ReadSequence):
    """A sequence whose keys are there for all of its ids, or for none."""

    @property
    def wanted(self) -> int:
        """Tokens whose keys a continuation reads."""
        return len(self.ids)


class Reader(PagedModel):
    """A reward model's weights and pool on the device."""

    @functools.cached_property
    def _shapes(self) -> set[tuple[int, int, int, bool]]:
        """Of the blocks that were computed."""
        return set()

    @contextlib.contextmanager
    def _computing(self, block: Block) -> Iterator[None]:
        """What a block is computed in; says that the first of its shape is compiled there."""
        (rows, size), width = block.tokens.shape, block.table.shape[1]
        with contextlib.ExitStack() as stack:
            if (shape := (rows, size, width, block.fresh)) not in self._shapes:
                line = stack.enter_context(progress.line("scoring"))
                what = f"scores of {rows} x {size} tokens, {width} pages a row"
                stack.enter_context(compiling.told(line, what))
            yield
        self._shapes.add(shape)

    def programs(self) -> list[Program]:
        """Returns every program that reading sequences can need, each once."""
        every = self.every_block(extends=True)
        return distinct(self.reading(block) for blocks in every for block in blocks())

    def reading(self, block: Block, following: Block | None = None) -> Program:
        """Returns the program that computes a block; `following` has the tokens after each."""
        raise NotImplementedError

    def _program(
        self, block: Block, name: str, call: Any, args: tuple[Any, ...], **static: Any
    ) -> Program:
        (rows, size), width = block.tokens.shape, block.table.shape[1]
        where = "first" if block.fresh else f"later, {width} pages"
        return Program(
            name=f"{name} {rows} x {size}, {where}",
            call=call,
            args=(self._params, self._pool, *args),
            static={"decoder": self._decoder, "fresh": block.fresh, **static},
            mesh=self._mesh,
            reads=self._keys_read(rows, 0 if block.fresh else width),
        )


class _Scorer(Reader):
    """Computes a scalar model's scores."""

    def score(self, jobs: Sequence[Job]) -> None:
        """Computes jobs, and leaves the scores with their sequences."""
        ids, pages = [job.ids for job in jobs], [job.sequence.pages for job in jobs]
        found = []
        for block in self.blocks(ids, pages, [job.start for job in jobs]):
            with self._computing(block):
                self._pool, raw = self.reading(block).run()
            found.append(raw)
        deliver(jobs, found)

    def reading(self, block: Block, following: Block | None = None) -> Program:
        """Returns the program of a block."""
        args = (block.tokens, block.length, block.count, block.table)
        return self._program(block, "score", score, args)


def deliver(jobs: Sequence[Job], found: Sequence[jax.Array]) -> None:
    """Leaves scores with the sequences that somebody waits for; `found` are blocks [X, T]."""
    raw_XT = np.concatenate(jax.device_get(found), axis=1)
    for row, job in enumerate(jobs):
        if job.sequence.waits:
            assert isinstance(job.sequence, ReadSequence)
            job.sequence.raw = raw_XT[row, : len(job.ids)]


class Scoring:
    """A reward model over a pool of pages of its own.

    Args:
      spec: the reward model's, `model.reward.scalar` of its decoder's.
      params: decoder without a head, and "score", in any float dtype and place; or
        `placing.Planned`, to plan it.
      config: sizes; `prefill_rows` sequences are computed together. Its `pool_bytes` are for the
        policy alone.
      mesh: where the model is to lie; None for the default device.
      pool_bytes: of the pool; 0: four contexts a slot, as far as `SHARE` of what is free allows.
        Where that binds, the policy's engine is best made later: it takes most of what it finds.
      give_away: see `placing.place`.

    Raises:
      ValueError: where the pool cannot hold one full context.
    """

    _sequence: type[ReadSequence] = ScoredSequence
    _device_of: Any = _Scorer

    def __init__(
        self,
        spec: Spec,
        params: Any,
        *,
        config: EngineConfig,
        mesh: jax.sharding.Mesh | None = None,
        pool_bytes: int = 0,
        give_away: bool = False,
    ):
        self.config = config
        # A token more: the end of sequence behind a response that fills the context.
        sizes = dataclasses.replace(
            config, pool_bytes=pool_bytes, max_context=config.max_context + 1
        )
        self._device = self._device_of(
            spec, params, config=sizes, mesh=mesh, share=SHARE, give_away=give_away
        )
        self._store = Store(Pages(self._device.pages), config.page_size)
        self._keys = KvFiller(
            self._store,
            rows=config.prefill_rows,
            extend=self._device.score,
            copy=self._device.copy,
            bucket=self._device.bucket,
        )
        self._scored = 0

    @property
    def counters(self) -> Mapping[str, int]:
        """What was done: `scored` tokens that callers got scores of, `prefilled` tokens computed,
        `reused` tokens whose keys those could read, `evicted` sequences, `pages_high_water`.
        """
        return {
            "scored": self._scored,
            "prefilled": self._keys.prefilled,
            "reused": self._keys.reused,
            "evicted": self._store.evicted,
            "pages_high_water": self._store.pages.high_water,
        }

    def programs(self) -> list[Program]:
        """Returns every program that reading can need, each once."""
        return self._device.programs()

    @property
    def device_bytes(self) -> Mapping[str, int]:
        """Bytes on each of its devices."""
        return {"weights": self._device.weight_bytes, "pool": self._device.pool_bytes}

    def root(self, ids: Sequence[int]) -> Prefix:
        """Returns a new sequence, not scored itself; its keys are computed when it is extended.

        Raises:
          ValueError: where `ids` is empty or leaves no room in the context.
        """
        return self._sequence(self._fitting(ids, self.config.max_context - 1))

    def extend(
        self, items: Sequence[tuple[Prefix, Sequence[int]]]
    ) -> list[tuple[Prefix, np.ndarray]]:
        """Returns, for each prefix and the ids after it, the new sequence and each id's raw score.

        The sequences are owned by the caller, as are the prefixes; scores are [len(ids)] float32.

        Raises:
          ValueError: for a released prefix, no ids, or more than the context holds; nothing is
            scored then.
        """
        for prefix, ids in items:
            self._fitting((*prefix.ids, *ids), self.config.max_context)
        return self._score([(prefix, len(prefix.ids), ids) for prefix, ids in items])

    def aside(self, items: Sequence[tuple[Prefix, int, Sequence[int]]]) -> list[np.ndarray]:
        """Returns the raw scores of ids put behind the first so many tokens of each prefix.

        Nothing of that stays: the prefixes are as they were. One id fits behind a full context.

        Raises:
          ValueError: as `extend`.
        """
        for prefix, length, ids in items:
            self._fitting((*prefix.ids[:length], *ids), self.config.max_context + 1)
        scored = self._score(items)
        for sequence, _ in scored:
            self.release(sequence)
        return [raw for _, raw in scored]

    def _score(
        self, items: Sequence[tuple[Prefix, int, Sequence[int]]]
    ) -> list[tuple[Prefix, np.ndarray]]:
        """Returns the sequences that have `ids` behind the first tokens of others, and scores."""
        bases = [self._store.held(prefix) for prefix, _, _ in items]
        if any(not ids for _, _, ids in items):
            raise ValueError("0 tokens to score, expected 1 or more")
        sequences = [
            self._store.extend(self._sequence((*base.ids[:length], *ids)), base, length)
            for base, (_, length, ids) in zip(bases, items, strict=True)
        ]
        done = 0
        while done < len(sequences):
            ready = self._keys.compute(sequences[done:])
            if not ready:  # for the first one nothing else is pinned
                raise RuntimeError("scoring: one sequence alone finds no pages, some were lost")
            done += ready
        self._scored += sum(len(ids) for _, _, ids in items)
        return [(s, _taken(s, ids)) for s, (_, _, ids) in zip(sequences, items, strict=True)]

    def release(self, prefix: Prefix) -> None:
        """Gives a sequence back."""
        self._store.release(self._store.held(prefix))

    def _fitting(self, ids: Sequence[int], most: int) -> Sequence[int]:
        if not 0 < len(ids) <= most:
            raise ValueError(
                f"sequence of {len(ids)} tokens, expected 1 to {most}"
                f" (engine.max_context {self.config.max_context})"
            )
        return ids


def _taken(sequence: Held, ids: Sequence[int]) -> np.ndarray:
    """Returns the scores of the last `ids`; more were computed where the prefix had no keys."""
    assert isinstance(sequence, ReadSequence)
    raw, sequence.raw = sequence.raw, None
    assert raw is not None
    return raw[-len(ids) :]
