"""The paged kernel, interpreted, against its oracle; the oracle against a loop over tokens."""

import dataclasses
import warnings
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AbstractDevice, AbstractMesh, AxisType
from jax.sharding import PartitionSpec as P

from stair_jax.kernels import (
    paged_attention as paged,  # pyright: ignore[reportAttributeAccessIssue]
)
from stair_jax.kernels import (
    top_k as top_k_kernel,  # pyright: ignore[reportAttributeAccessIssue]
)

EMPTY, Plan = paged.EMPTY, paged.Plan
SMALL = Plan(block=16, splits=2, share=16)  # several steps and splits at the sizes of a test
JUNK = (-7, 10**6, -(2**31), 2**31 - 1)  # what may stand in a table past a row's length


def call(seed, *, R=3, K=2, M=4, H=16, L=3, P=11, W=4, Z=8, length=None, dtype=jnp.float32):
    """Returns random (q, k, v, table, length); each row's pages are distinct where P allows it."""
    rng = np.random.default_rng(seed)
    length = rng.integers(0, W * Z + 1, R) if length is None else np.resize(length, R)
    table = np.stack([rng.permutation(max(P, W))[:W] % P for _ in range(R)])
    junk = rng.choice(JUNK, table.shape)
    table = np.where(np.arange(W)[None] * Z < length[:, None], table, junk)
    q, k, v = (rng.normal(size=s) for s in [(R, K, M, H), (L, P, K, Z, H), (L, P, K, Z, H)])
    return (
        *(jnp.asarray(x, dtype) for x in (q, k, v)),
        jnp.asarray(table, jnp.int32),
        jnp.asarray(length, jnp.int32),
    )


