"""Which plan the paged kernel gets on a kind of GPU, and when it may change."""

import dataclasses
import json
import logging
from unittest.mock import Mock

import jax
import pytest

from stair_jax import ops
from stair_jax.kernels import (
    paged_attention,  # pyright: ignore[reportAttributeAccessIssue]
    plans,  # pyright: ignore[reportAttributeAccessIssue]
)

KIND, CASE = "NVIDIA H100 80GB HBM3", "16 queries, head 128, 2 bytes"
FAST, SLOW = plans.Plan(block=32, warps=2), plans.Plan(block=128, stages=4)


@pytest.fixture(autouse=True)
def _fresh(tmp_path, monkeypatch):
    """A user's cache folder of its own, and no plan looked up before."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(plans, "_of_run", {})
    plans.plan_for.cache_clear()
    yield
    plans.plan_for.cache_clear()


def another_process(monkeypatch):
    monkeypatch.setattr(plans, "_of_run", {})
    plans.plan_for.cache_clear()


def test_the_names_of_cases_tell_them_apart():
    names = {
        plans.case_of(queries=q, columns=c, itemsize=i)
        for q in (16, 32)
        for c in (64, 128)
        for i in (2, 4)
    }
    assert len(names) == 8
    assert CASE in names


def test_default_then_table_then_tuned(monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    assert plans.plan_for(KIND, CASE) == plans.DEFAULT
    assert "(the default)" in caplog.text
    another_process(monkeypatch)
    monkeypatch.setitem(plans.KNOWN, KIND, {CASE: SLOW})
    assert plans.plan_for(KIND, CASE) == SLOW
    assert "(the table's)" in caplog.text
    another_process(monkeypatch)
    assert plans.choose(KIND, CASE, {SLOW: 2e-3, FAST: 1e-3, plans.DEFAULT: 3e-3}) == FAST
    assert plans.plan_for(KIND, CASE) == FAST
    assert f"(tuned, {plans.tuned_path()})" in caplog.text
    assert plans.plan_for(KIND, "64 queries, head 128, 2 bytes") == plans.DEFAULT
    assert plans.plan_for("NVIDIA A100", CASE) == plans.DEFAULT


def test_what_is_tuned_for_one_case_leaves_the_others(monkeypatch):
    other = "64 queries, head 128, 2 bytes"
    plans.choose(KIND, other, {SLOW: 1.0})
    plans.choose("NVIDIA A100", CASE, {plans.DEFAULT: 1.0})
    plans.choose(KIND, CASE, {FAST: 1.0})
    plans.choose(KIND, CASE, {SLOW: 1.0})
    found = json.loads(plans.tuned_path().read_text())
    assert found == {
        KIND: {other: dataclasses.asdict(SLOW), CASE: dataclasses.asdict(SLOW)},
        "NVIDIA A100": {CASE: dataclasses.asdict(plans.DEFAULT)},
    }


def test_a_process_keeps_its_plan():
    assert plans.plan_for(KIND, CASE) == plans.DEFAULT
    plans.choose(KIND, CASE, {FAST: 1.0})
    assert plans.plan_for(KIND, CASE) == plans.DEFAULT


def test_a_run_keeps_its_plans_over_a_restart_and_a_new_run_gets_the_tuned(tmp_path, monkeypatch):
    old, new = tmp_path / "old" / "plans.json", tmp_path / "new" / "plans.json"
    monkeypatch.setitem(plans.KNOWN, KIND, {CASE: SLOW})
    plans.keep(old, KIND)
    assert plans.plan_for(KIND, CASE) == SLOW
    plans.choose(KIND, CASE, {FAST: 1.0})
    for path, expected in ((old, SLOW), (new, FAST)):
        another_process(monkeypatch)
        plans.keep(path, KIND)
        assert plans.plan_for(KIND, CASE) == expected
    another_process(monkeypatch)
    plans.keep(old, "NVIDIA A100")  # the run has moved to another machine
    assert plans.plan_for("NVIDIA A100", CASE) == plans.DEFAULT
    assert json.loads(old.read_text())[KIND] == {CASE: dataclasses.asdict(SLOW)}


def test_a_run_that_began_without_a_plan_stays_with_the_default(tmp_path, monkeypatch):
    plans.keep(tmp_path / "plans.json", KIND)
    plans.choose(KIND, CASE, {FAST: 1.0})
    another_process(monkeypatch)
    plans.keep(tmp_path / "plans.json", KIND)
    assert plans.plan_for(KIND, CASE) == plans.DEFAULT


GOOD = dataclasses.asdict(FAST)
BROKEN = {
    "cut": '{"NVIDIA H100',
    "no object": "[1]",
    "no cases": json.dumps({KIND: 3}),
    "no plan": json.dumps({KIND: {CASE: 3}}),
    "a field too few": json.dumps({KIND: {CASE: {"block": 32}}}),
    "a field too many": json.dumps({KIND: {CASE: GOOD | {"unroll": 2}}}),
    "a word for a number": json.dumps({KIND: {CASE: GOOD | {"warps": "8"}}}),
}


@pytest.mark.parametrize("text", BROKEN.values(), ids=BROKEN)
def test_a_broken_file_is_an_error_of_one_line_that_names_it(text, tmp_path):
    path = plans.tuned_path()
    path.parent.mkdir(parents=True)
    path.write_text(text)
    uses = (
        lambda: plans.plan_for(KIND, CASE),
        lambda: plans.keep(tmp_path / "run.json", KIND),
        lambda: plans.choose(KIND, CASE, {FAST: 1.0}),
    )
    for use in uses:
        with pytest.raises(ValueError, match=f"{path}: .*remove the file") as caught:
            use()
        assert "\n" not in str(caught.value)
    assert path.read_text() == text


def test_the_default_stays_where_another_plan_wins_less_than_clocks_vary():
    assert plans.choose(KIND, CASE, {FAST: 0.97, plans.DEFAULT: 1.0, SLOW: 1.1}) == FAST
    assert plans.choose(KIND, CASE, {FAST: 0.99, plans.DEFAULT: 1.0, SLOW: 1.1}) == plans.DEFAULT
    assert plans.choose(KIND, CASE, {FAST: 0.99, SLOW: 1.0}) == FAST
    assert paged_attention.case_of(queries=4, head_dim=128, itemsize=2) == CASE


def test_no_plan_that_works_is_an_error():
    with pytest.raises(ValueError, match=f"no plan for {CASE} works on {KIND}"):
        plans.choose(KIND, CASE, {})


def test_a_sweep_has_the_default_and_plans_that_all_differ():
    found = plans.candidates()
    assert found[0] == plans.DEFAULT
    assert len(set(found)) == len(found) == 28
    assert {p.block for p in found[1:]} == {32, 64, 128}


def test_a_run_on_a_cpu_keeps_no_plans_and_one_on_a_gpu_does(tmp_path, monkeypatch):
    path = tmp_path / "kernel_plans.json"
    ops.keep_plans(path)
    assert not path.exists()
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax, "local_devices", lambda: [Mock(device_kind=KIND)])
    ops.keep_plans(path)
    assert json.loads(path.read_text()) == {KIND: {}}
