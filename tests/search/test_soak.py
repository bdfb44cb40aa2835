"""Thousands of trees on one engine whose pool is far too small, with forests that end early.

The device is scripted (`scripted_device`): its tokens show every key that is not where it should
be. Forests are cut short by their caller and by a judge that breaks down, and grown again.
"""

import dataclasses
import gc
import random
import resource
import time
import zlib
from typing import Any

import pytest

from stair_jax import config as config_lib
from stair_jax.config.schema import RewardConfig, SearchConfig
from stair_jax.engine import engine
from stair_jax.engine.engine import Engine
from stair_jax.judges.base import FunctionJudge, Score
from stair_jax.records import Prompt
from stair_jax.search import driver
from stair_jax.search.reward import Reward
from tests.support.scripted_device import ScriptedDevice
from tests.support.soak import CONTEXT, ENGINE, PAGE_BYTES, SPEC

STEP_END, END = 3, 4
SEARCH = dataclasses.replace(
    SearchConfig.of(config_lib.default().search),
    iterations=8,
    max_depth=3,
    num_children=3,
    max_step_tokens=6,
    max_rollout_tokens=18,
    trees_in_flight=5,
)
REWARD = Reward("paper", RewardConfig.of(config_lib.default().reward))
FOREST = 8  # trees
MODES = {"views": {"attention": "views"}, "sharing": {"attention": "xla", "share_prefix": "on"}}


class Letters:
    """A codec whose tokens are letters; prompts of 3 to 9 of them."""

    end_stop = frozenset({END})

    def prompt_ids(self, question, before=()):
        code = zlib.crc32(question.encode())
        return [5 + code // 11**i % 11 for i in range(3 + code % 7)]

    def decode(self, ids):
        return "".join(chr(ord("a") + i) for i in ids)


class Unplugged(RuntimeError):
    """The judge is gone."""


class Enough(RuntimeError):
    """The caller wants no more trees."""


def judge(chance):
    """Gives no score to one answer in six, and breaks down once in a long while."""

    def score(prompt, response):
        if chance is not None and chance.random() < 1 / 200:
            raise Unplugged
        code = zlib.crc32(f"{prompt.id}{response}".encode())
        if code % 6 == 0:
            return None
        return Score(safety=(-1.0, 1.0)[code % 2], helpfulness=(-1.0, 0.0, 1.0)[code % 3])

    return FunctionJudge(score)


def make(monkeypatch, mode, pages):
    monkeypatch.setattr(engine, "Device", ScriptedDevice)
    config = dataclasses.replace(ENGINE, pool_bytes=pages * PAGE_BYTES, **MODES[mode])
    stops = {"step": {STEP_END, END}, "end": {END}}
    return Engine(SPEC, None, config=config, stops=stops, vocab=SPEC.V)


def grow(machine, prompts, chance=None):
    """Returns the digests of whole trees by prompt id, and what ended the call early."""
    trees, found = {}, None

    def on_tree(tree):
        if chance is not None and chance.random() < 1 / 12:
            raise Enough
        trees[tree.prompt.id] = zlib.crc32(repr((tree.nodes, tree.counters)).encode())

    try:
        leftovers = driver.grow(
            prompts,
            engine=machine,
            judge=judge(chance),
            codec=Letters(),
            config=SEARCH,
            reward=REWARD,
            seed=0,
            on_tree=on_tree,
        )
        assert leftovers == driver.Leftovers({}, ())
    except (Unplugged, Enough) as error:
        found = type(error)
    return trees, found


def forest(first):
    return [
        Prompt(id=f"p{i}", question=f"question {i}", type=("safety", "helpfulness")[i % 2])
        for i in range(first, first + FOREST)
    ]


def soak(monkeypatch, mode, count):
    """Grows `count` trees; returns the digests by prompt id and memory after each forest."""
    tight, chance = make(monkeypatch, mode, CONTEXT + 12), random.Random(0)
    done, ends, memory = {}, [], []
    for first in range(0, count, FOREST):
        left = forest(first)
        while left:
            trees, end = grow(tight, left, chance)
            assert not trees.keys() & done.keys()
            done |= trees
            left = [prompt for prompt in left if prompt.id not in done]
            assert end or not left  # a tree that nothing kept from growing has grown
            ends.append(end)
            nothing_is_left_in(tight)
        gc.collect()
        memory.append((len(gc.get_objects()), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss))
    counters = tight.counters
    assert min(ends.count(end) for end in (Unplugged, Enough, None)) > 0
    assert counters["evicted"] > count
    assert counters["preempted"] > count / 8
    device: Any = tight._device
    assert device.counts["taken up" if mode == "views" else "shared"] > count
    return done, memory, dict(counters)


def nothing_is_left_in(machine):
    assert machine.idle
    assert machine.collect() == []
    pages = machine._store.pages
    assert not any(pages.owners)
    assert sorted(pages.free) == list(range(len(pages.owners)))
    assert not machine._store._holding


def whole_trees(monkeypatch, mode, firsts):
    """Digests of trees grown without any of the troubles."""
    roomy, trees = make(monkeypatch, mode, 4000), {}
    for first in firsts:
        found, end = grow(roomy, forest(first))
        assert end is None
        trees |= found
    assert roomy.counters["evicted"] == roomy.counters["preempted"] == 0
    return trees


@pytest.mark.parametrize("mode", MODES)
def test_trees_come_whole_out_of_a_tight_and_troubled_engine(monkeypatch, mode):
    done, *_ = soak(monkeypatch, mode, 48)
    assert done == whole_trees(monkeypatch, mode, range(0, 48, FOREST))
    assert len(done) == len(set(done.values())) == 48


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_two_thousand_trees(monkeypatch, mode):
    begun = time.perf_counter()
    done, memory, counters = soak(monkeypatch, mode, 2000)
    seconds = time.perf_counter() - begun
    assert len(done) == 2000
    sample = range(0, 2000, 20 * FOREST)
    want = whole_trees(monkeypatch, mode, sample)
    assert want == {name: done[name] for name in want}
    quarter = len(memory) // 4
    (objects, peak), (last_objects, last_peak) = memory[quarter], memory[-1]
    figures = (
        f"{mode}: {seconds:.0f} s, objects {objects} -> {last_objects}, peak memory {peak} ->"
        f" {last_peak}, {counters}"
    )
    print(figures)
    assert last_objects - objects < 100, figures
    assert last_peak < 1.02 * peak, figures
