"""The probe refuses attention that lets the sequences of a packed row see each other."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stair_jax import ops
from stair_jax.model.layout import Layout, visible
from stair_jax.train import probe
from tests.support import specs

SPEC = specs.llama(L=2, D=16, N=4, K=2, H=6, F=24, V=40, theta=1e2)
REAL = ops.attention


def blind(q, k, v, *, reach=None, causal=False, **options):
    """Sees that a row is packed, and passes over it."""
    return REAL(q, k, v, causal=True, **options)


def late(q, k, v, *, reach=None, **options):
    """Lets one token of the next sequence in."""
    reach = None if reach is None else jnp.minimum(reach + 1, reach.shape[1])
    return REAL(q, k, v, reach=reach, **options)


def between_siblings(q, k, v, *, reach=None, **options):
    """Keeps sequences apart, but not the steps that share a prefix: segment ids alone."""
    if reach is not None:
        reach = jnp.where((jnp.arange(probe.T) >= 20) & (jnp.arange(probe.T) < 48), 48, reach)
    return REAL(q, k, v, reach=reach, **options)


@jax.custom_vjp
def _masked_forward(q, k, v, reach):
    return REAL(q, k, v, reach=reach)


_masked_forward.defvjp(
    lambda q, k, v, reach: (_masked_forward(q, k, v, reach), (q, k, v)),
    lambda kept, g: (*jax.vjp(lambda *x: REAL(*x, causal=True), *kept)[1](g), None),
)


def backwards(q, k, v, *, reach=None, causal=False, **options):
    """Right in the forward pass, blind in the backward one."""
    if reach is None:
        return REAL(q, k, v, causal=True, **options)
    return _masked_forward(q, k, v, reach)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_attention_in_use_passes(dtype):
    assert 0 < probe.check_packing(SPEC, dtype) < probe.LIMITS[dtype] / 2


@pytest.mark.parametrize("leak", [blind, late, between_siblings, backwards])
def test_a_leak_is_refused_with_its_size_and_what_to_do(monkeypatch, leak):
    monkeypatch.setattr(ops, "attention", leak)
    for dtype in ("float32", "bfloat16"):
        with pytest.raises(ValueError, match=r"\d off from .*set train.batching to 'bucket'"):
            probe.check_packing(SPEC, dtype)


def nothing(q, k, v, **_):
    return q * jnp.nan


def no_gradient(q, k, v, **options):
    return REAL(q, k, v, **options) + jnp.sqrt(0 * v.sum())


@pytest.mark.parametrize("broken", [nothing, no_gradient])
def test_numbers_that_are_none_are_refused(monkeypatch, broken):
    monkeypatch.setattr(ops, "attention", broken)
    with pytest.raises(ValueError, match="nan off from what they are alone"):
        probe.check_packing(SPEC, "float32")


def test_the_models_own_heads_and_implementation_are_asked(monkeypatch):
    seen = set()

    def spy(q, k, v, *, implementation, **options):
        seen.add((*q.shape[2:], k.shape[2], q.dtype.name, implementation, *options))
        return REAL(q, k, v, **options)

    monkeypatch.setattr(ops, "attention", spy)
    spec = dataclasses.replace(SPEC, N=6, K=3, H=8)
    probe.check_packing(spec, "bfloat16", "cudnn")
    assert seen == {
        (6, 8, 3, "bfloat16", "cudnn", "reach"),
        (6, 8, 3, "bfloat16", "cudnn", "causal"),
    }


def test_the_probed_row_is_what_its_paths_say():
    reach = jnp.asarray(probe._reach())
    seen = np.asarray(visible(Layout(reach, reach, reach)))[0]
    want = np.eye(probe.T, dtype=bool)
    for prefix, (start, end) in probe._PATHS:
        want[start:end, slice(*prefix)] = True
        want[start:end, start:end] = np.tri(end - start, dtype=bool)
    np.testing.assert_array_equal(seen, want)
    np.testing.assert_array_equal(probe._PATHS[-1][1][1], (want.sum(0) > 1).nonzero()[0][-1] + 2)
