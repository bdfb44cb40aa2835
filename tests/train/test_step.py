"""One optimiser step: what may not change it, and that every constant does."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from stair_jax import mesh as mesh_lib
from stair_jax.config.checks import validate_training
from stair_jax.data.batches import PairBatch, SftBatch
from stair_jax.model import transformer
from stair_jax.train import logprobs, losses, optimizer
from stair_jax.train import step as step_lib
from tests.support import specs
from tests.support.close import assert_trees_close
from tests.support.training import dpo_config, train_config

SPEC = specs.llama(L=1, D=8, N=4, K=2, H=6, F=10, V=13)
CONFIG = train_config(batch=8, buckets=(11,), save_every=100)
SCORER = logprobs.Scorer.of(SPEC, CONFIG)
SFT = losses.Sft(SCORER)
DPO = losses.Dpo.of(SCORER, dpo_config())
TX = optimizer.of(CONFIG)
ROWS, T = 8, 11


def sft_batch():
    rng = np.random.default_rng(0)
    mask = np.zeros((ROWS, T), bool)
    for row, length in enumerate((9, 1, 5, 3, 7, 2, 8, 4)):  # unequal, so that means of means lie
        mask[row, 2 : 2 + length] = True
    tokens = rng.integers(0, SPEC.V, (ROWS, T)).astype(np.int32)
    return SftBatch(tokens=tokens, loss_mask=mask, weight=np.ones(ROWS, np.float32))


def dpo_batch():
    rng = np.random.default_rng(1)
    step, sft = np.zeros((ROWS, 2, T), bool), np.zeros((ROWS, T), bool)
    for row in range(ROWS):
        step[row, 0, 4 : 5 + row % 5] = step[row, 1, 4 : 10 - row % 4] = True
        sft[row, 2 : 5 + row % 5] = True
    weight = np.array([1, 1, 1, 0, 1, 0, 1, 1], np.float32)  # two anchors, in unequal halves
    step[weight == 0] = False
    return PairBatch(
        tokens=rng.integers(0, SPEC.V, (ROWS, 2, T)).astype(np.int32),
        step_mask=step,
        sft_mask=sft,
        weight=weight,
        sft_weight=np.ones(ROWS, np.float32),
        ref_logp=rng.normal(-9, 1, (ROWS, 2)).astype(np.float32),
        depth=(weight * (1 + np.arange(ROWS) % 2)).astype(np.int32),
    )


CASES = pytest.mark.parametrize(
    ("loss", "batch"), [(SFT, sft_batch()), (DPO, dpo_batch())], ids=["sft", "dpo"]
)
_START = {}


def cut(batch, micro=ROWS):
    """Returns the rows as micro-batches, as the data hands them out."""
    return batch.cut(len(batch.tokens) // micro)


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
        state, out = step_lib.step(
            state, step_lib.place(cut(batch, micro), mesh), lr, loss=loss, tx=tx
        )
    figures = {k: float(v) for k, v in out.items() if not np.isnan(v)}  # means over nothing
    return figures, optax.tree.get(state.opt, "mu"), state.params


def differ(a, b):
    """Whether any leaf differs by more than rounding."""
    return any(
        np.abs(np.asarray(x) - np.asarray(y)).max() > 1e-6
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


@CASES
def test_accumulation_equals_one_large_batch(loss, batch):
    micro = 2
    mean_of_means = np.mean(
        [
            one_count(loss, jax.tree.map(lambda x, at=at: x[at : at + micro], batch))
            for at in range(0, ROWS, micro)
        ]
    )
    assert mean_of_means * ROWS / micro == one_count(loss, batch)
    whole, grads, _ = one_step(loss, batch)
    parts, summed, _ = one_step(loss, batch, micro=micro)
    for name in whole:
        assert math.isclose(whole[name], parts[name], rel_tol=1e-5, abs_tol=1e-5), name
    assert_trees_close(grads, summed)


def one_count(loss, batch):
    """The count that the SFT term of a loss is divided by."""
    return float(loss.counts(jax.tree.map(jnp.asarray, batch))[loss.units["nll_loss"]])


@CASES
@pytest.mark.parametrize("shape", [(1, 8, 1), (2, 2, 2)])
def test_a_sharded_step_equals_that_of_one_device(loss, batch, shape):
    want, want_grads, _ = one_step(loss, batch)
    got, grads, params = one_step(loss, batch, shape=shape)
    assert not params["layers"]["wq"].sharding.is_fully_replicated
    assert grads["layers"]["wq"].sharding == params["layers"]["wq"].sharding
    for name in want:
        assert math.isclose(want[name], got[name], rel_tol=1e-5, abs_tol=1e-5), name
    assert_trees_close(grads, want_grads)


def test_rows_lie_over_the_data_and_fsdp_axes():
    placed = step_lib.place(cut(sft_batch(), 4), mesh_lib.make((2, 2, 2)))
    assert placed.tokens.shape == (2, 4, T)
    assert {s.data.shape for s in placed.tokens.addressable_shards} == {(2, 1, T)}


@CASES
def test_padding_rows_and_padding_tokens_change_nothing(loss, batch):
    want, want_grads, _ = one_step(loss, batch)

    def padded(x, value=0):
        rows = [(0, ROWS)] + [(0, 0)] * (x.ndim - 1)
        if x.ndim > 1 and x.shape[-1] == T:
            rows[-1] = (0, 5)
        return np.pad(x, rows, constant_values=value)

    longer = jax.tree.map(padded, batch)
    longer = dataclasses.replace(longer, tokens=padded(batch.tokens, 3))
    got, grads, _ = one_step(loss, longer, micro=2 * ROWS)
    for name in want:
        assert math.isclose(want[name], got[name], rel_tol=1e-5, abs_tol=1e-5), name
    assert_trees_close(grads, want_grads)


def test_the_sft_loss_is_the_mean_over_all_response_tokens():
    batch = sft_batch()
    out, _, _ = one_step(SFT, batch)
    every = jnp.ones((ROWS, T), bool)
    logp = np.asarray(jax.jit(lambda p, t: SCORER(p, t, every).logp)(start(), batch.tokens))
    np.testing.assert_allclose(out["loss"], -logp[batch.loss_mask].mean(), rtol=1e-5)


def test_dpo_starts_at_log_2_plus_its_sft_term():
    batch = dpo_batch()
    flat = jnp.asarray(batch.tokens.reshape(-1, T))
    every = jnp.ones(flat.shape, bool)
    logp = jax.jit(lambda p: SCORER(p, flat, every).logp)(start()).reshape(ROWS, 2, T)
    reference = np.array((logp * batch.step_mask).sum(-1))
    batch = dataclasses.replace(batch, ref_logp=reference)
    out, _, _ = one_step(DPO, batch)
    np.testing.assert_allclose(out["dpo_loss"], math.log(2), rtol=1e-5)
    np.testing.assert_allclose(out["loss"], math.log(2) + 0.2 * out["nll_loss"], rtol=1e-5)
    assert abs(out["rewards/margins"]) < 1e-5
    assert abs(out["kl_per_token"]) < 1e-6


@CASES
def test_empty_micro_batches_at_the_end_are_not_computed(loss, batch):
    """A micro-batch of weight 0 that would spoil every sum is passed over."""
    micro = cut(batch, 2)
    spoilt = jax.tree.map(lambda x: np.concatenate([x, np.zeros_like(x[:1])]), micro)
    if isinstance(spoilt, PairBatch):
        spoilt.ref_logp[-1] = np.nan  # 0 x nan would be nan
    whole, grads, _ = one_step(loss, batch, micro=2)
    got, summed, _ = one_step(loss, spoilt.joined(), micro=2)
    assert_trees_close(grads, summed, 0)
    assert got == whole


def test_held_out_rows_give_the_means_of_all_batches_together():
    batch, mesh = dpo_batch(), mesh_lib.make((1, 1, 1))
    want, _, _ = one_step(DPO, batch, lr=0.0)
    parts = [cut(jax.tree.map(lambda x, at=at: x[at : at + 4], batch), 2) for at in (0, 4)]
    with jax.set_mesh(mesh):
        got = step_lib.measure(start(), parts, mesh, loss=DPO)
        assert step_lib.measure(start(), [], mesh, loss=DPO) == {}
    assert set(got) == set(want) - {"grad_norm", "update_ratio", "skipped"}
    for name, x in got.items():
        assert math.isclose(x, want[name], rel_tol=1e-5, abs_tol=1e-6), name


def test_a_bad_gradient_leaves_the_state_as_it_was():
    batch = dpo_batch()
    batch.ref_logp[2, 0] = np.inf
    mesh = mesh_lib.make((1, 1, 1))
    with jax.set_mesh(mesh):
        state = step_lib.init(step_lib.on_mesh(start(), mesh), TX, mesh)
        state, out = step_lib.step(state, step_lib.place(cut(batch), mesh), 1.0, loss=DPO, tx=TX)
    assert out["skipped"] == 1
    assert state.opt.count == 0
    assert_trees_close(state.params, start(), 0)
    assert one_step(DPO, dpo_batch())[0]["skipped"] == 0


def test_the_state_is_updated_in_place_whether_the_step_is_skipped_or_not():
    """Old and new weights and moments share their memory."""

    class Plain(losses.Sft):
        def sums(self, params, frozen, batch):
            out = jnp.tanh(batch.tokens @ params["w"])
            return {"nll_loss": out.sum(), "mean_token_accuracy": out.min()}

    mesh = mesh_lib.make((1, 1, 1))
    where = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    rows = SftBatch.empty(np.zeros((2, 3, 160), np.float32))
    batch = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), rows)
    state = step_lib.abstract(
        {"w": jax.ShapeDtypeStruct((160, 140), jnp.float32, sharding=where)}, TX, mesh
    )
    leaves, tree = jax.tree.flatten(jax.tree.map(lambda x: x.sharding, state))
    with jax.set_mesh(mesh):
        programs = step_lib.Programs.of(Plain(SCORER), TX, tree, tuple(leaves))
        lr, number = (jax.ShapeDtypeStruct((), kind) for kind in (jnp.float32, jnp.int32))
        one = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct((1, *x.shape[1:]), x.dtype, sharding=where), batch
        )
        whole: Any = programs.whole.lower(state, None, one, lr).compile().memory_analysis()
        total = jax.eval_shape(programs.zeros, state.params, None, batch)
        adding: Any = programs.add.lower(total, state.params, None, batch, number).compile()
        updating: Any = programs.update.lower(state, total, batch, lr).compile()
    weights = 160 * 140 * 4
    assert whole.alias_size_in_bytes >= 3 * weights
    assert adding.memory_analysis().alias_size_in_bytes >= weights
    assert updating.memory_analysis().alias_size_in_bytes >= 3 * weights


def test_the_state_is_donated_with_the_parameters_that_it_began_with():
    mesh = mesh_lib.make((1, 1, 1))
    params = step_lib.on_mesh(start(), mesh)
    with jax.set_mesh(mesh):
        before = step_lib.init(params, TX, mesh)
        batch = step_lib.place(cut(sft_batch()), mesh)
        step_lib.step(before, batch, 1e-2, loss=SFT, tx=TX)
    assert before.params["embed"].is_deleted()
    assert params["embed"].is_deleted()


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
    tx = optimizer.of(dataclasses.replace(CONFIG, **change))

    @jax.jit
    def two(params):
        a, b = begun(params), begun(params, tx)
        for scale in (1.0, -0.2):
            grads = jax.tree.map(lambda x, s=scale: s * jnp.sin(x), params)
            a, _ = step_lib.updated(a, grads, 0.1 * jnp.ones(()), TX)
            b, _ = step_lib.updated(b, grads, 0.1 * jnp.ones(()), tx)
        return a.params, b.params

    a, b = two({"w": jnp.linspace(-2, 3, 12).reshape(4, 3)})
    assert differ(a, b)


def begun(params, tx=TX):
    return step_lib.State(params, tx.init(params))


def updated(state, grads, lr, tx=TX):
    return jax.jit(step_lib.updated, static_argnums=3)(state, grads, jnp.float32(lr), tx)


def test_adamw_by_hand():
    tx = optimizer.adamw(weight_decay=0.5, clip_norm=1.0, beta1=0.8, beta2=0.9, eps=1e-3)
    params = {"w": jnp.array([3.0, -2.0]), "attn_norm": jnp.array([1.0]), "bq": jnp.array([1.0])}
    grads = {"w": jnp.array([3.0, 0.0]), "attn_norm": jnp.array([4.0]), "bq": jnp.array([0.0])}
    state, norms = updated(begun(params, tx), grads, 0.1, tx)
    new = state.params
    assert norms["grad_norm"] == 5  # before clipping; afterwards .6 and .8
    moved = [new[k] - params[k] for k in params]
    ratio = np.linalg.norm(np.concatenate(moved)) / math.sqrt(9 + 4 + 1 + 1)
    np.testing.assert_allclose(norms["update_ratio"], ratio, rtol=1e-5)
    np.testing.assert_allclose(new["w"][0], 3 - 0.1 * (0.6 / (0.6 + 1e-3) + 0.5 * 3), rtol=1e-5)
    np.testing.assert_allclose(new["w"][1], -2 + 0.1 * 0.5 * 2, rtol=1e-5)
    np.testing.assert_allclose(new["attn_norm"], 1 - 0.1 * 0.8 / (0.8 + 1e-3), rtol=1e-5)
    assert new["bq"] == 1  # gains and biases do not decay
    assert optimizer.decayed({"q": {"b": 0}, "w": 0, "bq": 0, "norm": 0}) == {
        "q": {"b": True},  # a factor of LoRA
        "w": True,
        "bq": False,
        "norm": False,
    }


def test_bfloat16_parameters_keep_float32_moments_and_move_where_they_can():
    params = {"w": jnp.array([1.0, 2.0], jnp.bfloat16)}
    mesh = mesh_lib.make((1, 1, 1))
    state = step_lib.init(step_lib.on_mesh(params, mesh), TX, mesh)
    grads = {"w": jnp.array([1.0, -1.0], jnp.bfloat16)}
    for lr, moved in ((1e-4, False), (1e-1, True)):  # a bfloat16 near 1 has steps of 2^-8
        new, _ = updated(state, grads, lr)
        for moments in (optax.tree.get(new.opt, "mu"), optax.tree.get(new.opt, "nu")):
            assert moments["w"].dtype == jnp.float32
        assert new.params["w"].dtype == jnp.bfloat16
        assert bool((new.params["w"] != params["w"]).any()) == moved


def test_clipping_is_off_at_0():
    tx = optimizer.of(dataclasses.replace(CONFIG, clip_norm=0.0))
    grads = {"w": jnp.array([3.0, 4.0])}
    state, norms = updated(begun({"w": jnp.ones(2)}, tx), grads, 0.1, tx)
    assert norms["grad_norm"] == 5
    np.testing.assert_allclose(optax.tree.get(state.opt, "mu")["w"], [0.3, 0.4], rtol=1e-6)


def test_the_same_constants_give_the_same_optimiser_whatever_the_rate():
    assert optimizer.of(dataclasses.replace(CONFIG, lr=3e-3)) is TX
    assert optimizer.of(dataclasses.replace(CONFIG, beta1=0.5)) is not TX


def test_a_rate_is_set_only_where_one_is_injected():
    state, grads = begun({"w": jnp.ones(2)}), {"w": jnp.ones(2)}
    slow, fast = (updated(state, grads, lr)[0].params for lr in (1e-3, 1e-2))
    assert differ(slow, fast)
    plain = optax.sgd(0.5)
    assert not optimizer.takes_rate(plain.init(state.params))
    new, _ = updated(begun(state.params, plain), grads, 1e-3, plain)
    np.testing.assert_array_equal(new.params["w"], [0.5, 0.5])


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
        ({"max_skipped": -1}, "max_skipped: -1, expected 0 or more"),
        (
            {"param_dtype": "bfloat16", "lr": 9e-6},
            "train.param_dtype: 'bfloat16' with lr=9e-06; .* 0.4 %",
        ),
        ({"result": "best"}, "'best' .* expected eval_rows above 0"),
    ],
)
def test_settings_that_cannot_work_are_named(change, text):
    validate_training("train", CONFIG)
    validate_training("train", dataclasses.replace(CONFIG, param_dtype="bfloat16", lr=1e-5))
    with pytest.raises(ValueError, match=text):
        validate_training("train", dataclasses.replace(CONFIG, **change))
