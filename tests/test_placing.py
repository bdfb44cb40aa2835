"""Where arrays are made: on the devices that keep them, and never by way of the host."""

import contextlib
import sys
from types import FrameType
from typing import Any

import jax
import jax._src.array as jax_array
import jax.numpy as jnp
import numpy as np
import pytest

from stair_jax import mesh as mesh_lib
from stair_jax.engine.engine import Engine
from stair_jax.engine.replicas import Replicas
from stair_jax.engine.scoring import Scoring
from stair_jax.model import reward, transformer
from stair_jax.model.spec import Spec
from stair_jax.sections import EngineConfig

SPEC = Spec(
    L=3, D=16, N=4, K=2, H=6, F=20, V=34, vocab=31, eps=1e-5, theta=1e4, rope_scaling=None,
    qkv_bias=True, qk_norm=False, tied=False, family="qwen2",
)  # fmt: skip
CONFIG = EngineConfig(
    slots=5, page_size=4, pool_bytes=0, max_context=40, chunk=3, prefill_rows=2, dtype="bfloat16"
)
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
