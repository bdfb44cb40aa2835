"""The steps of `benchmarks.gpu` at toy sizes."""

import json
import os
import pathlib
import subprocess
import sys
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import gpu, random_search, roofline
from benchmarks.on_gpu import child, engine, kernels, machine, sizes, training
from benchmarks.on_gpu.child import Job, Wrong
from stair_jax import ops

ROOT = pathlib.Path(__file__).parents[2]
pytestmark = pytest.mark.slow  # a minute and a half of compiling


STEPS = {
    name.split(".")[-1]: name
    for step in gpu.STEPS
    for some in step.rounds
    for name in some
    if not name.endswith(("fresh", "large_search", "plans", "peers:training", "generate"))
}
SHORT = ("training:ours",)  # of which only the first kind of step runs here
PEERS = [name for name in STEPS if name.startswith("peers:")]


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """Returns what each step's functions come to at toy sizes, run here in their order."""
    folder, found = tmp_path_factory.mktemp("steps"), {}
    for name, function in STEPS.items():
        shared = folder / ("engine" if name.startswith(("engine:", "peers:right")) else "other")
        shared.mkdir(exist_ok=True)
        job = Job(
            tiny=True,
            share=1.0,
            attention="auto",
            seconds=1.0 if name in SHORT else 9999.0,
            folder=str(shared),
            known={},
            result=str(folder / "result.json"),
        )
        with mock.patch.dict(os.environ):  # a step may set flags of XLA for its own process
            child.run(function, job)
        found[name] = json.loads((folder / "result.json").read_text())
    return found


@pytest.mark.parametrize("name", STEPS)
def test_a_step_passes(done, name):
    if name in PEERS:
        pytest.importorskip("torch")
    assert done[name].get("error", "") == ""
    assert done[name]["done"]
    assert "left_out" not in done[name]["figures"] or name in (*PEERS, *SHORT)


def test_what_is_right_is_found_right(done):
    kernel = done["kernels:right"]["figures"]
    own = done["engine:right"]["figures"] | done["engine:trees"]["figures"]
    assert 1e-5 < kernel["kernel_error"] < kernels.TOLERANCE  # bfloat16
    assert (kernel["top_k_equal"], kernel["draws_equal"], kernel["kernel_ok"]) == (1, 1, 1)
    assert (own["trees_equal_in_flight"], own["engine_greedy_is_likeliest"]) == (1, 1)
    assert done["engine:again"]["figures"]["trees_equal_restarted"] == 1


def test_the_speeds_are_consistent(done):
    loads = done["engine:decode"]["figures"]["decode"]
    assert [*loads] == [
        "8 x 30",
        "8 x 30, all tokens",
        "8 x 30, siblings of 4",
        "2 x 30",
        "8 x 30, sharing off",
    ]
    for label, load in loads.items():
        rows = int(label.split(" ")[0])
        assert load["tokens_per_s"] == pytest.approx(1e3 * rows / load["step_ms"])
        assert load["device_ms"] < load["step_ms"]
        assert load["share"] > 0
    trained = done["training:ours"]["figures"]
    assert [*trained["training"]] == ["sft remat products"]
    losses = trained["training"]["sft remat products"]["losses"]
    assert losses[0] > losses[2]  # it learns
    assert sum("no time" in line for line in trained["left_out"]) == 4
    assert done["engine:search"]["figures"]["trees"] == sizes.TINY.search.trees


def test_the_other_products_are_other_products():
    """Their gradients multiply float32, or nothing would be compared."""
    x, w = jnp.ones((2, 3), jnp.bfloat16), jnp.ones((3, 5), jnp.bfloat16)

    def float32_products(matmul):
        def loss(x, w):
            return matmul(x, w, out=jnp.bfloat16).astype(jnp.float32).sum()

        text = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(x, w).as_text()
        dots = [line for line in text.splitlines() if "dot_general" in line]
        assert len(dots) >= 2
        return sum("xf32>" in line.rsplit(" : ", 1)[1].split("->")[0] for line in dots)

    assert float32_products(ops.matmul) == 0
    assert float32_products(training._float32_matmul) == 2


