"""The GPU's benchmark: what it imports, its parts at toy sizes, and (slow) all of it."""

import ast
import dataclasses
import json
import pathlib
import sys
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import gpu, kernel_speed, random_search, roofline
from benchmarks.kernel_speed import Case
from benchmarks.random_search import Shape
from benchmarks.roofline import Ceilings
from stair_jax.engine.request import GREEDY, EngineLike, Prefix, Request
from stair_jax.search.growth import CodecLike

ROOT = pathlib.Path(__file__).parents[1]
ALLOWED = {"jax", "flax", "numpy", "einops", "ml_collections", "jaxtyping"}
OURS = {"benchmarks", "stair_jax"}
LIMITS = Ceilings(bytes_per_s=1e9, flops_per_s=1e11)
SPEC = dataclasses.replace(
    roofline.SPECS["miniature"], L=2, D=16, N=4, K=2, H=8, F=12, V=60, vocab=60
)
SHAPE = Shape(trees=5, in_flight=2, iterations=4, prompt=9, step=4, rollout=6)


def file_of(module):
    """Returns the file of one of our modules; None where the name is not a module."""
    parts = module.split(".")
    if parts[:2] == ["stair_jax", "kernels"] and len(parts) == 3:
        parts = ["kernels", parts[2]]
    path = ROOT.joinpath(*parts)
    found = [file for file in (path / "__init__.py", path.with_suffix(".py")) if file.is_file()]
    return found[0] if found else None


def runs(tree):
    """Yields the nodes of a syntax tree, without what is there for type checkers alone."""
    yield tree
    if not (isinstance(tree, ast.If) and "TYPE_CHECKING" in ast.unparse(tree.test)):
        for child in ast.iter_child_nodes(tree):
            yield from runs(child)


