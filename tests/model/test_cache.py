import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stair_jax.model import cache, heads, transformer
from stair_jax.model.cache import Fresh, Rows
from tests.support import paged, specs

TINY = specs.llama(L=2, D=6, N=4, K=2, H=8, F=7, V=11)
Z, P = 3, 9


def ints(*x):
    return jnp.array(x, jnp.int32)


def kv(key, B, T):
    return jax.random.normal(jax.random.key(key), (2, B, T, TINY.K, TINY.H))


def filled(value):
    pool = cache.empty_pool(TINY, pages=P, page_size=Z, dtype=jnp.float32)
    return jax.tree.map(lambda x: x + value, pool)


def tokens_unlike(a, b):
    """[L, P, Z] bool: where the keys of a place differ."""
    return (np.array(a) != b).any(axis=(2, 4))


def test_tokens_land_where_a_slow_loop_puts_them_and_padding_lands_nowhere():
    rows = Rows(table=ints([4, 0, 7], [2, 8, 1]), length=ints(2, 5), count=ints(5, 1))
    k, v = kv(0, 2, 5)
    before = filled(-1.0)
    after = jax.jit(cache.write)(before, jnp.int32(1), rows, k, v)
    want_k, want_v = np.array(before.k), np.array(before.v)
    for row, (start, count) in enumerate([(2, 5), (5, 1)]):
        for t in range(count):
            page = int(rows.table[row, (start + t) // Z])
            for head in range(TINY.K):
                want_k[1, page, head, (start + t) % Z] = k[row, t, head]
                want_v[1, page, head, (start + t) % Z] = v[row, t, head]
    assert tokens_unlike(want_k, before.k).sum() == 6
    np.testing.assert_array_equal(after.k, want_k)
    np.testing.assert_array_equal(after.v, want_v)


def test_padding_touches_no_page_even_with_unset_table_entries():
    rows = Rows(table=ints([3, -1], [-1, -1]), length=ints(1, 0), count=ints(0, 0))
    k, v = kv(1, 2, 4)
    before = filled(-1.0)
    after = jax.jit(cache.write)(before, 0, rows, k, v)
    jax.tree.map(np.testing.assert_array_equal, after, before)
    told = jax.jit(cache.write)(before, 0, dataclasses.replace(rows, count=ints(1, 0)), k, v)
    assert (told.k[0, 3, :, 1] == k[0, 0]).all()  # the same call with one real token does write


def test_a_real_token_without_a_page_is_dropped_and_not_put_into_the_last_page():
    rows = Rows(table=ints([3, -1]), length=ints(2), count=ints(5))
    k, v = kv(2, 1, 5)
    after = jax.jit(cache.write)(filled(-1.0), 0, rows, k, v)
    assert np.argwhere(tokens_unlike(after.k, -1.0)).tolist() == [[0, 3, 2]]


def test_read_returns_pages_in_position_order_and_shares_them_between_rows():
    pool = cache.empty_pool(TINY, pages=P, page_size=Z, dtype=jnp.float32)
    content = jnp.arange(pool.k.size, dtype=jnp.float32).reshape(pool.k.shape)
    pool = cache.KVPool(content, -content)
    rows = Rows(table=ints([5, 2], [5, 8]), length=ints(0, 0), count=ints(0, 0))
    k, v = jax.jit(cache.read)(pool, 1, rows)
    assert k.shape == (2, 2 * Z, TINY.K, TINY.H)
    for position in range(2 * Z):
        page, offset = [5, 2][position // Z], position % Z
        np.testing.assert_array_equal(k[0, position], content[1, page, :, offset])
    np.testing.assert_array_equal(k[0, :Z], k[1, :Z])
    np.testing.assert_array_equal(v, -k)


@pytest.mark.parametrize(("N", "K"), paged.GQA.values(), ids=paged.GQA)
def test_a_row_attends_over_its_own_pages_and_what_it_brings(N, K):
    case = paged.case(N, K)
    rows, (q, k, v) = case.rows, case.token(0)
    out, pool = paged.attend(case.pool, 1, rows, q, k, v)
    jax.tree.map(np.testing.assert_array_equal, pool, cache.write(case.pool, 1, rows, k, v))
    for row in case.active:
        seen = [
            np.concatenate([paged.keys_of(x, 1, case.table[row], int(case.length[row])), new[row]])
            for x, new in ((case.pool.k, k), (case.pool.v, v))
        ]
        want = paged.by_hand(np.asarray(q[row, 0]), *seen)
        np.testing.assert_allclose(out[row, 0], want, rtol=1e-5, atol=1e-5)


def test_rows_without_a_past_need_no_look_into_the_pool():
    case, T = paged.case(4, 2), 11
    key, table = jax.random.key(0), jnp.asarray(case.table)
    q, k, v = (jax.random.normal(key, (paged.B, T, heads, paged.H)) for heads in (4, 2, 2))
    count = ints(11, 3, 1, 0, 4, 7)
    rows = Rows(table, jnp.zeros_like(count), count)
    out, pool = paged.attend(case.pool, 2, rows, q, k, v)
    alone, grown = paged.attend(Fresh(case.pool), 2, rows, q, k, v)
    jax.tree.map(np.testing.assert_array_equal, grown.pool, pool)
    assert tokens_unlike(pool.k, case.pool.k).sum() == count.sum()
    real = np.arange(T) < np.asarray(count)[:, None]
    np.testing.assert_allclose(alone[real], out[real], rtol=1e-5, atol=1e-5)
    # With a past the two differ: only one of them sees it.
    later = dataclasses.replace(rows, length=jnp.asarray(case.length))
    behind = [paged.attend(c, 2, later, q, k, v)[0] for c in (case.pool, Fresh(case.pool))]
    assert np.abs(behind[0] - behind[1])[1, :3].max() > 0.1


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
