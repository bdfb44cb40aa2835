"""How far apart two arrays may lie where every element is a sum: gradients, moments, products.

The rounding of a sum is that of its largest terms, and so of the array's largest element, however
small the sum itself came out. `rtol` and `atol` of an element measure the wrong thing: an element
that nearly cancels is bounded by `atol` alone, which knows no scale. Gradients of 15 with one such
element passed on one CPU and failed on the next, whose vector instructions add in another order.
"""

import jax
import numpy as np

GRADIENT = 5e-5
"""Of the largest element. Measured: 1e-6 to 7e-6, by AVX-512, AVX2, AVX and SSE4.2 alike."""


def assert_sums_close(got, want, tolerance=GRADIENT, name=""):
    """Asserts that no element is off by more than `tolerance` times the largest of `want`."""
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    assert got.shape == want.shape, f"{name}: {got.shape} is not {want.shape}"
    apart, size = np.abs(got - want).max(initial=0), np.abs(want).max(initial=0)
    assert apart <= tolerance * size, (  # a nan is not
        f"{name}: {apart:.3g} apart is {apart / max(size, 1e-300):.3g} of the largest, "
        f"{size:.3g}; at most {tolerance:.3g}"
    )


def assert_trees_close(got, want, tolerance=GRADIENT):
    """Asserts that the arrays of two trees of one structure are close, each by its own largest."""
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for (path, x), y in zip(jax.tree.leaves_with_path(got), jax.tree.leaves(want), strict=True):
        assert_sums_close(x, y, tolerance, jax.tree_util.keystr(path))
