"""The whole loop: resume, refusal, logging, and that it learns."""

import contextlib
import dataclasses
import logging
from typing import Any

import jax
import numpy as np
import optax
import pytest

from stair_jax import interrupt
from stair_jax import mesh as mesh_lib
from stair_jax.data.sft_batches import SftData
from stair_jax.log import compiling
from stair_jax.train import checkpoint, optimizer
from stair_jax.train import step as step_lib
from stair_jax.train.checkpoint import Checkpoints
from tests.support.loops import (
    CONFIG,
    MESH,
    ONE_BUCKET,
    SFT,
    fit,
    lines,
    sft_data,
    sft_rows,
    weights,
)


def equal(a, b):
    leaves = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(np.array_equal(x, y) for x, y in leaves)


TIMES = {"time", "tokens_per_s", "data_wait_ms"}  # of a process, not of the run


class Killed(BaseException):
    """Stands for the end of the process."""


def kill_before(monkeypatch, at):
    """Lets `at` steps run, then ends the run as a signal would; returns a way to undo it."""
    real, left = step_lib.step, [at]

    def step(*args, **kwargs):
        left[0] -= 1
        if left[0] < 0:
            raise Killed
        return real(*args, **kwargs)

    monkeypatch.setattr(step_lib, "step", step)


@pytest.mark.parametrize("at", [5, 7, 3])
def test_a_run_killed_and_continued_ends_bit_for_bit_as_a_straight_one(tmp_path, monkeypatch, at):
    """10 steps in epochs of 4: step 5 is mid-epoch, 7 lies between saves, 3 before any save."""
    straight = fit(tmp_path / "a")
    assert [x["step"] for x in lines(tmp_path / "a")] == [1, 2, 3, 4, 5, 5, 6, 7, 8, 9, 10, 10]
    with monkeypatch.context() as patch:
        kill_before(patch, at)
        with pytest.raises(Killed):
            fit(tmp_path / "b")
    saved = checkpoint.saved_steps(tmp_path / "b" / "sft" / "saved")
    assert saved == ([5] if at >= 5 else [])
    resumed = fit(tmp_path / "b")
    assert not equal(straight, weights())
    assert equal(straight, resumed)
    for a, b in zip(lines(tmp_path / "a"), lines(tmp_path / "b"), strict=True):
        for name in a.keys() - TIMES:
            assert a[name] == b[name], name
    a, b = (checkpoint.load_params(tmp_path / x / "sft" / "saved", _abstract()) for x in ("a", "b"))
    assert equal(a, b)
    assert equal(a, resumed)


@pytest.mark.parametrize(
    ("tx", "scheduled"),
    [
        (optax.sgd(0.05, momentum=0.9), False),
        (optax.inject_hyperparams(optax.lion)(learning_rate=0.0), True),
        (optax.adafactor(0.01, min_dim_size_to_factor=4), False),  # its moments are of other shapes
    ],
    ids=["sgd", "lion", "adafactor"],
)
def test_any_optimiser_of_optax_trains_and_is_resumed_exactly(tmp_path, monkeypatch, tx, scheduled):
    config, shape = dataclasses.replace(ONE_BUCKET, epochs=2.0), (1, 2, 2)
    straight = fit(tmp_path / "a", config=config, tx=tx, shape=shape)
    assert not equal(straight, fit(tmp_path / "usual", config=config, shape=shape))
    with monkeypatch.context() as patch:
        kill_before(patch, 6)
        with pytest.raises(Killed):
            fit(tmp_path / "b", config=config, tx=tx, shape=shape)
    assert checkpoint.saved_steps(tmp_path / "b" / "sft" / "saved") == [5]
    assert equal(straight, fit(tmp_path / "b", config=config, tx=tx, shape=shape))
    steps = [x for x in lines(tmp_path / "a") if "nll_loss" in x]
    assert steps[-1]["nll_loss"] < steps[0]["nll_loss"]
    # A rate of its own is not what the configuration says.
    assert [x.get("learning_rate") for x in steps] == [
        optimizer.learning_rate(config, i, 8) if scheduled else None for i in range(8)
    ]


