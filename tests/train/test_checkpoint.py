import os
import pathlib
import shutil
import signal
import subprocess
import sys
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from stair_jax import mesh as mesh_lib
from stair_jax.train import checkpoint
from stair_jax.train.checkpoint import Checkpoints

ROOT = pathlib.Path(__file__).parents[2]


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


def fill(folder, steps, metrics=None, **change):
    """Saves some steps in one go; the metric of each, where given."""
    with open_at(folder, **change) as saves:
        for i, step in enumerate(steps):
            params, opt = trees(step=step)
            metric = None if metrics is None else metrics[i]
            saves.save(step, params=params, opt=opt, data={"row": step}, metric=metric)
    return trees(step=steps[-1])


def test_what_is_saved_comes_back_bit_for_bit_and_in_place(tmp_path):
    params, opt = trees(step=4)
    with open_at(tmp_path / "c") as saves:
        assert saves.latest is None
        saves.save(4, params=params, opt=opt, data={"row": 7, "part": [1, {"a": None}]})
    with open_at(tmp_path / "c") as saves:
        assert saves.latest == 4
        got, moments, data = saves.restore(4, params=like(params), opt=like(opt))
    np.testing.assert_array_equal(got["w"], params["w"])
    assert got["w"].sharding == params["w"].sharding
    assert moments["count"] == 4
    assert data == {"row": 7, "part": [1, {"a": None}]}


def test_moments_may_hold_numpy_arrays_and_numbers_and_parameters_may_be_adapters(tmp_path):
    params = {"layers": {"wq": {"a": jnp.ones((2, 3, 1)), "b": jnp.zeros((2, 1, 3))}}}
    opt = {"n": np.arange(4), "f": np.float32(2.5), "count": 3, "none": None}
    with open_at(tmp_path) as saves:
        saves.save(1, params=params, opt=opt, data={})
        opt["n"] += 100  # whoever owns it may go on with it at once
        empty = {"n": np.zeros(4, int), "f": np.float32(0), "count": 0, "none": None}
        got, moments, _ = saves.restore(1, params=like(params), opt=empty)
    jax.tree.map(np.testing.assert_array_equal, got, params)
    np.testing.assert_array_equal(moments["n"], np.arange(4))
    assert (moments["f"], moments["count"], moments["none"]) == (2.5, 3, None)
    assert type(moments["f"]) is np.float32


@pytest.mark.parametrize("spec", [PartitionSpec("fsdp"), PartitionSpec()])
def test_a_donated_state_is_saved_as_it_was(tmp_path, spec):
    """The step after a save overwrites its buffers while the thread still writes."""
    place = NamedSharding(mesh_lib.make((1, 8, 1)), spec)
    step = jax.jit(lambda t: jax.tree.map(lambda x: x + 1, t), donate_argnums=0)
    fresh = lambda: {"w": jax.device_put(jnp.full((512, 1024), 3.0), place)}  # noqa: E731
    once = fresh()
    step(once)
    assert once["w"].is_deleted()  # the state is given away, so the test means something
    params, opt = fresh(), trees()[1]
    with open_at(tmp_path) as saves:
        shape = like(params)
        saves.save(1, params=params, opt=opt, data={})
        for _ in range(5):
            params = step(params)
        assert params["w"][0, 0] == 8
        got, *_ = saves.restore(1, params=shape, opt=like(opt))
    assert (np.asarray(got["w"]) == 3).all()


def test_a_save_returns_before_it_is_written(tmp_path, monkeypatch):
    go, moved = threading.Event(), pathlib.Path.exists
    write = ocp.JsonCheckpointHandler.async_save

    async def wait(self, *args, **options):
        return [*(await write(self, *args, **options) or ()), Slow(go)]

    monkeypatch.setattr(ocp.JsonCheckpointHandler, "async_save", wait)
    params, opt = trees()
    with open_at(tmp_path) as saves:
        saves.save(1, params=params, opt=opt, data={})
        assert not moved(tmp_path / "1")
        assert checkpoint.saved_steps(tmp_path) == []
        go.set()
        assert saves.latest == 1


class Slow:
    """Part of a save that ends when told to."""

    def __init__(self, go):
        self.go = go

    def result(self, timeout=None):
        assert self.go.wait(60)


