"""Log-probs of given tokens under a model, with prefixes computed once and shared."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from stair_jax.engine.kv_filler import Job
from stair_jax.engine.scoring import Reader, ReadSequence, Scoring, apply, deliver
from stair_jax.model import heads
from stair_jax.model.cache import Fresh, KVPool, Rows
from stair_jax.model.transformer import Decoder


@partial(jax.jit, static_argnames=("decoder", "fresh"), donate_argnames="pool")
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
) -> tuple[KVPool, jax.Array]:
    """Returns the pool with the keys of `tokens` [X, T], and the log-probs of what follows each.

    The pool is donated. The arguments are those of `decode.extend`, and `targets` [X, T]: the
    tokens that follow. Log-probs are [X, T] float32 nats; beyond a row's `count` they mean nothing.
    """
    cache, rows = Fresh(pool) if fresh else pool, Rows(table, length, count)
    hidden, cache = apply(decoder, params, tokens, cache, rows)

    def of_row(row):  # a row at a time: logits of all rows would be larger than the model's layers
        hidden_TD, target_T = row
        logits_TV = heads.logits(params, hidden_TD, decoder.spec)
        # The log-probs of all tokens would be another array of [T, V].
        top_T1 = logits_TV.max(axis=1, keepdims=True)
        chosen_T1 = jnp.take_along_axis(logits_TV, target_T[:, None], axis=1) - top_T1
        return chosen_T1[:, 0] - jnp.log(jnp.exp(logits_TV - top_T1).sum(axis=1))

    return cache.pool if fresh else cache, jax.lax.map(of_row, (hidden, targets))


class _Teller(Reader):
    """Computes log-probs."""

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
                self._pool, raw = logp(
                    self._params,
                    self._pool,
                    block.tokens,
                    following.tokens,
                    block.length,
                    block.count,
                    block.table,
                    decoder=self._decoder,
                    fresh=block.fresh,
                )
            found.append(raw)
        deliver(jobs, found)


class Likelihood(Scoring):
    """A policy over a pool of pages of its own; its scores are log-probs, float32 nats.

    That of a token is the one given all before it. As in the engine, a sequence's last token has
    no keys yet: what follows it is known only once it is fed. Arguments as of `Scoring`, but
    parameters of a policy.
    """

    _sequence, _device_of = ReadSequence, _Teller
