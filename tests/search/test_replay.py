"""A restart decodes nothing twice but what was in the slots, and grows the same trees."""

import collections
import contextlib
import dataclasses
import json
import logging
import resource
from unittest import mock

import pytest

from benchmarks import host
from stair_jax.engine import engine as engine_lib
from stair_jax.engine import replicas
from stair_jax.engine.request import EngineLike, Request, Sampling
from stair_jax.judges.base import Judge, Score
from stair_jax.remote.open import OPEN
from stair_jax.search import driver, result_log
from stair_jax.search.replay import ReplayEngine, ReplayJudge
from stair_jax.search.result_log import ResultLog
from tests.support.scripted import (
    PAPER,
    RandomScript,
    ScriptedCodec,
    ScriptedEngine,
    ScriptedJudge,
    prompts,
    search_config,
)

# ---- the log

NOTHING = '"n":0'


@pytest.fixture
def path(tmp_path):
    return tmp_path / result_log.FILE


def opened(path, trees=("a", "b")):
    return contextlib.closing(ResultLog(path, trees))


def test_entries_are_found_again_once_they_are_flushed(path):
    with opened(path) as log:
        log.add("a", "x", '"ids":"ü"')
        assert log.find("a", "x") is None
        assert path.read_bytes() == b""
        log.flush()
        want = {"tree": "a", "name": "x", "ids": "ü"}
        assert log.find("a", "x") == want
        assert log.find("b", "x") is None
        log.add("b", "x", NOTHING)
    with opened(path) as log:  # closing has flushed
        assert log.find("a", "x") == want
        assert log.find("b", "x") == {"tree": "b", "name": "x", "n": 0}
        log.add("a", "x", '"ids":"later"')
        log.flush()
        assert (log.find("a", "x") or {})["ids"] == "later"
    with opened(path, trees=["b"]) as log:
        assert log.find("a", "x") is None


def test_a_torn_last_line_is_cut_off(path):
    with opened(path) as log:
        log.add("a", "x", NOTHING)
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"tree": "a", "name": "y"}')
    with opened(path) as log:
        assert path.read_bytes() == whole
        assert log.find("a", "y") is None
        log.add("a", "z", NOTHING)
        log.flush()
        assert log.find("a", "z") == {"tree": "a", "name": "z", "n": 0}
    assert [json.loads(line)["name"] for line in path.read_text().splitlines()] == ["x", "z"]


@pytest.mark.parametrize("line", ['{"tree": ', "7", '{"tree": "a"}', "\x00\x00"])
def test_a_broken_line_costs_its_own_entry(path, line, caplog):
    with opened(path) as log:
        for name in "xy":
            log.add("a", name, NOTHING)
    first, second = path.read_text().splitlines()
    path.write_text(f"{first}\n{line}\n{second}\n")
    with caplog.at_level(logging.WARNING), opened(path) as log:
        assert log.find("a", "x")
        assert (log.find("a", "y") or {})["name"] == "y"
    assert f"{result_log.FILE}: 1 broken lines passed over" in caplog.text


def test_the_file_is_bounded_by_the_trees_that_grow(path, monkeypatch):
    monkeypatch.setattr(result_log, "WASTE", 500)
    trees, ids = [str(i) for i in range(200)], "=" * 40
    with opened(path, trees) as log:
        for i, tree in enumerate(trees):
            for name in "xyz":
                log.add(tree, name, f'"ids":"{ids}"')
            log.flush()
            if i > 3:
                log.drop(trees[i - 3])
            growing = 7 * 3 * 80  # trees, entries, bytes
            assert path.stat().st_size <= 2 * growing + result_log.WASTE
            assert (log.find(tree, "y") or {})["ids"] == ids
        assert (log.find("0", "z") or {})["name"] == "z"  # was never dropped
        assert log.find("3", "z") is None
    with opened(path, ["199"]) as log:  # so are those that nobody will grow
        assert log.find("199", "z")
        assert path.stat().st_size <= 500 + 3 * 80
    assert [p.name for p in path.parent.iterdir()] == [result_log.FILE]