@pytest.mark.parametrize("shapes", [((1, 8, 1), (1, 4, 1), (1, 1, 1)), ((2, 4, 1), (1, 2, 2))])
def test_restores_on_other_meshes_and_numbers_of_devices(tmp_path, shapes):
    params, opt = first, _ = trees(shapes[0])
    for i, shape in enumerate(shapes[1:]):
        with open_at(tmp_path / str(i)) as saves:
            saves.save(1, params=params, opt=opt, data={"row": 5})
            other, moments = trees(shape)
            got, count, data = saves.restore(1, params=like(other), opt=like(moments))
        assert got["w"].sharding.num_devices != params["w"].sharding.num_devices
        assert data == {"row": 5}
        params, opt = got, count
        np.testing.assert_array_equal(params["w"], first["w"])


@pytest.mark.parametrize("keep", [1, 2])
def test_only_the_newest_checkpoints_stay(tmp_path, keep):
    fill(tmp_path, (2, 4, 6), metrics=(0.1, 0.5, 0.6), keep=keep)
    assert checkpoint.saved_steps(tmp_path) == [2, 4, 6][-keep:]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["2", "4", "6"][-keep:]


def test_the_best_stays_beside_the_newest_across_restarts(tmp_path):
    fill(tmp_path, (2, 4, 6), metrics=(0.5, 0.2, 0.9), keep=1, best=True)
    assert checkpoint.saved_steps(tmp_path) == [4, 6]
    fill(tmp_path, (8, 10), metrics=(0.2, None), keep=1, best=True)  # the earlier of equals
    assert checkpoint.saved_steps(tmp_path) == [4, 10]
    with open_at(tmp_path, keep=1, best=True) as saves:
        assert (saves.best, saves.latest) == (4, 10)
    assert checkpoint.best_step(tmp_path) == 4
    fill(tmp_path, (12,), metrics=(float("nan"),), keep=1, best=True)
    assert checkpoint.saved_steps(tmp_path) == [4, 12]
    fill(tmp_path, (14,), metrics=(0.1,), keep=1, best=True)
    assert checkpoint.saved_steps(tmp_path) == [14]


def test_without_metrics_there_is_no_best(tmp_path):
    fill(tmp_path, (2, 4))
    with open_at(tmp_path) as saves:
        assert saves.best is None
        assert saves.latest == 4


def test_parameters_load_alone(tmp_path):
    params, _ = fill(tmp_path, (2, 4))
    newest = checkpoint.load_params(tmp_path, like(params))
    np.testing.assert_array_equal(newest["w"], params["w"])
    older = checkpoint.load_params(tmp_path, like(params), step=2)
    assert not np.array_equal(older["w"], newest["w"])
    np.testing.assert_array_equal(older["w"], trees(step=2)[0]["w"])


def test_a_missing_checkpoint_is_named(tmp_path):
    with pytest.raises(ValueError, match="nowhere: no checkpoint, has"):
        checkpoint.load_params(tmp_path / "nowhere", {})
    params, opt = fill(tmp_path, (2, 4))
    with open_at(tmp_path) as saves:
        with pytest.raises(ValueError, match=r"no checkpoint 3, has \[2, 4\]"):
            saves.restore(3, params=like(params), opt=like(opt))
        with pytest.raises(ValueError, match=r"/4: this step is saved already"):
            saves.save(4, params=params, opt=opt, data={})
        with pytest.raises(ValueError, match=r"/4: cannot be restored: ") as error:
            saves.restore(4, params={"other": like(params)["w"]}, opt=like(opt))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("bad", [np.nan, -np.inf])
