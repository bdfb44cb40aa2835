import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stair_jax.data.batches import PairBatch, SftBatch, TrainingBatch
from stair_jax.train import logprobs, losses
from tests.support import specs
from tests.support.close import assert_sums_close
from tests.support.training import dpo_config, train_config

SPEC = specs.llama(L=2, D=6, N=4, K=2, H=8, F=7, V=11)
SCORER = logprobs.Scorer.of(SPEC, train_config())


def preference(policy, reference, weight=None, *, length=((4, 8),), depth=None, **change):
    policy, reference = jnp.asarray(policy, jnp.float32), jnp.asarray(reference, jnp.float32)
    weight = jnp.ones(len(policy)) if weight is None else jnp.asarray(weight, jnp.float32)
    lengths = np.broadcast_to(np.asarray(length), policy.shape)
    empty = PairBatch.empty(np.zeros((*policy.shape, 9), np.int32))
    batch = dataclasses.replace(
        empty,
        weight=weight,
        step_mask=jnp.asarray(np.arange(9) < lengths[..., None]),
        depth=jnp.asarray(depth or [1] * len(policy)),
    )
    loss = losses.Dpo.of(SCORER, dpo_config(**change))
    return loss.preference(policy, reference, batch)


def test_a_policy_equal_to_its_reference_costs_log_2_and_earns_no_reward():
    logp = [[-3.0, -9.0], [-1.0, -1.0], [-2.0, -0.5]]
    out = preference(logp, logp)
    np.testing.assert_allclose(out["dpo_loss"], 3 * math.log(2), rtol=1e-6)
    for name in ("rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies"):
        assert out[name] == 0
    assert out["logps/chosen"] == -6
    assert out["logps/rejected"] == -10.5


def test_rewards_and_margins_follow_the_formula():
    out = preference([[-3.0, -9.0]], [[-5.0, -8.0]], beta=0.3)
    np.testing.assert_allclose(out["rewards/chosen"], 0.6, rtol=1e-6)
    np.testing.assert_allclose(out["rewards/rejected"], -0.3, rtol=1e-6)
    np.testing.assert_allclose(out["rewards/margins"], 0.9, rtol=1e-6)
    np.testing.assert_allclose(out["dpo_loss"], math.log1p(math.exp(-0.9)), rtol=1e-6)
    assert out["rewards/accuracies"] == 1


def test_label_smoothing_mixes_in_the_flipped_pair():
    pair = [[-3.0, -9.0]], [[-5.0, -8.0]]
    straight, flipped = math.log1p(math.exp(-0.9)), math.log1p(math.exp(0.9))
    got = preference(*pair, label_smoothing=0.2)["dpo_loss"]
    np.testing.assert_allclose(got, 0.8 * straight + 0.2 * flipped, rtol=1e-6)


def test_pairs_of_weight_0_do_not_count():
    out = preference([[1.0, 0.0], [9.0, -9.0]], np.zeros((2, 2)), [1, 0], beta=1.0)
    np.testing.assert_allclose(out["dpo_loss"], math.log1p(math.exp(-1.0)), rtol=1e-6)
    assert out["rewards/margins"] == 1


def test_extreme_margins_stay_finite():
    out = preference([[-2e4, 0.0]], [[0.0, -2e4]], beta=1.0)
    np.testing.assert_allclose(out["dpo_loss"], 4e4, rtol=1e-6)


@pytest.mark.parametrize(
    ("change", "want"),
    [
        # margin of sums: (-3 + 5) - (-9 + 8) = 3; of means over 4 and 8 tokens: 2/4 + 1/8
        ({"loss": "hinge", "beta": 0.3}, 1 - 0.9),
        ({"loss": "hinge", "beta": 0.5}, 0.0),
        ({"loss": "ipo", "beta": 0.3}, (0.625 - 1 / 0.6) ** 2),
        ({"loss": "ipo", "beta": 0.8}, 0.0),
    ],
)
def test_other_losses_by_hand(change, want):
    out = preference([[-3.0, -9.0]], [[-5.0, -8.0]], **change)
    np.testing.assert_allclose(out["dpo_loss"], want, rtol=1e-5, atol=1e-7)
    scale = change["beta"] / (np.array([4, 8]) if change["loss"] == "ipo" else 1)
    np.testing.assert_allclose(
        [out["rewards/chosen"], out["rewards/rejected"]], scale * np.array([2.0, -1.0]), rtol=1e-6
    )


