"""Rows of many sequences give each of them what it would get alone; the four kinds of remat."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stair_jax import mesh, ops
from stair_jax.model import cache, heads, transformer
from stair_jax.model.cache import Rows
from stair_jax.model.layout import Layout, visible
from tests.support import specs
from tests.support.close import assert_sums_close, assert_trees_close

SPEC = specs.llama(L=2, D=16, N=4, K=2, H=6, F=24, V=40, theta=1e2)
# (parent node, tokens): a prefix of 4 with a step of 3 and one of 2 (itself with two children of
# 2 and 1), a single sequence of 3; the row's last 3 tokens are padding.
NODES = [(None, 4), (0, 3), (0, 2), (2, 2), (2, 1), (None, 3)]
T = 18


def plan(nodes=NODES, T=T):
    """Returns one row's layout by walking the tree, and its paths: lists of token indices."""
    spans, ends, start = [], [], 0
    for _, size in nodes:
        spans.append(range(start, start + size))
        start += size
    for node in range(len(nodes)):
        below = {node}
        for child, (parent, _) in enumerate(nodes):
            if parent in below:
                below.add(child)
        ends.append(max(spans[n][-1] for n in below) + 1)
    positions, reach, parent = np.zeros(T, np.int32), np.arange(1, T + 1), np.arange(T)
    paths = []
    for node, (up, _) in enumerate(nodes):
        trail = [] if up is None else paths[up]
        paths.append([*trail, *spans[node]])
        for t in spans[node]:
            place = paths[node].index(t)
            positions[t], reach[t] = place, ends[node]
            parent[t] = paths[node][max(place - 1, 0)]
    row = (x[None].astype(np.int32) for x in (positions, reach, parent))
    return Layout(*map(jnp.asarray, row)), paths


@pytest.fixture(scope="module")
def model():
    params = jax.jit(partial(transformer.init, SPEC))(jax.random.key(0))
    return params, jax.random.randint(jax.random.key(1), (1, T), 0, SPEC.V)


@partial(jax.jit, static_argnames=("remat", "dtype"))
def forward(params, tokens, layout=None, remat="none", dtype=jnp.float32):
    decoder = transformer.Decoder(SPEC, dtype, remat)
    hidden, _ = decoder.apply({"params": params}, tokens, layout=layout)
    return heads.logits(params, hidden, SPEC)


def test_a_token_sees_its_path_and_nothing_else():
    layout, paths = plan()
    want = np.eye(T, dtype=bool)  # padding sees itself
    for path in paths:
        for i, t in enumerate(path):
            want[t, path[: i + 1]] = True
    np.testing.assert_array_equal(visible(layout)[0], want)
    assert want.sum() < np.tril(want | True).sum() / 2


def test_every_path_of_a_row_gets_what_it_gets_alone(model):
    params, tokens = model
    layout, paths = plan()
    got = forward(params, tokens, layout)
    assert np.abs(got - forward(params, tokens))[0, 4:].max() > 1e-2  # the layout is the cause
    for path in paths:
        alone = forward(params, jnp.pad(tokens[:, jnp.array(path)], ((0, 0), (0, T - len(path)))))
        assert_sums_close(got[0, path], alone[0, : len(path)], 1e-5)


def test_the_gradient_of_a_row_is_the_sum_of_its_paths(model):
    params, tokens = model
    layout, paths = plan()
    weight = 0.05 * jax.random.normal(jax.random.key(2), (T, SPEC.V))  # gradients of order 1
    rows = jnp.stack([jnp.pad(tokens[0, jnp.array(p)], (0, T - len(p))) for p in paths])
    own = [  # (path, place in it, token of the row): each token once, padding never
        (i, place, path[place])
        for i, (path, (_, size)) in enumerate(zip(paths, NODES, strict=True))
        for place in range(len(path) - size, len(path))
    ]
    path, place, token = np.array(own).T

    def packed(params):
        return (forward(params, tokens, layout)[0, token] * weight[token]).sum()

    def apart(params):
        return (forward(params, rows)[path, place] * weight[token]).sum()

    want = jax.jit(jax.grad(apart))(params)
    got = jax.jit(jax.grad(packed))(params)
    assert_trees_close(got, want)


