"""Writes to places that are chosen on the device, and the rule that all programs keep for them."""

import re

import jax
import jax.numpy as jnp
import pytest

from stair_jax import ops
from stair_jax.model import transformer
from tests.support import engines, loops, scripted

SCATTER = re.compile(
    r"scatter_dims_to_operand_dims = \[([\d, ]*)\].*?unique_indices = (true|false)", re.DOTALL
)


def test_chosen_places_stay_and_the_others_are_out_of_range_and_all_different():
    chosen = jnp.array([[True, False, True], [False, False, True]])
    at = ops.or_beyond(chosen, jnp.array([[4, 1, 0], [2, 2, 3]]), 5)
    assert at[chosen].tolist() == [4, 0, 3]
    rest = at[~chosen].tolist()
    assert min(rest) >= 5
    assert len(set(rest)) == 3
    x = jnp.zeros(5).at[at].set(jnp.arange(1.0, 7).reshape(2, 3), **ops.SCATTER)
    assert x.tolist() == [3, 0, 0, 6, 1]


def test_a_place_behind_a_rows_last_is_not_the_next_rows_first():
    at = ops.or_beyond(jnp.array([False, True]), jnp.zeros(2, jnp.int32), 3)
    x = jnp.zeros((2, 3), jnp.int32).at[jnp.arange(2), at].add(7, **ops.SCATTER)
    assert x.tolist() == [[0, 0, 0], [7, 0, 0]]


def decode(**change):
    params = transformer.init(engines.SPEC, jax.random.key(0))
    engine = engines.make(params, **change)
    results = engine.generate(
        [engines.ask(engine, ids, n) for n, ids in enumerate(engines.PROMPTS)]
    )
    engine.generate([engines.ask(engine, results[3].prefix.ids[:20], "again")])


RUNS = {
    "views": lambda folder: decode(attention="views"),
    "paged": lambda folder: decode(attention="xla", share_prefix="on"),
    "search": lambda folder: scripted.run(scripted.RandomScript(0), scripted.search_config()),
    "training": lambda folder: loops.fit(folder),
}
AT_LEAST = {"views": 10, "paged": 10, "search": 8, "training": 0}  # scatters in several dimensions


@pytest.mark.parametrize("run", RUNS)
def test_scatters_in_several_dimensions_promise_that_places_differ(run, tmp_path):
    """Where they do not, a GPU under `deterministic` loses writes; see `ops.or_beyond`."""
    jax.clear_caches()
    ir = tmp_path / "ir"
    jax.config.update("jax_dump_ir_to", str(ir))
    try:
        RUNS[run](tmp_path)
    finally:
        jax.config.update("jax_dump_ir_to", "")
    texts = [path.read_text() for path in ir.iterdir()]
    found = [pair for text in texts for pair in SCATTER.findall(text)]
    assert found
    several = [unique for dims, unique in found if "," in dims]
    assert len(several) >= AT_LEAST[run]
    assert set(several) <= {"true"}
