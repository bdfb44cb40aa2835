import dataclasses
import functools
import logging
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stair_jax import mesh, ops
from stair_jax.model import cache, heads, transformer
from stair_jax.model.cache import Rows
from stair_jax.model.spec import RopeScaling, Spec
from stair_jax.ops import dispatch
from tests.support import specs
from tests.support.close import assert_sums_close, assert_trees_close

SCALING = RopeScaling(factor=8.0, low=1.0, high=4.0, original=16)
LLAMA = specs.llama(
    L=3,
    D=16,
    N=4,
    K=2,
    H=6,
    F=24,
    V=40,
    theta=1e3,
    rope_scaling=SCALING,
)
QWEN2 = dataclasses.replace(LLAMA, family="qwen2", qkv_bias=True, tied=True, rope_scaling=None)
QWEN3 = dataclasses.replace(LLAMA, family="qwen3", qk_norm=True, rope_scaling=None, L=6)
SPECS = {"llama": LLAMA, "qwen2": QWEN2, "qwen3": QWEN3}
T = 29


@functools.cache
def weights(spec):
    """Returns parameters in which no bias is zero and no gain is one."""

    def draw(key):
        leaves, treedef = jax.tree.flatten(transformer.init(spec, key))
        keys = jax.random.split(key, len(leaves))
        noise = [0.2 * jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)]
        return jax.tree.unflatten(treedef, [x + n for x, n in zip(leaves, noise, strict=True)])

    return jax.jit(draw)(jax.random.key(0))


def tokens_of(spec, rows=2, T=T):
    return jax.random.randint(jax.random.key(1), (rows, T), 0, spec.V)


@partial(jax.jit, static_argnames=("spec", "remat", "attention", "dtype"))
def forward(params, tokens, *, spec, remat="none", attention="auto", dtype=jnp.float32):
    decoder = transformer.Decoder(spec, dtype, remat, attention)
    hidden, _ = decoder.apply({"params": params}, tokens)
    return heads.logits(params, hidden, spec)


@partial(jax.jit, static_argnames="spec")
def feed(params, tokens, pool, rows, *, spec):
    hidden, pool = transformer.Decoder(spec, jnp.float32).apply(
        {"params": params}, tokens, pool, rows
    )
    return heads.logits(params, hidden, spec), pool


@pytest.mark.parametrize(
    ("spec", "chunks"),
    [(LLAMA, [1] * T), (LLAMA, [13, 1, 15]), (QWEN2, [5, 9, 15]), (QWEN3, [T])],
    ids=["one by one", "llama", "qwen2", "qwen3"],
)
def test_feeding_in_chunks_through_pages_equals_the_whole_forward(spec, chunks):
    params, tokens = weights(spec), tokens_of(spec)
    want = forward(params, tokens, spec=spec)
    pool = cache.empty_pool(spec, pages=19, page_size=5, dtype=jnp.float32)
    pool = jax.tree.map(lambda x: x + 3, pool)  # stale pages must not be seen
    table = jax.random.permutation(jax.random.key(2), 19)[:14].reshape(2, 7)
    parts, start, width = [], 0, max(chunks)
    for count in chunks:  # every call is `width` wide: what is beyond `count` is padding
        rows = Rows(table, np.full(2, start, np.int32), np.full(2, count, np.int32))
        part = tokens[:, start : start + count]
        padded = np.pad(part, ((0, 0), (0, width - count)))
        logits, pool = feed(params, padded, pool, rows, spec=spec)
        parts.append(logits[:, :count])
        start += count
    assert_sums_close(np.concatenate(parts, axis=1), want, 1e-5)


def test_rows_of_different_lengths_do_not_disturb_each_other():
    params, tokens = weights(LLAMA), tokens_of(LLAMA, T=9)
    run = partial(feed, params, spec=LLAMA)
    pool = cache.empty_pool(LLAMA, pages=6, page_size=4, dtype=jnp.float32)
    table = jnp.array([[5, 0, 3], [1, 4, 2]], jnp.int32)
    starts = jnp.array([4, 7], jnp.int32)
    _, pool = run(tokens, pool, Rows(table, jnp.zeros(2, jnp.int32), starts))
    last = jnp.stack([tokens[0, 4:6], tokens[1, 7:9]])
    got, _ = run(last, pool, Rows(table, starts, jnp.array([2, 2], jnp.int32)))
    want = forward(params, tokens, spec=LLAMA)
    assert_sums_close(got[0], want[0, 4:6], 1e-5)
    assert_sums_close(got[1], want[1, 7:9], 1e-5)


def test_a_later_token_changes_no_earlier_logit():
    params, tokens = weights(LLAMA), tokens_of(LLAMA)
    other = tokens.at[:, 11].set((tokens[:, 11] + 1) % LLAMA.V)
    a, b = forward(params, tokens, spec=LLAMA), forward(params, other, spec=LLAMA)
    np.testing.assert_array_equal(a[:, :11], b[:, :11])
    assert (np.abs(a - b)[:, 11:].max(axis=-1) > 1e-6).all()


