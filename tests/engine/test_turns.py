"""Requests of lower turns go first, so those of the trees that began first."""

import contextlib
import dataclasses
from typing import Any
from unittest import mock

import numpy as np
import pytest

from benchmarks import host
from stair_jax.engine import counters, engine, replicas
from stair_jax.engine.engine import Engine
from stair_jax.engine.queue import RequestQueue
from stair_jax.engine.request import Prefix, Request, Sampling
from stair_jax.search import driver
from stair_jax.search.growth import Growth
from tests.support.scripted_device import ScriptedDevice
from tests.support.soak import CONTEXT, ENGINE, PAGE_BYTES, SPEC


def request(id, turn, prefix=None, tokens=4):
    prefix = prefix or Prefix([7])
    return Request(
        id=id,
        prefix=prefix,
        key=(id,),
        stop="never",
        max_tokens=tokens,
        sampling=Sampling(),
        turn=turn,
    )


# ---- the queue


def test_lower_turns_go_first_and_equal_ones_in_the_order_of_submission():
    queue = RequestQueue()
    for id, turn in (("b", 1), ("c", 1), ("e", 3), ("a", 0), ("d", 1)):
        queue.push(request(id, turn))
    assert [r.id for r in queue] == list("abcde")
    assert len(queue) == 5
    assert [queue.pop().id for _ in range(5)] == list("abcde")
    with pytest.raises(IndexError):
        queue.pop()


def test_what_comes_back_goes_before_all_of_its_turn():
    queue = RequestQueue()
    for id, turn in (("a", 0), ("b", 1), ("c", 1)):
        queue.push(request(id, turn))
    taken = [queue.pop() for _ in range(3)]
    queue.push(request("d", 1))
    for one in reversed(taken):
        queue.push_back(one)
    queue.push(request("z", 0))
    assert [r.id for r in queue] == ["a", "z", "b", "c", "d"]


def test_an_id_is_taken_out_and_the_order_stays():
    queue = RequestQueue()
    for i in range(20):
        queue.push(request(i % 10, turn=7 * i % 5))
    assert [r.id for r in queue.remove(3)] == [3, 3]
    assert queue.remove(3) == []
    left = [queue.pop() for _ in range(18)]
    assert [r.turn for r in left] == sorted(r.turn for r in left)
    assert 3 not in {r.id for r in left}


# ---- the engine


def make(monkeypatch, *, mode="xla", pages=10 * CONTEXT, **changes):
    monkeypatch.setattr(engine, "Device", ScriptedDevice)
    config = dataclasses.replace(
        ENGINE, pool_bytes=pages * PAGE_BYTES, attention=mode, share_prefix="off", **changes
    )
    return Engine(SPEC, None, config=config, stops={"never": set()}, vocab=SPEC.V)


def order(machine):
    found = []
    while not machine.idle:
        machine.step()
        found += [result.id for result in machine.collect()]
    return found


@pytest.mark.parametrize("mode", ["views", "xla"])
def test_a_request_of_an_older_tree_is_admitted_before_that_of_a_younger_one(monkeypatch, mode):
    turns = {"d": 5, "c": 2, "a": 0, "b": 2}
    for own, want in ((turns, ["a", "c", "b", "d"]), (dict.fromkeys(turns, 0), list("dcab"))):
        machine = make(monkeypatch, mode=mode, slots=1)
        root = machine.root([7])
        for id, turn in own.items():
            machine.submit(request(id, turn, root))
        assert order(machine) == want


def test_what_waits_with_pages_gives_way_to_an_older_tree(monkeypatch):
    machine = make(monkeypatch, mode="views", slots=1, chunk=2)
    root = machine.root([7])
    for id in ("first", "young"):
        machine.submit(request(id, 1, root, tokens=5))
    machine.step()
    assert [run.request.id for run in machine._ready] == ["young"]
    machine.submit(request("old", 0, root))
    assert order(machine) == ["first", "old", "young"]


