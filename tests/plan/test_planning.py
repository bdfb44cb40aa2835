"""A plan on eight fake CPU devices: what it says, and that it is what a run has."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stair_jax import mesh as mesh_lib
from stair_jax.data.batches import SftBatch
from stair_jax.engine import placing
from stair_jax.engine.engine import Engine
from stair_jax.engine.request import Sampling
from stair_jax.model import transformer
from stair_jax.plan import figures, planning, target
from stair_jax.plan.target import Target
from stair_jax.program import device_bytes, distinct
from stair_jax.run import objectives
from stair_jax.run.workdir import size_of
from stair_jax.train import optimizer
from stair_jax.train import step as step_lib
from tests.support.configs import tiny
from tests.support.placing import CONFIG, SPEC, stacked
from tests.support.training import train_config

CPUS = Target.parse("cpux8")
SMALL = {
    "stages": "sft",
    "mesh__shape": (1, 8, 1),
    "plan": "cpux8",
    "model__size": {"L": 1, "D": 16, "N": 2, "K": 2, "H": 8, "F": 24, "eps": 1e-5, "theta": 100.0},
}
SAMPLINGS = [Sampling(temperature=1.0, top_k=5)]


def small(folder, **changes):
    c = tiny(workdir=str(folder), **{**SMALL, **changes})
    c.sft.train.update(batch=16, buckets=(16,), micro_tokens=128)
    return c


def live(tree):
    """Bytes of arrays on the first device."""
    first = jax.local_devices()[0]
    return sum(
        shard.data.nbytes
        for x in jax.tree.leaves(tree)
        for shard in x.addressable_shards
        if shard.device == first
    )


def test_a_plan_is_written_with_what_each_program_needs(tmp_path, capsys):
    c = small(tmp_path)
    found = planning.make(c, CPUS)
    assert [one.stage for one in found.programs] == ["sft"] * 3
    assert [one.name.split(" of ")[0] for one in found.programs] == ["first sums", "pass", "update"]
    assert not found.refused
    said = capsys.readouterr().out
    assert "| sft | pass of 8 x 16 tokens |" in said
    saved = planning.table.as_json(
        found.target, found.programs, found.estimate, found.chosen, found.refused
    )
    one = json.loads(json.dumps(saved))["programs"][1]
    assert {"name", "argument_bytes", "temp_bytes", "device_bytes", "fits"} <= one.keys()
    assert one["fits"] is True
    beside = sum(one["beside_bytes"].values())
    total = one["argument_bytes"] + one["temp_bytes"] + one["result_bytes"] + beside
    assert one["device_bytes"] == total
    assert one["flops"] > 0
    assert {move["op"] for move in one["collectives"]} >= {"all-gather"}
    assert saved["chosen"]["config.mesh.shape"] == (1, 8, 1)


def test_a_run_that_does_not_fit_is_refused_with_the_knob(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(Target, "room", property(lambda self: 9_000.0))
    monkeypatch.setattr(planning, "prepare", lambda config, aim: None)
    assert planning.main(small(tmp_path)) == planning.REFUSED
    said = capsys.readouterr().out
    assert f"more than the {size_of(9_000)} of a device" in said
    assert "does not fit: sft, " in said
    saved = json.loads((tmp_path / planning.FILE).read_text())
    assert saved["fits"] is False
    refused = [one for one in saved["programs"] if not one["fits"]]
    assert refused
    assert not any(one["compiled"] for one in refused)


def test_bad_input_makes_no_plan(tmp_path, capsys):
    assert planning.main(small(tmp_path, plan="a800x")) == planning.NO_PLAN
    told = capsys.readouterr().err
    assert told.startswith("error: config.plan: 'a800x', expected")
    assert told.count("\n") == 1
    assert not (tmp_path / planning.FILE).exists()


def test_a_mesh_that_is_larger_than_the_target_is_said_and_planned_smaller(tmp_path):
    wide = small(tmp_path, mesh__shape=(1, 8, 1))
    two = Target.parse("cpux2")
    changed, said = planning._with_mesh(wide, two)
    assert tuple(changed.mesh.shape) == (1, -1, 1)
    assert said[0].startswith("config.mesh.shape=(1, 8, 1) wants 8 devices, cpux2 has 2")
    assert planning._with_mesh(wide, CPUS) == (wide, [])
    assert planning._with_mesh(small(tmp_path, mesh__shape=(1, -1, 2)), two)[1] == []


def test_a_planned_engine_has_the_bytes_and_programs_of_a_real_one():
    place = mesh_lib.replicas(mesh_lib.make((2, 2, 2)), 0)[0]
    how = {"config": CONFIG, "stops": {"a": (1,), "b": (2,)}, "vocab": 31, "mesh": place}
    like = placing.planned(SPEC, place, dtype="bfloat16", joined=False)
    real = Engine(SPEC, stacked(), **how)
    planned = Engine(SPEC, like, **how)
    assert device_bytes(like.tree) == live(real._device._params)
    assert planned.device_bytes == {
        "weights": live(real._device._params),
        "pool": live(real._device._pool),
    }
    ours = planned.programs(SAMPLINGS, extends=True)
    names = [program.name for program in ours]
    assert len(names) == len(set(names)) > 6
    theirs = real._device.programs(real._kinds(SAMPLINGS), extends=True)
    assert [program.key for program in ours] == [program.key for program in theirs]
    live(real._device._pool)  # handing them out has donated nothing


def test_a_planned_trainer_has_the_bytes_of_a_real_one():
    mesh, config = mesh_lib.make((1, 4, 2)), train_config(buckets=(8,), batch=8, micro_tokens=32)
    loss, tx = objectives.sft(SPEC, config, ()), optimizer.of(config)
    like = objectives.planned_weights(loss, SPEC, config, 0, mesh).trained
    state = step_lib.abstract(like, tx, mesh)
    places = jax.tree.map(lambda x: x.sharding, like)
    params = jax.jit(lambda key: transformer.init(SPEC, key), out_shardings=places)(
        jax.random.key(0)
    )
    real = step_lib.init(params, tx, mesh)
    assert device_bytes(state.params) == live(real.params)
    assert device_bytes(state.opt) == live(real.opt)
    batch = SftBatch.empty(np.zeros((2, 4, 8), np.int32))
    planned = step_lib.programs(state, batch, loss=loss, tx=tx, mesh=mesh)
    assert planned[1].beside == {"moments": live(real.opt)}
    one = step_lib.programs(state, batch.joined().cut(1), loss=loss, tx=tx, mesh=mesh)
    assert [program.name for program in one] == ["step of 8 x 8 tokens"]


def test_what_is_planned_of_a_step_is_what_a_step_runs():
    mesh, config = mesh_lib.make((1, 2, 1)), train_config(buckets=(8,), batch=4, micro_tokens=16)
    loss, tx = objectives.sft(SPEC, config, ()), optimizer.of(config)
    like = objectives.planned_weights(loss, SPEC, config, 0, mesh).trained
    state = step_lib.abstract(like, tx, mesh)
    batch = SftBatch.empty(np.zeros((2, 2, 8), np.int32))
    calls = [p.call for p in step_lib.programs(state, batch, loss=loss, tx=tx, mesh=mesh)]
    run = step_lib.Programs.for_state(loss, tx, state)
    assert calls == [run.zeros, run.add, run.update]


def test_programs_that_are_compiled_alike_are_planned_once():
    place = mesh_lib.replicas(mesh_lib.make((1, 1, 1)), 1)[0]
    how = {"config": CONFIG, "stops": {"a": (1,)}, "vocab": 31, "mesh": place}
    engine = Engine(SPEC, placing.planned(SPEC, place, dtype="bfloat16"), **how)
    twice = engine.programs(SAMPLINGS) + engine.programs(SAMPLINGS)
    assert len(distinct(twice)) == len(twice) // 2


@pytest.mark.parametrize(("room", "share"), [(10_000_000, 0.85), (None, None)])
def test_a_planned_pool_takes_what_the_weights_leave(room, share):
    place = mesh_lib.replicas(mesh_lib.make((1, 1, 1)), 1)[0]
    how = {"stops": {"a": (1,)}, "vocab": 31, "mesh": place}
    config = CONFIG if room is None else _many_slots()
    like = placing.planned(SPEC, place, dtype="bfloat16", free_bytes=room)
    found = Engine(SPEC, like, config=config, **how).device_bytes
    page = found["pool"] / (found["pool"] // _page_bytes(config))
    if share is None:
        assert found["pool"] == 4 * config.slots * 10 * page  # four contexts a slot
    else:
        assert room is not None
        most = share * (room - found["weights"])
        assert most - page < found["pool"] <= most


def _many_slots():
    return dataclasses.replace(CONFIG, slots=4000)


def _page_bytes(config):
    return 2 * SPEC.L * config.page_size * SPEC.K * SPEC.H * jnp.dtype(config.dtype).itemsize


def test_times_are_bounded_by_the_slowest_part():
    aim = target.Target.parse("a800x8")
    one = figures.Figures(
        name="x",
        stage="sft",
        trains=True,
        arguments=1,
        pool=0,
        beside={},
        flops=312e12,
        moved=2.03904e12 / 2,
    )
    assert one.times(aim) == pytest.approx({"products": 1.0, "memory": 0.5, "links": 0.0})
    assert one.roofline(aim) == (pytest.approx(1.0), "products")
    assert one.roofline(CPUS) is None
