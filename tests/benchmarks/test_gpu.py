"""The GPU benchmark: what it does where a step fails, what its parts find out."""

import dataclasses
import json
import math
import pathlib
import subprocess
import sys
import textwrap
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import gpu, random_search, roofline
from benchmarks.gpu import Step
from benchmarks.on_gpu import kernels, profile, sizes
from benchmarks.on_gpu.sizes import Case, Shape
from stair_jax import config as config_lib
from stair_jax.config.schema import RewardConfig, SearchConfig
from stair_jax.engine.request import GREEDY, EngineLike, Prefix, Request
from stair_jax.kernels import paged_attention as paged
from stair_jax.model import transformer
from stair_jax.search.growth import SearchCodec

ROOT = pathlib.Path(__file__).parents[2]
SPEC = roofline.SPECS["least"]
SHAPE = Shape(trees=5, in_flight=2, iterations=4, prompt=9, step=4, rollout=6)


# Steps that fail, and the time

FAKES = """
import os, pathlib, time
from benchmarks.on_gpu.child import LeftOut, Wrong

def fine(job):
    job.report(attention=job.attention, share=job.share, flags=job.flags, known=job.known)

def fail(job):
    job.report(before=1.5)
    raise RuntimeError("INTERNAL: no such thing")

def roomy(job):
    if job.share == 1:
        raise MemoryError("RESOURCE_EXHAUSTED: out of memory while allocating")
    job.report(share=job.share)

def greedy(job):
    raise MemoryError("RESOURCE_EXHAUSTED: out of memory while allocating")

def picky(job):
    if not job.flags:
        raise RuntimeError("INTERNAL: No supported config found for HLO gemm_fusion_dot")
    job.report(flags=job.flags)

def crash(job):
    job.report(before=2.5)
    if job.attention == "auto":
        os.kill(os.getpid(), 11)

def hang(job):
    job.report(before=3.5)
    time.sleep(60)

def broken_kernel(job):
    job.report(kernel_ok=0.0, kernel_error=7.0)
    raise Wrong("paged_attention: error 7")

def good_kernel(job):
    job.report(kernel_ok=1.0, kernel_error=0.001)

def bare(job):
    raise LeftOut("no torch")

def ceilings(job):
    job.report(copy_GB_s=2.0, label="x")

def meet(job, me, other):
    folder = pathlib.Path(os.environ["MEETING"])
    (folder / me).touch()
    until = time.monotonic() + 20
    while not (folder / other).exists():
        assert time.monotonic() < until, "alone"
        time.sleep(0.02)

def first(job):
    meet(job, "first", "second")

def second(job):
    meet(job, "second", "first")
"""


@pytest.fixture
def steps(tmp_path, monkeypatch):
    """Returns a function that runs steps of fake functions: (exit status, what the file says)."""
    (tmp_path / "fakes.py").write_text(FAKES)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("MEETING", str(tmp_path))

    def run(*fakes, flags=("--tiny",)):
        named = [
            Step(
                **{"seconds": 5, "rounds": ((f"fakes:{f['of']}",),)}
                | {k: v for k, v in f.items() if k != "of"}
            )
            for f in fakes
        ]
        monkeypatch.setattr(gpu, "STEPS", tuple(named))
        out = tmp_path / "o.json"
        with pytest.raises(SystemExit) as end:
            gpu.main(["--out", str(out), *flags])
        return end.value.code, json.loads(out.read_text())

    return run


def test_a_step_that_fails_is_told_and_the_others_go_on(steps, capfd):
    code, found = steps({"name": "a", "of": "fail"}, {"name": "b", "of": "fine"})
    assert code == 1
    assert found["failed"] == ["a"]
    assert found["steps"]["a"]["errors"] == ["fakes:fail: RuntimeError: INTERNAL: no such thing"]
    assert found["steps"]["a"]["figures"] == {"before": 1.5}
    assert found["steps"]["b"]["ok"]
    printed = capfd.readouterr()
    assert "a FAIL" in printed.out
    assert "b ok" in printed.out
    assert "Traceback" in printed.err


