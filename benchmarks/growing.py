"""Trees grown over any engine, and the figures that are made of it. Needs no tokenizer."""

import collections
import dataclasses
import statistics
import time
from collections.abc import Mapping, Sequence

from benchmarks import harness
from stair_jax.config.schema import RewardConfig, SearchConfig
from stair_jax.engine.engine import Engine
from stair_jax.engine.replicas import Replicas
from stair_jax.engine.request import EngineLike, Prefix
from stair_jax.judges.base import Judge
from stair_jax.records import Prompt, Tree
from stair_jax.search import driver
from stair_jax.search.growth import SearchCodec
from stair_jax.search.reward import Reward

GAUGES = ("pages_high_water",)  # counters that do not count


class Planted:
    """An engine that notes how many trees grow at once, and when the last of `trees` is planted.

    From then on the queue of prompts is dry, and slots fall idle for want of trees.
    """

    def __init__(self, engine: EngineLike, trees: int):
        self._engine, self._wanted = engine, trees
        self._roots: set[Prefix] = set()  # of growing trees
        self._planted = self.most = 0  # trees so far; trees growing at once
        self.dry: dict[str, float] = {}  # the counters, and the clock, when the queue ran dry
        self.submit, self.step, self.collect = engine.submit, engine.step, engine.collect
        self.cancel, self.extend = engine.cancel, engine.extend

    @property
    def counters(self) -> Mapping[str, float]:
        """What has been done so far."""
        return self._engine.counters

    @property
    def idle(self) -> bool:
        """True where no request is queued or running."""
        return self._engine.idle

    @property
    def hungry(self) -> bool:
        """True where more requests would keep more of the engine busy."""
        return self._engine.hungry

    def root(self, ids: Sequence[int]) -> Prefix:
        """Returns a new sequence of the engine: a tree's beginning."""
        prefix = self._engine.root(ids)
        self._roots.add(prefix)
        self._planted, self.most = self._planted + 1, max(self.most, len(self._roots))
        if self._planted == self._wanted:
            self.dry = dict(self._engine.counters) | {"seconds": time.perf_counter()}
        return prefix

    def release(self, prefix: Prefix) -> None:
        """Gives a sequence back; a root is its tree's end."""
        self._roots.discard(prefix)
        self._engine.release(prefix)


@dataclasses.dataclass(frozen=True)
class Grown:
    """Trees and what they took."""

    trees: list[Tree]
    seconds: float
    others: float  # share of the CPUs that other processes took
    counters: Mapping[str, float]  # of the engine, over the whole run
    dry: Mapping[str, float]  # the same, up to where the queue of prompts ran dry
    most: int  # trees growing at once


def grow(
    prompts: Sequence[Prompt],
    engine: EngineLike,
    *,
    codec: SearchCodec,
    judge: Judge,
    config: SearchConfig,
    reward: RewardConfig,
    seed: int,
) -> Grown:
    """Grows a tree on every prompt.

    Raises:
      RuntimeError: where a prompt was passed over: the sides must not grow different trees.
    """
    trees: list[Tree] = []
    if isinstance(engine, Engine | Replicas):  # the others' pauses count for nothing
        engine.start_clock()
    planted, before = Planted(engine, len(prompts)), dict(engine.counters)
    with harness.Watch() as watch:
        before["seconds"] = time.perf_counter()
        leftovers = driver.grow(
            prompts,
            engine=planted,
            judge=judge,
            codec=codec,
            config=config,
            seed=seed,
            reward=Reward(config.reward, reward),
            on_tree=trees.append,
        )
    if leftovers != driver.Leftovers({}, ()):
        raise RuntimeError(f"prompts were passed over: {leftovers}")

    def since(now: Mapping[str, float]) -> dict[str, float]:
        return {name: x if name in GAUGES else x - before[name] for name, x in now.items()}

    return Grown(
        trees,
        watch.seconds,
        watch.others,
        since(dict(engine.counters)),
        since(planted.dry),
        planted.most,
    )


def joined(parts: Sequence[Grown]) -> Grown:
    """Returns runs that were made one after the other as one; it says nothing of running dry."""
    counters: collections.Counter[str] = collections.Counter()
    for part in parts:
        counters.update(part.counters)
    return Grown(
        trees=[tree for part in parts for tree in part.trees],
        seconds=sum(part.seconds for part in parts),
        others=max(part.others for part in parts),
        counters=dict(counters),
        dry={},
        most=max(part.most for part in parts),
    )


def speeds(grown: Grown) -> dict[str, float]:
    """Returns what every engine is measured by."""
    tokens = sum(tree.counters["tokens"] for tree in grown.trees)
    found = {
        "trees": float(len(grown.trees)),
        "most_in_flight": float(grown.most),
        "seconds": grown.seconds,
        "trees_per_hour": 3600 * len(grown.trees) / grown.seconds,
        "tokens_per_s": tokens / grown.seconds,
        "tokens_per_tree": tokens / len(grown.trees),
        "nodes_per_tree": statistics.mean(len(tree.nodes) for tree in grown.trees),
        "decoded_per_tree": grown.counters["decoded"] / len(grown.trees),
        "prefilled_per_tree": grown.counters["prefilled"] / len(grown.trees),
        "others": grown.others,
    }
    if "generate_s" in grown.counters:
        found["generate_share"] = grown.counters["generate_s"] / grown.seconds
    return found


def engine_figures(grown: Grown, prompt_tokens: int) -> dict[str, float]:
    """Returns what only the product's engine counts.

    `busy_slots` is the share of slot-steps that drew a token, until the queue of prompts runs dry;
    so is the speed without the tail. Trees still growing then do not count in that, but their
    tokens so far do: it is a rate of tokens, told in trees of the mean size. `host_share` is the
    share of an engine's time that lies between its chunks.
    """
    all_, dry = grown.counters, grown.dry
    computed = all_["decoded"] + all_["prefilled"]
    slots = dry["busy_slots"] + dry["idle_slots"] + dry["overshoot"]
    steady = dry["delivered"] / dry["seconds"]
    return {
        "computed_per_unique_token": computed / (prompt_tokens + all_["delivered"]),
        "reuse_ratio": all_["reused"] / (all_["reused"] + all_["prefilled"]),
        "busy_slots": dry["busy_slots"] / slots if slots else 0.0,
        "host_share": all_["host_s"] / (all_["host_s"] + all_["device_s"]),
        "dry_at": dry["seconds"] / grown.seconds,
        "tokens_per_s_until_dry": steady,
        "trees_per_hour_until_dry": 3600 * steady * len(grown.trees) / all_["delivered"],
        "recompiles": float(all_["compiles"]),
        **{f"engine/{name}": float(count) for name, count in all_.items()},
    }