def loop(q, k, v, layer, table, length, *, scale):
    """Attention in float64, one query and one key at a time."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    out, lse = np.zeros(q.shape), np.full(q.shape[:3], EMPTY)
    for r, head, m in np.ndindex(*q.shape[:3]):
        at = [(layer, table[r, p // k.shape[3]], head, p % k.shape[3]) for p in range(length[r])]
        if at:
            score = np.array([scale * q[r, head, m] @ k[i] for i in at])
            weight = np.exp(score - score.max())
            out[r, head, m] = weight @ np.array([v[i] for i in at]) / weight.sum()
            lse[r, head, m] = score.max() + np.log(weight.sum())
    return out, lse


interpreted = jax.jit(
    partial(paged.paged_attention, interpret=True), static_argnames=("plan", "scale")
)
jitted = jax.jit(paged.reference, static_argnames="scale")


def kernel(q, k, v, layer, table, length, *, plan=SMALL, scale=0.3):
    return interpreted(q, k, v, jnp.int32(layer), table, length, plan=plan, scale=scale)


def oracle(q, k, v, layer, table, length, *, scale=0.3):
    return jitted(q, k, v, jnp.int32(layer), table, length, scale=scale)


def assert_close(got, want, tolerance=1e-5):
    for x, y in zip(got, want, strict=True):
        assert x.dtype == jnp.float32
        np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance)


SHAPES = {
    "one query a head, three heads": {"K": 3, "M": 1},
    "a group of siblings": {"R": 2, "M": 3 * 4},
    "two blocks of queries": {"R": 2, "K": 1, "M": 70, "H": 8},
    "eight queries a head, one head": {"K": 1, "M": 8},
    "a head dim that no matrix unit has": {"H": 24},
    "tokens alone in their pages": {"Z": 1, "W": 7},
    "odd pages": {"Z": 5, "W": 5},
    "pages of a whole block": {"Z": 16, "W": 2},
    "pages shared by all rows": {"R": 5, "P": 4},
    "one layer, one page, one row": {"L": 1, "P": 1, "R": 1, "W": 1},
}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_oracle_equals_a_loop_over_tokens_and_the_kernel_equals_both(shape):
    q, k, v, table, length = call(0, **shape)
    layers = {0, k.shape[0] - 1}
    for layer in layers:
        want = loop(q, k, v, layer, table, length, scale=0.3)
        assert_close(oracle(q, k, v, layer, table, length), want)
        assert_close(kernel(q, k, v, layer, table, length), want)
    if len(layers) == 2 and max(length) > 0:  # the layer does matter
        first, last = (loop(q, k, v, i, table, length, scale=0.3)[0] for i in sorted(layers))
        assert abs(first - last).max() > 0.1


def test_oracle_equals_plain_grouped_query_attention():
    R, K, M, H, Z, W = 3, 2, 3, 16, 4, 5
    q, k, v, _, length = call(1, R=R, K=K, M=M, H=H, Z=Z, W=W, P=R * W, length=[20, 7, 1])
    table = jnp.arange(R * W, dtype=jnp.int32).reshape(R, W)
    k_RSKH, v_RSKH = (x[1].swapaxes(1, 2).reshape(R, W * Z, K, H) for x in (k, v))
    plain = jax.nn.dot_product_attention(
        q.reshape(R, 1, K * M, H), k_RSKH, v_RSKH, scale=0.3, key_value_seq_lengths=length
    )
    out, _ = oracle(q, k, v, 1, table, length)
    np.testing.assert_allclose(out.reshape(plain.shape), plain, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("splits", [1, 2, 3])
def test_every_length_around_a_page_a_step_and_a_split(splits):
    Z, W = 8, 6  # a step is 16 tokens, a split 16, 24 or 48
    length = [0, 1, Z - 1, Z, Z + 1, 15, 16, 17, 31, 32, 33, W * Z - 1, W * Z]
    q, k, v, table, length = call(2, R=len(length), K=1, H=8, P=13, Z=Z, W=W, length=length)
    plan = Plan(block=16, splits=splits, share=16)
    want = loop(q, k, v, 2, table, length, scale=0.3)
    assert_close(kernel(q, k, v, 2, table, length, plan=plan), want)
    assert_close(oracle(q, k, v, 2, table, length), want)


@pytest.mark.parametrize("attend", [kernel, oracle])
def test_a_row_without_tokens_gives_zeros_and_empty(attend):
    q, k, v, table, length = call(3, length=[0, 9, 0])
    out, lse = attend(q, k, v, 0, table, length)
    assert (out[::2] == 0).all()
    assert (lse[::2] == EMPTY).all()
    assert (abs(out[1]) > 0).all()
    assert (abs(lse[1]) < 100).all()


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_any_lengths_and_tables(data):
    R, W, Z, P = 4, 3, 4, 6
    q, k, v, *_ = call(4, R=R, K=1, M=2, H=8, Z=Z, W=W, P=P)
    length = np.array([data.draw(st.integers(0, W * Z)) for _ in range(R)], np.int32)
    some_page = st.integers(0, P - 1)  # pages may be shared, by rows and within one
    table = [
        [data.draw(some_page if w * Z < n else st.sampled_from(JUNK)) for w in range(W)]
        for n in length
    ]
    args = (1, jnp.array(table, jnp.int32), jnp.array(length))
    want = loop(q, k, v, *args, scale=0.3)
    assert_close(kernel(q, k, v, *args), want)
    assert_close(oracle(q, k, v, *args), want)


def test_sixteen_bit_pools():
    q, k, v, table, length = call(5, M=16, H=32, dtype=jnp.bfloat16)
    want = loop(q, k, v, 1, table, length, scale=0.3)
    assert_close(oracle(q, k, v, 1, table, length), want, 2e-2)
    assert_close(kernel(q, k, v, 1, table, length), want, 2e-2)
    # the log-sum-exp stays in float32: rounded to 16 bit it would be off by 100 times this
    assert_close(kernel(q, k, v, 1, table, length)[1:], want[1:], 1e-4)


def test_the_kernel_reads_nothing_past_the_length():
    q, k, v, table, length = call(6, R=2, P=9, W=4, Z=8, length=[13, 16])
    table = jnp.array([[4, 2, JUNK[0], JUNK[1]], [7, 3, JUNK[2], JUNK[3]]], jnp.int32)
    read = np.zeros(k.shape[:2] + k.shape[3:4], bool)  # [L, P, Z]
    for r, n in enumerate(length):
        for p in range(n):
            read[1, table[r, p // 8], p % 8] = True
    assert read.sum() == 29
    want = oracle(q, k, v, 1, table, length)
    show = jnp.asarray(read)[:, :, None, :, None]
    loud = jnp.where(show, k, 1e3 * k), jnp.where(show, v, 1e3)
    assert_close(oracle(q, *loud, 1, table, length), want)
    k, v = jnp.where(show, k, jnp.nan), jnp.where(show, v, jnp.nan)
    assert not np.isfinite(oracle(q, k, v, 1, table, length)[0]).all()  # the pool is poisoned
    assert_close(kernel(q, k, v, 1, table, length), want)


@pytest.mark.parametrize("plan", [SMALL, Plan()])
def test_a_row_does_not_feel_the_table_width_or_its_neighbours(plan):
    q, k, v, table, length = call(7, R=3, P=40, W=4, length=[30, 17, 9])
    out, lse = kernel(q, k, v, 1, table, length, plan=plan)
    _, _, _, wide, others = call(8, R=3, P=40, W=37, length=[30, 290, 0])
    wide = wide.at[0, :4].set(table[0])
    wide_out, wide_lse = kernel(q, k, v, 1, wide, others, plan=plan)
    assert (wide_out[0] == out[0]).all()
    assert (wide_lse[0] == lse[0]).all()
    assert (wide_out[1] != out[1]).any()


def test_scale_multiplies_the_scores():
    q, k, v, table, length = call(9, length=[20])
    half = kernel(q, k, v, 0, table, length, scale=0.5)
    assert_close(kernel(q / 2, k, v, 0, table, length, scale=1.0), half, 1e-6)
    assert (abs(half[0] - kernel(q, k, v, 0, table, length, scale=1.0)[0]) > 1e-3).any()


def test_scores_far_apart_stay_finite():
    q, k, v, table, length = call(10, length=[32])
    args = (100 * q, k, v, 0, table, length)
    want = loop(*args, scale=1.0)
    assert abs(want[1]).max() > 100  # e to it overflows float32
    assert_close(kernel(*args, scale=1.0), want)
    assert_close(oracle(*args, scale=1.0), want)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 8), st.integers(0, 8)), min_size=3, max_size=3))
def test_merge_is_attention_over_the_union(lengths):
    Z = 8  # a page each, so that the union is one table of two pages where the first is full
    q, k, v, table, _ = call(11, R=3, Z=Z, W=2)
    first, second = (jnp.array(n, jnp.int32) for n in zip(*lengths, strict=True))
    table = jnp.abs(table) % 11
    halves = [oracle(q, k, v, 1, table[:, i : i + 1], n) for i, n in enumerate((first, second))]
    want = union(q, k, v, 1, table, (first, second))
    assert_close(paged.merge(*halves[0], *halves[1]), want)
    assert_close(paged.merge(*halves[1], *halves[0]), want)


def union(q, k, v, layer, table, lengths):
    """Attention over the first tokens of each of a row's pages, by a pool of one token a page."""
    L, P, K, Z, H = k.shape
    k, v = (x.swapaxes(2, 3).reshape(L, P * Z, K, 1, H) for x in (k, v))
    counts = np.stack(lengths, axis=1)
    tokens = [
        [page * Z + i for page, n in zip(pages, count, strict=True) for i in range(n)]
        for pages, count in zip(np.asarray(table), counts, strict=True)
    ]
    wide = np.zeros((len(tokens), 2 * Z), np.int32)
    for row, ids in zip(wide, tokens, strict=True):
        row[: len(ids)] = ids
    length = counts.sum(axis=1).astype(np.int32)
    return loop(q, k, v, layer, wide, length, scale=0.3)


