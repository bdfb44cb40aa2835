"""A search over a real engine whose tokens are letters."""

import dataclasses

from stair_jax import config as config_lib
from stair_jax.config.schema import EngineConfig, SearchConfig
from stair_jax.records import Prompt
from tests.support import specs

SPEC = specs.llama(L=2, D=24, N=4, K=2, H=8, F=20, V=12)
STEP_END, END = 3, 4
ENGINE = EngineConfig(
    slots=8, page_size=8, pool_bytes=0, max_context=64, chunk=4, prefill_rows=4, dtype="float32"
)
SEARCH = dataclasses.replace(
    SearchConfig.of(config_lib.default().search),
    iterations=12,
    max_depth=3,
    num_children=3,
    max_step_tokens=6,
    max_rollout_tokens=24,
    temperature=1.3,
    top_p=0.95,
    top_k=0,
    trees_in_flight=5,
)
PROMPTS = [
    Prompt(id=f"p{i}", question=f"{i}", type=("safety", "helpfulness")[i % 2]) for i in range(12)
]


class Letters:
    """A codec whose tokens are letters."""

    end_stop = frozenset({END})

    def prompt_ids(self, question, before=()):
        return [5 + int(digit) % 6 for digit in f"{int(question) * 7919:05d}"]

    def decode(self, ids):
        return "".join(chr(ord("a") + i) for i in ids)
