import dataclasses

import jax
import numpy as np
import pytest

from stair_jax import mesh as mesh_lib
from stair_jax.engine.engine import Engine
from stair_jax.engine.replicas import Replicas
from stair_jax.engine.request import GREEDY, Request
from tests.support.engines import CONFIG, PROMPTS, SPEC, STOPS, WARM, ask, params  # noqa: F401
from tests.support.places import PLACES


def make(params, places=PLACES, **change):  # noqa: F811
    config = dataclasses.replace(CONFIG, **change)
    return Replicas(SPEC, params, config=config, stops=STOPS, vocab=SPEC.V - 2, meshes=places)


def test_replicas_lie_on_devices_of_their_own(params):  # noqa: F811
    engine = make(params)
    used = [{device.id for device in part._device._pool.k.devices()} for part in engine._engines]
    assert [len(ids) for ids in used] == [2, 2]
    assert not used[0] & used[1]


def test_replicas_answer_as_one_engine_does_and_share_the_work(params):  # noqa: F811
    one = Engine(SPEC, params, config=CONFIG, stops=STOPS, vocab=SPEC.V - 2)
    many = make(params)
    asked = [*PROMPTS, *[[9, i] for i in range(14)]]
    results = [
        e.generate([ask(e, ids, i, "end", 9, WARM) for i, ids in enumerate(asked)])
        for e in (one, many)
    ]
    for a, b in zip(*results, strict=True):
        assert a.ids == b.ids
        np.testing.assert_allclose(a.logps, b.logps, atol=1e-5)
    work = [part.counters["delivered"] for part in many._engines]
    assert min(work) > 0.25 * sum(work)
    assert many.counters["delivered"] == one.counters["delivered"] == sum(work)
    assert many.counters["prefilled"] == one.counters["prefilled"]


def test_what_continues_a_sequence_stays_where_it_is(params):  # noqa: F811
    engine = make(params)
    first = engine.generate([ask(engine, ids, i, max_tokens=4) for i, ids in enumerate(PROMPTS)])
    prefilled = engine.counters["prefilled"]
    again = [
        Request(
            id=("again", r.id),
            prefix=r.prefix,
            key=("a", i),
            stop="never",
            max_tokens=3,
            sampling=GREEDY,
        )
        for i, r in enumerate(first)
    ]
    engine.generate(again)
    assert engine.counters["prefilled"] == prefilled


def test_everything_given_back_leaves_nothing(params):  # noqa: F811
    engine = make(params)
    requests = [ask(engine, [9, i], i, max_tokens=8) for i in range(12)]
    for request in requests:
        engine.submit(request)
    engine.step()
    engine.cancel(0)
    engine.cancel(11)
    engine.cancel("unknown")
    found = []
    while not engine.idle:
        engine.step()
        found += engine.collect()
    assert sorted(result.id for result in found) == list(range(1, 11))
    for prefix in [*(r.prefix for r in requests), *(r.prefix for r in found)]:
        engine.release(prefix)
    assert not engine._home
    assert not engine._asked
    assert not any(engine._load.values())
    assert not any(any(part._store.pages.owners) for part in engine._engines)
    with pytest.raises(ValueError, match="released"):
        engine.release(requests[0].prefix)


def test_a_slow_replica_holds_nobody_up(params, monkeypatch):  # noqa: F811
    engine = make(params)
    slow, quick = engine._engines
    held_up = [slow]
    is_ready = Engine.ready.__get__
    monkeypatch.setattr(Engine, "ready", property(lambda e: e not in held_up and is_ready(e)))
    for i in range(8):
        engine.submit(ask(engine, [9, i], i, max_tokens=20))
    assert slow._queue
    assert quick._queue
    while not quick.idle:
        engine.step()
    assert slow.under_way
    assert slow.counters["chunks"] == 0
    held_up.clear()
    while not engine.idle:
        engine.step()
    assert slow.counters["chunks"] > 0


def test_places_follow_the_mesh_and_the_number_of_cpus():
    wide = mesh_lib.replicas(mesh_lib.make((2, 2, 2)), 0)
    assert [dict(m.shape) for m in wide] == [{"data": 1, "fsdp": 1, "tensor": 2}] * 4
    assert len({d for m in wide for d in m.devices.flat}) == 8
    alone = mesh_lib.make((1, 1, 1))
    assert len(mesh_lib.replicas(alone, 3)) == 3
    assert len(mesh_lib.replicas(alone, 0)) == min(mesh_lib.cores(), 8)
    with pytest.raises(ValueError, match=r"mesh.replicas: 9, but JAX shows 8"):
        mesh_lib.replicas(alone, 9)
    with pytest.raises(ValueError, match=r"mesh.replicas: 3, expected data x fsdp = 4"):
        mesh_lib.replicas(mesh_lib.make((2, 2, 2)), 3)


@pytest.mark.parametrize(
    ("shape", "count", "flags", "want"),
    [
        ((1, 1, 1), 3, "", 3),
        ((2, 4, 1), 0, "", 8),
        ((1, -1, 1), 2, "", 2),
        ((1, 1, 1), 3, "--xla_force_host_platform_device_count=5", None),
    ],
)
def test_cpu_devices_are_asked_for_once(monkeypatch, shape, count, flags, want):
    asked = {}
    monkeypatch.setattr(jax.config, "update", asked.__setitem__)
    mesh_lib.show_cpus(shape, count)
    assert not asked  # these tests have set a number
    monkeypatch.setattr(mesh_lib, "_cpus_chosen", lambda: False)
    monkeypatch.setenv("XLA_FLAGS", flags)
    mesh_lib.show_cpus(shape, count)
    assert asked == ({} if want is None else {"jax_num_cpu_devices": want})
