"""Adapters: they start as nothing, are what `merge` makes of them, and alone are trained."""

import functools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stair_jax import mesh
from stair_jax.model import heads, lora, transformer
from stair_jax.model.cache import Rows
from tests.support import specs
from tests.support.close import assert_sums_close

SPEC = specs.llama(L=2, D=12, N=4, K=2, H=6, F=20, V=40, theta=1e3)
RANK, SCALE = 3, 0.7
ALL = lora.parse("q,k,v,o,gate,up,down")


@pytest.fixture(scope="module")
def params():
    return jax.jit(partial(transformer.init, SPEC))(jax.random.key(0))


@functools.cache
def fresh(spec=SPEC, targets=ALL, rank=RANK):
    draw = partial(lora.init, spec, rank=rank, targets=targets)
    return jax.jit(draw)(jax.random.key(1))


def grown(factors):
    """Returns factors after some training: no B is zero."""
    noise = np.random.default_rng(2)
    return jax.tree.map(
        lambda x: jnp.asarray(x + 0.2 * noise.normal(size=x.shape).astype(np.float32)), factors
    )


merge = jax.jit(lora.merge, static_argnums=2)
TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, SPEC.V, (2, 9)), jnp.int32)


@partial(jax.jit, static_argnames=("spec", "scale", "remat", "dtype"))
def forward(params, factors=None, *, spec=SPEC, scale=SCALE, remat="none", dtype=jnp.float32):
    decoder = transformer.Decoder(spec, dtype, remat, lora_scale=scale)
    weights = {"params": params} | ({} if factors is None else {"lora": factors})
    hidden, _ = decoder.apply(weights, TOKENS)
    return heads.logits(params, hidden, spec)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_fresh_adapters_are_the_base_bit_for_bit(params, dtype):
    base = forward(params, dtype=dtype)
    np.testing.assert_array_equal(forward(params, fresh(), dtype=dtype), base)
    assert np.abs(forward(params, grown(fresh()), dtype=dtype) - base).max() > 0.1


def test_factors_start_as_pefts_do():
    factors = fresh(rank=50)["layers"]
    for name, factor in factors.items():
        factor = jax.tree.map(np.asarray, factor)
        assert not factor["b"].any()
        fan_in = {"o": 24, "down": 20}.get(name, 12)
        bound = fan_in**-0.5
        assert 0.95 * bound < factor["a"].max() <= bound
        assert -bound <= factor["a"].min() < -0.95 * bound
        np.testing.assert_allclose(factor["a"].std(), bound / 3**0.5, rtol=0.1)
    assert not np.array_equal(factors["q"]["a"], factors["k"]["a"])
    assert not np.array_equal(factors["q"]["a"][0], factors["q"]["a"][1])


def test_a_targets_factor_does_not_hang_on_the_others():
    one, all_ = fresh(targets=("v",))["layers"], fresh()["layers"]
    assert set(one) == {"v"}
    np.testing.assert_array_equal(one["v"]["a"], all_["v"]["a"])


@pytest.mark.parametrize("target", ALL)
def test_each_targets_merged_weights_are_the_model_with_its_adapter(params, target):
    every = grown(fresh())["layers"]  # one program: the others' B is zero
    factors = {k: f if k == target else {**f, "b": 0 * f["b"]} for k, f in every.items()}
    want, base = forward(params, {"layers": factors}), forward(params)
    assert np.abs(want - base).max() > 1e-3
    merged = merge(params, {"layers": {target: every[target]}}, SCALE)
    assert merged["layers"].keys() == params["layers"].keys()
    changed = {
        name
        for name, x in merged["layers"].items()
        if (np.asarray(x) != np.asarray(params["layers"][name])).any()
    }
    assert changed == {lora.TARGETS[target].weight}
    assert_sums_close(forward(merged), want, 1e-5)


def test_merged_weights_are_the_model_with_all_adapters(params):
    factors = grown(fresh())
    want = forward(params, factors)
    assert np.abs(want - forward(params)).max() > 0.1
    assert_sums_close(forward(merge(params, factors, SCALE)), want, 1e-5)


