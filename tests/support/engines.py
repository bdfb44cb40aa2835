"""A small model, an engine over it, and its tokens computed by hand."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stair_jax.config.schema import EngineConfig
from stair_jax.engine.engine import Engine
from stair_jax.engine.request import GREEDY, Request, Sampling
from stair_jax.model import heads, transformer
from tests.support import specs

SPEC = specs.llama(L=2, D=24, N=4, K=2, H=8, F=20, V=31)
CONFIG = EngineConfig(
    slots=5, page_size=4, pool_bytes=0, max_context=40, chunk=3, prefill_rows=2, dtype="float32"
)
STOPS = {"step": {7, 8}, "end": {8}, "never": set()}
WARM = Sampling(temperature=1.5)


@pytest.fixture(scope="module")
def params():
    # Larger weights than at the start of training: greedy paths then have clear winners.
    small = transformer.init(SPEC, jax.random.key(0))
    return jax.tree.map(lambda x: x * 4 if x.ndim > 2 else x * 1.5, small)


def make(params, mesh=None, **change):
    config = dataclasses.replace(CONFIG, **change)
    return Engine(SPEC, params, config=config, stops=STOPS, vocab=SPEC.V - 2, mesh=mesh)


def ask(engine, ids, name: int | str = 0, stop="never", max_tokens=12, sampling=GREEDY):
    return Request(
        id=name,
        prefix=engine.root(ids),
        key=("k", name),
        stop=stop,
        max_tokens=max_tokens,
        sampling=sampling,
        logps=True,
    )


@jax.jit
def full_logits(params, tokens):
    hidden, _ = transformer.Decoder(SPEC, jnp.float32).apply({"params": params}, tokens)
    return heads.logits(params, hidden, SPEC)


def by_hand(params, ids, count):
    """Greedy decoding without a cache, and the log-prob of every token."""
    ids, logps = list(ids), []
    for _ in range(count):
        row = np.zeros((1, 48), np.int32)
        row[0, : len(ids)] = ids
        logits = full_logits(params, row)[0, len(ids) - 1]
        logits = jnp.where(jnp.arange(SPEC.V) < SPEC.V - 2, logits, -jnp.inf)
        ids.append(int(logits.argmax()))
        logps.append(float(jax.nn.log_softmax(logits)[ids[-1]]))
    return ids[-count:], logps


PROMPTS = [[1, 2, 3], [4], [5, 6, 9, 10, 11, 12, 13, 14, 15], list(range(9, 26)), [3, 3], [20, 9]]


def smallest_pool():
    page_bytes = 2 * SPEC.L * CONFIG.page_size * SPEC.K * SPEC.H * 4
    return page_bytes * (CONFIG.max_context // CONFIG.page_size + 3)
