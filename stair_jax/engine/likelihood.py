"""Log-probs of given tokens under a model, with prefixes computed once and shared."""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from stair_jax.engine.kv_filler import Job
from stair_jax.engine.prefill import Block
from stair_jax.engine.scoring import Reader, ReadSequence, Scoring, apply, deliver
from stair_jax.model import heads
from stair_jax.model.cache import Fresh, KVPool, Rows
from stair_jax.model.spec import Spec
from stair_jax.model.transformer import Decoder
from stair_jax.program import Program


@partial(jax.jit, static_argnames=("decoder", "fresh", "top"), donate_argnames="pool")
def logp(
    params: Any,
    pool: KVPool,
    tokens: jax.Array,
    targets: jax.Array,
    length: jax.Array,
    count: jax.Array,
    table: jax.Array,
    *,
    decoder: Decoder,
    fresh: bool,
    top: int = 0,
) -> tuple[KVPool, jax.Array]:
    """Returns the pool with the keys of `tokens` [X, T], and the log-probs of what follows each.

    The pool is donated. The arguments are those of `decode.extend`, and `targets` [X, T]: the
    tokens that follow. Log-probs are [X, T] float32 nats; beyond a row's `count` they mean nothing.
    With `top` they are [X, T, 1 + 2 top]: that of the target, those of the `top` likeliest tokens,
    and these tokens' ids, which float32 holds exactly up to 2^24.
    """
    cache, rows = Fresh(pool) if fresh else pool, Rows(table, length, count)
    hidden, cache = apply(decoder, params, tokens, cache, rows)

    def of_row(row):  # a row at a time: logits of all rows would be larger than the model's layers
        hidden_TD, target_T = row
        logits_TV = heads.logits(params, hidden_TD, decoder.spec)
        # The log-probs of all tokens would be another array of [T, V].
        top_T1 = logits_TV.max(axis=1, keepdims=True)
        chosen_T1 = jnp.take_along_axis(logits_TV, target_T[:, None], axis=1) - top_T1
        total_T = jnp.log(jnp.exp(logits_TV - top_T1).sum(axis=1))
        if not top:
            return chosen_T1[:, 0] - total_T
        best_TC, id_TC = jax.lax.top_k(logits_TV, top)
        # The same steps as for the target, so that the likeliest token has one log-prob, not two.
        both = jnp.concatenate([chosen_T1, best_TC - top_T1], axis=1) - total_T[:, None]
        return jnp.concatenate([both, id_TC.astype(jnp.float32)], axis=1)

    return cache.pool if fresh else cache, jax.lax.map(of_row, (hidden, targets))


class _Teller(Reader):
    """Computes log-probs, and the likeliest tokens where `top` wants some."""

    top = 0

    def score(self, jobs: Sequence[Job]) -> None:
        """Computes jobs, and leaves the log-probs with their sequences."""
        pages, starts = [job.sequence.pages for job in jobs], [job.start for job in jobs]
        after = [job.sequence.ids[job.start + 1 : job.sequence.wanted + 1] for job in jobs]
        found = []
        both = zip(
            self.blocks([job.ids for job in jobs], pages, starts),
            self.blocks(after, pages, starts),
            strict=True,
        )
        for block, following in both:
            with self._computing(block):
                self._pool, raw = self.reading(block, following).run()
            found.append(raw)
        deliver(jobs, found)

    def reading(self, block: Block, following: Block | None = None) -> Program:
        """Returns the program of a block; where only its shapes count, nothing need follow."""
        targets = (following or block).tokens
        args = (block.tokens, targets, block.length, block.count, block.table)
        return self._program(block, "log-probs", logp, args, top=self.top)


class Likelihood(Scoring):
    """A policy over a pool of pages of its own; its scores are log-probs, float32 nats.

    That of a token is the one given all before it. As in the engine, a sequence's last token has
    no keys yet: what follows it is known only once it is fed. Arguments as of `Scoring`, but
    parameters of a policy.
    """

    _sequence, _device_of = ReadSequence, _Teller


class Told(NamedTuple):
    """What a model finds of N tokens that follow others, and what it would rather have said."""

    logps: np.ndarray  # [N] float32, nats
    top_ids: np.ndarray  # [N, C] int32, the likeliest tokens, the likeliest first
    top_logps: np.ndarray  # [N, C] float32


class Alternatives(Likelihood):
    """A policy that also says which tokens it finds likeliest; arguments as of `Likelihood`."""

    def __init__(self, spec: Spec, params: Any, **options: Any):
        super().__init__(spec, params, **options)
        self._vocab = spec.V

    def tell(self, rows: Sequence[Sequence[int]], top: int) -> list[Told]:
        """Returns what it finds of each token of some rows but the first; nothing of them stays.

        Args:
          rows: ids, two or more each.
          top: how many alternatives are wanted, 0 or more; each number is a program of its own.

        Raises:
          ValueError: for a row that is too short or too long, or more alternatives than tokens.
        """
        if not 0 <= top <= self._vocab:
            raise ValueError(f"top={top}, expected 0 to {self._vocab}, the size of the vocabulary")
        self._device.top = top
        held: list[Any] = [self.root(row[:1]) for row in rows]
        try:
            found = self.extend([(first, row[1:]) for first, row in zip(held, rows, strict=True)])
            held += [sequence for sequence, _ in found]
        finally:
            for sequence in held:
                self.release(sequence)
        return [_told(raw, top) for _, raw in found]


def _told(raw: np.ndarray, top: int) -> Told:
    """Unpacks what `logp` gives of a sequence."""
    if not top:
        nothing = np.zeros((len(raw), 0))
        return Told(raw, nothing.astype(np.int32), nothing.astype(np.float32))
    return Told(raw[:, 0], raw[:, 1 + top :].astype(np.int32), raw[:, 1 : 1 + top])
