import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stair_jax import mesh as mesh_lib
from stair_jax.io import data as data_lib
from stair_jax.model import heads, transformer
from stair_jax.model.spec import Spec
from stair_jax.train import logprobs

SPEC = Spec(
    L=2, D=6, N=4, K=2, H=8, F=7, V=11, eps=1e-5, theta=1e4, rope_scaling=None, qkv_bias=False,
    qk_norm=False, tied=False, family="llama",
)  # fmt: skip
SCORER = logprobs.Scorer(spec=SPEC, compute_dtype="float32", remat="none")
score = jax.jit(lambda scorer, params, tokens: scorer(params, tokens), static_argnums=0)


@pytest.fixture(scope="module")
def params():
    tree = jax.jit(transformer.init, static_argnums=0)(SPEC, jax.random.key(0))
    return jax.tree.map(lambda x: x * 3, tree)  # else all logits are nearly equal


@pytest.fixture(scope="module")
def tokens():
    return jax.random.randint(jax.random.key(1), (3, 9), 0, SPEC.V)


def test_each_token_is_scored_by_the_position_before_it(params, tokens):
    got = score(SCORER, params, tokens)
    decode = jax.jit(transformer.Decoder(SPEC, jnp.float32).apply)
    hidden, _ = decode({"params": params}, tokens)
    logits = np.asarray(heads.logits(params, hidden, SPEC))
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
    np.testing.assert_allclose(a, b, atol=2e-2)


def test_remat_changes_the_program_and_not_the_gradient(params, tokens):
    full = dataclasses.replace(SCORER, remat="full")
    grad = lambda s: jax.jit(jax.grad(lambda p: s(p, tokens).sum()))  # noqa: E731
    program = lambda s: str(jax.make_jaxpr(lambda p: s(p, tokens))(params))  # noqa: E731
    assert "remat" in program(full)
    assert "remat" not in program(SCORER)
    for a, b in zip(*map(jax.tree.leaves, (grad(SCORER)(params), grad(full)(params))), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_a_step_is_the_sum_of_its_tokens(params, tokens):
    both = jnp.stack([tokens, tokens[::-1]], axis=1)
    mask = np.zeros((3, 2, 9), bool)
    mask[:, 0, 3:5], mask[:, 1, 2:8] = True, True
    step, logp = jax.jit(logprobs.step_logps, static_argnums=0)(SCORER, params, both, mask)
    np.testing.assert_allclose(logp[:, 1], score(SCORER, params, both[:, 1]), atol=1e-6)
    np.testing.assert_allclose(step[:, 0], logp[:, 0, 3:5].sum(-1), atol=1e-5)
    np.testing.assert_allclose(step[:, 1], logp[:, 1, 2:8].sum(-1), atol=1e-5)


@pytest.mark.parametrize("rows", [2, 4])
def test_reference_log_probs_come_back_in_the_order_of_the_pairs(params, rows):
    rng = np.random.default_rng(0)
    draw = lambda low, high: tuple(map(int, rng.integers(0, 11, rng.integers(low, high))))  # noqa: E731
    pairs = [
        data_lib.PairExample(
            id=str(i), prompt=draw(2, 5), prefix=draw(0, 3), chosen=(1, *draw(1, 5)),
            rejected=(2, *draw(1, 5)),
        )
        for i in range(5)
    ]  # fmt: skip
    anchor = data_lib.SftExample(id="a", prompt=(1, 2), response=(3, 4))
    data = data_lib.DpoData(
        pairs, [anchor], anchors_per_pair=1.0, buckets=(8, 13), batch=4, seed=0, pad_id=0
    )
    mesh = mesh_lib.make((1, 2, 1))
    got = logprobs.reference(SCORER, params, data.pair_batches(rows), pairs=5, mesh=mesh)
    for i, pair in enumerate(pairs):
        context = (*pair.prompt, *pair.prefix)
        for side, ids in enumerate((pair.chosen, pair.rejected)):
            end = len(context) + len(ids)
            row = jnp.array([[*context, *ids, *[0] * (13 - end)]])
            want = score(SCORER, params, row)[0, len(context) : end].sum()
            np.testing.assert_allclose(got[i, side], want, atol=1e-4)
