"""Weights of a small model as a checkpoint stacks them."""

import jax
import jax.numpy as jnp

from stair_jax.config.schema import EngineConfig
from stair_jax.model import transformer
from tests.support import specs

SPEC = specs.llama(L=3, D=16, N=4, K=2, H=6, F=20, V=34, vocab=31, qkv_bias=True, family="qwen2")
CONFIG = EngineConfig(
    slots=5, page_size=4, pool_bytes=0, max_context=40, chunk=3, prefill_rows=2, dtype="bfloat16"
)


def stacked(dtype=jnp.float32):
    """Weights on one device, nobody's but the caller's."""
    tree = transformer.init(SPEC, jax.random.key(1))
    return jax.tree.map(lambda x: x.astype(dtype), tree)
