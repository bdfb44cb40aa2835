import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stair_jax.data.batches import ComparisonBatch
from stair_jax.model import lora, reward
from stair_jax.model.transformer import Decoder
from stair_jax.train import throughput
from stair_jax.train.values import Values
from tests.support import specs
from tests.support.close import assert_sums_close
from tests.support.training import train_config

SPEC = specs.llama(L=2, D=6, N=4, K=2, H=8, F=7, V=11)
MODEL = Values.of(SPEC, train_config())
READ = jnp.array([[4, 0, 2], [6, 6, 1]])


score = jax.jit(
    lambda model, params, tokens, read, base=None: model(params, tokens, read, base=base),
    static_argnums=0,
)


@pytest.fixture(scope="module")
def params():
    tree = jax.jit(reward.init, static_argnums=0)(SPEC, jax.random.key(0))
    return tree | {"score": 10 * tree["score"]}  # of a size that rounding does not hide


@pytest.fixture(scope="module")
def tokens():
    return jnp.array(np.random.default_rng(0).integers(0, SPEC.V, (2, 7)), jnp.int32)


def test_scores_are_read_where_they_are_wanted(params, tokens):
    decoder = Decoder(MODEL.spec, jnp.float32)
    hidden = jax.jit(decoder.apply)({"params": params}, tokens)[0]
    all_BT = np.asarray(hidden) @ np.asarray(params["score"])
    assert len(set(np.round(all_BT.ravel(), 5))) == all_BT.size  # a wrong place would show
    got = score(MODEL, params, tokens, READ)
    np.testing.assert_allclose(got, np.take_along_axis(all_BT, np.asarray(READ), axis=1), atol=1e-5)


def test_what_follows_does_not_change_a_score_and_what_is_before_does(params, tokens):
    read = jnp.array([[3], [3]])
    plain = score(MODEL, params, tokens, read)
    for at, same in ((3, False), (2, False), (4, True)):
        changed = tokens.at[:, at].set((tokens[:, at] + 1) % SPEC.V)
        got = score(MODEL, params, changed, read)
        assert (np.abs(got - plain).max() < 1e-6) == same, at


def test_settings_reach_the_model(params, tokens):
    config = train_config(compute_dtype="bfloat16", remat="full", lora_rank=4, lora_alpha=2.0)
    assert Values.of(SPEC, config) == Values(
        spec=reward.scalar(SPEC), compute_dtype="bfloat16", remat="full", lora_scale=0.5
    )
    coarse = score(dataclasses.replace(MODEL, compute_dtype="bfloat16"), params, tokens, READ)
    exact = score(MODEL, params, tokens, READ)
    assert coarse.dtype == exact.dtype == jnp.float32
    assert 1e-4 < np.abs(coarse - exact).max() < 0.2  # of 3.6; bfloat16 has 8 bits

    def program(model):
        return str(jax.make_jaxpr(jax.grad(lambda p: model(p, tokens, READ).sum()))(params))

    assert "remat" in program(dataclasses.replace(MODEL, remat="full"))
    assert "remat" not in program(MODEL)


def test_adapters_score_as_the_weights_that_they_merge_to(params, tokens):
    factors = lora.init(SPEC, jax.random.key(2), rank=2, targets=tuple(lora.TARGETS))
    factors = jax.tree.map(lambda x: x + 0.05, factors)
    trained = reward.adapted(params, factors)
    trained["score"] = trained["score"] + 0.3
    policy = {**params, "head": params["embed"]}  # the base may carry what is not read
    for scale in (0.5, 1.5):
        model = dataclasses.replace(MODEL, lora_scale=scale)
        got = score(model, trained, tokens, READ, base=policy)
        plain = score(model, params, tokens, READ)
        headed = score(model, params | {"score": trained["score"]}, tokens, READ)
        assert np.abs(got - plain).max() > 1e-2
        assert np.abs(got - headed).max() > 1e-2
        want = score(model, reward.merge(policy, trained, scale), tokens, READ)
        assert_sums_close(got, want, 1e-5)


def test_a_score_is_no_product_with_the_vocabulary():
    batch = ComparisonBatch(
        tokens=np.ones((1, 2, 2, 7), np.int32),
        read=np.array([[[4, 2], [6, 6]]]),
        weight=np.array([[1, 0]], np.float32),
        depth=np.array([[1, 0]]),
    )
    keys = 5 * 6 // 2 + 3 * 4 // 2  # of rows of 5 and 3 tokens; the second pair is padding
    assert throughput.work_of(batch) == throughput.Work(tokens=8, keys=keys, scored=0)