def test_the_youngest_tree_gives_up_its_pages_first(monkeypatch):
    machine = make(monkeypatch, pages=CONTEXT + 1, slots=3)
    root = machine.root(range(5, 14))
    for id, turn in (("young", 9), ("old", 0), ("middle", 4)):
        machine.submit(request(id, turn, root, tokens=38))
    assert order(machine) == ["old", "middle", "young"]
    assert machine.counters["preempted"] > 0


def test_as_many_must_wait_as_a_chunk_lets_go(monkeypatch):
    machine = make(monkeypatch, slots=64)
    root = machine.root([7])

    def told():
        count = 0
        while machine.hungry:
            machine.submit(request(f"{machine.counters['chunks']}.{count}", 0, root, tokens=9))
            count += 1
        return count

    assert told() == 64 // engine.LEAST
    machine._freed = 20.0
    assert told() == 20 - 64 // engine.LEAST
    machine.step()  # nothing ends in it
    assert machine._freed == engine.WEAR * 20
    machine.step()
    machine.step()  # now all of them do
    assert machine._freed == 20


# ---- trees


class Rarely(host.FakeDevice):
    """A device whose steps hardly ever end a response, so that trees are of one size."""

    def decode(self, packed, table, siblings, wanted):
        chunk = super().decode(packed, table, siblings, wanted)
        tokens = np.where(chunk.tokens == host.END, host.STEP_END, chunk.tokens)
        whole = packed[:, host._AT["stop"]] == 1
        tokens = np.where(whole[:, None], chunk.tokens, tokens).astype(np.int32)
        return dataclasses.replace(chunk, tokens=tokens)


SIZE = dataclasses.replace(
    host.TINY, replicas=1, slots=24, chunk=8, iterations=12, pool_tokens=90_000, context=3000
)


def forest(count, folder):
    """Returns what a search of so many trees took, in decoding steps, and the trees' digests."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(host, "FakeDevice", Rarely))
        machine = host.Machine(SIZE, 14.0, folder)
        for module in (engine, replicas, driver):
            stack.enter_context(mock.patch.object(module, "time", machine.clock))
        scheduler, found = machine.scheduler, {}
        ended, growing = [], []
        while len(found) < count:
            for tree in scheduler.tick():
                ended.append(machine.engine.counters["steps"])
                found[tree.prompt.id] = [(node.ids, node.visits) for node in tree.nodes]
            growing.append(len(scheduler._growing))
        machine.close()
        busy = counters.shares(machine.engine.counters)["busy_share"]
    return ended, sum(growing) / len(growing), busy, found


def test_trees_end_in_a_steady_stream_and_slots_stay_busy(monkeypatch, tmp_path):
    (tmp_path / "before").mkdir()
    count = 40
    ended, growing, busy, trees = forest(count, tmp_path)
    init: Any = Growth.__init__

    def without_turns(self, prompt, root, tools, valuing=None, turn=0):
        del turn
        init(self, prompt, root, tools, valuing)

    monkeypatch.setattr(Growth, "__init__", without_turns)
    monkeypatch.setattr(engine, "LEAST", 4)
    monkeypatch.setattr(engine, "WEAR", 1.0)
    before, growing_before, busy_before, others = forest(count, tmp_path / "before")
    both = trees.keys() & others.keys()
    assert len(both) > count // 2
    assert all(trees[id] == others[id] for id in both)  # whoever went first
    assert ended[0] < 0.7 * before[0]
    assert growing < 0.85 * growing_before
    assert busy > busy_before - 0.01
    # Between two trees passes no more than a small part of the time that the first one took.
    assert max(np.diff(ended)) < ended[0] / 2


def test_a_tree_has_the_turn_of_its_planting(tmp_path):
    machine = host.Machine(SIZE, 14.0, tmp_path)
    asked = []
    for one in machine.engine._engines:
        submit = one.submit

        def noted(request, submit=submit):
            asked.append(request)
            submit(request)

        one.submit = noted
    machine.run(2_000)
    assert {request.turn for request in asked} == {int(request.id.prompt_id) for request in asked}
    assert all(request.turn == int(request.id.prompt_id) for request in asked)
    assert len({request.turn for request in asked}) > 3
    machine.close()
