"""Search trees grown with random weights: the load of a real search, without a real model.

The policy says noise. Its steps and answers end by stop sets of random ids, so that their lengths
scatter as those of a language model do; a hash judges them.
"""

import dataclasses
import hashlib
import zlib
from collections.abc import Iterable, Sequence

import jax.numpy as jnp
import numpy as np

from benchmarks import growing, roofline
from benchmarks.growing import Grown
from benchmarks.on_gpu import sizes
from benchmarks.on_gpu.sizes import Shape
from benchmarks.roofline import Ceilings
from stair_jax.config.schema import RewardConfig, SearchConfig
from stair_jax.engine.engine import Engine
from stair_jax.engine.request import EngineLike
from stair_jax.judges.base import FunctionJudge, Score
from stair_jax.model.spec import Spec
from stair_jax.records import Prompt, Tree
from stair_jax.text import Turn

SEED = 0
# The paper's search, the defaults of `config.default`; that itself needs ml-collections.
REWARD = RewardConfig()


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

    def prompt_ids(self, question: str, before: Sequence[Turn] = ()) -> list[int]:
        """Returns random ids, the same for the same question."""
        return sizes.prompt_ids(int(question), self._spec.V, self._shape.prompt)

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
    return SearchConfig(
        iterations=shape.iterations,
        trees_in_flight=shape.in_flight,
        max_step_tokens=3 * shape.step,
        max_rollout_tokens=3 * shape.rollout,
        first_answers=0,  # random weights have no format
        least_well_formed=0.0,
    )


def grow(engine: EngineLike, spec: Spec, shape: Shape) -> Grown:
    """Grows the shape's trees on an engine with the stop sets of `Ids`."""
    prompts = [Prompt(id=str(i), question=str(i), type="safety") for i in range(shape.trees)]
    return growing.grow(
        prompts,
        engine,
        codec=Ids(spec, shape),
        judge=_judge(),
        config=search_config(shape),
        reward=REWARD,
        seed=SEED,
    )


def warm_up(engine: EngineLike, spec: Spec, shape: Shape) -> None:
    """Has the engine compile what a search needs: two trees whose answers have one token."""
    grow(Hasty(engine, 2), spec, dataclasses.replace(shape, trees=2))


def figures(
    engine: Engine, spec: Spec, shape: Shape, limits: Ceilings, grown: Grown
) -> dict[str, float]:
    """Returns what is to be told of a search.

    `busy` is the share of slot-steps that drew a token, of the whole run, its tail included.
    `share` is the speed of the whole run, of that which full slots with the mean context would have
    at the bound of a decode step.
    """
    found = growing.speeds(grown) | growing.engine_figures(grown, shape.trees * shape.prompt)
    count = grown.counters
    slots = count["busy_slots"] + count["idle_slots"] + count["overshoot"]
    context = mean_context(grown, search_config(shape))
    itemsize = jnp.dtype(engine.config.dtype).itemsize
    cost = roofline.decode_cost(spec, engine.config.slots, context, itemsize)
    bound = engine.config.slots / limits.seconds(cost)
    names = (
        "trees",
        "seconds",
        "trees_per_hour",
        "tokens_per_s",
        "tokens_per_tree",
        "nodes_per_tree",
        "most_in_flight",
        "host_share",
        "computed_per_unique_token",
        "recompiles",
    )
    return {name: found[name] for name in names} | {
        "busy": count["busy_slots"] / slots,
        "context": context,
        "share": found["tokens_per_s"] / bound,
        "steps": count["steps"],
        "preempted": count["preempted"],
        "evicted": count["evicted"],
        "device_s": count["device_s"],
        "host_s": count["host_s"],
    }


class Hasty(growing.Planted):
    """An engine that grants every request one token: enough to warm up the search."""

    def __init__(self, engine: EngineLike, trees: int):
        super().__init__(engine, trees)
        self.submit = lambda request: engine.submit(dataclasses.replace(request, max_tokens=1))


def mean_context(grown: Grown, config: SearchConfig) -> float:
    """Returns how many tokens a decoded token saw in the mean, nearly."""
    requests = sum(
        tree.counters["expansions"] * config.num_children + tree.counters["rollouts"]
        for tree in grown.trees
    )
    return (grown.counters["reused"] + grown.counters["delivered"] / 2) / requests


def digest(trees: Iterable[Tree]) -> str:
    """Returns a hash of all that trees say, whatever order they came in."""
    rows = sorted(
        (tree.prompt.id, [(n.parent, n.ids, n.visits, n.value_sum, n.terminal) for n in tree.nodes])
        for tree in trees
    )
    return hashlib.sha256(repr(rows).encode()).hexdigest()
