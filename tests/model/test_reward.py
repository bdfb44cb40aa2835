import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stair_jax.model import lora, reward, transformer
from stair_jax.model.reward import Readout
from tests.support import specs

SPEC = specs.llama(L=2, D=6, N=4, K=2, H=8, F=7, V=11)
READOUT = Readout(position="eos", loss="bce", low=-3.0, high=1.0)


@pytest.fixture(scope="module")
def policy():
    return jax.jit(transformer.init, static_argnums=0)(SPEC, jax.random.key(0))


def test_a_reward_model_has_no_vocabulary_head(policy):
    assert "head" in policy
    model = reward.from_policy(policy, jax.random.key(1))
    assert set(model) == {"embed", "layers", "norm", "score"}
    assert model["embed"] is policy["embed"]
    shapes = jax.eval_shape(lambda: reward.init(SPEC, jax.random.key(0)))
    assert jax.tree.map(jnp.shape, model) == jax.tree.map(lambda x: x.shape, shapes)
    assert dataclasses.replace(reward.scalar(SPEC), tied=False) == SPEC


def test_the_score_head_starts_small_and_by_its_key():
    body = {"embed": 0, "layers": 0, "norm": np.ones(4095)}
    first, other = (reward.from_policy(body, jax.random.key(i))["score"] for i in (0, 1))
    assert np.abs(first - other).max() > 0
    assert first.dtype == jnp.float32
    for head in (first, other):  # of 4,095 draws the deviation is known to 1.1%
        assert math.isclose(np.std(head) * 4096, 1, rel_tol=0.05)
        assert abs(np.mean(head)) * 4096 < 0.06


def test_random_reward_models_differ_by_their_key_in_body_and_head():
    init = jax.jit(reward.init, static_argnums=0)
    one, two = (init(SPEC, jax.random.key(i)) for i in (0, 1))
    for name in ("embed", "score"):
        assert np.abs(one[name] - two[name]).max() > 0


@pytest.mark.parametrize("tied", [False, True])
def test_axes_are_those_of_the_tree(tied):
    spec = dataclasses.replace(SPEC, tied=tied)
    shapes = jax.eval_shape(lambda: reward.init(spec, jax.random.key(0)))
    axes = reward.logical_axes(spec)
    ranks = jax.tree.map(len, axes, is_leaf=lambda a: isinstance(a, tuple))
    assert ranks == jax.tree.map(lambda x: len(x.shape), shapes)


def test_scores_are_products_in_float32():
    params = {"score": jnp.array([10.0, -1.0])}
    np.testing.assert_array_equal(
        reward.scores(params, jnp.array([[[1.0, 2.0]], [[3.0, 4.0]]])), [[8], [26]]
    )
    third = jnp.asarray(1 / 3, jnp.bfloat16)
    hidden = jnp.stack([third, third])
    rounded = float(third)
    got = reward.scores({"score": jnp.array([1.0, 1 / 1025])}, hidden)
    assert got.dtype == jnp.float32
    want = rounded * (1 + 1 / 1025)  # in bfloat16 the second term would be lost
    assert float(jnp.asarray(want, jnp.bfloat16)) == rounded
    np.testing.assert_allclose(got, want, rtol=1e-6)


def test_the_decoder_ignores_the_score_head(policy):
    spec, tokens = reward.scalar(SPEC), jnp.array([[1, 2, 3]])
    model = reward.from_policy(policy, jax.random.key(1))
    plain = {name: x for name, x in policy.items() if name != "head"}
    apply = jax.jit(transformer.Decoder(spec, jnp.float32).apply)
    with_it, without = (apply({"params": p}, tokens)[0] for p in (model, plain))
    np.testing.assert_array_equal(with_it, without)


def test_what_is_trained_under_adapters_is_merged_with_the_head(policy):
    model = reward.from_policy(policy, jax.random.key(1))
    factors = lora.init(SPEC, jax.random.key(2), rank=2, targets=("q", "down"))
    trained = reward.adapted(model, jax.tree.map(lambda x: x + 0.1, factors))
    trained["score"] = model["score"] + 1
    merged = reward.merge(policy, trained, 0.5)
    assert jax.tree.structure(merged) == jax.tree.structure(model)
    np.testing.assert_array_equal(merged["score"], trained["score"])
    want = lora.merge(policy, trained, 0.5)["layers"]
    assert np.abs(want["wq"] - policy["layers"]["wq"]).max() > 0.01
    for name, x in want.items():
        np.testing.assert_array_equal(merged["layers"][name], x)


@pytest.mark.parametrize(
    ("loss", "raw", "unit"),
    [
        ("bt", 0.0, 0.5),
        ("bt", math.log(3), 0.75),  # 1 / (1 + 1/3)
        ("bce", -math.log(4), 0.2),  # 1 / (1 + 4)
        ("bce", 1e4, 1.0),
        ("bce", -1e4, 0.0),
        ("mse", 0.0, 0.5),
        ("mse", 0.6, 0.8),
        ("mse", 1.7, 1.0),
        ("mse", -1.2, 0.0),
    ],
)
def test_scores_become_numbers_between_0_and_1_and_rewards(loss, raw, unit):
    readout = dataclasses.replace(READOUT, loss=loss)
    np.testing.assert_allclose(readout.unit(raw), unit, atol=1e-12)
    np.testing.assert_allclose(readout.unit(np.array([raw, raw])), [unit, unit], atol=1e-12)
    np.testing.assert_allclose(readout.value(raw), -3 + 4 * unit, atol=1e-12)


def test_targets_come_back_as_the_values_that_they_were_made_of():
    values = np.array([-2.5, 0.0, 0.9])
    q = (values - READOUT.low) / (READOUT.high - READOUT.low)
    np.testing.assert_allclose(READOUT.value(np.log(q / (1 - q))), values)  # where bce is least
    mse = dataclasses.replace(READOUT, loss="mse")
    np.testing.assert_allclose(mse.value(2 * q - 1), values)


def test_a_readout_survives_json():
    assert Readout.from_json(json.loads(json.dumps(READOUT.to_json()))) == READOUT
    with pytest.raises(TypeError, match="low"):
        Readout.from_json({"position": "eos", "loss": "bt", "high": 1.0})


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"position": "middle"}, "position 'middle' is unknown"),
        ({"loss": "hinge"}, "loss 'hinge' is unknown"),
        ({"high": -3.0}, "low=-3.0 is not below high=-3.0"),
    ],
)
def test_what_cannot_be_read_out_is_refused(change, match):
    with pytest.raises(ValueError, match=match):
        dataclasses.replace(READOUT, **change)
