"""Operations of traced programs, counted by hand."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest

from stair_jax.plan import operations

X, W = jnp.zeros((3, 5)), jnp.zeros((5, 7))


def flops(function, *args):
    return operations.flops(jax.jit(function).trace(*args).jaxpr.jaxpr)


def test_a_product_is_two_operations_a_multiplication():
    assert flops(lambda x, w: x @ w, X, W) == 2 * 3 * 5 * 7
    assert flops(lambda x: jnp.einsum("abc,abd->acd", x, x), jnp.zeros((2, 3, 4))) == 2 * 2 * 3 * 16


def test_a_gradient_is_two_products_more():
    assert flops(jax.grad(lambda w, x: jnp.sin(x @ w).sum(), argnums=(0, 1)), W, X) == 3 * 210


def test_a_scan_counts_each_turn_and_an_open_loop_one():
    square = jnp.zeros((4, 4))

    def turns(x):
        return jax.lax.scan(lambda x, _: (x @ x, None), x, None, length=6)[0]

    def loop(x):
        return jax.lax.while_loop(lambda x: x.sum() < 9, lambda x: x @ x, x)

    assert flops(turns, square) == 6 * 128
    assert flops(loop, square) == 128


def test_what_is_computed_again_counts_again():
    def loss(w, x):
        return jnp.sin(jnp.sin(x @ w) @ w.T).sum()

    plain = flops(jax.grad(loss), W, X)
    again = flops(jax.grad(jax.checkpoint(loss)), W, X)
    assert again > plain


def test_of_branches_the_dearest_counts():
    def either(x, w):
        return jax.lax.cond(x.sum() > 0, lambda: (x @ w).sum(), lambda: x.sum())

    assert flops(either, X, W) == 210


@pytest.mark.parametrize(("name", "factor"), [("fwd", 1), ("bwd", 2.5)])
def test_fused_attention_counts_all_pairs(name, factor):
    def array(*shape):
        return SimpleNamespace(aval=jax.ShapeDtypeStruct(shape, jnp.bfloat16))

    eqn = SimpleNamespace(
        primitive=SimpleNamespace(name=f"dot_product_attention_{name}_wrapper"),
        invars=[array(2, 6, 4, 8), array(2, 10, 2, 8)],
        params={},
    )
    assert operations._of(eqn) == factor * 4 * 2 * 6 * 4 * 8 * 10