@pytest.mark.parity
def test_transformers_agrees_until_a_weight_is_another(done, tmp_path):
    pytest.importorskip("torch")
    from benchmarks.on_gpu import peers

    assert done["peers:right"]["figures"]["greedy_tokens_equal"] == 1
    assert done["peers:right"]["figures"]["logits_apart"] < 1e-4
    (tmp_path / "engine").mkdir()
    job = Job(True, 1.0, "auto", 99.0, str(tmp_path / "engine"), {}, result=str(tmp_path / "r"))
    with mock.patch.dict(os.environ):
        engine.right(job)
    with np.load(job.path / "right.npz") as file:
        data = {name: file[name] for name in file}
    data["params.layers.w_up"] = data["params.layers.w_up"] * 1.1
    np.savez(job.path / "right.npz", **data)
    with pytest.raises(Wrong, match="logits"):
        peers.right(job)


def test_trees_of_another_process_that_differ_are_wrong(done, tmp_path):
    job = Job(True, 1.0, "auto", 99.0, str(tmp_path), {}, result=str(tmp_path / "r"))
    (tmp_path / "digest").write_text("another")
    with pytest.raises(Wrong, match="first process"):
        engine.again(job)
    assert job.figures["trees_equal_restarted"] == 0


def test_full_sizes_need_a_gpu(tmp_path):
    job = Job(False, 1.0, "auto", 9.0, str(tmp_path), {}, result=str(tmp_path / "r"))
    with pytest.raises(Wrong, match="no GPU"):
        machine.facts(job)


def test_memory_that_was_too_little_takes_half_the_slots():
    whole, half = (Job(True, x, "xla", 9.0, ".", {}) for x in (1.0, 0.5))
    assert engine.config_of(whole, sizes.TINY.engine).slots == sizes.TINY.engine.slots
    assert engine.config_of(half, sizes.TINY.engine).slots == sizes.TINY.engine.slots // 2
    assert engine.config_of(half, sizes.TINY.engine).attention == "xla"
    assert engine.pool_of(half, sizes.TINY.engine) * 2 == engine.pool_of(whole, sizes.TINY.engine)


def test_large_search_finds_the_programs_of_decode():
    """The same shapes, so that the compilation cache serves it."""
    spec = roofline.SPECS[sizes.FULL.engine.size]
    assert len(engine._stops(spec)) == len(random_search.Ids(spec, sizes.FULL.large_search).stops)
    shape = sizes.FULL.large_search
    assert shape.prompt + 7 * 3 * shape.step + 3 * shape.rollout > sizes.FULL.engine.context
    assert -(-sizes.FULL.engine.context // sizes.FULL.engine.page) == 16  # one width of tables


def test_all_of_it_runs_at_toy_sizes(tmp_path):
    out = tmp_path / "o.json"
    command = [sys.executable, "-m", "benchmarks.gpu", "--tiny", "--minutes=30", "--out", str(out)]
    subprocess.run(command, cwd=ROOT, check=True)
    found = json.loads(out.read_text())
    assert (found["failed"], found["left_out"]) == ([], [])
    assert [*found["steps"]] == [step.name for step in gpu.STEPS]
    for name in ("kernel_error", "draws_equal", "trees_equal"):
        assert found["claims"][name]["holds"]
    kinds = found["steps"]["training"]["figures"]["training"]
    assert [*kinds] == [
        "sft remat products",
        "dpo remat products",
        "sft remat none",
        "sft larger head chunk",
        "sft remat full",
        "sft remat full, float32 products",
    ]
    assert found["steps"]["training"]["figures"]["losses_apart"] < 1e-2
    assert len(found["steps"]["plans"]["figures"]["plans"]) == 1 + 2
    told = {name for _, *some in gpu.LINES for name in some}
    of_peers = {name for name in told if "torch" in name or "generate" in name}
    of_peers |= {"engine logits_apart", "engine greedy_tokens_equal"}
    missing = {name for name in told if gpu.Found(found)(name) is None}
    assert missing <= {"training sft_mfu", *of_peers}  # no peak of a CPU is known
