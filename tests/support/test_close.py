"""What the bound on sums lets pass, and what it does not."""

import numpy as np
import pytest

from tests.support.close import GRADIENT, assert_sums_close, assert_trees_close

SUMS = np.array([[15.0, -3.0, 1e-6], [0.25, 0.0, -7.0]])


def test_rounding_of_the_largest_passes_on_an_element_that_cancels():
    off = SUMS + np.array([[0, 0, 2.7e-5], [0, 0, 0]])  # as one CPU and the next were
    with pytest.raises(AssertionError):
        np.testing.assert_allclose(off, SUMS, rtol=1e-5, atol=1e-5)
    assert_sums_close(off, SUMS)


WRONG = {
    "scale": SUMS * 1.001,
    "sign": -SUMS,
    "transposed": SUMS.T,
    "a term left out": np.where(SUMS == 0.25, 0, SUMS),
    "one element": SUMS + np.eye(2, 3) * 15 * GRADIENT * 1.1,
    "not a number": np.where(SUMS == 0.25, np.nan, SUMS),
    "a row": SUMS[:1],
}


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_what_is_wrong_does_not_pass(wrong):
    with pytest.raises(AssertionError):
        assert_sums_close(wrong, SUMS)


def test_zeros_are_close_to_zeros_only():
    assert_sums_close(np.zeros(3), np.zeros(3))
    with pytest.raises(AssertionError):
        assert_sums_close(np.full(3, 1e-12), np.zeros(3))


def test_every_array_of_a_tree_has_its_own_scale():
    tree = {"wide": SUMS, "small": SUMS * 1e-4}
    assert_trees_close(tree, tree)
    with pytest.raises(AssertionError, match="small"):
        assert_trees_close(tree | {"small": SUMS * 1.001e-4}, tree)
    with pytest.raises(AssertionError):
        assert_trees_close({"wide": SUMS}, tree)
