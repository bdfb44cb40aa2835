"""Where arrays are made: on the devices that keep them, and never by way of the host."""

import contextlib
import dataclasses
import functools
import gc
import sys
from types import FrameType
from typing import Any

import jax
import jax._src.array as jax_array
import jax.numpy as jnp
import numpy as np
import pytest

from stair_jax import mesh as mesh_lib
from stair_jax.engine import decode, placing
from stair_jax.engine.device import joins
from stair_jax.engine.engine import Engine
from stair_jax.engine.placing import Later
from stair_jax.engine.replicas import Replicas
from stair_jax.engine.request import Request, Sampling
from stair_jax.engine.scoring import Scoring
from stair_jax.model import cache, reward, transformer
from stair_jax.plan import gpu_text
from stair_jax.run import models
from stair_jax.train import checkpoint
from tests.support.placing import CONFIG, SPEC, stacked

GROUP = 2 * SPEC.L * SPEC.D * SPEC.F  # bytes of the largest weights, cast
SHAPES = [(1, 8, 1), (2, 2, 2), (1, 1, 8)]
STOPS = {"end": {8}}


def trained(shape, make=transformer, spec=SPEC):
    """Weights as a trainer on this mesh keeps them, and the mesh."""
    mesh, key = mesh_lib.make(shape), jax.random.key(0)
    draw = lambda key: make.init(spec, key)  # noqa: E731
    places = mesh_lib.shardings(make.logical_axes(spec), mesh, jax.eval_shape(draw, key))
    return jax.block_until_ready(jax.jit(draw, out_shardings=places)(key)), mesh


class Watch:
    """What was seen of arrays while something was made."""

    def __init__(self):
        self.pulled: list[tuple[int, ...]] = []  # shapes that came to the host
        self.scattered: list[tuple[int, ...]] = []  # of arrays in parts, given to `device_put`
        self.made: dict[Any, set[Any]] = {}  # by shape and dtype, on which devices
        gc.collect()  # what earlier tests have left in circles must not go while this one counts
        self.before, self.most = alive(), {}  # bytes by device

    def look(self):
        for device, count in alive().items():
            self.most[device] = max(self.most.get(device, 0), count)


def alive():
    """Returns the bytes of all arrays, by device; parts that arrays share count once."""
    found, seen = dict.fromkeys(range(8), 0), set()
    for x in jax.live_arrays():
        for shard in x.addressable_shards:
            address = shard.device.id, shard.data.unsafe_buffer_pointer()
            if address not in seen:
                seen.add(address)
                found[shard.device.id] += shard.data.nbytes
    return found


@contextlib.contextmanager
def watched(monkeypatch):
    """Sees each array that comes to the host, each that a function returns, and bytes meanwhile."""
    watch = Watch()
    value, put = jax_array.ArrayImpl._value, jax.device_put

    def pull(array):
        watch.pulled.append(array.shape)
        return value.fget(array)

    def spy(x, where=None, **more):
        parts = [x for x in jax.tree.leaves(x) if isinstance(x, jax.Array)]
        watch.scattered += [x.shape for x in parts if len(x.devices()) > 1]
        return put(x, where, **more)

    def profile(frame: FrameType, event: str, arg: Any):
        if event != "return":
            return
        name = frame.f_code.co_name
        if type(arg) is jax_array.ArrayImpl or name in ("empty_pool", "empty", "zeros"):
            for x in jax.tree.leaves(arg):
                if isinstance(x, jax_array.ArrayImpl):
                    devices = frozenset(device.id for device in x.devices())
                    watch.made.setdefault((x.shape, x.dtype), set()).add(devices)
        if name in ("_placed_parts", "_split", "zeros", "empty_pool", "empty", "by_layer"):
            watch.look()

    with monkeypatch.context() as patch:
        patch.setattr(jax_array.ArrayImpl, "_value", property(pull))
        patch.setattr(jax, "device_put", spy)
        sys.setprofile(profile)
        try:
            yield watch
        finally:
            sys.setprofile(None)
    watch.look()