def test_accuracy_is_counted_by_depth():
    policy = [[0.0, -1.0], [-1.0, 0.0], [0.0, -1.0], [0.0, -1.0]]
    out = preference(policy, np.zeros((4, 2)), [1, 1, 1, 0], depth=[1, 1, 3, 3])
    assert [float(out[f"rewards/accuracies/depth-{d}"]) for d in (1, 2, 3)] == [1, 0, 1]
    assert out["rewards/accuracies"] == 2


def test_kl_a_token_is_that_of_the_chosen_step():
    out = preference([[-3.0, -9.0], [-1.0, 5.0]], [[-5.0, -8.0], [-2.0, 0.0]])
    assert out["kl_per_token"] == 3  # summed; the step divides by 4 + 4 tokens


def test_sequence_means_are_not_the_token_mean():
    logp = jnp.array([[0.0, -1.0, -1.0, -1.0], [0.0, -4.0, 0.0, 0.0]])
    mask = jnp.array([[False, True, True, True], [False, True, False, False]])
    assert losses.sequence_nll(logp, mask, jnp.ones(2)) == 5  # over 2 rows: 2.5; of tokens 7 / 4
    assert losses.sequence_nll(logp, mask, jnp.array([1.0, 0.0])) == 1


def _dpo(**change):
    return losses.Dpo.of(SCORER, dpo_config(**({"label_smoothing": 0.1} | change)))


sums_of = jax.jit(lambda loss, params, batch: loss.sums(params, None, batch), static_argnums=0)


def _value(loss, batch, params):
    counts, sums = loss.counts(batch), sums_of(loss, params, batch)
    return sum(c * sums[n] / counts[loss.units[n]] for n, c in loss.terms.items())


@pytest.fixture(scope="module")
def params():
    from stair_jax.model import transformer

    tree = jax.jit(transformer.init, static_argnums=0)(SPEC, jax.random.key(0))
    return jax.tree.map(lambda x: x * 3, tree)  # else all logits are nearly equal


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    mask = np.zeros((3, 2, 9), bool)
    mask[:, 0, 4:6] = mask[:, 1, 4:8] = True
    sft = np.zeros((3, 9), bool)
    sft[0, 2:6] = sft[1:, 2:3] = True
    pairs = PairBatch(
        tokens=rng.integers(0, SPEC.V, (3, 2, 9)).astype(np.int32),
        step_mask=mask,
        sft_mask=sft,
        weight=np.array([1, 1, 0], np.float32),
        sft_weight=np.ones(3, np.float32),
        depth=np.array([1, 2, 0], np.int32),
        ref_logp=rng.normal(size=(3, 2)).astype(np.float32),
    )
    return jax.tree.map(jnp.asarray, pairs)


def test_without_a_reference_the_log_probs_themselves_are_compared(params, batch):
    alone, beside = dataclasses.replace(_dpo(), reference="none"), _dpo()
    assert not alone.reads_reference
    assert set(beside.units) - set(alone.units) == {"kl_per_token"}
    zeros = dataclasses.replace(batch, ref_logp=jnp.zeros_like(batch.ref_logp))
    without = dataclasses.replace(batch, ref_logp=None)
    got, want = sums_of(alone, params, without), sums_of(beside, params, zeros)
    assert abs(sums_of(beside, params, batch)["dpo_loss"] - want["dpo_loss"]) > 0.01
    np.testing.assert_allclose(got["dpo_loss"], want["dpo_loss"], rtol=1e-6)
    assert set(want) - set(got) == {"kl_per_token"}


@pytest.mark.parametrize(
    "change",
    [
        {"beta": 0.7},
        {"sft_coef": 0.9},
        {"label_smoothing": 0.4},
        {"sft_reduction": "token"},
        {"loss": "ipo"},
        {"loss": "hinge"},
    ],
    ids=str,
)
def test_every_constant_of_the_preference_loss_reaches_it(batch, params, change):
    loss, other = _dpo(), _dpo(**change)
    assert loss != other
    assert abs(_value(loss, batch, params) - _value(other, batch, params)) > 1e-3


