"""Two users of one engine: neither sees the other's results, ids or cancellations."""

import dataclasses

import pytest

from stair_jax.engine.request import EngineLike, Prefix, Request, Result, Sampling
from stair_jax.engine.shared_engine import SharedEngine


class EchoEngine:
    """Answers a request with its prefix's ids, one step after it was submitted."""

    def __init__(self):
        self.counters = {"steps": 0}
        self.hungry = True
        self.requests: list[Request] = []
        self.held: set[Prefix] = set()
        self._done: list[Result] = []

    def root(self, ids):
        prefix = Prefix(ids)
        self.held.add(prefix)
        return prefix

    def extend(self, prefix, ids):
        assert prefix in self.held
        return self.root((*prefix.ids, *ids))

    def submit(self, request):
        assert request.id not in [r.id for r in self.requests]
        self.requests.append(request)

    def step(self):
        self.counters["steps"] += 1
        for r in self.requests:
            ids = r.prefix.ids
            prefix = self.root((*ids, *ids))
            self._done.append(Result(id=r.id, ids=ids, logps=(), prefix=prefix, finish="stop"))
        self.requests = []

    def collect(self):
        done, self._done = self._done, []
        return done

    def release(self, prefix):
        self.held.remove(prefix)

    def cancel(self, request_id):
        self.requests = [r for r in self.requests if r.id != request_id]
        for result in [r for r in self._done if r.id == request_id]:
            self._done.remove(result)
            self.release(result.prefix)

    @property
    def idle(self):
        return not self.requests


def request(id, prefix, group=None):
    return Request(
        id=id, prefix=prefix, key=("k",), stop="end", max_tokens=3, sampling=Sampling(), group=group
    )


@pytest.fixture
def lines():
    engine = EchoEngine()
    board = SharedEngine(engine)
    return engine, board.client(), board.client()


def test_a_line_is_an_engine_that_shares_everything_but_results(lines):
    engine, one, other = lines
    assert isinstance(one, EngineLike)
    root = one.root([1, 2])
    longer = other.extend(root, [3])
    assert longer.ids == (1, 2, 3)
    one.submit(request("same", root))
    assert not other.idle
    other.submit(request("same", longer))
    one.step()
    assert other.counters["steps"] == 1
    assert other.idle
    assert other.hungry
    engine.hungry = False
    assert not one.hungry
    [mine] = one.collect()
    [theirs] = other.collect()
    assert (mine.id, mine.ids) == ("same", (1, 2))
    assert (theirs.id, theirs.ids) == ("same", (1, 2, 3))
    assert one.collect() == other.collect() == []
    for prefix in (root, longer, mine.prefix, theirs.prefix):
        other.release(prefix)
    assert not engine.held


def test_groups_of_two_lines_are_two_groups(lines):
    engine, one, other = lines
    root = one.root([1])
    one.submit(request("a", root, group="g"))
    one.submit(request("b", root, group="g"))
    other.submit(request("a", root, group="g"))
    one.submit(request("c", root))
    groups = [r.group for r in engine.requests]
    assert groups[0] == groups[1] != groups[2]
    assert groups[3] is None


@pytest.mark.parametrize("when", ["queued", "done", "handed out"])
def test_cancelling_reaches_this_lines_request_alone(lines, when):
    engine, one, other = lines
    root = one.root([1])
    for line in (one, other):
        line.submit(request("same", root))
    if when != "queued":
        one.step()
    if when == "handed out":
        theirs = other.collect()  # takes the engine's results, this line's among them
        other.release(theirs[0].prefix)
    one.cancel("same")
    one.step()
    assert one.collect() == []
    assert (other.collect() == []) == (when == "handed out")
    held = {dataclasses.astuple(r)[0] for r in engine.requests}
    assert not held
    assert len(engine.held) == (1 if when == "handed out" else 2)