@pytest.mark.parametrize("shape", SHAPES)
def test_replicas_get_their_weights_and_pools_without_the_host(shape, monkeypatch):
    params, mesh = trained(shape)
    places = mesh_lib.replicas(mesh, 0)
    with watched(monkeypatch) as watch:
        engine = Replicas(SPEC, params, config=CONFIG, stops=STOPS, vocab=31, meshes=places)
        for part in engine._engines:
            part._device.widen(3, idle=True)
    assert (watch.pulled, watch.scattered) == ([], [])
    after = alive()
    plain = transformer.by_layer(jax.device_get(params))
    for part, place in zip(engine._engines, places, strict=True):
        device, ids = part._device, {d.id for d in place.devices.flat}
        held = (device._params, device._pool, device._views, device._stops)
        for x in jax.tree.leaves(held):
            assert {d.id for d in x.devices()} == ids
        for name, want in plain["layers"][2].items():
            got = np.asarray(device._params["layers"][2][name])
            np.testing.assert_array_equal(got, np.asarray(jnp.asarray(want, jnp.bfloat16)))
        np.testing.assert_array_equal(
            np.asarray(device._params["embed"], np.float32),
            np.asarray(jnp.asarray(plain["embed"], jnp.bfloat16), np.float32),
        )
        for x in jax.tree.leaves(held[1:]):  # nor were these ever elsewhere
            for made in watch.made[x.shape, x.dtype]:
                assert any(made <= _ids(place) for place in places)
    own = [after[i] - watch.before[i] for i in range(8)]
    assert len(set(own)) == 1  # nobody keeps anything for another
    for i in range(8):  # nor for a moment: of one group alone, more than the engine's was there
        assert 0 < own[i] <= watch.most[i] - watch.before[i] <= own[i] + GROUP


def _ids(place):
    return frozenset(device.id for device in place.devices.flat)


@pytest.mark.parametrize("number", [0, 3, 7])
def test_one_replica_touches_its_own_device_alone(number, monkeypatch):
    params, mesh = trained((1, 8, 1))
    place = mesh_lib.replicas(mesh, 0)[number]
    ids = {device.id for device in place.devices.flat}
    assert ids == {number}
    with watched(monkeypatch) as watch:
        engine = Engine(SPEC, params, config=CONFIG, stops=STOPS, vocab=31, mesh=place)
        engine._device.widen(3, idle=True)
    assert (watch.pulled, watch.scattered) == ([], [])
    held = engine._device._params, engine._device._pool, engine._device._views
    assert {d.id for x in jax.tree.leaves(held) for d in x.devices()} == ids
    for x in jax.tree.leaves(held[1:]):
        assert watch.made[x.shape, x.dtype] == {frozenset(ids)}
    for other in {*range(8)} - ids:
        assert watch.most[other] - watch.before[other] <= GROUP


@pytest.mark.parametrize("shape", SHAPES)
def test_a_reward_model_lies_on_its_place_alone(shape, monkeypatch):
    spec = reward.scalar(SPEC)
    params, mesh = trained(shape, reward, spec)
    place = mesh_lib.replicas(mesh, 0)[-1]
    ids = {device.id for device in place.devices.flat}
    with watched(monkeypatch) as watch:
        scoring = Scoring(spec, params, config=CONFIG, mesh=place)
    assert (watch.pulled, watch.scattered) == ([], [])
    device = scoring._device
    assert device._params["score"].dtype == jnp.float32
    for x in jax.tree.leaves((device._params, device._pool)):
        assert {d.id for d in x.devices()} == ids
    np.testing.assert_array_equal(device._params["score"], params["score"])
    for other in {*range(8)} - ids:
        assert watch.most[other] - watch.before[other] <= GROUP


def extra(monkeypatch, params, **how):
    """Returns the weights by layer, and what more than them and their source was ever alive."""
    source = sum(x.nbytes for x in jax.tree.leaves(params) if isinstance(x, jax.Array))
    with watched(monkeypatch) as watch:
        (placed,) = placing.place(SPEC, params, [None], dtype=jnp.bfloat16, **how)
        own = sum(x.nbytes for x in jax.tree.leaves(placed.tree))
        if how.get("give_away"):
            assert params == {"layers": {}}
    return placed.tree, (watch.most[0] - watch.before[0] + source) / own, source / own


