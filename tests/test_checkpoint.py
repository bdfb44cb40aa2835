import os
import pathlib
import signal
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from stair_jax import mesh as mesh_lib
from stair_jax.io import checkpoint
from stair_jax.io.checkpoint import Checkpoints

ROOT = pathlib.Path(__file__).parents[1]


def trees(shape=(1, 8, 1), step=0):
    """Parameters and moments, split over a mesh."""
    mesh = mesh_lib.make(shape)
    split = NamedSharding(mesh, PartitionSpec("fsdp"))
    x = jax.random.normal(jax.random.key(step), (16, 3))
    opt = {"count": jax.device_put(jnp.int32(step), NamedSharding(mesh, PartitionSpec()))}
    return {"w": jax.device_put(x, split)}, opt


def like(tree):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


def open_at(folder, **change):
    return Checkpoints(folder, **({"keep": 2, "fingerprint": {"seed": 3, "lr": 0.5}} | change))


def test_what_is_saved_comes_back_bit_for_bit_and_in_place(tmp_path):
    params, opt = trees(step=4)
    with open_at(tmp_path / "c") as saves:
        assert saves.latest is None
        saves.save(4, params=params, opt=opt)
    with open_at(tmp_path / "c") as saves:
        assert saves.latest == 4
        got, moments = saves.restore(4, params=like(params), opt=like(opt))
    np.testing.assert_array_equal(got["w"], params["w"])
    assert got["w"].sharding == params["w"].sharding
    assert moments["count"] == 4


@pytest.mark.parametrize("shape", [(1, 2, 1), (1, 1, 1)])
def test_restores_on_another_number_of_devices(tmp_path, shape):
    params, opt = trees()
    with open_at(tmp_path) as saves:
        saves.save(1, params=params, opt=opt)
        other, moments = trees(shape)
        got, _ = saves.restore(1, params=like(other), opt=like(moments))
    assert got["w"].sharding.num_devices != params["w"].sharding.num_devices
    np.testing.assert_array_equal(got["w"], params["w"])


@pytest.mark.parametrize("keep", [1, 2])
def test_only_the_newest_checkpoints_stay(tmp_path, keep):
    with open_at(tmp_path, keep=keep) as saves:
        for step in (2, 4, 6):
            params, opt = trees(step=step)
            saves.save(step, params=params, opt=opt)
    assert sorted(checkpoint.saved_steps(tmp_path)) == [2, 4, 6][-keep:]


def test_parameters_load_alone(tmp_path):
    for step in (2, 4):
        params, opt = trees(step=step)
        with open_at(tmp_path) as saves:
            saves.save(step, params=params, opt=opt)
    newest = checkpoint.load_params(tmp_path, like(params))
    np.testing.assert_array_equal(newest["w"], params["w"])
    older = checkpoint.load_params(tmp_path, like(params), step=2)
    np.testing.assert_array_equal(older["w"], trees(step=2)[0]["w"])


def test_a_missing_checkpoint_is_named(tmp_path):
    with pytest.raises(ValueError, match="nowhere: no checkpoint, has"):
        checkpoint.load_params(tmp_path / "nowhere", {})


@pytest.mark.parametrize(
    ("now", "text"),
    [({"seed": 4, "lr": 0.5}, "seed was 3 .* is 4"), ({"seed": 3}, "lr was 0.5 .* is None")],
)
def test_a_changed_setting_is_refused_by_name(tmp_path, now, text):
    params, opt = trees()
    with open_at(tmp_path) as saves:
        saves.save(1, params=params, opt=opt)
    with open_at(tmp_path, fingerprint=now) as saves, pytest.raises(ValueError, match=text):
        saves.restore(1, params=like(params), opt=like(opt))


_KILLED_WHILE_SAVING = """
import os, sys, threading
import jax.numpy as jnp
from stair_jax.io.checkpoint import Checkpoints
folder = sys.argv[1]
def die():
    while not any(name.startswith("2") for name in os.listdir(folder)):
        pass
    os.kill(os.getpid(), 9)
with Checkpoints(folder, keep=2, fingerprint={}) as saves:
    saves.save(1, params={"w": jnp.ones(3)}, opt={"m": jnp.ones(3)})
    threading.Thread(target=die, daemon=True).start()
    saves.save(2, params={"w": jnp.ones((2000, 2000))}, opt={"m": jnp.ones((2000, 2000))})
"""


def test_a_killed_save_is_ignored_and_cleaned_up(tmp_path):
    code = [sys.executable, "-c", _KILLED_WHILE_SAVING, str(tmp_path)]
    env = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    assert subprocess.run(code, env=env, check=False).returncode == -signal.SIGKILL
    assert any("tmp" in path.name for path in tmp_path.iterdir())
    assert checkpoint.saved_steps(tmp_path) == [1]
    with Checkpoints(tmp_path, keep=2, fingerprint={}) as saves:
        assert saves.latest == 1
        assert [path.name for path in tmp_path.iterdir()] == ["1"]


@pytest.mark.parametrize("begun", [True, False])
def test_a_leftover_of_any_age_is_no_obstacle(tmp_path, begun):
    """Killed before or after the first byte: the same step can be saved again."""
    leftover = tmp_path / "2.orbax-checkpoint-tmp"
    leftover.mkdir()
    if begun:
        (leftover / "params").mkdir()
    params, opt = trees()
    with open_at(tmp_path) as saves:
        assert not leftover.exists()
        assert saves.latest is None
        saves.save(2, params=params, opt=opt)
        assert saves.latest == 2