def test_merge_with_no_keys_on_one_side_changes_nothing_and_on_both_is_empty():
    q, k, v, table, length = call(12, length=[9, 20, 31])
    some, none = oracle(q, k, v, 0, table, length), oracle(q, k, v, 0, table, 0 * length)
    for got in (paged.merge(*some, *none), paged.merge(*none, *some)):
        assert_close(got, some, 1e-7)
    out, lse = paged.merge(*none, *none)
    assert (out == 0).all()
    assert (lse == EMPTY).all()
    assert (some[1] != EMPTY).all()


def test_over_a_mesh_each_device_attends_with_its_own_heads():
    q, k, v, table, length = call(14, K=2)
    mesh = jax.make_mesh((2,), ("tensor",), axis_types=(AxisType.Auto,))
    heads, pool, same = P(None, "tensor"), P(None, None, "tensor"), P()
    split = jax.shard_map(
        partial(paged.paged_attention, scale=0.3, plan=SMALL, interpret=True),
        mesh=mesh,
        in_specs=(heads, pool, pool, same, same, same),
        out_specs=(heads, heads),
        check_vma=False,  # a kernel does not say along which axes its results differ
    )
    got = jax.jit(split)(q, k, v, jnp.int32(1), table, length)
    assert got[0].sharding.spec[1] == "tensor"
    assert_close(got, oracle(q, k, v, 1, table, length))


