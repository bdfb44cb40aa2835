"""One optimiser step: what may not change it, and that every constant does."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stair_jax import mesh as mesh_lib
from stair_jax.config import TrainConfig
from stair_jax.model import transformer
from stair_jax.model.spec import Spec
from stair_jax.train import logprobs, losses, optimizer
from stair_jax.train import step as step_lib

SPEC = Spec(
    L=1, D=8, N=4, K=2, H=6, F=10, V=13, eps=1e-5, theta=1e4, rope_scaling=None, qkv_bias=False,
    qk_norm=False, tied=False, family="llama",
)  # fmt: skip
CONFIG = TrainConfig(
    batch=8, micro_batch=8, epochs=1.0, max_steps=0, lr=1e-2, warmup_ratio=0.1, final_lr_ratio=0.0,
    beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.0, clip_norm=1.0, remat="none",
    buckets=(11,), save_every=100, keep=2, compute_dtype="float32",
)  # fmt: skip
SCORER = logprobs.Scorer.of(SPEC, CONFIG)
SFT = losses.Sft(SCORER)
DPO = losses.Dpo(scorer=SCORER, beta=0.3, sft_coef=0.2, label_smoothing=0.0)
TX = optimizer.AdamW.of(CONFIG)
ROWS, T = 8, 11


def sft_batch():
    rng = np.random.default_rng(0)
    mask = np.zeros((ROWS, T), bool)
    for row, length in enumerate((9, 1, 5, 3, 7, 2, 8, 4)):  # unequal, so that means of means lie
        mask[row, 2 : 2 + length] = True
    tokens = rng.integers(0, SPEC.V, (ROWS, T)).astype(np.int32)
    return {"tokens": tokens, "loss_mask": mask, "weight": np.ones(ROWS, np.float32)}


def dpo_batch():
    rng = np.random.default_rng(1)
    step, sft = np.zeros((ROWS, 2, T), bool), np.zeros((ROWS, T), bool)
    for row in range(ROWS):
        step[row, 0, 4 : 5 + row % 5] = step[row, 1, 4 : 10 - row % 4] = True
        sft[row, 2 : 5 + row % 5] = True
    weight = np.array([1, 1, 1, 0, 1, 0, 1, 1], np.float32)  # two anchors, in unequal halves
    step[weight == 0] = False
    return {
        "tokens": rng.integers(0, SPEC.V, (ROWS, 2, T)).astype(np.int32), "step_mask": step,
        "sft_mask": sft, "weight": weight, "sft_weight": np.ones(ROWS, np.float32),
        "ref_logp": rng.normal(-9, 1, (ROWS, 2)).astype(np.float32),
    }  # fmt: skip


CASES = pytest.mark.parametrize(
    ("loss", "batch"), [(SFT, sft_batch()), (DPO, dpo_batch())], ids=["sft", "dpo"]
)
_START = {}


def start():
    """The weights before the first step, drawn once."""
    if not _START:
        tree = jax.jit(transformer.init, static_argnums=0)(SPEC, jax.random.key(0))
        _START.update(jax.device_get(tree))
    return dict(_START)


def one_step(loss, batch, *, shape=(1, 1, 1), micro=ROWS, tx=TX, lr=1e-2, params=None):
    """Returns the metrics, the first moments (0.1 x the clipped gradient) and the parameters."""
    mesh = mesh_lib.make(shape)
    params = start() if params is None else params
    axes = transformer.logical_axes(SPEC)
    placed = jax.device_put(params, mesh_lib.shardings(axes, mesh, params))
    with jax.set_mesh(mesh):
        state = step_lib.init(placed, tx, mesh)
        state, out = step_lib.step(state, step_lib.place(batch, micro, mesh), lr, loss=loss, tx=tx)
    return {k: float(v) for k, v in out.items()}, state.opt.mu, state.params


def assert_close(a, b, tolerance):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance)


def differ(a, b):
    """Whether any leaf differs by more than rounding."""
    return any(
        np.abs(np.asarray(x) - np.asarray(y)).max() > 1e-6
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


@CASES
@pytest.mark.parametrize("micro", [2, 4])
def test_accumulation_equals_one_large_batch(loss, batch, micro):
    mean_of_means = np.mean([
        one_count(loss, {k: v[at : at + micro] for k, v in batch.items()})
        for at in range(0, ROWS, micro)
    ])  # fmt: skip
    assert mean_of_means * ROWS / micro == one_count(loss, batch)
    whole, grads, _ = one_step(loss, batch)
    parts, summed, _ = one_step(loss, batch, micro=micro)
    for name in whole:
        assert math.isclose(whole[name], parts[name], rel_tol=1e-6, abs_tol=1e-6), name
    assert_close(grads, summed, 1e-6)


def one_count(loss, batch):
    """The count that the SFT term of a loss is divided by."""
    return float(loss.counts(jax.tree.map(jnp.asarray, batch))[loss.units["nll_loss"]])


@CASES
@pytest.mark.parametrize("shape", [(1, 8, 1), (1, 4, 2), (2, 2, 2)])
def test_a_sharded_step_equals_that_of_one_device(loss, batch, shape):
    want, want_grads, _ = one_step(loss, batch)
    got, grads, params = one_step(loss, batch, shape=shape)
    assert not params["layers"]["wq"].sharding.is_fully_replicated
    assert grads["layers"]["wq"].sharding == params["layers"]["wq"].sharding
    for name in want:
        assert math.isclose(want[name], got[name], rel_tol=1e-5, abs_tol=1e-5), name
    assert_close(grads, want_grads, 1e-5)


def test_rows_lie_over_the_data_and_fsdp_axes():
    placed = step_lib.place(sft_batch(), 4, mesh_lib.make((2, 2, 2)))
    assert placed["tokens"].shape == (2, 4, T)
    assert {s.data.shape for s in placed["tokens"].addressable_shards} == {(2, 1, T)}


@CASES
def test_padding_rows_and_padding_tokens_change_nothing(loss, batch):
    want, want_grads, _ = one_step(loss, batch)
    longer = {}
    for name, x in batch.items():
        rows = [(0, ROWS)] + [(0, 0)] * (x.ndim - 1)
        if x.ndim > 1 and x.shape[-1] == T:
            rows[-1] = (0, 5)
        longer[name] = np.pad(x, rows, constant_values=3 if name == "tokens" else 0)
    got, grads, _ = one_step(loss, longer, micro=2 * ROWS)
    for name in want:
        assert math.isclose(want[name], got[name], rel_tol=1e-5, abs_tol=1e-5), name
    assert_close(grads, want_grads, 1e-5)


def test_the_sft_loss_is_the_mean_over_all_response_tokens():
    batch = sft_batch()
    out, _, _ = one_step(SFT, batch)
    logp = np.asarray(jax.jit(lambda p, t: SCORER(p, t))(start(), batch["tokens"]))
    np.testing.assert_allclose(out["loss"], -logp[batch["loss_mask"]].mean(), rtol=1e-5)


def test_dpo_starts_at_log_2_plus_its_sft_term():
    batch = dpo_batch()
    both = jax.jit(lambda p, t, m: logprobs.step_logps(SCORER, p, t, m)[0])
    batch["ref_logp"] = np.array(both(start(), batch["tokens"], batch["step_mask"]))
    out, _, _ = one_step(DPO, batch)
    np.testing.assert_allclose(out["dpo_loss"], math.log(2), rtol=1e-5)
    np.testing.assert_allclose(out["loss"], math.log(2) + 0.2 * out["nll_loss"], rtol=1e-5)
    assert abs(out["rewards/margins"]) < 1e-5


def test_a_bad_gradient_leaves_the_state_as_it_was():
    batch = dpo_batch()
    batch["ref_logp"][2, 0] = np.inf
    mesh = mesh_lib.make((1, 1, 1))
    with jax.set_mesh(mesh):
        state = step_lib.init(step_lib.on_mesh(start(), mesh), TX, mesh)
        state, out = step_lib.step(state, step_lib.place(batch, ROWS, mesh), 1.0, loss=DPO, tx=TX)
    assert out["skipped"] == 1
    assert state.step == 0
    assert state.opt.count == 0
    assert_close(state.params, start(), 0)
    assert one_step(DPO, dpo_batch())[0]["skipped"] == 0


def test_the_state_is_donated_and_the_callers_parameters_are_not():
    mesh = mesh_lib.make((1, 1, 1))
    params = step_lib.on_mesh(start(), mesh)
    with jax.set_mesh(mesh):
        before = step_lib.init(params, TX, mesh)
        after, _ = step_lib.step(
            before, step_lib.place(sft_batch(), ROWS, mesh), 1e-2, loss=SFT, tx=TX
        )
    assert before.params["embed"].is_deleted()
    assert not params["embed"].is_deleted()
    assert after.step == 1


def test_bfloat16_compute_differs_and_stays_close():
    config = dataclasses.replace(CONFIG, compute_dtype="bfloat16")
    half = losses.Sft(logprobs.Scorer.of(SPEC, config))
    want, _, _ = one_step(SFT, sft_batch())
    got, moments, params = one_step(half, sft_batch())
    assert got["loss"] != want["loss"]
    assert math.isclose(got["loss"], want["loss"], rel_tol=2e-2)
    for tree in (moments, params):  # master weights and moments stay float32
        assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(tree))


@pytest.mark.parametrize(
    "change",
    [{"beta1": 0.5}, {"beta2": 0.5}, {"eps": 1e-2}, {"weight_decay": 0.3}, {"clip_norm": 0.01}],
    ids=lambda change: next(iter(change)),
)
def test_every_constant_of_the_optimiser_reaches_the_weights(change):
    """Two plain steps of AdamW on one matrix: the constants of the average need a second one."""
    tx = dataclasses.replace(TX, **change)

    @jax.jit
    def two(params):
        opt_a, opt_b = TX.init(params), tx.init(params)
        a = b = params
        for scale in (1.0, -0.2):
            grads = jax.tree.map(lambda x, s=scale: s * jnp.sin(x), params)
            a, opt_a, _ = TX.update(grads, opt_a, a, 0.1 * jnp.ones(()))
            b, opt_b, _ = tx.update(grads, opt_b, b, 0.1 * jnp.ones(()))
        return a, b

    a, b = two({"w": jnp.linspace(-2, 3, 12).reshape(4, 3)})
    assert differ(a, b)


def test_adamw_by_hand():
    tx = dataclasses.replace(TX, weight_decay=0.5, clip_norm=1.0, beta1=0.8, beta2=0.9, eps=1e-3)
    params = {"w": jnp.array([3.0, -2.0]), "attn_norm": jnp.array([1.0]), "bq": jnp.array([1.0])}
    grads = {"w": jnp.array([3.0, 0.0]), "attn_norm": jnp.array([4.0]), "bq": jnp.array([0.0])}
    new, _, norm = jax.jit(tx.update)(grads, tx.init(params), params, jnp.float32(0.1))
    assert norm == 5  # before clipping; afterwards .6 and .8
    np.testing.assert_allclose(new["w"][0], 3 - 0.1 * (0.6 / (0.6 + 1e-3) + 0.5 * 3), rtol=1e-5)
    np.testing.assert_allclose(new["w"][1], -2 + 0.1 * 0.5 * 2, rtol=1e-5)
    np.testing.assert_allclose(new["attn_norm"], 1 - 0.1 * 0.8 / (0.8 + 1e-3), rtol=1e-5)
    assert new["bq"] == 1  # gains and biases do not decay


def test_clipping_is_off_at_0():
    tx = dataclasses.replace(TX, clip_norm=0.0)
    params = {"w": jnp.ones(2)}
    _, opt, norm = jax.jit(tx.update)({"w": jnp.array([3.0, 4.0])}, tx.init(params), params, 0.1)
    assert norm == 5
    np.testing.assert_allclose(opt.mu["w"], [0.3, 0.4], rtol=1e-6)


def test_the_learning_rate_warms_up_and_follows_a_cosine():
    config = dataclasses.replace(CONFIG, lr=2.0, warmup_ratio=0.3, final_lr_ratio=0.1)
    rates = [optimizer.learning_rate(config, step, 10) for step in range(11)]
    np.testing.assert_allclose(rates[:4], [0.5, 1.0, 1.5, 2.0])
    middle = 2 * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * 3 / 7)))
    np.testing.assert_allclose(rates[6], middle)
    np.testing.assert_allclose(rates[10], 0.2)
    assert rates[3:] == sorted(rates[3:], reverse=True)


@pytest.mark.parametrize("change", [{"lr": 1.0}, {"warmup_ratio": 0.5}, {"final_lr_ratio": 0.5}])
def test_every_constant_of_the_schedule_reaches_the_rate(change):
    other = dataclasses.replace(CONFIG, **change)
    rates = [[optimizer.learning_rate(c, s, 20) for s in range(20)] for c in (CONFIG, other)]
    assert rates[0] != rates[1]


@pytest.mark.parametrize(
    ("epochs", "max_steps", "want"), [(1.0, 0, 7), (2.5, 0, 18), (2.5, 4, 4), (0.1, 9, 1)]
)
def test_steps_follow_epochs_up_to_the_limit(epochs, max_steps, want):
    config = dataclasses.replace(CONFIG, epochs=epochs, max_steps=max_steps)
    assert optimizer.total_steps(config, 7) == want


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"lr": 0.0}, "lr: 0.0, expected a number above 0"),
        ({"epochs": -1.0}, "epochs: -1.0, expected a number above 0"),
        ({"warmup_ratio": 1.5}, r"warmup_ratio: 1.5, expected a number in \[0, 1\]"),
        ({"beta2": 1.0}, r"beta2: 1.0, expected a number in \[0, 1\)"),
        ({"clip_norm": -1.0}, "clip_norm: -1.0, expected 0 or more"),
        ({"micro_batch": 3}, "micro_batch: 3 does not divide batch=8"),
        ({"micro_batch": 2}, "micro_batch: 2 rows do not divide over .* 4 devices"),
    ],
)
def test_settings_that_cannot_work_are_named(change, text):
    optimizer.check(CONFIG, row_shards=4)
    with pytest.raises(ValueError, match=text):
        optimizer.check(dataclasses.replace(CONFIG, **change), row_shards=4)