def test_a_run_that_an_older_version_began_is_refused_and_its_parameters_are_read(tmp_path):
    """AdamW's moments were the whole state before the optimiser became a chain."""
    fit(tmp_path / "new", config=ONE_BUCKET)
    with Checkpoints(tmp_path / "new" / "sft" / "saved", keep=2, fingerprint={}) as saves:
        meta = checkpoint._meta(saves.folder / "5")
    params = step_lib.on_mesh(weights(), mesh_lib.make(MESH))
    old = tmp_path / "old" / "sft" / "saved"
    with Checkpoints(old, keep=2, fingerprint=meta["fingerprint"]) as saves:
        moments = optax.scale_by_adam().init(params)
        saves.save(5, params=params, opt=moments, data=meta["data"])
    with pytest.raises(ValueError, match="another version of stair_jax") as error:
        fit(tmp_path / "old", config=ONE_BUCKET)
    assert f"remove {old} to train from the start" in str(error.value)
    assert "\n" not in str(error.value)
    assert equal(checkpoint.load_params(old, _abstract()), weights())


def _abstract():
    mesh = mesh_lib.make(MESH)
    like = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)  # noqa: E731
    return jax.tree.map(like, step_lib.on_mesh(weights(), mesh))


def test_a_run_continues_mid_epoch_with_the_rows_that_come_next(tmp_path, monkeypatch):
    """The batches that the two halves ask for are those of one run, each once."""
    placed, place = [], step_lib.place
    monkeypatch.setattr(step_lib, "place", lambda b, m: (placed.append(b.tokens), place(b, m))[1])
    with monkeypatch.context() as patch:
        kill_before(patch, 6)
        with pytest.raises(Killed):
            fit(tmp_path)
    first = list(placed)
    placed.clear()
    fit(tmp_path)
    data = sft_data()
    for step, tokens in [*enumerate(first), *enumerate(placed, start=5)]:
        np.testing.assert_array_equal(tokens, data.batch_at(step).tokens)
    assert len(first) == 7  # the seventh was placed and never trained on
    assert len(placed) == 5


def test_a_finished_run_is_not_run_again(tmp_path, monkeypatch, capfd):
    first = fit(tmp_path)
    assert not "".join(capfd.readouterr())  # no progress line where there is no terminal
    kill_before(monkeypatch, 0)
    assert equal(first, fit(tmp_path))
    assert len(lines(tmp_path)) == 12  # ten steps, two saves


def test_a_run_continues_on_fewer_and_fewer_devices_with_the_same_rows(tmp_path, monkeypatch):
    seen, place = [], step_lib.place

    def noted(batch, mesh):
        rows = zip(
            batch.tokens.reshape(-1, batch.tokens.shape[-1]),
            batch.weight.reshape(-1),
            strict=True,
        )
        seen.append((mesh.size, sorted(tuple(x[x > 0].tolist()) for x, weight in rows if weight)))
        return place(batch, mesh)

    monkeypatch.setattr(step_lib, "place", noted)
    config = dataclasses.replace(ONE_BUCKET, save_every=3)
    straight = fit(tmp_path / "a", config=config)
    want, seen[:] = [rows for _, rows in seen], []
    assert len(want) == 10
    resumed = []
    for shape, steps in (((1, 8, 1), 4), ((1, 4, 1), 4), ((1, 1, 1), None)):
        with monkeypatch.context() as patch:
            if steps:
                kill_before(patch, steps)  # one behind a save: redone by the next
            data = SftData(sft_rows(), config, seed=0, pad_id=0, row_shards=shape[1])
            run = lambda d=data, s=shape: fit(tmp_path / "b", data=d, config=config, shape=s)  # noqa: E731
            with pytest.raises(Killed) if steps else contextlib.nullcontext():
                resumed.append(run())
    assert [size for size, _ in seen] == [8] * 5 + [4] * 5 + [1] * 4
    steps = [0, 1, 2, 3, 4, 3, 4, 5, 6, 7, 6, 7, 8, 9]
    assert [rows for _, rows in seen] == [want[i] for i in steps]
    for a, b in zip(jax.tree.leaves(straight), jax.tree.leaves(resumed[0]), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"config": dataclasses.replace(CONFIG, lr=2e-2)}, "train.lr was 0.01 .* is 0.02"),
        ({"data": sft_data(seed=4)}, "seed was 0 .* is 4"),
        ({"data": sft_data(13)}, "data was"),
        ({"more": {"parent": "x"}}, "parent was None"),
    ],
)
def test_a_changed_setting_is_refused_by_name(tmp_path, change, text):
    config = dataclasses.replace(CONFIG, max_steps=1)
    if "config" in change:
        change = {"config": dataclasses.replace(change["config"], max_steps=1)}
    fit(tmp_path, config=config)
    with pytest.raises(ValueError, match=text):
        fit(tmp_path, **dict[str, Any]({"config": config} | change))


