"""Which paged attention runs, and that it is asked for as it should be."""

import logging
from functools import partial
from itertools import pairwise
from types import SimpleNamespace
from unittest.mock import Mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stair_jax import ops
from stair_jax.kernels import paged_attention as paged_kernel
from stair_jax.ops import dispatch
from tests.support import paged
from tests.support.close import assert_sums_close


def test_auto_takes_what_runs_here_and_says_so_once(caplog):
    dispatch._say_once.cache_clear()
    with caplog.at_level(logging.INFO, "stair_jax.ops"):
        assert {ops.paged_choice("auto") for _ in range(3)} == {"xla"}
    (record,) = caplog.records
    assert record.getMessage() == "paged attention auto: xla (pallas needs a GPU, found cpu)"


def test_a_choice_by_name_is_taken_or_refused():
    assert ops.paged_choice("xla") == "xla"
    with pytest.raises(ValueError, match="'pallas' cannot run here: pallas needs a GPU"):
        ops.paged_choice("pallas")
    with pytest.raises(ValueError, match="'views' is unknown"):
        ops.paged_choice("views")


def test_auto_takes_the_kernel_on_a_gpu(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert ops.paged_choice("auto") == ops.paged_choice("pallas") == "pallas"
    assert ops.paged_choice("xla") == "xla"


def rows():
    """Arguments of `ops.paged_attention`, and what a loop over heads makes of them."""
    case = paged.case(4, 2)
    q = np.asarray(case.token(0)[0]).reshape(paged.B, 2, 2, paged.H)
    want = np.zeros(q.shape)
    for row, length in enumerate(case.length):
        if length:
            k, v = (
                paged.keys_of(x, 1, case.table[row], length) for x in (case.pool.k, case.pool.v)
            )
            by_head = paged.by_hand(q[row].reshape(4, paged.H), k, v)
            want[row] = by_head.reshape(2, 2, paged.H)
    table, length = jnp.asarray(case.table), jnp.asarray(case.length)
    return (jnp.asarray(q), case.pool.k, case.pool.v, jnp.int32(1), table, length), want


@pytest.mark.parametrize("implementation", ["xla", "pallas"])
def test_each_implementation_attends_over_the_rows_pages(monkeypatch, implementation):
    kernel = Mock(wraps=partial(paged_kernel.paged_attention, interpret=True))
    monkeypatch.setattr(paged_kernel, "paged_attention", kernel)
    args, want = rows()
    scale = paged.H**-0.5
    out, lse = ops.paged_attention(*args, scale=scale, implementation=implementation)
    assert kernel.called == (implementation == "pallas")
    np.testing.assert_allclose(out, want, rtol=1e-5, atol=1e-5)
    assert (np.asarray(lse == ops.NO_KEYS) == (args[-1] == 0)[:, None, None]).all()
    flat = ops.paged_attention(*args, scale=0.0, implementation=implementation)[1]
    np.testing.assert_allclose(flat[1], np.log(float(args[-1][1])), rtol=1e-5)


def test_an_unknown_implementation_is_no_silent_fallback():
    with pytest.raises(KeyError, match="flash"):
        ops.paged_attention(*rows()[0], scale=1.0, implementation="flash")


def packed(dtype):
    """Queries, keys, values of rows of three sequences, and their reach."""
    keys = jax.random.split(jax.random.key(0), 3)
    q, k, v = (
        jax.random.normal(key, (2, 10, n, 8), dtype) for key, n in zip(keys, (4, 2, 2), strict=True)
    )
    reach = jnp.array([[3, 3, 3, 7, 7, 7, 7, 10, 10, 10], [1, 6, 6, 6, 6, 6, 10, 10, 10, 10]])
    return q, k, v, reach


@pytest.fixture
def cudnn(monkeypatch):
    """Has attention run as on a GPU, with JAX's own in the place of cuDNN; returns its calls."""
    calls = []
    reference = jax.nn.dot_product_attention

    def fused(q, k, v, *, implementation, mask=None, is_causal=False):
        calls.append(SimpleNamespace(q=q, k=k, mask=mask, causal=is_causal, by=implementation))
        return reference(q, k, v, mask=mask, is_causal=is_causal, implementation="xla")

    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax.nn, "dot_product_attention", fused)
    return calls