CONSTANTS = [
    {"eps": 1e-2},
    {"theta": 1e4},
    {"rope_scaling": None},
    *(
        {"rope_scaling": dataclasses.replace(SCALING, **change)}
        for change in ({"factor": 2.0}, {"low": 0.5}, {"high": 2.0}, {"original": 64})
    ),
]


@pytest.mark.parametrize("change", CONSTANTS, ids=str)
def test_every_constant_reaches_the_output(change):
    spec = dataclasses.replace(LLAMA, **change)
    assert spec != LLAMA
    params, tokens = weights(LLAMA), tokens_of(LLAMA, T=40)
    gap = np.abs(forward(params, tokens, spec=LLAMA) - forward(params, tokens, spec=spec))
    assert gap.max() > 1e-4


@pytest.mark.parametrize("name", ["bq", "bk", "bv", "q_norm", "k_norm", "head", "embed", "norm"])
def test_every_optional_parameter_reaches_the_output(name):
    spec = QWEN2 if name.startswith("b") else QWEN3
    params, tokens = weights(spec), tokens_of(spec)
    changed = jax.tree.map(lambda x: x, params)
    owner = changed if name in changed else changed["layers"]
    size = owner[name].shape
    owner[name] = owner[name] + jax.random.normal(jax.random.key(3), size)
    gap = np.abs(forward(params, tokens, spec=spec) - forward(changed, tokens, spec=spec))
    # A key bias shifts all scores of a query alike until rotation tells the positions apart.
    assert gap.max() > 1e-3


def test_the_tied_head_is_the_embedding():
    params, hidden = weights(QWEN2), jax.random.normal(jax.random.key(4), (3, QWEN2.D))
    assert "head" not in params
    assert "head" in weights(LLAMA)
    want = np.asarray(hidden) @ np.asarray(params["embed"]).T
    assert_sums_close(heads.logits(params, hidden, QWEN2), want, 1e-5)


def test_scaled_frequencies_keep_fast_waves_and_slow_the_slow_ones():
    scaling = dataclasses.replace(SCALING, original=100)
    spec = dataclasses.replace(LLAMA, H=64, theta=1e4, rope_scaling=scaling)
    plain = transformer.rope_frequencies(dataclasses.replace(spec, rope_scaling=None))
    scaled = transformer.rope_frequencies(spec)
    waves = 2 * np.pi / plain
    fast, slow = waves < 100 / 4, waves > 100 / 1
    assert fast.any()
    assert slow.any()
    assert (~fast & ~slow).any()
    np.testing.assert_allclose(scaled[fast], plain[fast], rtol=1e-6)
    np.testing.assert_allclose(scaled[slow], plain[slow] / 8, rtol=1e-6)
    between = scaled[~fast & ~slow] / plain[~fast & ~slow]
    assert ((between > 1 / 8) & (between < 1)).all()


@jax.jit
def logits_and_grad(params, tokens):
    def spread(params):
        logits = forward(params, tokens, spec=LLAMA)
        return logits.std(), logits

    (_, logits), grad = jax.value_and_grad(spread, has_aux=True)(params)
    return logits, grad


@pytest.mark.parametrize("shape", [(1, 8, 1), (1, 4, 2), (2, 2, 2), (1, 2, 4)])
def test_sharded_equals_unsharded(shape):
    params, tokens = weights(LLAMA), tokens_of(LLAMA, rows=8)
    want = logits_and_grad(params, tokens)
    m = mesh.make(shape)
    placed = mesh.shardings(transformer.logical_axes(LLAMA), m, params)
    put = jax.device_put(params, placed)
    wq, wk = put["layers"]["wq"], put["layers"]["wk"]
    assert not wq.sharding.is_fully_replicated
    assert wk.sharding.shard_shape(wk.shape)[2] == (1 if shape[2] == 2 else 2)
    with jax.set_mesh(m):
        rows = jax.device_put(tokens, jax.NamedSharding(m, mesh.spec("batch", "time")))
        got = logits_and_grad(put, rows)
    assert len(got[0].sharding.device_set) == 8
    assert_trees_close(got, want)


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_axes_are_declared_for_every_dimension_of_every_parameter(spec):
    axes = transformer.logical_axes(spec)
    shapes = jax.eval_shape(partial(transformer.init, spec), jax.random.key(0))
    jax.tree.map(
        lambda a, x: mesh.fit(a, x.shape, mesh.make((2, 2, 2))),
        axes,
        shapes,
        is_leaf=lambda a: isinstance(a, tuple),
    )
    assert axes["layers"]["wk"] == ("layer", "embed", "kv_head", "head")


@pytest.mark.parametrize("spec", [LLAMA, QWEN3], ids=["3 layers", "6 layers"])
def test_remat_saves_activations_and_changes_no_gradient(spec):
    params, tokens = weights(spec), tokens_of(spec, rows=8, T=64)

    def compiled(remat):
        loss = lambda p: forward(p, tokens, spec=spec, remat=remat).std()  # noqa: E731
        return jax.jit(jax.grad(loss)).lower(params).compile()

    none, full = compiled("none"), compiled("full")
    temp = lambda c: c.memory_analysis().temp_size_in_bytes  # noqa: E731
    assert temp(full) < 0.8 * temp(none)
    assert_trees_close(full(params), none(params))