def test_settings_that_move_no_result_may_change(tmp_path):
    config = dataclasses.replace(CONFIG, max_steps=2)
    first = fit(tmp_path, config=config)
    other = dataclasses.replace(config, save_every=1, keep=9, micro_tokens=22, remat="full")
    assert equal(first, fit(tmp_path, config=other))


@pytest.mark.parametrize(("save_every", "keep", "want"), [(4, 9, [4, 8, 10]), (3, 2, [9, 10])])
def test_saves_every_so_many_steps_and_at_the_end(tmp_path, save_every, keep, want):
    fit(tmp_path, config=dataclasses.replace(CONFIG, save_every=save_every, keep=keep))
    assert sorted(checkpoint.saved_steps(tmp_path / "sft" / "saved")) == want


@pytest.fixture(scope="module")
def usual(tmp_path_factory):
    """Weights after the unchanged run."""
    return fit(tmp_path_factory.mktemp("usual"), config=ONE_BUCKET)


@pytest.mark.parametrize(
    "change",
    [
        {"batch": 2},
        {"epochs": 1.0},
        {"max_steps": 3},
        {"lr": 1e-3},
        {"warmup_ratio": 0.5},
        {"final_lr_ratio": 0.5},
        {"beta1": 0.5},
        {"beta2": 0.5},
        {"eps": 1e-2},
        {"weight_decay": 0.9},
        {"clip_norm": 0.01},
        {"buckets": (7, 11)},
    ],
    ids=lambda change: next(iter(change)),
)
def test_every_training_setting_reaches_the_run(tmp_path, usual, change):
    """`micro_tokens`, `remat` and `compute_dtype` are shown in test_step and test_logprobs."""
    assert not equal(usual, fit(tmp_path, config=dataclasses.replace(ONE_BUCKET, **change)))


def test_a_run_in_bfloat16_parameters_stays_in_it(tmp_path, usual):
    config = dataclasses.replace(ONE_BUCKET, param_dtype="bfloat16", max_steps=2)
    out = fit(tmp_path, config=config)
    assert {str(x.dtype) for x in jax.tree.leaves(out)} == {"bfloat16"}
    assert {str(x.dtype) for x in jax.tree.leaves(usual)} == {"float32"}


@pytest.mark.parametrize(("lr", "least", "most"), [(1e-2, 0.9, 1.0), (1e-9, 0.0, 0.01)])
def test_the_share_of_weights_that_bfloat16_sees_move_is_logged(tmp_path, lr, least, most):
    fit(tmp_path, config=dataclasses.replace(ONE_BUCKET, lr=lr, save_every=3))
    found = {x["step"]: x["bf16_changed"] for x in lines(tmp_path) if "bf16_changed" in x}
    assert sorted(found) == [3, 6, 9, 10]
    assert least <= found[10] <= most


def test_held_out_rows_are_measured_at_every_save_and_the_best_step_is_kept(tmp_path):
    config = dataclasses.replace(
        ONE_BUCKET, eval_rows=3, result="best", lr=0.3, save_every=1, keep=1, max_steps=6
    )
    out = fit(tmp_path, config=config, whole=True)
    held = {x["step"]: x["eval_loss"] for x in lines(tmp_path) if "eval_loss" in x}
    assert sorted(held) == [1, 2, 3, 4, 5, 6]
    best = min(held, key=lambda step: held[step])
    assert best != 6  # at this rate the loss climbs again
    assert out.step == best
    assert sorted(checkpoint.saved_steps(tmp_path / "sft" / "saved")) == [best, 6]
    last = fit(tmp_path / "b", config=dataclasses.replace(config, result="last"), whole=True)
    assert last.step == 6
    assert not equal(jax.device_get(last.params), jax.device_get(out.params))


