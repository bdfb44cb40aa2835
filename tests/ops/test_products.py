"""Products multiply in the compute dtype in both directions; in float32 they are JAX's own."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from stair_jax import mesh as mesh_lib
from stair_jax import ops
from stair_jax.data.batches import ComparisonBatch, PairBatch, SftBatch
from stair_jax.model import lora, reward, transformer
from stair_jax.model.layout import Layout
from stair_jax.ops import products
from stair_jax.train import losses, optimizer, reward_losses
from stair_jax.train import step as step_lib
from stair_jax.train.logprobs import Scorer
from stair_jax.train.values import Values
from tests.support import specs
from tests.support.training import dpo_config, train_config

DIMS = [  # shapes of two operands, and how they are contracted
    ((5, 7), (7, 3), (((1,), (0,)), ((), ()))),
    ((2, 3, 5, 7), (2, 3, 4, 7), (((3,), (3,)), ((0, 1), (0, 1)))),
    ((2, 3, 5, 4), (2, 3, 4, 7), (((3,), (2,)), ((0, 1), (0, 1)))),
    ((2, 5, 7), (7,), (((2,), (0,)), ((), ()))),
    ((5, 2, 3, 7), (7, 3, 4), (((3, 2), (0, 1)), ((), ()))),
]


@functools.cache
def operands(case):
    shape_x, shape_y, dims = DIMS[case]
    rng = np.random.default_rng(case)
    x, y = (jnp.asarray(rng.normal(size=s), jnp.float32) for s in (shape_x, shape_y))
    out = jax.eval_shape(lambda x, y: lax.dot_general(x, y, dims), x, y).shape
    return x, y, jnp.asarray(rng.normal(size=out), jnp.float32), dims


def dots(lowered):
    """Returns the dtypes of the products of a lowered program, each (x, y, result)."""
    pattern = r"stablehlo.dot_general .*? : \((tensor<\S+>), (tensor<\S+>)\) -> (tensor<\S+>)"
    return [
        tuple(re.split("[x<]", t)[-1].rstrip(">") for t in found)
        for found in re.findall(pattern, lowered.as_text())
    ]


@pytest.mark.parametrize("case", range(len(DIMS)))
def test_float32_products_and_gradients_are_jaxs_own_to_the_bit(case):
    x, y, grad, dims = operands(case)

    def both(product):
        out, pull = jax.vjp(product, x, y)
        return out, *pull(grad)

    ours = jax.jit(lambda: both(lambda x, y: products.dot_general(x, y, dims, jnp.float32)))
    jaxs = jax.jit(lambda: both(lambda x, y: lax.dot_general(x, y, dims)))
    assert "custom_vjp" in str(
        jax.make_jaxpr(products.dot_general, static_argnums=(2, 3))(x, y, dims, jnp.float32)
    )
    for got, want in zip(ours(), jaxs(), strict=True):
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("case", range(len(DIMS)))
@pytest.mark.parametrize("out", [jnp.float32, jnp.bfloat16])
def test_bfloat16_products_take_the_stored_weight_and_return_its_dtype(case, out):
    x, y, grad, dims = operands(case)
    x16, y16, grad16 = (a.astype(jnp.bfloat16) for a in (x, y, grad))

    @jax.jit
    def ours(x, y, grad):
        value, pull = jax.vjp(lambda x, y: products.dot_general(x, y, dims, out), x, y)
        return value, *pull(grad.astype(out))

    value, of_x, of_y = ours(x16, y, grad16)
    assert (value.dtype, of_x.dtype, of_y.dtype) == (out, jnp.bfloat16, jnp.float32)
    short = {jnp.float32: "f32", jnp.bfloat16: "bf16"}[out]
    found = sorted(dots(ours.lower(x16, y, grad16)))
    assert found == sorted(("bf16", "bf16", result) for result in (short, "bf16", "f32"))
    exact, pull = jax.vjp(
        lambda x, y: lax.dot_general(x, y, dims), *(a.astype(jnp.float32) for a in (x16, y16))
    )
    want_x, want_y = pull(grad16.astype(jnp.float32))
    np.testing.assert_allclose(of_y, want_y, rtol=1e-5, atol=1e-5)  # it was never rounded
    assert (np.asarray(of_y) != np.asarray(of_y.astype(jnp.bfloat16), np.float32)).any()
    for got, want in ((value, exact), (of_x, want_x)):
        np.testing.assert_allclose(got.astype(jnp.float32), want, rtol=1e-2, atol=2e-2)


SPEC = specs.llama(L=2, D=12, N=4, K=2, H=6, F=20, V=23, qkv_bias=True, family="qwen2")
ACCUM, B, T, PAIRS = 1, 3, 10, 2
CONFIG = train_config(buckets=(T,), head_chunk=4, compute_dtype="bfloat16")
TX = optimizer.of(CONFIG)


def kinds(remat, dtype="bfloat16"):
    """Yields each kind of training step: its name, loss, batch, trained and frozen weights."""
    scorer = Scorer(spec=SPEC, compute_dtype=dtype, remat=remat, head_chunk=4, lora_scale=0.0)
    low_rank = Scorer(spec=SPEC, compute_dtype=dtype, remat=remat, head_chunk=4, lora_scale=0.5)
    valued = Values(spec=reward.scalar(SPEC), compute_dtype=dtype, remat=remat, lora_scale=0.0)
    dpo = losses.Dpo.of(scorer, dpo_config())
    weights = jax.eval_shape(lambda: transformer.init(SPEC, jax.random.key(0)))
    scored = jax.eval_shape(lambda: reward.init(SPEC, jax.random.key(0)))
    draw = functools.partial(lora.init, SPEC, rank=3, targets=tuple(lora.TARGETS))
    factors = jax.eval_shape(lambda: draw(jax.random.key(0)))
    tokens, sides = (np.zeros((ACCUM, B, *lead, T), np.int32) for lead in ((), (2,)))
    layout = Layout(tokens, tokens, tokens)
    pairs = PairBatch.empty(sides, reference=True)
    tree = PairBatch.empty(tokens, layout, pairs=PAIRS, reference=True)
    compared = ComparisonBatch.empty(sides)
    yield "sft", losses.Sft(scorer), SftBatch.empty(tokens), weights, None
    yield "sft packed", losses.Sft(scorer), SftBatch.empty(tokens, layout), weights, None
    yield "dpo", dpo, pairs, weights, None
    yield "dpo tree", dpo, tree, weights, None
    yield "dpo lora", losses.Dpo.of(low_rank, dpo_config()), pairs, factors, {"base": weights}
    yield "prm", reward_losses.Prm(scorer=valued, loss="bt", centering=0.1), compared, scored, None


def lowered(loss, batch, params, frozen):
    """Returns a training step as it is handed to XLA."""
    mesh = mesh_lib.make((1, 1, 1))
    where = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    placed, frozen, batch = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), (params, frozen, batch)
    )
    state = step_lib.abstract(placed, TX, mesh)
    leaves, tree = jax.tree.flatten(jax.tree.map(lambda x: x.sharding, state))
    with jax.set_mesh(mesh):
        lr = jax.ShapeDtypeStruct((), jnp.float32)
        return step_lib.Programs.of(loss, TX, tree, tuple(leaves)).whole.lower(
            state, frozen, batch, lr
        )


@pytest.mark.parametrize("remat", transformer.REMAT)
def test_no_step_multiplies_float32_with_float32_in_a_layer(remat):
    """Of any kind: layers, attention, adapters, output head and reward head, both directions."""
    for name, *step in kinds(remat):
        found = dots(lowered(*step))
        wide = [d for d in found if d[:2] != ("bf16", "bf16")]
        # A tree's log-probs are summed over the masks of its pairs: no product of a layer.
        assert len(wide) == 2 * (name == "dpo tree"), (name, wide)
        assert len(found) > 20, name  # seven products and two of attention, three times


def test_results_are_written_in_float32_only_where_something_is_added():
    """Of a layer: seven values and gradients of x, and four gradients of attention, are not."""
    (_, *sft), *_, (_, *adapted), _ = kinds("none")
    plain, added = (dots(lowered(*step)) for step in (sft, adapted))
    wide = ("bf16", "bf16", "f32")
    layers, rest = divmod([d[2] for d in plain].count("bf16"), 7 + 7 + 4)
    assert rest == 0
    assert layers in (1, SPEC.L)  # the text has one for all, or, from jax 0.12 on, each
    # With adapters a projection's two results wait to be added, and each of their two factors has
    # a gradient, while the frozen weights have none. That of the frozen head, which nobody reads,
    # jax 0.12 drops before XLA does.
    more = added.count(wide) - plain.count(wide)
    assert more in (layers * (7 + 7 + 14 - 7) - dropped for dropped in (0, 1))


def test_a_matrix_product_has_the_dtype_that_is_asked_for():
    x, w = jnp.ones((2, 3, 4), jnp.bfloat16), jnp.full((4, 5), 1 / 3)
    assert ops.matmul(x, w).dtype == jnp.float32
    assert ops.matmul(x, w, out=jnp.bfloat16).dtype == jnp.bfloat16
    third = jnp.asarray(1 / 3, jnp.bfloat16).astype(jnp.float32)  # the weight is cast, not x
    np.testing.assert_allclose(ops.matmul(x, w), np.full((2, 3, 5), 4 * third), rtol=1e-6)