def test_a_plan_fills_the_gpu_whatever_the_rows_and_ignores_the_table_width():
    size = paged._Size(K=8, M=4, H=128, P=100, Z=16, W=64)
    splits = {R: paged._resolved(Plan(), size, rows=R, itemsize=2).splits for R in (1, 16, 256)}
    assert splits == {1: 16, 16: 4, 256: 1}
    blocks = [paged._resolved(Plan(), size, rows=1, itemsize=n).block for n in (2, 4)]
    assert blocks == [64, 32]
    own = Plan(block=32, splits=5)
    assert paged._resolved(own, size, rows=1, itemsize=2) == own


@pytest.mark.parametrize("knob", ["block", "splits", "share", "warps", "stages"])
def test_every_knob_of_the_plan_reaches_the_kernel(knob):
    q, k, v, table, length = call(13)
    plan = Plan(block=16, splits=2, share=16, warps=4, stages=3)
    texts = []
    for choice in (plan, dataclasses.replace(plan, **{knob: 32})):
        run = partial(paged.paged_attention, scale=1.0, plan=choice)
        texts.append(str(jax.make_jaxpr(run)(q, k, v, jnp.int32(0), table, length)))
    assert texts[0] != texts[1]


def test_the_plan_says_which_body_computes_and_an_unknown_one_is_refused(monkeypatch):
    q, k, v, table, length = call(14)
    given = {}

    def body(layer, table, length, q, k, v, *, size, plan, scale, interpret):
        given.update(layer=layer.shape, q=q.shape, k=k.shape, plan=plan, scale=scale)
        shape = (plan.splits, *q.shape)
        return jnp.full(shape, 7.0), jnp.zeros(shape[:-1])

    monkeypatch.setitem(paged.BODIES, "sevens", body)
    run = partial(paged.paged_attention, q, k, v, 1, table, length, scale=0.3, interpret=True)
    assert not (run(plan=SMALL)[0] == 7).all()
    assert given == {}
    other = dataclasses.replace(SMALL, body="sevens")
    assert (run(plan=other)[0] == 7).all()
    (L, P, K, Z, H) = k.shape
    assert given == {
        "layer": (1,),
        "q": q.shape,
        "k": (L * P * K * Z, H),
        "plan": other,
        "scale": 0.3,
    }
    with pytest.raises(
        ValueError, match=r"no body 'threes', expected one of \['triton', 'sevens'\]"
    ):
        run(plan=dataclasses.replace(SMALL, body="threes"))


def test_the_plan_of_the_gpu_that_is_compiled_for_reaches_the_kernel(monkeypatch):
    q, k, v, table, length = call(15, H=12, M=21, dtype=jnp.bfloat16)
    asked = []

    def plan_for(kind, case):
        asked.append((kind, case))
        return Plan(block=32, warps=8)

    monkeypatch.setattr(paged.plans, "plan_for", plan_for)
    h200 = AbstractDevice("NVIDIA H200", 132, "gpu")
    texts, layer = {}, jnp.int32(0)
    for name, plan in (("own", None), ("same", Plan(block=32, warps=8)), ("default", Plan())):
        run = partial(paged.paged_attention, scale=1.0, plan=plan)
        with jax.sharding.use_abstract_mesh(AbstractMesh((1,), ("x",), abstract_device=h200)):
            texts[name] = str(jax.make_jaxpr(run)(q, k, v, layer, table, length))
    assert asked == [("NVIDIA H200", "32 queries, head 16, 2 bytes")]
    assert texts["own"] == texts["same"] != texts["default"]
    interpreted(q, k, v, 0, table, length, scale=1.0)
    assert len(asked) == 1, "interpreted, it follows the default"