def test_a_full_disk_is_told_and_tears_nothing(path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with opened(path) as log:
        log.add("a", "x", NOTHING)
        log.flush()
        whole = path.read_bytes()
        for room in (10, 0):  # a write that comes out short, and one that fails
            resource.setrlimit(resource.RLIMIT_FSIZE, (len(whole) + room, hard))
            try:
                log.add("a", "y", f'"ids":"{"=" * 100}"')
                with pytest.raises(OSError, match=result_log.FILE):
                    log.flush()
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
            assert path.read_bytes() == whole
        log.add("a", "z", NOTHING)
    with opened(path) as log:
        assert log.find("a", "z")
        assert log.find("a", "y") is None


# ---- trees over a scripted engine


class Killed(Exception):
    """Ends a search in the middle of its work."""


class Mortal(ScriptedEngine):
    """Stops at a step, as a process does that is killed."""

    def __init__(self, *args, last=10**9, **kwargs):
        super().__init__(*args, **kwargs)
        self.last, self.delivered, self.under_way = last, [], []

    def step(self):
        if self.counters["steps"] == self.last:
            # What is noted here is what a killed process had in its slots.
            self.under_way = [request.key for _, request in self._waiting.values()]
            raise Killed
        super().step()

    def collect(self):
        done = super().collect()
        self.delivered += [result.id for result in done]
        return done


class Short(Mortal):
    """Has no room to rebuild some sequences."""

    def extend(self, prefix, ids):
        if len(ids) % 2 and len(prefix.ids) > 2:
            raise ValueError("no room")
        return super().extend(prefix, ids)


SCRIPT = RandomScript("replay", names=5, ends=0.25, uncut=0.8)
CODEC = ScriptedCodec()  # knows what it has read, so that all sessions share it
CONFIG = search_config(ties="random", score="pucb")  # PUCB wants log-probs


def session(path, *, kind=Mortal, rows=None, judge=None, last=10**9, seed=0, tree_seed=0):
    """Grows what is missing; returns the trees, the engine, the judge and what was left over."""
    trees, left = {}, driver.Leftovers({}, ())
    engine = kind(SCRIPT, CODEC, seed=seed, last=last, appetite=8)
    judge = judge or ScriptedJudge(SCRIPT, seed=seed)
    rows = prompts(7) if rows is None else rows
    with opened(path, [row.id for row in rows]) as log, contextlib.suppress(Killed):
        left = driver.grow(
            rows,
            engine=engine,
            judge=judge,
            codec=CODEC,
            config=CONFIG,
            reward=PAPER,
            seed=tree_seed,
            on_tree=lambda tree: trees.update({tree.prompt.id: tree}),
            results=log,
        )
    assert engine.held == set()
    return trees, engine, judge, left


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    return session(tmp_path_factory.mktemp("undisturbed") / result_log.FILE)


def test_replayers_are_what_the_search_asks_of_engine_and_judge(path):
    with opened(path) as log:
        assert isinstance(ReplayEngine(ScriptedEngine(SCRIPT, CODEC), log), EngineLike)
        assert isinstance(ReplayJudge(ScriptedJudge(SCRIPT), log), Judge)


@pytest.mark.parametrize("kills", [[40], [60], [30, 25, 20, 1]])
def test_a_restart_asks_only_for_what_was_under_way(path, undisturbed, kills):
    whole, plain, plain_judge, _ = undisturbed
    trees, asked, twice, judged = {}, [], [], []
    for number, last in enumerate([*kills, 10**9]):
        rows = [row for row in prompts(7) if row.id not in trees]
        found, engine, judge, _ = session(path, rows=rows, last=last, seed=number)
        trees |= found
        asked += engine.keys
        twice += engine.under_way
        judged += [(id, response) for id, _, response in judge.asked]
    assert trees == whole
    assert 0 < len(twice) <= len(kills) * 30
    assert collections.Counter(asked) == collections.Counter([*plain.keys, *twice])
    # Of the answers, only those are judged again whose score had not come in, or is missing.
    again = collections.Counter(judged) - collections.Counter(
        (id, response) for id, _, response in plain_judge.asked
    )
    assert sum(again.values()) <= 30 * len(kills)
    assert sum(again.values()) < len(plain_judge.asked) / 10
    assert path.stat().st_size < result_log.WASTE


def test_trees_that_are_begun_again_catch_up_before_others_are_planted(path):
    _, killed, *_ = session(path, last=30)
    with opened(path, [row.id for row in prompts(7)]) as log:
        below = ScriptedEngine(SCRIPT, CODEC)
        engine = ReplayEngine(below, log)
        key = next(key for key in killed.keys if key[2:] == ("0", "rollout", 0))
        question = f"question {key[1][1:]}"
        request = Request(
            id=driver.TaskId(key[1], 0, "rollout", 0),
            prefix=engine.root(CODEC.prompt_ids(question)),
            key=key,
            stop="end",
            max_tokens=70,
            sampling=Sampling(),
        )
        assert (engine.hungry, engine.idle) == (True, True)
        engine.submit(request)
        assert below.idle
        assert (engine.hungry, engine.idle) == (False, False)
        engine.step()
        assert below.counters["steps"] == 0
        [result] = engine.collect()
        assert (engine.hungry, engine.idle) == (True, True)
        engine.submit(request)
        engine.cancel(request.id)
        assert engine.collect() == []
        for prefix in (result.prefix, request.prefix):
            engine.release(prefix)
        assert below.held == set()


def test_whole_trees_leave_nothing_in_the_log(path, monkeypatch):
    monkeypatch.setattr(result_log, "WASTE", 0)
    session(path, last=30)
    assert path.stat().st_size > 0
    assert len(session(path)[0]) == 7
    assert path.read_bytes() == b""


def test_the_log_is_what_saves_the_work(path, undisturbed):
    _, plain, *_ = undisturbed
    session(path, last=100)
    path.unlink()
    _, engine, *_ = session(path)
    assert len(engine.keys) == len(plain.keys)
    session(path, last=100)
    assert len(session(path)[1].keys) < len(plain.keys)


def test_sequences_that_cannot_be_rebuilt_are_decoded_again(path, undisturbed):
    whole, plain, *_ = undisturbed
    done, killed, *_ = session(path, last=60)
    rows = [row for row in prompts(7) if row.id not in done]
    trees, engine, *_ = session(path, kind=Short, rows=rows)
    assert trees | done == whole
    assert len(plain.keys) - len(killed.delivered) < len(engine.keys) < len(plain.keys)


def test_another_question_under_the_same_id_gets_nothing_of_the_old_one(path):
    rows = prompts(2)
    session(path, rows=rows, last=60)
    changed = [dataclasses.replace(row, question=f"other {row.id}") for row in rows]
    trees, *_ = session(path, rows=changed)
    assert trees == session(path.with_name("fresh"), rows=changed)[0]


def test_another_seed_gets_nothing_of_the_old_one(path):
    session(path, last=60)
    trees, engine, *_ = session(path, tree_seed=1)
    fresh, plain, *_ = session(path.with_name("fresh"), tree_seed=1)
    assert trees == fresh
    assert sorted(map(str, engine.keys)) == sorted(map(str, plain.keys))


def test_trees_that_nobody_judged_keep_what_was_decoded(path, undisturbed):
    whole, plain, *_ = undisturbed

    class Gone(ScriptedJudge):
        """Answers so many questions, then none."""

        def collect(self):
            found = super().collect()
            return [(id, OPEN if len(self.asked) > 60 else score) for id, score in found]

    trees, first, _, left = session(path, judge=Gone(SCRIPT))
    assert left.left_open
    rows = [row for row in prompts(7) if row.id in left.left_open]
    others, second, *_ = session(path, rows=rows)
    assert trees | others == whole
    assert set(trees).isdisjoint(others)
    # A tree that is given up cancels what it has under way.
    known = set(first.delivered)
    assert known & {driver.TaskId(key[1], -1, *key[3:]) for key in second.keys} == set()
    assert len(second.keys) < sum(key[1] in left.left_open for key in plain.keys)


def test_what_is_missing_is_asked_for_again(path):
    class Fickle(ScriptedJudge):
        """Has no score for anything today."""

        def collect(self):
            return [(id, None) for id, _ in super().collect()]

    session(path, judge=Fickle(SCRIPT), last=40)
    with opened(path, [p.id for p in prompts(7)]) as log:
        entries = [log.find(t, n) or {} for t, names in log._places.items() for n in names]
    assert entries
    assert not any("score" in entry for entry in entries)


def test_scores_come_back_with_their_counts(path):
    class Counting(ScriptedJudge):
        def collect(self):
            found = super().collect()
            return [
                (id, score and dataclasses.replace(score, counts={"malformed": 1}))
                for id, score in found
            ]

    session(path, judge=Counting(SCRIPT), last=40)
    with opened(path, ["p0"]) as log:
        judge = ReplayJudge(ScriptedJudge(SCRIPT), log)
        found = [log.find("p0", name) or {} for name in log._places["p0"]]
        [entry, *_] = [entry for entry in found if "score" in entry]
        with mock.patch.object(log, "find", return_value=entry):
            judge.submit(driver.TaskId("p0", 0, "judge", 0), prompts(1)[0], "x")
        [(_, score)] = judge.collect()
    safety, helpfulness, _ = entry["score"]
    assert score == Score(safety=safety, helpfulness=helpfulness, counts={"malformed": 1})


# ---- trees over the real engine, a fake device and a virtual clock

SIZE = dataclasses.replace(
    host.TINY, replicas=2, slots=24, chunk=8, iterations=12, pool_tokens=90_000, context=3000
)
TREES = 64


def grown(folder, *, have=(), until=TREES, ticks=10**9):
    """Grows the first trees; returns their digests, and what each engine had in its slots."""
    found, count = {}, 0
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(host, "PROMPTS", TREES))
        machine = host.Machine(SIZE, 14.0, folder)
        for module in (engine_lib, replicas, driver):
            stack.enter_context(mock.patch.object(module, "time", machine.clock))
        queue = machine.scheduler._queue
        machine.scheduler._queue = collections.deque(p for p in queue if p.id not in have)
        while len(found) + len(have) < until and count < ticks:
            count += 1
            for tree in machine.scheduler.tick():
                nodes = [(node.ids, node.visits, node.value_sum) for node in tree.nodes]
                found[tree.prompt.id] = nodes, tree.counters
                machine.results.drop(tree.prompt.id)
        decoded = int(machine.engine.counters["decoded"])
        slots = [run for one in machine.engine._engines for run in one._slots if run is not None]
    machine.results._file.close()  # nothing is written any more: the process is dead
    return found, decoded, sum(run.made for run in slots), len(slots)


def test_a_kill_in_the_middle_of_64_trees_costs_what_was_in_the_slots(tmp_path):
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
    whole, once, *_ = grown(tmp_path / "whole")
    first, decoded, in_slots, slots = grown(tmp_path / "killed", until=TREES // 2)
    assert TREES // 2 <= len(first) < TREES
    assert slots > SIZE.slots  # both engines were busy
    second, more, *_ = grown(tmp_path / "killed", have=first)
    assert first | second == whole
    twice = decoded + more - once
    assert 0 < twice <= in_slots + SIZE.chunk * SIZE.slots * SIZE.replicas
    assert twice < once / 20
