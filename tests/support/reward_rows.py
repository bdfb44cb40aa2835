"""Rows that a reward model learns from."""

from stair_jax.data.examples import ValuedExample
from stair_jax.records import Comparison
from tests.support.codecs import STEP_END

ROW = ValuedExample(
    id="v",
    prompt=(5, 6),
    response=(7, 8, 9),
    reads=(2, 4),
    targets=(0.25, 1.0),
    weights=(1.0, 3.0),
    depths=(1, 2),
)
COMPARISON = Comparison(
    id="c",
    question="why",
    type="safety",
    better=(7, STEP_END, 8, STEP_END),
    worse=(9, STEP_END),
    better_value=1.0,
    worse_value=-1.0,
    depth=2,
)
