"""Decoding from the slots' own copies gives what decoding from the pool does."""

import dataclasses
import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stair_jax.model import cache, transformer, views
from stair_jax.model.cache import Rows
from stair_jax.model.groups import SharedPrefixCache
from tests.support import paged, specs
from tests.support.close import assert_sums_close
from tests.support.paged import B, H, L, Z

SPEC = specs.llama(L=L, D=12, N=4, K=2, H=H, F=10, V=23)
close = partial(assert_sums_close, tolerance=1e-5)


def loaded(case, pages=None):
    """Views of the case, wider than its table where `pages` says so."""
    (slots, width), load = case.table.shape, jax.jit(views.load)
    pages = pages or width
    table = jnp.asarray(np.pad(case.table, ((0, 0), (0, pages - width))))
    shown = load(
        views.empty(case.pool, slots=slots, pages=pages), case.pool, jnp.arange(slots), table
    )
    return dataclasses.replace(shown, pool=case.pool)


@partial(jax.jit, static_argnames="layer")
def attend(shown, layer, rows, q, k, v):
    return shown.attend(layer, rows, q, k, v)


@pytest.mark.parametrize(("N", "K"), paged.GQA.values(), ids=paged.GQA)
def test_views_and_lone_groups_attend_as_the_pool_does(N, K):
    case = paged.case(N, K)
    pool, shown, groups = case.pool, loaded(case), SharedPrefixCache(case.pool)
    for step, layer in itertools.product(range(4), range(L)):
        at = case.after(step), *case.token(step)
        want, pool = paged.attend(pool, layer, *at)
        assert np.abs(want[case.active]).max() > 0.1
        by_views, shown = attend(shown, layer, *at)
        by_groups, groups = paged.attend(groups, layer, *at)
        close(by_views[case.active], want[case.active])
        close(by_groups[case.active], want[case.active])
    jax.tree.map(np.testing.assert_array_equal, [shown.pool, groups.pool], [pool, pool])
    assert (np.asarray(pool.k) != case.pool.k).any()


def test_views_wider_than_needed_change_nothing():
    case = paged.case(4, 2)
    at = case.rows, *case.token(0)
    narrow = attend(loaded(case), 0, *at)[0]
    for pages in (16, 32):
        wide = loaded(case, pages)
        assert wide.k[0].shape[-1] == pages * Z
        close(attend(wide, 0, *at)[0][case.active], narrow[case.active])


def test_a_decoder_gives_the_same_hidden_states_from_any_cache():
    case = paged.case(SPEC.N, SPEC.K, seed=1)
    params = transformer.init(SPEC, jax.random.key(0))
    params = jax.tree.map(lambda x: x * 3 if x.ndim > 2 else x, params)
    parted = transformer.by_layer(params)  # as the engine keeps them

    @jax.jit
    def feed(params, cache, tokens, rows):
        decoder = transformer.Decoder(SPEC, jnp.float32)
        return decoder.apply({"params": params}, tokens, cache, rows)

    plain, others = case.pool, {"views": loaded(case), "groups": SharedPrefixCache(case.pool)}
    tokens = np.random.default_rng(0).integers(0, SPEC.V, size=(4, B, 1)).astype(np.int32)
    want = np.zeros(())
    for step in range(4):
        want, plain = feed(params, plain, tokens[step], case.after(step))
        for name, other in others.items():
            got, others[name] = feed(parted, other, tokens[step], case.after(step))
            close(got[case.active], want[case.active])
    for other in others.values():
        jax.tree.map(close, other.pool, plain)
    last = feed(params, plain, (tokens[3] + 1) % SPEC.V, case.after(3))[0]
    assert np.abs(last - want)[case.active].max() > 0.1


def test_loading_shows_the_pages_and_leaves_other_slots_alone():
    case = paged.case(4, 2)
    before = views.empty(case.pool, slots=B, pages=8)
    before = jax.tree.map(lambda x: x - 7, before)
    slot, table = np.array([4, B, 1, 99]), case.table[[2, 0, 5, 3]]
    after = jax.jit(views.load)(before, case.pool, jnp.asarray(slot), jnp.asarray(table))
    for layer in range(L):
        rows = Rows(jnp.asarray(table), jnp.zeros(4, jnp.int32), jnp.zeros(4, jnp.int32))
        k_ASKH, v_ASKH = cache.read(case.pool, layer, rows)
        want_k, want_v = np.array(before.k[layer]), np.array(before.v[layer])
        for row in (0, 2):
            want_k[slot[row]] = np.transpose(k_ASKH[row], (1, 2, 0))
            want_v[slot[row]] = np.transpose(v_ASKH[row], (1, 0, 2))
        np.testing.assert_array_equal(after.k[layer], want_k)
        np.testing.assert_array_equal(after.v[layer], want_v)


def test_an_idle_slot_writes_nothing():
    case = paged.case(4, 2)
    shown = loaded(case)
    idle = dataclasses.replace(case.rows, count=jnp.zeros(B, jnp.int32))
    _, after = shown.attend(0, idle, *case.token(0))
    jax.tree.map(np.testing.assert_array_equal, after, shown)
    _, after = shown.attend(0, case.rows, *case.token(0))
    for x, y in ((after.k[0], shown.k[0]), (after.v[0], shown.v[0])):
        changed = (np.asarray(x) != y).any(axis=(1, 2, 3))
        np.testing.assert_array_equal(changed, case.count > 0)


def test_views_without_their_pool_are_refused():
    case = paged.case(4, 2)
    with pytest.raises(ValueError, match="beside their pool"):
        views.empty(case.pool, slots=B, pages=8).attend(0, case.rows, *case.token(0))