def test_all_is_well_where_nothing_fails(steps):
    code, found = steps({"name": "a", "of": "fine"})
    assert (code, found["failed"], found["left_out"]) == (0, [], [])
    assert found["steps"]["a"]["figures"] == {
        "attention": "auto",
        "share": 1.0,
        "flags": "",
        "known": {},
    }


def test_what_does_not_fit_is_tried_at_half_the_size(steps, capfd):
    code, found = steps({"name": "a", "of": "roomy"}, {"name": "b", "of": "greedy"})
    assert code == 1
    assert found["failed"] == ["b"]
    assert found["steps"]["a"]["figures"] == {"share": 0.5}
    assert "half of the sizes" in found["steps"]["a"]["notes"][0]
    assert "half of the sizes" in capfd.readouterr().out


def test_what_does_not_compile_is_tried_without_triton_and_so_is_the_rest(steps):
    code, found = steps({"name": "a", "of": "picky"}, {"name": "b", "of": "fine"})
    assert code == 0
    assert found["steps"]["a"]["figures"] == {"flags": gpu.TRITON_OFF}
    assert found["steps"]["b"]["figures"]["flags"] == gpu.TRITON_OFF


def test_a_crash_costs_one_step(steps):
    code, found = steps({"name": "a", "of": "crash"}, {"name": "b", "of": "fine"})
    assert code == 0  # without the kernel it does not crash
    assert found["steps"]["a"]["figures"] == {"before": 2.5}
    assert found["steps"]["b"]["figures"]["attention"] == "xla"


def test_where_the_kernel_errs_all_later_steps_do_without(steps, capfd):
    code, found = steps(
        {"name": "before", "of": "fine"},
        {"name": "kernels", "of": "broken_kernel"},
        {"name": "after", "of": "fine"},
    )
    assert (code, found["failed"]) == (1, ["kernels"])
    assert found["steps"]["before"]["figures"]["attention"] == "auto"
    assert found["steps"]["after"]["figures"]["attention"] == "xla"
    assert "THE KERNEL FAILED: attention=xla" in capfd.readouterr().out
    _, found = steps({"name": "kernels", "of": "good_kernel"}, {"name": "after", "of": "fine"})
    assert found["steps"]["after"]["figures"]["attention"] == "auto"


def test_a_kernel_that_takes_its_process_along_is_not_used_again(steps):
    code, found = steps(
        {"name": "kernels", "of": "hang"},
        {"name": "after", "of": "fine"},
        flags=("--tiny", "--minutes=0.12"),
    )
    assert code == 1
    assert "after" not in found["steps"]
    assert "THE KERNEL FAILED" in found["steps"]["kernels"]["notes"][0]


def test_a_step_that_hangs_is_ended_and_keeps_what_it_has_told(steps, monkeypatch):
    monkeypatch.setattr(gpu, "LEAST", 0)
    code, found = steps(
        {"name": "a", "of": "hang", "seconds": 6}, {"name": "b", "of": "fine"}, flags=()
    )
    assert code == 1
    assert found["steps"]["a"]["figures"] == {"before": 3.5}
    assert "its time was over" in found["steps"]["a"]["errors"][0]
    assert 6 < found["steps"]["a"]["seconds"] < 59
    assert found["steps"]["b"]["ok"]


def test_without_the_peers_libraries_a_step_passes_and_says_so(steps):
    code, found = steps({"name": "a", "of": "bare"})
    assert code == 0
    assert found["steps"]["a"]["ok"]
    assert found["steps"]["a"]["notes"] == ["no torch"]


def test_steps_that_are_not_timed_run_side_by_side(steps):
    code, found = steps(
        {"name": "a", "of": "first", "alone": False}, {"name": "b", "of": "second", "alone": False}
    )
    assert (code, found["failed"]) == (0, [])
    group = [
        Step("a", 1, (), alone=False),
        Step("b", 1, ()),
        Step("c", 1, (), alone=False),
        Step("d", 1, (), alone=False),
    ]
    assert [[s.name for s in some] for some in gpu._groups(group)] == [["a"], ["b"], ["c", "d"]]


