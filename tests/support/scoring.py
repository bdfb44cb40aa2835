"""Steps scored by an engine, and in the plainest code."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from stair_jax.config.schema import EngineConfig
from stair_jax.engine.scoring import Scoring
from stair_jax.model import reward, transformer
from stair_jax.model.spec import Spec

SPEC = reward.scalar(
    Spec(
        L=2,
        D=12,
        N=4,
        K=2,
        H=6,
        F=10,
        V=29,
        vocab=29,
        eps=1e-5,
        theta=1e4,
        rope_scaling=None,
        qkv_bias=False,
        qk_norm=False,
        tied=False,
        family="llama",
    )
)
CONFIG = EngineConfig(
    slots=3, page_size=5, pool_bytes=1, max_context=40, chunk=3, prefill_rows=3, dtype="float32"
)
CONTEXT = -(-(CONFIG.max_context + 1) // CONFIG.page_size)  # pages
TOLERANCE = 5e-5  # raw scores of doubled weights: measured 1e-5 between meshes, with SSE4.2


@functools.cache
def weights(seed=0):
    """A model whose scores spread: larger weights than at the start of training."""
    small = reward.init(SPEC, jax.random.key(seed))
    body = jax.tree.map(lambda x: x * 2 if x.ndim > 2 else x * 1.5, small)
    return body | {"score": small["score"] * 2}


def make(params=None, *, pages=0, mesh=None, **change):
    page_bytes = 2 * SPEC.L * CONFIG.page_size * SPEC.K * SPEC.H * 4
    config = dataclasses.replace(CONFIG, **change)
    params = weights() if params is None else params
    return Scoring(SPEC, params, config=config, mesh=mesh, pool_bytes=pages * page_bytes)


@jax.jit
def _plain(params, tokens):
    body = {name: leaf for name, leaf in params.items() if name != "score"}
    hidden, _ = transformer.Decoder(SPEC, jnp.float32).apply({"params": body}, tokens)
    return (hidden * params["score"][None, None]).sum(axis=2)


def plain(params, ids):
    """The raw score of every token, from one forward."""
    row = np.zeros((1, CONFIG.max_context + 1), np.int32)
    row[0, : len(ids)] = ids
    return np.asarray(_plain(params, row))[0, : len(ids)]


def some(rng, count):
    return rng.integers(1, SPEC.V, size=count).tolist()


def family(seed, prompts=(1, 4, 5, 11, 16)):
    """Prompts of odd lengths about the pages' ends, and steps behind them."""
    rng = np.random.default_rng(seed)
    return [(some(rng, n), [some(rng, m) for m in rng.integers(1, 9, size=3)]) for n in prompts]