def test_weights_that_are_not_finite_are_neither_written_nor_read(tmp_path, monkeypatch, bad):
    params, opt = fill(tmp_path, (2,))
    broken = {"w": params["w"].at[5, 1].set(bad)}
    message = r"/4: (not written, )?w has 1 values that are NaN or infinite, expected finite ones"
    with open_at(tmp_path) as saves:
        with pytest.raises(ValueError, match=message + "; the last one is 2"):
            saves.save(4, params=broken, opt=opt, data={})
        assert saves.latest == 2
        with monkeypatch.context() as before:  # a file of an earlier version, or one that rotted
            before.setattr(checkpoint.finite, "complaint", lambda params: "")
            saves.save(4, params=broken, opt=opt, data={})
            saves.wait()
        with pytest.raises(ValueError, match=message):
            saves.restore(4, params=like(params), opt=like(opt))
    with pytest.raises(ValueError, match=message):
        checkpoint.load_params(tmp_path, like(params))
    with pytest.raises(ValueError, match=message):
        checkpoint.load_leaf(tmp_path, ["w"], like(params)["w"])
    np.testing.assert_array_equal(
        checkpoint.load_params(tmp_path, like(params), 2)["w"], params["w"]
    )


@pytest.mark.parametrize("part", ["params", "opt", "meta"])
def test_a_torn_folder_never_counts(tmp_path, part):
    params, opt = fill(tmp_path, (2, 4))
    shutil.rmtree(tmp_path / "4" / part)
    assert checkpoint.saved_steps(tmp_path) == [2]
    with open_at(tmp_path) as saves:
        assert saves.latest == 2
        saves.restore(2, params=like(params), opt=like(opt))
        saves.save(4, params=params, opt=opt, data={})  # what is left of it is no obstacle
        assert saves.latest == 4


@pytest.mark.parametrize(
    ("now", "text"),
    [({"seed": 4, "lr": 0.5}, "seed was 3 .* is 4"), ({"seed": 3}, "lr was 0.5 .* is None")],
)
def test_a_changed_setting_is_refused_by_name(tmp_path, now, text):
    params, opt = trees()
    with open_at(tmp_path) as saves:
        saves.save(1, params=params, opt=opt, data={})
    with open_at(tmp_path, fingerprint=now) as saves, pytest.raises(ValueError, match=text):
        saves.restore(1, params=like(params), opt=like(opt))


def test_a_fingerprint_of_tuples_is_what_json_makes_of_it(tmp_path):
    params, opt = fill(tmp_path, (1,), fingerprint={"buckets": (4, 8)})
    with open_at(tmp_path, fingerprint={"buckets": (4, 8)}) as saves:
        saves.restore(1, params=like(params), opt=like(opt))


_KILLED_WHILE_SAVING = """
import os, sys, threading
import jax.numpy as jnp
from stair_jax.train.checkpoint import Checkpoints
folder = sys.argv[1]
def die():
    while not any(name.startswith("2") for name in os.listdir(folder)):
        pass
    os.kill(os.getpid(), 9)
with Checkpoints(folder, keep=2, fingerprint={}) as saves:
    saves.save(1, params={"w": jnp.ones(3)}, opt={"m": jnp.ones(3)}, data={})
    assert saves.latest == 1
    threading.Thread(target=die, daemon=True).start()
    big = {"w": jnp.ones((2000, 2000))}
    saves.save(2, params=big, opt=big, data={})
"""


def script(code, *arguments):
    env = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    return subprocess.run(
        [*arguments[:-1], sys.executable, "-c", code, arguments[-1]],
        env=env,
        check=False,
        capture_output=True,
        text=True,
    )


def test_a_killed_save_is_ignored_and_cleaned_up(tmp_path):
    assert script(_KILLED_WHILE_SAVING, str(tmp_path)).returncode == -signal.SIGKILL
    assert any("tmp" in path.name for path in tmp_path.iterdir())
    assert checkpoint.saved_steps(tmp_path) == [1]
    with Checkpoints(tmp_path, keep=2, fingerprint={}) as saves:
        assert saves.latest == 1
        assert [path.name for path in tmp_path.iterdir()] == ["1"]


@pytest.mark.parametrize("name", ["2.orbax-checkpoint-tmp", "2.removed"])
@pytest.mark.parametrize("begun", [True, False])
def test_a_leftover_of_any_age_is_no_obstacle(tmp_path, begun, name):
    """Killed before or after the first byte: the same step can be saved again."""
    leftover = tmp_path / name
    leftover.mkdir()
    if begun:
        (leftover / "params").mkdir()
    params, opt = trees()
    with open_at(tmp_path) as saves:
        assert not leftover.exists()
        assert saves.latest is None
        saves.save(2, params=params, opt=opt, data={})
        assert saves.latest == 2


