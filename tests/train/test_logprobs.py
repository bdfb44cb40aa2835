import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stair_jax import config as config_lib
from stair_jax.config import schema
from stair_jax.model import heads, lora, transformer
from stair_jax.model.layout import Layout
from stair_jax.train import logprobs
from tests.support import specs
from tests.support.close import assert_sums_close, assert_trees_close

SPEC = specs.llama(L=2, D=6, N=4, K=2, H=8, F=7, V=11)
SCORER = logprobs.Scorer(
    spec=SPEC, compute_dtype="float32", remat="none", head_chunk=5, lora_scale=0.0
)


@functools.partial(jax.jit, static_argnums=0)
def score(scorer, params, tokens):
    """The log-probability of every token."""
    return scorer(params, tokens, jnp.ones(tokens.shape, bool)).logp


def logits_of(params, tokens):
    hidden, _ = jax.jit(transformer.Decoder(SPEC, jnp.float32).apply)({"params": params}, tokens)
    return np.asarray(heads.logits(params, hidden, SPEC))


@pytest.fixture(scope="module")
def params():
    tree = jax.jit(transformer.init, static_argnums=0)(SPEC, jax.random.key(0))
    return jax.tree.map(lambda x: x * 3, tree)  # else all logits are nearly equal


@pytest.fixture(scope="module")
def tokens():
    return jax.random.randint(jax.random.key(1), (3, 9), 0, SPEC.V)


def test_each_token_is_scored_by_the_position_before_it(params, tokens):
    got = score(SCORER, params, tokens)
    logits = logits_of(params, tokens)
    want = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    for t in range(1, 9):
        np.testing.assert_allclose(got[:, t], want[np.arange(3), t - 1, tokens[:, t]], atol=1e-5)
    np.testing.assert_array_equal(got[:, 0], 0)


def test_padding_on_the_right_changes_no_real_token(params, tokens):
    longer = jnp.pad(tokens, ((0, 0), (0, 5)), constant_values=7)
    other = jnp.pad(tokens, ((0, 0), (0, 5)), constant_values=2)
    a, b = score(SCORER, params, longer), score(SCORER, params, other)
    assert not np.allclose(a[:, 9:], b[:, 9:], atol=1e-3)
    np.testing.assert_allclose(a[:, :9], b[:, :9], atol=1e-6)
    np.testing.assert_allclose(a[:, :9], score(SCORER, params, tokens), atol=1e-5)


def test_bfloat16_differs_and_stays_close(params, tokens):
    half = dataclasses.replace(SCORER, compute_dtype="bfloat16")
    a, b = score(SCORER, params, tokens), score(half, params, tokens)
    assert b.dtype == jnp.float32
    assert np.abs(a - b).max() > 1e-6
    assert_sums_close(b, a, 2e-2)


def test_remat_changes_the_program_and_not_the_gradient(params, tokens):
    full = dataclasses.replace(SCORER, remat="full")
    run = lambda s, p: s(p, tokens, jnp.ones(tokens.shape, bool)).logp.sum()  # noqa: E731
    grad = lambda s: jax.jit(jax.grad(functools.partial(run, s)))  # noqa: E731
    program = lambda s: str(jax.make_jaxpr(functools.partial(run, s))(params))  # noqa: E731
    assert "remat" in program(full)
    assert "remat" not in program(SCORER)
    assert_trees_close(grad(full)(params), grad(SCORER)(params))


def test_only_wanted_tokens_are_scored(params, tokens):
    wanted = np.zeros((3, 9), bool)
    wanted[0, 2:5] = wanted[2, 8] = wanted[2, 0] = True
    everything = score(SCORER, params, tokens)
    run = jax.jit(lambda tokens, wanted: SCORER(params, tokens, wanted))
    got = run(tokens, jnp.asarray(wanted))
    assert (everything[:, 1:] != 0).all()
    wanted[2, 0] = False  # nothing comes before it
    np.testing.assert_allclose(got.logp, np.where(wanted, everything, 0), atol=1e-5)
    logits = logits_of(params, tokens)
    guessed = run(tokens.at[:, 4].set(logits[:, 3].argmax(-1)), jnp.asarray(wanted))
    assert guessed.hit[0, 4]
    assert not np.asarray(guessed.hit)[1].any()
    np.testing.assert_array_equal(got.hit[0, 2:5], logits[0, 1:4].argmax(-1) == tokens[0, 2:5])