def test_the_scale_reaches_the_output(params):
    factors = grown(fresh())
    double = {"layers": {k: {**f, "b": 2 * f["b"]} for k, f in factors["layers"].items()}}
    want = forward(params, factors, scale=2 * SCALE)
    assert np.abs(want - forward(params, factors)).max() > 1e-2
    assert_sums_close(forward(params, double), want, 1e-5)


@pytest.mark.parametrize("remat", transformer.REMAT)
def test_adapters_alone_are_trained(params, remat):
    grad = jax.jit(jax.grad(lambda f, p: forward(p, f, remat=remat).std()))
    grads = grad(grown(fresh()), params)
    assert jax.tree.structure(grads) == jax.tree.structure(fresh())  # nothing of the base's
    assert all(np.abs(g).max() > 1e-5 for g in jax.tree.leaves(grads))
    at_start = grad(fresh(), params)["layers"]
    for factor in at_start.values():  # B = 0 keeps A where it is, for a step
        assert not np.asarray(factor["a"]).any()
        assert np.abs(factor["b"]).max() > 1e-5


def test_without_adapters_the_program_is_the_same(params):
    text = lambda scale: forward.lower(params, scale=scale).as_text()  # noqa: E731
    assert text(0.0) == text(SCALE)
    assert text(SCALE) != forward.lower(params, fresh()).as_text()


def test_sharded_adapters_equal_unsharded_ones(params):
    factors, m = grown(fresh()), mesh.make((2, 2, 2))
    want = forward(params, factors)
    where = mesh.shardings(lora.logical_axes(ALL), m, factors)
    put = jax.device_put(factors, where)
    specs = {
        name: (f["a"].sharding.spec, f["b"].sharding.spec) for name, f in put["layers"].items()
    }
    P = jax.sharding.PartitionSpec
    assert specs["q"] == (P(None, "fsdp", None), P(None, None, "tensor", None))
    assert specs["o"] == (P(None, "tensor", None, None), P(None, None, "fsdp"))
    assert specs["down"] == (P(None, "tensor", None), P(None, None, "fsdp"))
    placed = jax.device_put(params, mesh.shardings(transformer.logical_axes(SPEC), m, params))
    with jax.set_mesh(m):
        got = forward(placed, put)
    assert_sums_close(got, want, 1e-5)


def test_factors_have_the_axes_of_their_weights():
    shapes, axes = fresh()["layers"], lora.logical_axes(ALL)["layers"]
    weights = transformer.logical_axes(SPEC)["layers"]
    for name, target in lora.TARGETS.items():
        a, b = axes[name]["a"], axes[name]["b"]
        assert (*a[:-1], *b[2:]) == weights[target.weight]
        assert (a[-1], b[1]) == (None, None)
        assert (len(a), len(b)) == (shapes[name]["a"].ndim, shapes[name]["b"].ndim)


def test_targets_are_parsed_in_one_order():
    assert lora.parse(" v , q") == ("q", "v")
    for text in ("q,qkv", "", " , "):
        with pytest.raises(ValueError, match="expected some of q,k,v,o,gate,up,down"):
            lora.parse(text)


@pytest.mark.parametrize(
    ("message", "change", "scale"),
    [
        ("'wq'.* fit no target", {"layers": {"wq": {}}}, 1.0),
        ("'layer'.* fit no target", {"layers": {}, "layer": {}}, 1.0),
        ("lora_scale is 0", {"layers": {}}, 0.0),
    ],
)
def test_adapters_that_would_be_ignored_are_refused(params, message, change, scale):
    decoder = transformer.Decoder(SPEC, jnp.float32, lora_scale=scale)
    with pytest.raises(ValueError, match=message):
        decoder.apply({"params": params, "lora": change}, TOKENS)


def test_weights_parted_by_layer_take_no_adapters(params):
    parted = {"params": transformer.by_layer(params), "lora": fresh()}
    rows = Rows(jnp.zeros((2, 1), jnp.int32), jnp.zeros(2, jnp.int32), jnp.full(2, 9))
    decoder = transformer.Decoder(SPEC, jnp.float32, lora_scale=1.0)
    with pytest.raises(ValueError, match="merge them first"):
        decoder.apply(parted, TOKENS, object(), rows)
