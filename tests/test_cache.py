import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stair_jax.model import cache, heads, transformer
from stair_jax.model.cache import Rows
from stair_jax.model.spec import Spec

TINY = Spec(
    L=2, D=6, N=4, K=2, H=8, F=7, V=11, eps=1e-5, theta=1e4, rope_scaling=None,
    qkv_bias=False, qk_norm=False, tied=False, family="llama",
)  # fmt: skip
Z, P = 3, 9


def ints(*x):
    return jnp.array(x, jnp.int32)


def kv(key, B, T):
    return jax.random.normal(jax.random.key(key), (2, B, T, TINY.K, TINY.H))


def filled(value):
    pool = cache.empty_pool(TINY, pages=P, page_size=Z, dtype=jnp.float32)
    return jax.tree.map(lambda x: x + value, pool)


def test_tokens_land_where_a_slow_loop_puts_them_and_padding_lands_nowhere():
    rows = Rows(table=ints([4, 0, 7], [2, 8, 1]), length=ints(2, 5), count=ints(5, 1))
    k, v = kv(0, 2, 5)
    before = filled(-1.0)
    after = jax.jit(cache.write)(before, jnp.int32(1), rows, k, v)
    want_k, want_v = np.array(before.k), np.array(before.v)
    for row, (start, count) in enumerate([(2, 5), (5, 1)]):
        for t in range(count):
            page = int(rows.table[row, (start + t) // Z])
            want_k[1, page, (start + t) % Z] = k[row, t]
            want_v[1, page, (start + t) % Z] = v[row, t]
    assert (want_k != np.array(before.k)).any(axis=(-1, -2)).sum() == 6
    np.testing.assert_array_equal(after.k, want_k)
    np.testing.assert_array_equal(after.v, want_v)


def test_padding_touches_no_page_even_with_unset_table_entries():
    rows = Rows(table=ints([3, -1], [-1, -1]), length=ints(1, 0), count=ints(0, 0))
    k, v = kv(1, 2, 4)
    before = filled(-1.0)
    after = jax.jit(cache.write)(before, 0, rows, k, v)
    jax.tree.map(np.testing.assert_array_equal, after, before)
    told = jax.jit(cache.write)(before, 0, dataclasses.replace(rows, count=ints(1, 0)), k, v)
    assert (told.k[0, 3, 1] == k[0, 0]).all()  # the same call with one real token does write


def test_a_real_token_without_a_page_is_dropped_and_not_put_into_the_last_page():
    rows = Rows(table=ints([3, -1]), length=ints(2), count=ints(5))
    k, v = kv(2, 1, 5)
    after = jax.jit(cache.write)(filled(-1.0), 0, rows, k, v)
    changed = np.argwhere((np.array(after.k) != -1).any(axis=(-1, -2)))
    assert changed.tolist() == [[0, 3, 2]]


def test_read_returns_pages_in_position_order_and_shares_them_between_rows():
    pool = cache.empty_pool(TINY, pages=P, page_size=Z, dtype=jnp.float32)
    content = jnp.arange(pool.k.size, dtype=jnp.float32).reshape(pool.k.shape)
    pool = cache.KVPool(content, -content)
    rows = Rows(table=ints([5, 2], [5, 8]), length=ints(0, 0), count=ints(0, 0))
    k, v = jax.jit(cache.read)(pool, 1, rows)
    want = np.concatenate([content[1, 5], content[1, 2]])
    np.testing.assert_array_equal(k[0], want)
    np.testing.assert_array_equal(k[0, :Z], k[1, :Z])
    np.testing.assert_array_equal(v, -k)


@pytest.mark.parametrize("layers", [2, 6], ids=["unrolled", "scanned"])
def test_a_decode_step_updates_a_donated_pool_in_place(layers):
    spec = dataclasses.replace(TINY, L=layers)
    decoder = transformer.Decoder(spec, jnp.float32)

    @partial(jax.jit, donate_argnames="pool")
    def step(params, pool, tokens, rows):
        hidden, pool = decoder.apply({"params": params}, tokens, pool, rows)
        return heads.logits(params, hidden, spec), pool

    rows = Rows(table=ints([4, 0, 7], [2, 8, 1]), length=ints(2, 5), count=ints(1, 1))
    pool = cache.empty_pool(spec, pages=4096, page_size=16, dtype=jnp.float32)
    params = jax.eval_shape(partial(transformer.init, spec), jax.random.key(0))
    compiled = step.lower(params, pool, jnp.ones((2, 1), jnp.int32), rows).compile()
    memory, pool_bytes = compiled.memory_analysis(), pool.k.nbytes + pool.v.nbytes
    assert (layers <= transformer.UNROLL) == ("while" not in (compiled.as_text() or ""))
    assert memory is not None
    assert memory.alias_size_in_bytes >= pool_bytes
    assert memory.temp_size_in_bytes < 0.1 * pool_bytes