def test_a_layout_that_is_one_chain_is_the_plain_row(model):
    params, tokens = model
    layout, _ = plan([(None, T)])
    np.testing.assert_array_equal(layout.positions[0], np.arange(T))
    np.testing.assert_array_equal(layout.parent[0], np.maximum(np.arange(T) - 1, 0))
    got, want = forward(params, tokens, layout), forward(params, tokens)
    assert_sums_close(got, want, 1e-5)


@pytest.mark.parametrize("field", ["positions", "reach"])
def test_positions_and_reach_both_count(model, field):
    params, tokens = model
    layout, _ = plan()
    plain, _ = plan([(None, T)])
    other = Layout(**{**vars(layout), field: getattr(plain, field)})
    gap = np.abs(forward(params, tokens, layout) - forward(params, tokens, other))
    assert gap.max() > 1e-3


def test_rows_of_a_layout_are_sharded_like_plain_ones(model):
    params, _ = model
    tokens = jax.random.randint(jax.random.key(3), (8, T), 0, SPEC.V)
    trees, chains = plan()[0], plan([(None, 7), (None, 9)])[0]
    layout = jax.tree.map(lambda a, b: jnp.tile(jnp.concatenate([a, b]), (4, 1)), trees, chains)
    want = forward(params, tokens, layout)
    m = mesh.make((2, 2, 2))
    put = jax.device_put(params, mesh.shardings(transformer.logical_axes(SPEC), m, params))
    with jax.set_mesh(m):
        where = jax.NamedSharding(m, mesh.spec("batch", "time"))
        got = forward(put, *jax.device_put((tokens, layout), where))
    assert len(got.sharding.device_set) == 8
    assert_sums_close(got, want, 1e-5)


def test_a_layout_beside_cached_rows_is_refused(model):
    params, tokens = model
    pool = cache.empty_pool(SPEC, pages=3, page_size=8, dtype=jnp.float32)
    rows = Rows(jnp.arange(3)[None], jnp.zeros(1, jnp.int32), jnp.full(1, T, jnp.int32))
    decoder = transformer.Decoder(SPEC, jnp.float32)
    with pytest.raises(ValueError, match="a layout or cached rows, found both"):
        decoder.apply({"params": params}, tokens, pool, rows, plan()[0])


LONG = 512


@pytest.fixture(scope="module")
def programs(model):
    """Gradients of the logits' spread at 512 tokens, two sequences a row, compiled per remat."""
    params, _ = model
    tokens = jax.random.randint(jax.random.key(4), (2, LONG), 0, SPEC.V)
    layout = jax.tree.map(
        lambda x: jnp.tile(x, (2, 1)), plan([(None, 200), (None, 300)], T=LONG)[0]
    )

    def compiled(remat):
        loss = lambda p: forward(p, tokens, layout, remat).std()  # noqa: E731
        return jax.jit(jax.value_and_grad(loss)).lower(params).compile()

    return params, {remat: compiled(remat) for remat in transformer.REMAT}


def test_remat_orders_memory_and_changes_neither_value_nor_gradient(programs):
    params, made = programs
    none, attention, products, full = (
        made[name].memory_analysis().temp_size_in_bytes for name in transformer.REMAT
    )
    scores = SPEC.N * LONG * LONG * 4  # bytes of a layer's, float32
    assert none - attention > scores  # of L = 2 layers, of which one is at work in both
    assert attention - products > 2 * LONG * SPEC.F * 4  # of silu(gate) and up
    assert products - full > 2 * 2 * LONG * SPEC.F * 4  # gate and up, of two sequences
    want = made["none"](params)
    for remat in ("attention", "products", "full"):
        got = made[remat](params)
        assert_trees_close(got, want)


def test_attention_is_computed_again_only_where_asked():
    q, k = (jnp.ones((1, 4, n, 8)) for n in (4, 2))

    def text(recompute):
        attend = partial(ops.attention, causal=True, recompute=recompute)
        return str(jax.make_jaxpr(attend)(q, k, k))

    assert "prevent_cse" in text(True)  # a checkpoint's
    assert "prevent_cse" not in text(False)