def test_sigterm_saves_and_stops_and_the_run_goes_on(tmp_path, monkeypatch):
    straight = fit(tmp_path / "a", config=ONE_BUCKET)
    real, left = step_lib.step, [3]

    def step(*args, **kwargs):
        left[0] -= 1
        if left[0] == 0:
            interrupt._wanted(15, None)  # what the signal calls
        return real(*args, **kwargs)

    monkeypatch.setattr(step_lib, "step", step)
    with pytest.raises(interrupt.Stopped, match="sft: stopped, step 3 of 10 is saved"):
        fit(tmp_path / "b", config=ONE_BUCKET)
    assert checkpoint.saved_steps(tmp_path / "b" / "sft" / "saved") == [3]
    assert equal(straight, fit(tmp_path / "b", config=ONE_BUCKET))


@pytest.mark.parametrize(("at", "said"), [(3, "step 2 of 5 is saved"), (1, "no step was done")])
def test_ctrl_c_is_obeyed_between_two_passes_of_a_step(tmp_path, monkeypatch, capfd, at, said):
    """The step in hand is given up, what was done before it is saved, and nothing is lost."""
    config = dataclasses.replace(ONE_BUCKET, batch=8, micro_tokens=44)  # two passes a step
    straight = fit(tmp_path / "a", config=config)
    real, steps, asked = step_lib.step, [], []

    def step(*args, stop, **kwargs):
        steps.append(1)

        def between():
            asked.append(len(steps))
            if len(steps) == at:
                interrupt._wanted(2, None)
            return stop()

        return real(*args, stop=between, **kwargs)

    monkeypatch.setattr(step_lib, "step", step)
    with pytest.raises(interrupt.Stopped, match=said) as stopped:
        fit(tmp_path / "b", config=config)
    monkeypatch.setattr(step_lib, "step", real)
    assert stopped.value.status == 130
    assert "once more ends it at once" in capfd.readouterr().err
    assert asked.count(at) == 1  # of more passes than two: the next one does not begin
    saved = checkpoint.saved_steps(tmp_path / "b" / "sft" / "saved")
    assert saved == ([at - 1] if at > 1 else [])
    assert equal(straight, fit(tmp_path / "b", config=config))


@pytest.mark.parametrize("moment", ["in the last step", "while the last checkpoint is written"])
def test_a_signal_at_the_very_end_of_training_is_obeyed_as_well(tmp_path, monkeypatch, moment):
    straight = fit(tmp_path / "a", config=ONE_BUCKET)
    step, close = step_lib.step, checkpoint.Checkpoints.close
    steps = []

    def signalled_step(*args, **kwargs):
        steps.append(1)
        if len(steps) == 10:
            interrupt._wanted(15, None)  # what the signal calls
        return step(*args, **kwargs)

    def signalled_close(saves):
        interrupt._wanted(15, None)
        close(saves)

    def leave(status):
        raise AssertionError("left before the checkpoint was written")

    with monkeypatch.context() as patched:
        patched.setattr(interrupt.os, "_exit", leave)
        if moment == "in the last step":
            patched.setattr(step_lib, "step", signalled_step)
        else:
            patched.setattr(checkpoint.Checkpoints, "close", signalled_close)
        with pytest.raises(interrupt.Stopped, match="sft: stopped, step 10 of 10 is saved"):
            fit(tmp_path / "b", config=ONE_BUCKET)
    monkeypatch.setattr(step_lib, "step", None)  # nothing is left to be trained
    assert equal(straight, fit(tmp_path / "b", config=ONE_BUCKET))