def test_later_steps_know_the_ceilings(steps):
    _, found = steps({"name": "ceilings", "of": "ceilings"}, {"name": "b", "of": "fine"})
    assert found["steps"]["b"]["figures"]["known"] == {"copy_GB_s": 2.0}


def test_without_a_device_there_is_nothing_to_do(steps):
    code, found = steps({"name": "facts", "of": "fail"}, {"name": "b", "of": "fine"})
    assert (code, [*found["steps"]]) == (1, ["facts"])


def test_what_may_take_longer_than_is_left_is_left_out(steps):
    code, found = steps(
        {"name": "a", "of": "fine", "seconds": 50},
        {"name": "b", "of": "fail", "seconds": 61},
        {"name": "c", "of": "fine", "seconds": 20},
        {"name": "d", "of": "fail", "least": 56},
        flags=("--tiny", "--minutes=1"),
    )
    assert code == 0
    assert [*found["steps"]] == ["a", "c"]
    assert [line.split(":")[0] for line in found["left_out"]] == ["b", "d"]


def test_a_minute_leaves_the_long_steps_out():
    over = [step.name for step in gpu.STEPS if step.seconds + step.least > 60]
    assert over == ["decode", "training", "search", "large_search"]
    assert sum(step.seconds for step in gpu.STEPS[:-1]) <= 60 * gpu.MINUTES


def test_only_what_is_named_runs_and_what_names_the_card(steps):
    fakes = [{"name": name, "of": "fine"} for name in ("facts", "a", "b", "c")]
    _, found = steps(*fakes, flags=("--tiny", "--only", "c, a"))
    assert [*found["steps"]] == ["facts", "a", "c"]