@pytest.mark.parametrize("implementation", ["cudnn", "auto"])
def test_short_packed_rows_are_one_call_of_cudnn(cudnn, implementation):
    *qkv, reach = packed(jnp.bfloat16)
    got = ops.attention(*qkv, reach=reach, implementation=implementation)
    (call,) = cudnn
    assert (call.by, call.causal, call.mask.shape) == ("cudnn", False, (2, 1, 10, 10))
    blocks = [[3, 4, 3], [1, 5, 4]]
    for mask, sizes in zip(ops.visible(reach), blocks, strict=True):
        own = np.repeat(np.arange(3), sizes)
        np.testing.assert_array_equal(mask, np.tri(10, dtype=bool) & (own[:, None] == own))
    want = ops.attention(*qkv, reach=reach, implementation="xla")
    assert_sums_close(got.astype(jnp.float32), want.astype(jnp.float32), 2e-2)


def long(T, kind):
    """Queries, keys, values of two rows of T tokens, packed or a tree each, and their reach."""
    keys = jax.random.split(jax.random.key(3), 3)
    q, k, v = (
        jax.random.normal(key, (2, T, n, 8), jnp.bfloat16)
        for key, n in zip(keys, (4, 2, 2), strict=True)
    )
    reach = np.zeros((2, T), np.int32)
    for row, cuts in enumerate(((0, 5, 6, T // 2, T - 3, T), (0, T // 3, T - 8, T))):
        for start, end in pairwise(cuts):
            reach[row, start:end] = end
    if kind == "tree":  # a prefix that all see, the runs behind it are its children
        reach[:, :4] = T
    return q, k, v, jnp.asarray(reach)


@pytest.mark.parametrize(
    ("kind", "T", "ends"),
    [
        ("packed", 40, [10, 20, 30, 40]),
        ("tree", 42, [12, 24, 36, 42]),
        ("packed", 22, [8, 16, 22]),
    ],
)
def test_long_rows_are_computed_by_blocks_of_queries_over_the_keys_so_far(
    cudnn, monkeypatch, kind, T, ends
):
    """Values and gradients are those of the whole mask at once; no call has T x T scores."""
    monkeypatch.setattr(dispatch, "QUERY_BLOCKS", 4)
    monkeypatch.setattr(dispatch, "LEAST_QUERIES", 8)
    *qkv, reach = long(T, kind)
    weight = jax.random.normal(jax.random.key(4), qkv[0].shape)

    @partial(jax.jit, static_argnums=(4, 5))
    def outcome(q, k, v, reach, implementation, causal):
        def total(q, k, v):
            seen = None if causal else reach
            out = ops.attention(q, k, v, causal=causal, reach=seen, implementation=implementation)
            return jnp.sum(weight * out), out

        (_, out), grads = jax.value_and_grad(total, argnums=(0, 1, 2), has_aux=True)(q, k, v)
        return [x.astype(jnp.float32) for x in (out, *grads)]

    got = outcome(*qkv, reach, "cudnn", False)
    sizes = [end - start for start, end in pairwise([0, *ends])]
    assert [(call.q.shape[1], call.k.shape[1]) for call in cudnn] == [
        *zip(sizes, ends, strict=True)
    ]
    assert [call.mask.shape for call in cudnn] == [
        (2, 1, size, end) for size, end in zip(sizes, ends, strict=True)
    ]
    want = outcome(*qkv, reach, "xla", False)
    blind = outcome(*qkv, reach, "xla", True)
    for x, y, leak in zip(got, want, blind, strict=True):
        assert np.linalg.norm(leak - y) > 0.1 * np.linalg.norm(y)
        assert np.linalg.norm(x - y) <= 1e-2 * np.linalg.norm(y)  # bfloat16 rounds at 4e-3


def test_packed_rows_of_odd_length_are_no_work_for_cudnn(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    q, k, v, reach = (x[:, :9] for x in packed(jnp.bfloat16))
    with pytest.raises(ValueError, match="an even number of tokens for packed rows, found 9"):
        ops.attention(q, k, v, reach=jnp.minimum(reach, 9), implementation="cudnn")
