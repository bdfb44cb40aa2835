"""What an engine tells of requests that still run."""

import pytest

from stair_jax.engine.replicas import Replicas
from tests.support import engines
from tests.support.engines import CONFIG, PROMPTS, SPEC, STOPS, ask, make, params

__all__ = ["params"]


def grown(engine, requests):
    """Runs requests and looks after every step; returns the pieces and the results, by id."""
    for request in requests:
        engine.submit(request)
    have = {request.id: 0 for request in requests}
    pieces, results = {id: [] for id in have}, {}
    while len(results) < len(requests):
        engine.step()
        results |= {result.id: result for result in engine.collect()}
        for id, partial in engine.partial(have).items():
            assert id not in results
            have[id] += len(partial.ids)
            pieces[id].append(partial)
    return pieces, results


def check(pieces, results):
    for id, result in results.items():
        ids = [token for piece in pieces[id] for token in piece.ids]
        logps = [logp for piece in pieces[id] for logp in piece.logps]
        assert tuple(ids) == result.ids[: len(ids)]
        assert tuple(logps) == result.logps[: len(logps)]
        assert 0 < len(ids) < len(result.ids)  # the last ones come with the result alone
        assert len(pieces[id]) > 1


def test_pieces_of_a_request_are_the_beginning_of_its_result(params):
    engine = make(params)
    check(*grown(engine, [ask(engine, ids, name) for name, ids in enumerate(PROMPTS)]))


def test_a_request_that_was_sent_back_tells_nothing_twice(params):
    engine = make(params, pool_bytes=engines.smallest_pool())
    pieces, results = grown(engine, [ask(engine, ids, n) for n, ids in enumerate(PROMPTS)])
    assert engine.counters["preempted"] > 0
    for id, result in results.items():
        ids = [token for piece in pieces[id] for token in piece.ids]
        assert tuple(ids) == result.ids[: len(ids)]


def test_only_requests_that_are_asked_about_are_told_of(params):
    engine = make(params)
    for name, ids in enumerate(PROMPTS[:3]):
        engine.submit(ask(engine, ids, name))
    engine.step()
    assert set(engine.partial({1: 0, "other": 0})) == {1}
    assert engine.partial({1: 10**6}) == {}
    assert engine.partial({}) == {}


def test_replicas_tell_of_all_their_requests(params):
    what = {"config": CONFIG, "stops": STOPS, "vocab": SPEC.V - 2}
    replicas = Replicas(SPEC, params, **what, meshes=[None, None])
    check(*grown(replicas, [ask(replicas, ids, n) for n, ids in enumerate(PROMPTS)]))
    assert replicas.occupancy["slots"] == 2 * CONFIG.slots


def test_occupancy_counts_slots_pages_and_those_that_wait(params):
    engine = make(params)
    empty = engine.occupancy
    assert (empty["slots_used"], empty["pages_used"], empty["queued"]) == (0, 0, 0)
    requests = [ask(engine, [1, 2, 3], name) for name in range(CONFIG.slots + 2)]
    for request in requests:
        engine.submit(request)
    assert engine.occupancy["queued"] == CONFIG.slots + 2
    engine.step()
    busy = engine.occupancy
    assert (busy["slots_used"], busy["queued"]) == (CONFIG.slots, 2)
    assert 0 < busy["pages_used"] <= busy["pages"]
    for request in requests:
        engine.cancel(request.id)
        engine.release(request.prefix)
    assert engine.occupancy == empty


@pytest.mark.parametrize("count", [0, 1])
def test_a_finished_request_is_no_longer_partial(params, count):
    engine = make(params)
    engine.submit(ask(engine, [1, 2], "a", max_tokens=1))
    engine.step()
    assert engine.partial({"a": count}) == {}
    assert len(engine.collect()) == 1