@pytest.mark.parametrize("at", [2, 3])  # in the middle, and at the end
def test_a_signal_while_held_out_rows_are_measured_is_obeyed_and_they_are_measured_later(
    tmp_path, monkeypatch, at
):
    config = dataclasses.replace(
        ONE_BUCKET, batch=4, eval_rows=9, result="best", lr=0.3, save_every=2, max_steps=6
    )
    data = sft_data(23, config)
    straight = fit(tmp_path / "a", data=data, config=config, whole=True)
    measure, calls, asked = step_lib.measure, [], []

    def signalled(params, batches, mesh, **how):
        def each():
            for batch in batches:
                asked.append(len(calls))
                if asked.count(at) == 1 and len(calls) == at:
                    interrupt._wanted(15, None)  # what the signal calls
                yield batch

        calls.append(1)
        return measure(params, each(), mesh, **how)

    with monkeypatch.context() as patched:
        patched.setattr(step_lib, "measure", signalled)
        with pytest.raises(interrupt.Stopped, match=f"step {2 * at} of 6 is saved"):
            fit(tmp_path / "b", data=data, config=config)
    assert [asked.count(number) for number in range(1, at)] == [3] * (at - 1)
    assert asked.count(at) == 1  # of three batches
    again = fit(tmp_path / "b", data=data, config=config, whole=True)
    assert again.step == straight.step
    assert equal(jax.device_get(straight.params), jax.device_get(again.params))
    held = [
        [(x["step"], x["eval_loss"]) for x in lines(tmp_path / name) if "eval_loss" in x]
        for name in "ab"
    ]
    assert [step for step, _ in held[0]] == [2, 4, 6]
    assert held[1] == held[0]
    assert straight.step == checkpoint.best_step(tmp_path / "b" / "sft" / "saved")


def test_a_second_signal_ends_at_once_and_says_what_that_costs(monkeypatch, capfd):
    def leave(status):
        raise SystemExit(status)

    monkeypatch.setattr(interrupt.os, "_exit", leave)
    with interrupt.granted_by_me() as wish:
        interrupt._wanted(15, None)
        assert wish.is_set()
        with pytest.raises(SystemExit) as left:
            interrupt._wanted(15, None)
    assert left.value.code == 143
    assert "goes on from the last checkpoint" in capfd.readouterr().err


def test_one_program_for_each_bucket_and_none_for_a_second_round(tmp_path, caplog):
    made = step_lib.Programs.of
    made.cache_clear()
    fit(tmp_path / "a")
    assert made.cache_info().currsize == 1
    fit(tmp_path / "b", config=dataclasses.replace(CONFIG, lr=3e-3, epochs=1.0))
    info = made.cache_info()
    assert info.currsize == 1
    mesh = mesh_lib.make(MESH)
    with jax.set_mesh(mesh):
        state = step_lib.init(step_lib.on_mesh(weights(), mesh), optimizer.of(CONFIG), mesh)
        leaves, tree = jax.tree.flatten(jax.tree.map(lambda x: x.sharding, state))
    programs = made(SFT, optimizer.of(CONFIG), tree, tuple(leaves))
    assert made.cache_info().hits > info.hits
    sizes = [program._cache_size() for program in (programs.whole, programs.add)]
    assert sum(sizes) == len(CONFIG.buckets)


def test_each_new_shape_of_a_step_is_told_once_with_the_time_that_it_took(
    tmp_path, caplog, monkeypatch
):
    monkeypatch.setattr(compiling, "LEAST_S", 0.0)  # small programs take no second
    with caplog.at_level(logging.INFO, logger="stair_jax.log.compiling"):
        fit(tmp_path)
    said = [record.getMessage() for record in caplog.records]
    steps = [text.partition(" tokens (")[2] for text in said if "compiled a step" in text]
    most = len(CONFIG.buckets)
    assert most > 1
    assert [text.partition(")")[0] for text in steps] == [
        f"shape {number} of at most {most}" for number in range(1, most + 1)
    ]
    assert all(
        text.startswith("sft: compiled") and " s" in text.rpartition(")")[2] for text in said
    )


def test_sft_overfits_eight_rows(tmp_path):
    config = dataclasses.replace(
        CONFIG, batch=8, epochs=150.0, lr=2e-2, buckets=(11,), save_every=1000
    )
    fit(tmp_path, data=sft_data(8, config), config=config)
    losses_seen = [x["nll_loss"] for x in lines(tmp_path) if "nll_loss" in x]
    assert losses_seen[0] > 2
    assert losses_seen[-1] < 0.05


def test_nothing_to_train_on_is_said(tmp_path):
    with pytest.raises(ValueError, match="sft: no row is left to train on"):
        fit(tmp_path, data=sft_data(0))


def test_ctrl_c_leaves_the_last_checkpoint_readable(tmp_path, monkeypatch):
    real, left = step_lib.step, [6]

    def step(*args, **kwargs):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    monkeypatch.setattr(step_lib, "step", step)
    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path)
    with Checkpoints(tmp_path / "sft" / "saved", keep=2, fingerprint={}) as saves:
        assert saves.latest == 5