def test_a_kill_between_save_and_removal_is_made_good_at_the_next_start(tmp_path):
    fill(tmp_path, (2, 4, 6), keep=3)
    with open_at(tmp_path, keep=2):
        assert checkpoint.saved_steps(tmp_path) == [4, 6]


# Writes until there is no room: a file may not grow, or the file system is full.
_FULL = """
import os, resource, sys
import jax.numpy as jnp, numpy as np
from stair_jax.train.checkpoint import Checkpoints, saved_steps
folder, limited = sys.argv[1], os.environ.get("LIMITED")
tree = lambda n: {"w": jnp.asarray(np.random.default_rng(0).random((n, 1000), np.float32))}
small, big = tree(10), tree(1500)
with Checkpoints(folder, keep=1, fingerprint={}) as saves:
    saves.save(1, params=small, opt=small, data={"row": 1})
    assert saves.latest == 1
    if limited:
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, resource.RLIM_INFINITY))
    try:
        saves.save(2, params=big, opt=big, data={"row": 2})
    except OSError as error:
        print("AT ONCE", error)
    else:
        try:
            saves.save(3, params=small, opt=small, data={"row": 3})
        except OSError as error:
            print("NEXT", error)
    assert saved_steps(folder) == [1]
    got, opt, data = saves.restore(1, params=small, opt=small)
    assert (got["w"] == small["w"]).all() and (opt["w"] == small["w"]).all() and data["row"] == 1
    saves.save(4, params=small, opt=small, data={"row": 4})
    assert saves.latest == 4
    saves.save(5, params=big, opt=big, data={"row": 5})
"""


def check_full(done, folder):
    """Told at the next save and at the end; the last good one was restored in between."""
    assert done.returncode == 1, done.stderr
    said = done.stdout.strip().splitlines()
    assert len(said) == 1
    assert f"{folder}/2: the checkpoint was not written: " in said[0]
    assert said[0].endswith("; the last one is 1")
    text = f"OSError: {folder}/5: the checkpoint was not written: "  # threads may speak after it
    last = next(line for line in done.stderr.splitlines() if line.startswith(text))
    assert last.endswith("; the last one is 4")


def test_files_that_cannot_grow_leave_the_last_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setenv("LIMITED", "1")
    done = script(_FULL, str(tmp_path / "c"))
    check_full(done, tmp_path / "c")
    assert "File too large" in done.stdout
    with Checkpoints(tmp_path / "c", keep=1, fingerprint={}) as saves:
        assert saves.latest == 4
        assert [path.name for path in (tmp_path / "c").iterdir()] == ["4"]


MOUNT = ["unshare", "-rm", "sh", "-c", 'mount -t tmpfs -o size=4m none "$0" && exec "$@"']


def test_a_full_disk_leaves_the_last_checkpoint(tmp_path):
    try:
        able = subprocess.run([*MOUNT, str(tmp_path), "true"], check=False, capture_output=True)
    except FileNotFoundError:
        pytest.skip("no unshare here")
    if able.returncode:
        pytest.skip(f"no small file system can be mounted here: {able.stderr}")
    done = script(_FULL, *MOUNT, str(tmp_path), str(tmp_path / "c"))
    check_full(done, tmp_path / "c")
    assert "No space left on device" in done.stdout


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_the_error_that_ends_a_run_is_not_hidden_by_a_failed_save(tmp_path, monkeypatch, caplog):
    class Failing:
        def result(self, timeout=None):
            time.sleep(1)  # the other parts of the save are done by then, and silent
            raise OSError("no room\nat all")

    async def fail(*_args, **_options):
        return [Failing()]

    text = "/1: the checkpoint was not written: OSError: no room; the last one is none"
    params, opt = trees()
    monkeypatch.setattr(ocp.JsonCheckpointHandler, "async_save", fail)
    with pytest.raises(KeyError, match="first"), open_at(tmp_path / "a") as saves:  # noqa: PT012
        saves.save(1, params=params, opt=opt, data={})
        raise KeyError("first")
    assert text in caplog.text
    with pytest.raises(OSError, match=text), open_at(tmp_path / "b") as saves:
        saves.save(1, params=params, opt=opt, data={})
