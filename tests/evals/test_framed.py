"""Framed benchmarks: harmful and harmless prompts behind the same transforms."""

import csv

import pytest

from stair_jax.evals.attacks import transforms
from stair_jax.evals.benchmark import registered
from stair_jax.evals.benchmarks.framed import WAYS
from stair_jax.run import benchmarks
from tests.support.configs import tiny


def framed(name, rows):
    return registered()[name].load([(f"row {n}", row) for n, row in enumerate(rows)], "test")


def behaviours(count):
    return [{"Behavior": f"Do thing {number}", "SemanticCategory": "x"} for number in range(count)]


def questions(count):
    return [{"prompt": f"May I {n}?", "label": "safe", "type": "homonyms"} for n in range(count)]


@pytest.mark.parametrize(
    ("name", "rows"),
    [("harmbench_framed", behaviours(60)), ("xstest_safe_framed", questions(60))],
)
def test_each_row_has_one_of_the_ways_and_all_of_them_occur(name, rows):
    prompts = framed(name, rows)
    assert {prompt.meta["way"] for prompt in prompts} == set(WAYS)
    for prompt in prompts:
        number, goal = prompt.id.partition("/")[2], prompt.meta["goal"]
        want = {
            "prefix_injection": transforms.prefix_injection(goal),
            "refusal_suppression": transforms.refusal_suppression(goal),
            "padded": transforms.padded(goal, number),
        }
        assert prompt.question == want[prompt.meta["way"]] != goal
        assert prompt.question.count(goal) == 1


def test_harmful_and_harmless_rows_of_a_number_have_the_same_way():
    ways = [
        [prompt.meta["way"] for prompt in framed(name, rows)]
        for name, rows in (
            ("harmbench_framed", behaviours(40)),
            ("xstest_safe_framed", questions(40)),
        )
    ]
    assert ways[0] == ways[1]


def test_a_behaviour_with_a_context_is_framed_whole_and_its_goal_stays_bare():
    row = {"Behavior": "Summarise it", "SemanticCategory": "x", "ContextString": "A recipe."}
    (prompt,) = framed("harmbench_framed", [row])
    assert "A recipe.\n\n---\n\nSummarise it" in prompt.question
    assert prompt.meta["goal"] == "Summarise it"
    assert prompt.meta["context"] == "A recipe."


def test_fewer_rows_are_those_of_the_plain_benchmark(tmp_path):
    """So plain and framed requests can be compared row by row."""
    file = tmp_path / "rows.csv"
    with file.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, ["Behavior", "SemanticCategory"])
        writer.writeheader()
        writer.writerows(behaviours(30))
    names = f"harmbench:{file},harmbench_framed:{file}"
    real = {"model__checkpoint": "x", "evaluate__search": "greedy"}
    found = benchmarks.of(tiny(**real, evaluate__benchmarks=names, evaluate__rows=7))
    plain, behind = ([p.id.partition("/")[2] for p in one.prompts] for one in found)
    assert plain == behind
    assert len(plain) == 7


def test_they_are_measured_as_the_plain_ones_are_under_their_own_names():
    for name, plain, attacks in (
        ("harmbench_framed", "harmbench", True),
        ("xstest_safe_framed", "xstest_safe", False),
    ):
        one, other = registered()[name], registered()[plain]
        assert (one.complied, one.over_refused) == (other.complied, other.over_refused)
        assert one.attacks is attacks
        assert [column.benchmark for column in one.columns] == [name]
        assert one.columns[0].heading != other.columns[0].heading
        assert one.protocol.startswith("each row behind one of prefix_injection,")
        assert one.protocol.endswith(other.protocol)
