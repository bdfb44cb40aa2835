"""Log-probs of tokens in the plainest code."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from stair_jax.model import heads, transformer
from tests.support.scoring import CONFIG, SPEC


@functools.cache
def weights(seed):
    return jax.tree.map(lambda x: x * 2, transformer.init(SPEC, jax.random.key(seed)))


@jax.jit
def _plain(params, tokens):
    hidden, _ = transformer.Decoder(SPEC, jnp.float32).apply({"params": params}, tokens)
    return jax.nn.log_softmax(heads.logits(params, hidden, SPEC))


def plain(seed, ids):
    """The log-prob of every token but the first, from one forward."""
    row = np.zeros((1, CONFIG.max_context), np.int32)
    row[0, : len(ids)] = ids
    logp = np.asarray(_plain(weights(seed), row))[0]
    return logp[np.arange(len(ids) - 1), ids[1:]]