@pytest.mark.parametrize("joined", [False, True])
def test_weights_that_are_read_when_their_turn_comes_lie_there_once(monkeypatch, joined):
    want = transformer.by_layer(stacked(jnp.bfloat16))
    want = transformer.joined(want, SPEC) if joined else want
    given = jax.tree.map(np.asarray, stacked())
    later = jax.tree.map(lambda x: Later(x.shape, "bfloat16", lambda: jnp.bfloat16(x)), given)
    found, most, source = extra(monkeypatch, later, joined=joined, give_away=True)
    assert source == 0
    assert jax.tree.structure(found) == jax.tree.structure(want)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(want), strict=True):
        np.testing.assert_array_equal(np.asarray(a, np.float32), np.asarray(b, np.float32))
    assert 1 <= most <= 1.15


def test_what_is_given_away_is_freed_as_it_is_placed(monkeypatch):
    _, kept, source = extra(monkeypatch, stacked(), give_away=False)
    _, given, _ = extra(monkeypatch, stacked(), give_away=True)
    assert source == 2  # float32
    assert kept > 2.9  # the source stays to the end
    assert given < 2.4  # and here only until its own turn


@pytest.mark.parametrize("kind", ["stacked", "parted", "numpy"])
def test_weights_may_lie_anywhere_in_any_form(kind):
    params = stacked()
    want = transformer.joined(transformer.by_layer(params), SPEC)
    given: Any = {
        "stacked": params,
        "parted": transformer.by_layer(params),
        "numpy": jax.tree.map(np.asarray, params),
    }[kind]
    places = [None, *mesh_lib.replicas(mesh_lib.make((2, 1, 2), jax.devices()[3:7]), 0)]
    for placed in placing.place(SPEC, given, places, dtype=jnp.float32, joined=True):
        assert jax.tree.structure(placed.tree) == jax.tree.structure(want)
        jax.tree.map(np.testing.assert_array_equal, placed.tree, want)
    assert jax.tree.structure(given) == jax.tree.structure(  # nothing was taken from it
        transformer.by_layer(params) if kind == "parted" else params
    )