def test_an_unknown_step_is_one_line(tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        gpu.main(["--out", str(tmp_path / "o.json"), "--only", "decode,prefil"])
    assert end.value.code == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert "--only: ['prefil'] not in ['facts', 'ceilings'," in line


@pytest.mark.parametrize(
    ("error", "way"),
    [
        ("XlaRuntimeError: RESOURCE_EXHAUSTED: Out of memory allocating", "half"),
        ("OutOfMemoryError: CUDA out of memory. Tried to allocate", "half"),
        ("INTERNAL: No supported config found for HLO gemm_fusion_dot", "flags"),
        ("INTERNAL: Failed to compile Triton module", "kernel"),
        ("ended by signal 11 (SIGSEGV)", "kernel"),
        ("ValueError: no such thing", ""),
    ],
)
def test_what_may_help(error, way):
    assert gpu.way_around(error) == way


def figures(**steps):
    told = {name: {"figures": found, "ok": True} for name, found in steps.items()}
    return {"machine": {"device_kind": "NVIDIA H100"}, "steps": told, "failed": [], "left_out": []}


def test_claims_are_made_of_the_figures_that_are_there():
    assert gpu.claims_of(figures()) == {}
    found = figures(
        kernels={"kernel_error": 0.03, "draws_equal": 1.0},
        engine={"trees_equal_in_flight": 1.0, "trees_equal_restarted": 0.0},
        decode={"decode_share": 0.7},
        prefill={"extend_fresh_mfu": 0.5},
        training={"sft_tokens_per_s": 30.0, "torch_sft_tokens_per_s": 20.0, "sft_mfu": None},
        search={"tokens_per_s": 40.0, "generate_tokens_per_s": 10.0, "host_share": 0.2},
    )
    claims = {name: (c.value, c.op, c.target) for name, c in gpu.claims_of(found).items()}
    assert claims == {
        "kernel_error": (0.03, "<=", 0.02),
        "draws_equal": (1.0, "==", 1),
        "trees_equal": (0.0, "==", 1),
        "decode_share": (0.7, ">=", 0.6),
        "extend_mfu": (0.5, ">=", 0.45),
        "sft_vs_torch": (1.5, ">=", 1),
        "search_vs_generate": (4.0, ">=", 3),
        "host_share": (0.2, "<=", 0.15),
    }
    del found["steps"]["engine"]["figures"]["trees_equal_restarted"]
    assert "trees_equal" not in gpu.claims_of(found)


def test_the_table_has_25_lines_at_most():
    names = [name for _, *some in gpu.LINES for name in some]
    steps: dict[str, Any] = {}
    for name in names:
        step, figure = name.split(" ")
        steps.setdefault(step, {})[figure] = 1.25
    found = figures(**steps) | {"left_out": ["x: 1 s"], "failed": ["y"]}
    lines = gpu.table(found).strip().splitlines()
    assert len(lines) <= 25
    assert len(lines) == len(gpu.LINES) + 3
    assert sum(line.count("1.25") for line in lines) == len(names)
    assert len(gpu.table(figures()).strip().splitlines()) == 1


# Kernels

CASE = Case(7, 4, 16, 21, K=2, Z=8)


def interpreted(*args, **how):
    return paged.paged_attention(*args, **how, interpret=True)


def test_a_kernel_that_errs_is_found_out():
    def off_by_one(q, k, v, layer, table, length, **how):
        return interpreted(q, k, v, layer, table, jnp.maximum(length - 1, 0), **how)

    def other_layer(q, k, v, layer, table, length, **how):
        return interpreted(q, k, v, layer - 1, table, length, **how)

    assert kernels.error(CASE, "bfloat16", interpreted) < kernels.TOLERANCE
    assert kernels.error(CASE, "bfloat16", off_by_one) > 0.1
    assert kernels.error(CASE, "bfloat16", other_layer) > 0.1


def test_whoever_reads_what_nobody_owns_is_found_out():
    """The oracle itself multiplies it by 0, and 0 times NaN is NaN."""
    assert kernels.error(CASE, "bfloat16", paged.reference) == math.inf


def test_lengths_to_find_errors_with_fit_the_case():
    case = Case(13, 4, 16, 21, K=2, Z=8)
    lengths = kernels.lengths(case).tolist()
    assert {0, 1, 8, 9, 20, 21} <= {*lengths}
    assert len(lengths) == 13
    assert max(lengths) == 21
    owned = kernels._owned(case, kernels.pages(case, 1, "float32")["table"], kernels.lengths(case))
    assert owned.sum() == sum(lengths)


def test_a_top_k_that_errs_is_found_out(monkeypatch):
    assert kernels.top_k_equal(3, 700, 5)
    honest = kernels.top_k.exact_top_k

    def last_of_equals(x, k):
        top, at = honest(x[:, ::-1], k)
        return top, x.shape[1] - 1 - at

    monkeypatch.setattr(kernels.top_k, "exact_top_k", last_of_equals)
    assert not kernels.top_k_equal(3, 700, 5)


def test_draws_that_differ_are_counted(monkeypatch):
    assert kernels.draws_equal(4, 90, kernels.PAPER) == 1
    honest, calls = kernels.drawing, []

    def second_differs(how, rows, vocab):
        call = honest(how, rows, vocab)
        calls.append(how)
        return lambda x: call(x) + (len(calls) > 1) * (jnp.arange(rows) == 2)

    monkeypatch.setattr(kernels, "drawing", second_differs)
    assert kernels.draws_equal(4, 90, kernels.PAPER) == 0.75


# Weights and searches


def test_weights_are_of_the_scale_of_the_models_own():
    ours = roofline.weights(SPEC, "bfloat16")
    theirs = transformer.init(SPEC, jax.random.key(0))
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert (a.shape, a.dtype) == (b.shape, jnp.bfloat16)
        x, y = np.asarray(a, np.float32), np.asarray(b)
        if (y == 1).all():
            assert (x == 1).all()
        else:
            assert x.std() == pytest.approx(y.std(), rel=0.1)
            assert abs(x.mean()) < 0.1 * x.std()
    gate = np.asarray(ours["layers"]["w_gate"], np.float32)
    assert not np.array_equal(gate[0], gate[1])  # layers differ


def test_random_stops_give_the_lengths_that_were_asked_for():
    shape = dataclasses.replace(SHAPE, step=10, rollout=40)
    codec = random_search.Ids(dataclasses.replace(SPEC, V=4000, vocab=4000), shape)
    assert isinstance(codec, SearchCodec)
    assert len(codec.stops["end"]) == 100
    assert len(codec.stops["step"]) == 500
    assert codec.stops["end"] < codec.stops["step"]
    assert codec.prompt_ids("3") == codec.prompt_ids("3") != codec.prompt_ids("4")
    assert codec.prompt_ids("3") == sizes.prompt_ids(3, 4000, SHAPE.prompt)
    assert codec.decode([5, 6]) != codec.decode([56])


def test_the_search_is_the_papers_in_smaller():
    default = config_lib.default()
    config = random_search.search_config(SHAPE)
    own = {"iterations": 4, "trees_in_flight": 2, "max_step_tokens": 12, "max_rollout_tokens": 18}
    own |= {"first_answers": 0, "least_well_formed": 0.0}  # random weights have no format
    assert config == dataclasses.replace(SearchConfig.of(default.search), **own)
    assert RewardConfig.of(default.reward) == random_search.REWARD


def test_a_hasty_engine_grants_one_token():
    seen = []
    inner: Any = SimpleNamespace(
        submit=seen.append,
        step=print,
        collect=print,
        release=print,
        cancel=print,
        extend=print,
        counters={},
        idle=True,
        hungry=True,
    )
    hasty = random_search.Hasty(inner, 1)
    assert isinstance(hasty, EngineLike)
    request = Request(
        id=1, prefix=Prefix([1]), key=(1,), stop="step", max_tokens=9, sampling=GREEDY
    )
    hasty.submit(request)
    assert seen == [dataclasses.replace(request, max_tokens=1)]


def test_the_mean_context_is_that_of_all_requests():
    tree: Any = SimpleNamespace(counters={"expansions": 2, "rollouts": 7})
    grown: Any = SimpleNamespace(trees=[tree, tree], counters={"reused": 3000, "delivered": 300})
    config = random_search.search_config(SHAPE)  # 2 x (2 x 4 + 7) requests
    assert random_search.mean_context(grown, config) == 3000 / 30 + 300 / 30 / 2


def test_a_digest_tells_trees_apart_and_not_their_order():
    def tree(id, visits):
        node = SimpleNamespace(parent=-1, ids=(3,), visits=visits, value_sum=0.5, terminal=False)
        return SimpleNamespace(prompt=SimpleNamespace(id=id), nodes=[node])

    trees: Any = [tree("a", 1), tree("b", 2)]
    others: Any = [trees[0], tree("b", 3)]
    assert random_search.digest(trees) == random_search.digest(trees[::-1])
    assert random_search.digest(trees) != random_search.digest(others)


def test_the_operations_of_extending_are_counted():
    s = SPEC
    products = 2 * 3 * 5 * s.matrix_parameters(head=False)
    attention = 4 * s.L * s.N * s.H * 3 * sum(7 + i for i in range(1, 6))
    assert roofline.extend_flops(s, 3, 5, 7) == products + attention


def test_a_profile_counts_kernels_once():
    def line(name, *events):
        return SimpleNamespace(
            name=name, events=[SimpleNamespace(name=n, duration_ns=d) for n, d in events]
        )

    lines = [
        line("Stream #7(Compute)", ("gemm", 3e6), ("norm", 1e6), ("gemm", 2e6)),
        line("XLA Ops", ("fusion", 9e6)),
    ]
    planes = [
        SimpleNamespace(name="/host:CPU", lines=[line("main", ("python", 8e6))]),
        SimpleNamespace(name="/device:GPU:0", lines=lines),
    ]
    assert profile.longest(SimpleNamespace(planes=planes)) == {
        "all kernels": (3, 6.0),
        "gemm": (2, 5.0),
        "norm": (1, 1.0),
    }


def test_a_child_that_is_not_wanted_ends(tmp_path):
    command = [sys.executable, "-m", "benchmarks.on_gpu.child", "fakes:fail", str(tmp_path / "r")]
    (tmp_path / "fakes.py").write_text(textwrap.dedent(FAKES))
    environment = {"PYTHONPATH": str(tmp_path), "PATH": "/usr/bin"}
    subprocess.run(command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, check=True)
    assert not (tmp_path / "r").exists()
