import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as PS

from stair_jax import mesh


@pytest.mark.parametrize(
    ("shape", "sizes"),
    [((1, -1, 1), (1, 8, 1)), ((2, -1, 2), (2, 2, 2)), ((-1, 3, 1), None), ((2, 4, 1), (2, 4, 1))],
)
def test_minus_one_takes_the_devices_that_are_left(shape, sizes):
    if sizes is None:
        with pytest.raises(ValueError, match="does not fit 8 devices"):
            mesh.make(shape)
        return
    assert tuple(mesh.make(shape).shape.values()) == sizes


@pytest.mark.parametrize(
    "shape", [(3, 3, 1), (16, 1, 1), (-1, -1, 1), (0, 1, 1), (1, 8), (1, -2, 1)]
)
def test_a_shape_that_does_not_fit_is_refused_in_one_line(shape):
    with pytest.raises(ValueError, match=r"^mesh\.shape .*$") as error:
        mesh.make(shape)
    assert "\n" not in str(error.value)
    assert str(tuple(shape)) in str(error.value)


def test_a_smaller_mesh_uses_the_first_devices_only():
    assert list(mesh.make((1, 3, 1)).devices.flat) == jax.devices()[:3]
    assert list(mesh.make((-1, 1, 1), jax.devices()[5:]).devices.flat) == jax.devices()[5:]


def test_axes_are_auto():
    assert set(mesh.make((2, 2, 2)).axis_types) == {jax.sharding.AxisType.Auto}


def test_an_axis_that_does_not_divide_replicates_and_is_logged_once(caplog):
    m = mesh.make((1, 2, 4))
    axes = {"wk": ("embed", "kv_head", "head"), "wv": ("embed", "kv_head", "head")}
    shapes = {name: jax.ShapeDtypeStruct((6, 2, 5), jnp.float32) for name in axes}
    mesh._reported.clear()
    with caplog.at_level(logging.INFO, "stair_jax.mesh"):
        placed = mesh.shardings(axes, m, shapes)
    assert mesh.spec(*axes["wk"]) == PS("fsdp", "tensor", None)  # what it would have been
    assert placed["wk"].spec == placed["wv"].spec == PS("fsdp", None, None)
    assert [r.getMessage() for r in caplog.records] == [
        "kv_head: 2 over tensor=4 does not divide, replicated"
    ]


def test_a_dimension_over_two_mesh_axes_keeps_the_one_that_divides():
    m = mesh.make((2, 4, 1))
    assert mesh.fit(("batch",), (16,), m) == PS(("data", "fsdp"))
    assert mesh.fit(("batch",), (6,), m) == PS("data")
    assert mesh.fit(("batch",), (3,), m) == PS(None)


def test_the_engine_replicates_weights_over_fsdp_and_still_splits_them_over_tensor():
    m = mesh.make((1, 4, 2))
    shape = jax.ShapeDtypeStruct((8, 6), jnp.float32)
    train = mesh.shardings(("embed", "ffn"), m, shape)
    decode = mesh.shardings(("embed", "ffn"), m, shape, rules=mesh.ENGINE_RULES)
    assert train.spec == PS("fsdp", "tensor")
    assert decode.spec == PS(None, "tensor")


def test_axis_names_must_match_the_dimensions():
    with pytest.raises(ValueError, match="2 axis names"):
        mesh.fit(("embed", "ffn"), (3,), mesh.make((1, 1, 1)))


def test_constrain_lays_out_an_intermediate_and_does_nothing_without_a_mesh():
    x = np.arange(48.0, dtype=np.float32).reshape(8, 3, 2)
    pin = lambda x: mesh.constrain(x * 2, "batch", "time", None)  # noqa: E731
    alone = jax.jit(pin)(x)
    with jax.set_mesh(mesh.make((2, 4, 1))):
        split = jax.jit(pin)(x)
    assert len(alone.sharding.device_set) == 1
    assert split.sharding.shard_shape(split.shape) == (1, 3, 2)
    np.testing.assert_array_equal(alone, split)