@pytest.mark.parametrize(("tensor", "qkv"), [(1, True), (2, True), (4, False)])
def test_each_device_has_the_query_heads_that_its_keys_serve(tensor, qkv):
    params, place = stacked(), mesh_lib.make((1, 1, tensor))
    (placed,) = placing.place(SPEC, params, [place], dtype=jnp.float32, joined=True)
    layer = placed.tree["layers"][1]
    assert ("wqkv" in layer, "bqkv" in layer, "wq" in layer) == (qkv, qkv, not qkv)
    both = layer["w_gate_up"]
    assert both.sharding.shard_shape(both.shape) == (SPEC.D, SPEC.F // tensor, 2)
    if qkv:
        part = layer["wqkv"].addressable_shards[-1].data
        last = SPEC.N // tensor, SPEC.K // tensor
        names = zip(("wq", "wk", "wv"), (last[0], last[1], last[1]), strict=True)
        mine = [params["layers"][name][1][:, -count:] for name, count in names]
        spec = dataclasses.replace(SPEC, N=last[0], K=last[1])
        np.testing.assert_array_equal(part, transformer.join("wqkv", mine, spec))


def test_no_joined_weight_is_gathered_when_it_is_used():
    mesh = mesh_lib.make((1, 1, 2))
    (placed,) = placing.place(SPEC, stacked(), [mesh], dtype=jnp.float32, joined=True)
    pool = cache.empty_pool(SPEC, pages=7, page_size=4, dtype=jnp.float32)
    rows = np.zeros((2, 5), np.int32), *np.zeros((2, 2), np.int32), np.zeros((2, 3), np.int32)
    with jax.set_mesh(mesh):
        lowered = decode.extend.lower(
            placed.tree, pool, *rows, decoder=transformer.Decoder(SPEC, jnp.float32), fresh=True
        )
        program = gpu_text.parse(lowered.compile().as_text() or "")
    every = [i for part in program.computations.values() for i in part]
    assert [i for i in every if i.op == "all-reduce"]  # the devices do share the work
    sizes = {4 * x.size for layer in placed.tree["layers"] for x in layer.values() if x.ndim > 1}
    gathered = [i for i in every if i.op.startswith("all-gather") and i.bytes in sizes]
    assert not gathered, [i.line for i in gathered]


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 1, 2)])
def test_joined_weights_answer_as_those_apart(shape, monkeypatch):
    params = jax.tree.map(lambda x: 3 * x, stacked())
    params["layers"]["bk"] = 1 + params["layers"]["bk"]
    config = dataclasses.replace(CONFIG, attention="xla", dtype="float32")
    answers = []
    for join in (True, False):
        monkeypatch.setattr("stair_jax.engine.device.joins", lambda _, join=join: join)
        engine = Engine(
            SPEC, params, config=config, stops=STOPS, vocab=31, mesh=mesh_lib.make(shape)
        )
        assert ("wqkv" in engine._device._params["layers"][0]) == join
        asked = [
            Request(
                id=i,
                prefix=engine.root([i, 3, 5]),
                key=("j", i),
                stop="end",
                max_tokens=9,
                sampling=Sampling(temperature=1.0),
                logps=True,
            )
            for i in range(7)
        ]
        answers.append(engine.generate(asked))
    for a, b in zip(*answers, strict=True):
        assert a.ids == b.ids
        # One product of three weights may be summed in another order than three products: on some
        # versions of XLA that moves a log-prob of 3 nats by 50 units in its last place.
        np.testing.assert_allclose(a.logps, b.logps, rtol=1e-5, atol=1e-5)


def test_cpus_read_weights_apart_and_accelerators_joined():
    assert not joins(dataclasses.replace(CONFIG, attention="auto"))
    assert joins(dataclasses.replace(CONFIG, attention="xla"))


def test_a_checkpoint_is_read_leaf_by_leaf_in_the_engines_dtype(tmp_path, monkeypatch):
    params, mesh = trained((1, 4, 2))
    with checkpoint.Checkpoints(tmp_path, keep=1, fingerprint={}) as saves:
        saves.save(3, params=params, opt={"n": np.float32(0)}, data={})
    like = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), params
    )
    later = models._leaves_later(tmp_path, like, 3, "bfloat16")
    read, opened = [], checkpoint.load_leaf

    def spy(folder, path, leaf, step):
        read.append((tuple(path), leaf.dtype))
        return opened(folder, path, leaf, step)

    later = jax.tree.map(lambda x: x, later)
    for name, leaf in later["layers"].items():
        keys = ["layers", name]
        make = functools.partial(spy, tmp_path, keys, leaf.make.args[2], 3)
        later["layers"][name] = dataclasses.replace(leaf, make=make)
    places = mesh_lib.replicas(mesh, 0)
    placed = placing.place(SPEC, later, places, dtype=jnp.bfloat16, give_away=True)
    want = placing.place(SPEC, params, places, dtype=jnp.bfloat16)
    for a, b in zip(placed, want, strict=True):
        assert jax.tree.structure(a.tree) == jax.tree.structure(b.tree)
        for x, y in zip(jax.tree.leaves(a.tree), jax.tree.leaves(b.tree), strict=True):
            assert (x.dtype, x.sharding) == (y.dtype, y.sharding)
            np.testing.assert_array_equal(np.asarray(x, np.float32), np.asarray(y, np.float32))
    assert len(read) == len(params["layers"])  # once for all replicas
    assert {dtype for _, dtype in read} == {jnp.dtype(jnp.bfloat16)}
    sizes = [params["layers"][name].size for (_, name), _ in read]
    assert sizes == sorted(sizes, reverse=True)