def test_the_chunk_changes_the_program_and_not_the_scores(params, tokens):
    whole = dataclasses.replace(SCORER, head_chunk=1000)
    program = lambda s: str(jax.make_jaxpr(lambda p: s(p, tokens, tokens >= 0))(params))  # noqa: E731
    assert program(whole) != program(SCORER)
    np.testing.assert_allclose(
        score(whole, params, tokens), score(SCORER, params, tokens), atol=1e-5
    )


def test_rows_that_pad_the_vocabulary_have_no_probability(params, tokens):
    spec = dataclasses.replace(SPEC, V=16)
    spare = 9 * jax.random.normal(jax.random.key(3), (5, SPEC.D))
    padded = {**params, "head": jnp.concatenate([params["head"], spare])}
    padded["embed"] = jnp.concatenate([params["embed"], spare])
    want, scorer = score(SCORER, params, tokens), dataclasses.replace(SCORER, spec=spec)
    np.testing.assert_allclose(score(scorer, padded, tokens), want, atol=1e-5)
    hidden = jnp.ones((2, SPEC.D))
    logits = heads.logits(padded, hidden, spec)
    assert np.isneginf(logits[:, 11:]).all()
    assert_sums_close(logits[:, :11], heads.logits(params, hidden, SPEC), 1e-5)
    counted = dataclasses.replace(scorer, spec=dataclasses.replace(spec, vocab=16))
    assert np.abs(score(counted, padded, tokens) - want)[:, 1:].min() > 1e-3


def test_siblings_and_neighbours_in_a_row_are_scored_as_if_alone(params):
    """A row: the prefix 1 2 3 with branches 4 5 and 6 7 8, the sequence 9 1, and padding."""
    row = jnp.array([[1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 0]])
    layout = Layout(
        positions=jnp.array([[0, 1, 2, 3, 4, 3, 4, 5, 0, 1, 0]]),
        reach=jnp.array([[8, 8, 8, 5, 5, 8, 8, 8, 10, 10, 11]]),
        parent=jnp.array([[0, 0, 1, 2, 3, 2, 5, 6, 8, 8, 10]]),
    )
    wanted = jnp.ones(row.shape, bool)
    got = np.asarray(jax.jit(lambda p: SCORER(p, row, wanted, layout=layout).logp)(params)[0])
    alone = lambda *ids: np.asarray(score(SCORER, params, jnp.array([ids]))[0])  # noqa: E731
    np.testing.assert_allclose(got[:5], alone(1, 2, 3, 4, 5), atol=1e-5)
    np.testing.assert_allclose(got[5:8], alone(1, 2, 3, 6, 7, 8)[3:], atol=1e-5)
    np.testing.assert_allclose(got[8:10], alone(9, 1), atol=1e-5)
    assert got[10] == 0
    assert np.abs(got[5:8] - alone(*row[0].tolist())[5:8]).min() > 1e-3


def test_adapters_on_a_base_score_as_the_merged_model_does(params, tokens):
    scorer = dataclasses.replace(SCORER, lora_scale=0.7)
    factors = lora.init(SPEC, jax.random.key(5), targets=("q", "up"), rank=2)
    factors = jax.tree.map(lambda x: x + 0.3, factors)
    run = jax.jit(lambda f, base: scorer(f, tokens, tokens >= 0, base=base).logp)
    want = score(SCORER, lora.merge(params, factors, 0.7), tokens)
    assert np.abs(want - score(SCORER, params, tokens)).max() > 1e-2
    np.testing.assert_allclose(run(factors, params), want, atol=1e-5)


def test_the_configuration_reaches_the_scorer():
    c = config_lib.default().sft.train
    c.update(remat="full", head_chunk=7, lora_rank=4, lora_alpha=2.0)
    config = schema.TrainConfig.of(c, compute_dtype="bfloat16")
    assert logprobs.Scorer.of(SPEC, config) == logprobs.Scorer(
        spec=SPEC, compute_dtype="bfloat16", remat="full", head_chunk=7, lora_scale=0.5
    )
    assert logprobs.Scorer.of(SPEC, dataclasses.replace(config, lora_rank=0)).lora_scale == 0