def test_metrics_carry_the_usual_names_and_each_has_a_count(batch, params):
    rows = SftBatch(tokens=batch.tokens[:, 0], loss_mask=batch.sft_mask, weight=batch.weight)
    cases: list[tuple[losses.Loss, TrainingBatch]] = [(_dpo(), batch), (losses.Sft(SCORER), rows)]
    for loss, data in cases:
        sums, counts = sums_of(loss, params, data), loss.counts(data)
        assert set(sums) == set(loss.units)
        assert set(loss.units.values()) <= set(counts)
        assert set(loss.terms) <= set(sums)
    assert {
        "rewards/chosen",
        "rewards/rejected",
        "rewards/margins",
        "rewards/accuracies",
        "logps/chosen",
        "logps/rejected",
        "nll_loss",
    } <= set(_dpo().units)


def test_losses_are_hashable_and_equal_by_value():
    assert hash(_dpo()) == hash(_dpo())
    assert _dpo() == _dpo()
    assert losses.Sft(SCORER) == losses.Sft(dataclasses.replace(SCORER))


@pytest.mark.parity
def test_value_and_gradient_equal_torch(batch):
    """The same objective written in torch, from logits on; gradients in the logits."""
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(1)
    logits = rng.normal(size=(3, 2, 9, SPEC.V)).astype(np.float32)
    beta, coef, smooth = 0.3, 0.2, 0.1

    def ours(logits_B2TV):
        logp = jax.nn.log_softmax(logits_B2TV[:, :, :-1])
        logp = jnp.take_along_axis(logp, batch.tokens[:, :, 1:, None], axis=-1)[..., 0]
        logp = jnp.pad(logp, ((0, 0), (0, 0), (1, 0)))
        step = jnp.where(batch.step_mask, logp, 0).sum(-1)
        loss = _dpo(beta=beta, label_smoothing=smooth)
        sums = loss.preference(step, batch.ref_logp, batch)
        nll = losses.sequence_nll(logp[:, 0], batch.sft_mask, batch.sft_weight)
        return sums["dpo_loss"] / 2 + coef * nll / 3

    value, grad = jax.jit(jax.value_and_grad(ours))(jnp.asarray(logits))

    tokens, steps, reference, trained = (
        torch.tensor(np.array(x))
        for x in (batch.tokens, batch.step_mask, batch.ref_logp, batch.sft_mask)
    )
    x = torch.tensor(logits, requires_grad=True)
    tokens = tokens[:, :, 1:].long()
    logp = torch.log_softmax(x[:, :, :-1], dim=-1).gather(-1, tokens[..., None])[..., 0]
    step = (logp * steps[:, :, 1:]).sum(-1)
    ratio = step - reference
    margin = beta * (ratio[:, 0] - ratio[:, 1])
    f = torch.nn.functional.logsigmoid
    pair = -(1 - smooth) * f(margin) - smooth * f(-margin)
    sft = trained[:, 1:].float()
    nll = -(logp[:, 0] * sft).sum(-1) / sft.sum(-1)
    loss = pair[:2].mean() + coef * nll.mean()
    loss.backward()
    np.testing.assert_allclose(value, loss.item(), rtol=1e-5)
    assert_sums_close(grad, x.grad.numpy())
    assert np.abs(grad).max() > 1e-3


@pytest.mark.parametrize("reference", ["on_the_fly", "lora_base"])
def test_a_reference_at_hand_gives_the_sums_of_a_precomputed_one(batch, params, reference):
    other = jax.tree.map(lambda x: x * 1.1, params)
    name = {"on_the_fly": "reference", "lora_base": "base"}[reference]
    scorer = logprobs.Scorer.of(SPEC, train_config(lora_rank=2 if name == "base" else 0))
    loss = dataclasses.replace(_dpo(reference=reference), scorer=scorer)
    logp = SCORER(other, batch.tokens.reshape(-1, 9), batch.step_mask.reshape(-1, 9)).logp
    known = dataclasses.replace(batch, ref_logp=logp.reshape(3, 2, 9).sum(-1))
    if reference == "on_the_fly":
        got = loss.sums(params, {name: other}, batch)
        want = _dpo().sums(params, None, known)
    else:  # fresh adapters: policy and base are one
        from stair_jax.model import lora

        fresh = lora.init(SPEC, jax.random.key(0), rank=2, targets=("q",))
        got = loss.sums(fresh, {name: other}, batch)
        want = _dpo().sums(other, None, known)
    assert abs(want["dpo_loss"] - _dpo().sums(params, None, batch)["dpo_loss"]) > 1e-3
    for key in want:
        np.testing.assert_allclose(got[key], want[key], rtol=1e-5, atol=1e-5, err_msg=key)
