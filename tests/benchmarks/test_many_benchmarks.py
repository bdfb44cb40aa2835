"""The benchmark of many benchmarks: the same prompts whatever their number, and its claims."""

import argparse

import pytest

from benchmarks import harness, many_benchmarks
from stair_jax.evals import benchmark
from stair_jax.evals.benchmark import registered


@pytest.mark.parametrize("count", [1, 3])
def test_the_same_prompts_are_cut_into_so_many_benchmarks(monkeypatch, count):
    known = dict(registered())
    monkeypatch.setattr(benchmark, "registered", lambda: known)
    names = many_benchmarks._registered(count, 8)
    assert len(names) == count
    asked = [prompt for name in names for prompt in known[name].load([], "test")]
    assert len({prompt.id for prompt in asked}) == 8
    whole = known["harmless"].load([], "test")[:8]
    assert {prompt.question for prompt in asked} == {prompt.question for prompt in whole}
    assert {column.benchmark for name in names for column in known[name].columns} == set(names)


def test_the_claims_compare_the_most_benchmarks_with_the_fewest(monkeypatch):
    few = {"programs": 22, "busy_slots": 0.9, "delivered": 8, "seconds": 1.0}
    worse = few | {"programs": 25, "busy_slots": 0.45}
    measured = {1: few, 4: few, 16: worse}
    monkeypatch.setattr(many_benchmarks, "_in_process", measured.get)
    monkeypatch.setattr(harness, "machine", dict)
    figures, claims = many_benchmarks.measure(argparse.Namespace())
    assert claims["programs_more"].value == 3
    assert claims["busy_slots_ratio"].value == 0.5
    assert not any(claim.holds for claim in claims.values())
    assert "0.45" in many_benchmarks.tables(figures)