def test_bfloat16_computes_in_16_bit_and_stays_close():
    params, tokens = weights(LLAMA), tokens_of(LLAMA)
    exact = forward(params, tokens, spec=LLAMA)
    rough = forward(params, tokens, spec=LLAMA, dtype=jnp.bfloat16)
    assert rough.dtype == jnp.float32
    gap = np.abs(exact - rough)
    assert 0 < gap.mean() < 2e-2 * np.abs(exact).max()


def attention_inputs(dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(5), 3)
    sizes = [(2, 7, 6, 8), (2, 7, 3, 8), (2, 7, 3, 8)]
    return [jax.random.normal(k, s, dtype) for k, s in zip(keys, sizes, strict=True)]


def test_causal_and_masked_attention_equal_a_reference():
    q, k, v = attention_inputs()
    want = jax.nn.dot_product_attention(q, k, v, is_causal=True, implementation="xla")
    mask = jnp.tril(jnp.ones((7, 7), bool))[None].repeat(2, axis=0)
    np.testing.assert_allclose(ops.attention(q, k, v, causal=True), want, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(ops.attention(q, k, v, mask=mask), want, rtol=1e-5, atol=1e-5)
    open_mask = jnp.ones_like(mask)
    assert np.abs(ops.attention(q, k, v, mask=open_mask) - want).max() > 1e-2


@pytest.mark.parametrize(
    ("message", "options"),
    [
        ("'flash' is unknown", {"causal": True, "implementation": "flash"}),
        ("exactly one of mask, causal and reach", {}),
        ("exactly one of mask,", {"causal": True, "mask": jnp.ones((2, 7, 7), bool)}),
        ("exactly one of mask,", {"causal": True, "reach": jnp.full((2, 7), 7)}),
        ("cuDNN computes in bfloat16", {"causal": True, "implementation": "cudnn"}),
        ("without a mask", {"mask": jnp.ones((2, 7, 7), bool), "implementation": "cudnn"}),
    ],
)
def test_attention_options_that_would_be_ignored_are_refused(message, options):
    with pytest.raises(ValueError, match=message):
        ops.attention(*attention_inputs(), **options)


def test_cudnn_is_refused_without_a_gpu():
    with pytest.raises(ValueError, match="it needs a GPU, found cpu"):
        ops.attention(*attention_inputs(jnp.bfloat16), causal=True, implementation="cudnn")


def test_what_auto_chose_is_logged_once(caplog):
    dispatch._say_once.cache_clear()
    with caplog.at_level(logging.INFO, "stair_jax.ops"):
        for _ in range(2):
            ops.attention(*attention_inputs(), causal=True)
    assert len(caplog.records) == 1
    assert caplog.records[0].getMessage().startswith("attention auto: xla (cuDNN computes in ")


@pytest.mark.parametrize(("attribute", "value"), [("remat", "half"), ("attention", "flash")])
def test_unknown_options_of_the_decoder_are_refused(attribute, value):
    decoder = transformer.Decoder(LLAMA, **{attribute: value})
    with pytest.raises(ValueError, match="is unknown, expected one of"):
        decoder.apply({"params": weights(LLAMA)}, tokens_of(LLAMA))


def test_a_pool_without_rows_is_refused():
    pool = cache.empty_pool(LLAMA, pages=3, page_size=2, dtype=jnp.float32)
    with pytest.raises(ValueError, match="together"):
        transformer.Decoder(LLAMA).apply({"params": weights(LLAMA)}, tokens_of(LLAMA), pool)


def test_the_8b_model_decodes_and_trains_in_shape():
    spec = Spec(
        L=32,
        D=4096,
        N=32,
        K=8,
        H=128,
        F=14336,
        V=128256,
        vocab=128256,
        eps=1e-5,
        theta=5e5,
        tied=False,
        rope_scaling=RopeScaling(factor=8.0, low=1.0, high=4.0, original=8192),
        qkv_bias=False,
        qk_norm=False,
        family="llama",
    )
    params = jax.eval_shape(partial(transformer.init, spec), jax.random.key(0))
    tokens = jax.ShapeDtypeStruct((3, 50), jnp.int32)
    logits = jax.eval_shape(partial(forward, spec=spec), params, tokens)
    assert logits.shape == (3, 50, spec.V)
    empty = partial(cache.empty_pool, spec, pages=70, page_size=16, dtype=jnp.bfloat16)
    pool = jax.eval_shape(empty)
    count = jax.ShapeDtypeStruct((3,), jnp.int32)
    rows = Rows(jax.ShapeDtypeStruct((3, 4), jnp.int32), count, count)
    step = lambda p, *args: transformer.Decoder(spec).apply({"params": p}, *args)  # noqa: E731
    hidden, after = jax.eval_shape(step, params, tokens, pool, rows)
    assert (hidden.shape, hidden.dtype) == ((3, 50, spec.D), jnp.bfloat16)
    assert jax.tree.map(lambda x: x.shape, after) == jax.tree.map(lambda x: x.shape, pool)
