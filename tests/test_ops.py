"""Which paged attention runs, and that it is asked for as it should be."""

import logging
from functools import partial
from unittest.mock import Mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stair_jax import ops
from stair_jax.kernels import paged_attention as paged_kernel
from tests import paged
from tests.close import assert_sums_close


def test_auto_takes_what_runs_here_and_says_so_once(caplog):
    ops._say_once.cache_clear()
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


@pytest.mark.parametrize("implementation", ["cudnn", "auto"])
def test_packed_rows_reach_cudnn_with_their_mask(monkeypatch, implementation):
    given = {}
    reference = jax.nn.dot_product_attention

    def cudnn(*args, implementation, **options):
        given.update(options, implementation=implementation)
        return reference(*args, **options, implementation="xla")

    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax.nn, "dot_product_attention", cudnn)
    *qkv, reach = packed(jnp.bfloat16)
    got = ops.attention(*qkv, reach=reach, implementation=implementation)
    assert (given["implementation"], given["is_causal"]) == ("cudnn", False)
    blocks = [[3, 4, 3], [1, 5, 4]]
    for mask, sizes in zip(given["mask"][:, 0], blocks, strict=True):
        own = np.repeat(np.arange(3), sizes)
        np.testing.assert_array_equal(mask, np.tri(10, dtype=bool) & (own[:, None] == own))
    want = ops.attention(*qkv, reach=reach, implementation="xla")
    assert_sums_close(got.astype(jnp.float32), want.astype(jnp.float32), 2e-2)


def test_packed_rows_of_odd_length_are_no_work_for_cudnn(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    q, k, v, reach = (x[:, :9] for x in packed(jnp.bfloat16))
    with pytest.raises(ValueError, match="an even number of tokens for packed rows, found 9"):
        ops.attention(q, k, v, reach=jnp.minimum(reach, 9), implementation="cudnn")