def names_in(source):
    """Yields every dotted name that a source imports, also within functions."""
    for node in runs(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            yield str(node.module)
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def graph(module):
    """Returns our modules that `module` comes to import, and the names of other packages."""
    ours, others, left = set(), set(), [module]
    while left:
        name = left.pop()
        parents = [".".join(name.split(".")[:i]) for i in range(1, name.count(".") + 2)]
        for one in parents:
            file = file_of(one)
            if one in ours or file is None:
                continue
            ours.add(one)
            for imported in names_in(file.read_text()):
                if imported.split(".")[0] in OURS:
                    left.append(imported)
                else:
                    others.add(imported.split(".")[0])
    return ours, others - set(sys.stdlib_module_names)


def test_every_import_that_runs_is_seen():
    source = """
if TYPE_CHECKING:
    import torch
if True:
    import rich.table
def f():
    from absl import app
"""
    assert [*names_in(source)] == ["rich.table", "absl", "absl.app"]


def test_the_graph_of_imports_is_followed():
    ours, others = graph("benchmarks.search_vs_transformers")
    assert {"stair_jax.io.hf", "stair_jax.stages.policies", "benchmarks.harness"} <= ours
    assert {"torch", "transformers", "safetensors", "jax"} <= others


def test_a_bare_gpu_machine_has_what_the_gpu_benchmark_imports():
    ours, others = graph("benchmarks.gpu")
    assert {"stair_jax.engine.engine", "stair_jax.kernels.paged_attention"} <= ours
    assert {"stair_jax.search.driver", "stair_jax.kernels.top_k"} <= ours
    assert others <= ALLOWED


# Kernels


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_kernel_is_held_against_attention_in_float32(dtype):
    case = Case(7, 4, 16, 21, K=2, Z=8)
    found = kernel_speed.attention(case, LIMITS, dtype, interpret=True)
    assert found["kernel_error"] < gpu.TOLERANCE[dtype]
    assert found["xla_error"] < gpu.TOLERANCE[dtype]
    assert (found["kernel_error"] > 1e-5) == (dtype == "bfloat16")
    assert found["kernel_us"] > 0
    assert found["speedup"] == pytest.approx(found["xla_us"] / found["kernel_us"])
    size = 2 * 7 * 2 * 21 * 16 * jnp.dtype(dtype).itemsize
    assert found["xla_share"] == pytest.approx(size / 1e9 / found["xla_us"] * 1e6)


def test_a_kernel_that_errs_is_found_out(monkeypatch):
    honest = kernel_speed.paged.paged_attention

    def off_by_one(q, k, v, layer, table, length, **how):
        return honest(q, k, v, layer, table, jnp.maximum(length - 1, 0), **how)

    monkeypatch.setattr(kernel_speed.paged, "paged_attention", off_by_one)
    case = Case(2, 2, 16, 9, K=1, Z=8)
    assert kernel_speed.attention(case, LIMITS, "float32", interpret=True)["kernel_error"] > 0.1


def test_lengths_to_find_errors_with_fit_the_case():
    case = Case(13, 4, 16, 21, K=2, Z=8)
    lengths = np.asarray(kernel_speed._lengths(case)).tolist()
    assert {0, 1, 8, 9, 20, 21} == {*lengths}


def test_sampler_top_k_and_copies_are_measured():
    found = kernel_speed.largest(3, 100, 5)
    assert (found["equal"], found["k"]) == (1, 5)
    drawn = kernel_speed.sampler(3, 100, LIMITS)
    assert drawn["drawn_share"] == pytest.approx(4 * 3 * 100 / 1e9 / drawn["drawn_us"] * 1e6)
    assert drawn["greedy_us"] > 0
    copied = kernel_speed.copies((2, 9, 2, 4, 8), 4, "float32", LIMITS)
    moved = 4 * 4 * 2 * 2 * 4 * 8 * 4  # k and v, read and written
    assert copied["share"] == pytest.approx(moved / 1e9 / copied["us"] * 1e6)


def test_a_copy_that_errs_is_found_out(monkeypatch):
    monkeypatch.setattr(kernel_speed.decode, "copy_pages", lambda pool, source, target: pool)
    with pytest.raises(RuntimeError, match="differs from its source"):
        kernel_speed.copies((2, 9, 2, 4, 8), 4, "float32", LIMITS)


# Search with random weights


def test_random_stops_give_the_lengths_that_were_asked_for():
    shape = dataclasses.replace(SHAPE, step=10, rollout=40)
    codec = random_search.Ids(dataclasses.replace(SPEC, V=4000, vocab=4000), shape)
    assert isinstance(codec, CodecLike)
    assert len(codec.stops["end"]) == 100
    assert len(codec.stops["step"]) == 500
    assert codec.stops["end"] < codec.stops["step"]
    assert codec.prompt_ids("3") == codec.prompt_ids("3") != codec.prompt_ids("4")
    assert codec.decode([5, 6]) != codec.decode([56])


def test_the_search_is_the_papers_in_smaller():
    config = random_search.search_config(SHAPE)
    assert (config.num_children, config.c, config.max_depth, config.top_k) == (4, 1.5, 7, 50)
    assert (config.iterations, config.max_step_tokens, config.max_rollout_tokens) == (4, 12, 18)


def test_a_hasty_engine_grants_one_token():
    seen = []
    inner: Any = SimpleNamespace(
        submit=seen.append, step=print, collect=print, release=print, cancel=print, extend=print,
        counters={}, idle=True, hungry=True,
    )  # fmt: skip
    hasty = random_search.Hasty(inner, 1)
    assert isinstance(hasty, EngineLike)
    request = Request(id=1, prefix=Prefix([1]), key=(1,), stop="step", max_tokens=9,
                      sampling=GREEDY)  # fmt: skip
    hasty.submit(request)
    assert seen == [dataclasses.replace(request, max_tokens=1)]


def test_the_mean_context_is_that_of_all_requests():
    tree: Any = SimpleNamespace(counters={"expansions": 2, "rollouts": 7})
    grown: Any = SimpleNamespace(trees=[tree, tree], counters={"reused": 3000, "delivered": 300})
    config = random_search.search_config(SHAPE)  # 2 x (2 x 4 + 7) requests
    assert random_search.mean_context(grown, config) == 3000 / 30 + 300 / 30 / 2


# The whole


def run(tmp_path, *flags):
    """Returns the exit status and what the file says."""
    out = tmp_path / "o.json"
    with pytest.raises(SystemExit) as end:
        gpu.main(["--tiny", "--out", str(out), *flags])
    return end.value.code, json.loads(out.read_text())


def test_a_step_that_fails_is_told_and_the_others_go_on(tmp_path, monkeypatch, capsys):
    def fail(message):
        raise jax.errors.JaxRuntimeError(message)

    steps = [
        ("engine", "8b, 1 x 9", lambda: fail("RESOURCE_EXHAUSTED: out of memory")),
        ("engine", "8b, 2 x 9", lambda: fail("INTERNAL: no such kernel")),
        ("sampler", "3 x 9", lambda: {"drawn_us": 7.0}),
    ]
    monkeypatch.setattr(gpu, "jobs", lambda *_: iter(steps))
    code, found = run(tmp_path)
    assert code == 1
    assert found["left_out"] == ["engine 8b, 1 x 9: out of memory"]
    assert found["failed"] == [
        "engine 8b, 2 x 9: JaxRuntimeError: INTERNAL: no such kernel"
    ]  # fmt: skip
    assert found["sampler"] == [{"label": "3 x 9", "drawn_us": 7.0}]
    printed = capsys.readouterr()
    assert "FAILED: engine 8b, 2 x 9" in printed.out
    assert "Traceback" in printed.err


def test_no_step_is_begun_once_the_time_is_over(tmp_path):
    code, found = run(tmp_path, "--minutes=0")
    assert code == 0
    assert len(found["left_out"]) == len([*gpu.jobs(gpu.TINY, LIMITS, "float32")])
    assert all(line.endswith("the time was over") for line in found["left_out"])
    assert found["ceilings"]["bytes_per_s"] > 0
    assert found["claims"] == {}


def test_claims_are_made_of_the_steps_that_ran():
    engine = [
        {"label": label, "decode_share": share}
        for label, share in (("8b, 256 x 600, family 1", 0.7), ("8b, 64 x 600, family 1", 0.9))
    ]
    search = {"busy_slots": 0.93, "computed_per_unique_token": 1.02, "recompiles": 0.0}
    figures = {
        "settings": {"dtype": "bfloat16"}, "engine": engine,
        "attention": [{"kernel_error": 0.001}, {"kernel_error": 0.03}],
        "search": [search | {"label": "8b, 128 trees"}],
    }  # fmt: skip
    claims = gpu.claims_of(figures)
    assert {name: (c.value, c.op, c.target) for name, c in claims.items()} == {
        "kernel_error": (0.03, "<=", 0.02),
        "decode_share_8b_256": (0.7, ">=", 0.60),
        "busy_slots_8b": (0.93, ">=", 0.90),
        "computed_per_unique_token_8b": (1.02, "<=", 1.05),
        "recompiles_8b": (0.0, "==", 0),
    }


def test_the_label_of_a_claim_is_one_of_the_plans():
    labels = [label for _, label, _ in gpu.jobs(gpu.FULL, LIMITS, "bfloat16")]
    assert "8b, 256 x 600, family 1" in labels
    assert len({*labels}) == len(labels) - 2  # top-k and sampler are named alike


@pytest.mark.slow
def test_all_of_it_runs_at_toy_sizes(tmp_path, capsys):
    code, found = run(tmp_path)
    assert (code, found["failed"], found["left_out"]) == (0, [], [])
    assert found["claims"]["kernel_error"]["holds"]
    assert found["claims"]["recompiles_miniature"]["holds"]
    sections = ("attention", "top_k", "sampler", "page_copies", "engine", "search")
    assert [len(found[name]) for name in sections] == [2, 2, 2, 1, 4, 1]
    for row in found["engine"]:
        assert row["decode_share"] == pytest.approx(row["decode_bound_ms"] / row["step_ms"])
        assert row["device_step_ms"] < row["step_ms"]
    assert found["search"][0]["trees"] == gpu.TINY.search.trees
    assert found["search"][0]["share"] > 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in sections)