def test_of_all_warnings_that_a_trace_may_bring_one_is_silenced():
    def warn(text):
        warnings.warn(text, DeprecationWarning, stacklevel=1)

    deprecated = "The Pallas Triton backend is deprecated and will be removed"
    with pytest.raises(DeprecationWarning):
        warn(deprecated)
    q, k, v, table, length = call(16)
    jax.make_jaxpr(partial(paged.paged_attention, scale=1.0))(q, k, v, 0, table, length)
    warn(deprecated)  # where JAX lowers, after the trace
    with pytest.raises(DeprecationWarning, match="Mosaic"):
        warn("The Pallas Mosaic backend is deprecated")


def test_it_lowers_for_a_gpu_with_the_whole_pool_as_operand():
    R, K, M, H, L, P, Z, W = 256, 8, 4, 128, 32, 100, 16, 64
    pool = jax.ShapeDtypeStruct((L, P, K, Z, H), jnp.bfloat16)
    q = jax.ShapeDtypeStruct((R, K, M, H), jnp.bfloat16)
    layer, table, length = (jax.ShapeDtypeStruct(s, jnp.int32) for s in [(), (R, W), (R,)])
    a100 = AbstractDevice("NVIDIA A100-SXM4-80GB", 108, "gpu")
    with jax.sharding.use_abstract_mesh(AbstractMesh((1,), ("x",), abstract_device=a100)):
        traced = jax.jit(partial(paged.paged_attention, scale=1.0)).trace(
            q, pool, pool, layer, table, length
        )
        text = traced.lower(lowering_platforms=("cuda",)).as_text()
    [kernel_call] = [line for line in text.splitlines() if "triton" in line]
    assert kernel_call.count(f"tensor<{L * P * K * Z}x{H}xbf16>") == 2
    assert "dynamic_slice" not in text
    assert "gather" not in text


def sorted_top_k(x, k):
    """Values and indices by a stable sort of each row."""
    at = np.argsort(-np.asarray(x), axis=-1, kind="stable")[:, :k]
    return np.take_along_axis(np.asarray(x), at, axis=-1), at


@settings(max_examples=60, deadline=None)
@given(
    V=st.sampled_from([1, 7, 24, 91, 125]),
    k=st.sampled_from([1, 3, 5]),
    values=st.sampled_from([2, 5, 10**6]),
    masked=st.sampled_from([0, 0.7, 0.98]),
    groups=st.sampled_from([(8, 2), (3,), (4, 1)]),
    seed=st.integers(0, 99),
)
def test_top_k_is_exact_in_values_indices_and_ties(V, k, values, masked, groups, seed):
    rng = np.random.default_rng(seed)
    x = rng.integers(0, values, (3, V)).astype(np.float32)
    x[rng.random(x.shape) < masked] = -np.inf  # as the logits of tokens that may not be drawn
    k = min(k, V)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(top_k_kernel, "LONG", 0)
        patch.setattr(top_k_kernel, "GROUPS", groups)
        got = top_k_kernel.exact_top_k(jnp.asarray(x), k)
    for mine, oracle, plain in zip(
        got, top_k_kernel.reference(x, k), sorted_top_k(x, k), strict=True
    ):
        np.testing.assert_array_equal(mine, oracle)
        np.testing.assert_array_equal(mine, plain)


@pytest.mark.parametrize("V", [128256, 151936 + 7])
def test_top_k_of_a_real_vocabulary_sorts_a_hundredth_of_it(V):
    k = 64
    x = jax.random.normal(jax.random.key(0), (2, V)).astype(jnp.bfloat16).astype(jnp.float32)
    got, want = top_k_kernel.exact_top_k(x, k), jax.lax.top_k(x, k)
    assert len(np.unique(want[0][0])) < k  # bfloat16 has ties even at the top
    np.testing.assert_array_equal(got[0], want[0])
    np.testing.assert_array_equal(got[1], want[1])
    jaxpr = jax.make_jaxpr(lambda x: top_k_kernel.exact_top_k(x, k))(x)
    sorted_: list[Any] = [e.invars[0].aval for e in jaxpr.eqns if e.primitive.name == "top_k"]
    widths = [x.shape[-1] for x in sorted_]
    assert len(widths) == 3
    assert max(widths) < V / 100


def test_top_k_of_more_entries_than_there_are_is_refused():
    with pytest.raises(ValueError, match="k = 6 and V = 5"):
        top_k_kernel.exact_top_k(jnp.zeros((1, 5)), 6)
