"""Search trees grown with random weights: the load of a real search, without a real model.

The policy says noise. Its steps and answers end by stop sets of random ids, so that their lengths
scatter as those of a language model do; a hash judges them.
"""

import dataclasses
import zlib
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from benchmarks import growing, roofline
from benchmarks.roofline import Ceilings
from stair_jax import config as config_lib
from stair_jax.engine.engine import Engine
from stair_jax.engine.request import EngineLike
from stair_jax.model.spec import Spec
from stair_jax.records import Prompt
from stair_jax.rewards.judges import FunctionJudge, Score
from stair_jax.search import growth
from stair_jax.sections import EngineConfig, RewardConfig, SearchConfig

SEED = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shape:
    """How large trees are."""

    trees: int
    in_flight: int
    iterations: int
    prompt: int  # tokens
    step: int  # tokens of a step in the mean; three times as many at most
    rollout: int  # likewise


class Ids:
    """A codec whose questions are seeds of random prompts, and whose texts are numbers.

    Args:
      spec: of the model.
      shape: a share 1 / `step` of the vocabulary ends a step, 1 / `rollout` a response.
    """

    def __init__(self, spec: Spec, shape: Shape):
        self._spec, self._shape = spec, shape
        ends, steps = max(1, spec.V // shape.rollout), max(2, spec.V // shape.step)
        drawn = np.random.default_rng(SEED).permutation(spec.V)[: ends + steps].tolist()
        self.end_stop = frozenset(drawn[:ends])
        self.stops = {"step": frozenset(drawn), "end": self.end_stop}

    def prompt_ids(self, question: str) -> list[int]:
        """Returns random ids, the same for the same question."""
        return np.random.default_rng(int(question)).integers(
            0, self._spec.V, self._shape.prompt
        ).tolist()  # fmt: skip

    def decode(self, ids: Sequence[int]) -> str:
        """Returns the ids as text."""
        return " ".join(map(str, ids))


def _judge() -> FunctionJudge:
    """Returns a judge that finds anything in anything."""

    def score(prompt: Prompt, response: str) -> Score:
        code = zlib.crc32(f"{prompt.id} {response}".encode())
        return Score(safety=code % 201 / 100 - 1, helpfulness=code // 201 % 201 / 100 - 1)

    return FunctionJudge(score)


def search_config(shape: Shape) -> SearchConfig:
    """Returns the paper's search, with the shape's sizes."""
    search = config_lib.default().search
    search.update(
        iterations=shape.iterations, trees_in_flight=shape.in_flight,
        max_step_tokens=3 * shape.step, max_rollout_tokens=3 * shape.rollout,
    )  # fmt: skip
    return SearchConfig.of(search)


def run(
    spec: Spec, params: Any, shape: Shape, config: EngineConfig, limits: Ceilings
) -> dict[str, float]:
    """Grows trees and returns all figures.

    `share` is the speed until the queue of prompts runs dry, of that which full slots with the mean
    context would have at the bound of a decode step.
    """
    codec, search = Ids(spec, shape), search_config(shape)
    engine = Engine(spec, params, config=config, stops=codec.stops, vocab=spec.V)
    engine.compile([growth.sampling_of(search)], logps=growth.wants_logps(search))
    prompts = [Prompt(id=str(i), question=str(i), type="safety") for i in range(shape.trees)]
    reward = RewardConfig.of(config_lib.default().reward)
    tools: Any = {"codec": codec, "config": search, "reward": reward, "seed": SEED}
    growing.grow(prompts[:2], Hasty(engine, 2), judge=_judge(), **tools)
    grown = growing.grow(prompts, engine, judge=_judge(), **tools)
    found = growing.speeds(grown) | growing.engine_figures(grown, shape.trees * shape.prompt)
    context = mean_context(grown, search)
    cost = roofline.decode_cost(
        spec, config.slots, context, jnp.dtype(config.dtype).itemsize
    )  # fmt: skip
    bound = config.slots / limits.seconds(cost)
    return found | {"context": context, "share": found["tokens_per_s_until_dry"] / bound}


class Hasty(growing.Planted):
    """An engine that grants every request one token: enough to warm up the search."""

    def __init__(self, engine: EngineLike, trees: int):
        super().__init__(engine, trees)
        self.submit = lambda request: engine.submit(dataclasses.replace(request, max_tokens=1))


def mean_context(grown: growing.Grown, config: SearchConfig) -> float:
    """Returns how many tokens a decoded token saw in the mean, nearly."""
    requests = sum(
        tree.counters["expansions"] * config.num_children + tree.counters["rollouts"]
        for tree in grown.trees
    )
    return (grown.counters["reused"] + grown.counters["delivered"] / 2) / requests
