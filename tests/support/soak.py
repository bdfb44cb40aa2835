"""The sizes of an engine that is pressed for room."""

from stair_jax.config.schema import EngineConfig
from tests.support import specs

SPEC = specs.llama(L=1, D=8, N=2, K=1, H=4, F=8, V=16)
ENGINE = EngineConfig(
    slots=4, page_size=4, pool_bytes=0, max_context=48, chunk=4, prefill_rows=3, dtype="float32"
)
CONTEXT = ENGINE.max_context // ENGINE.page_size
PAGE_BYTES = 2 * SPEC.L * ENGINE.page_size * SPEC.K * SPEC.H * 4
