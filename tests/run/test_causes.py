"""Why trees gave no pair: the cause that is named is the one that is there."""

import dataclasses
import re

import pytest

from stair_jax.run.causes import Causes
from stair_jax.search.comparisons import comparisons_of
from stair_jax.search.pairs import pairs_of
from stair_jax.text import OUTPUT, OUTPUT_END
from tests.support.comparisons import CONFIG as PRM_CONFIG
from tests.support.pair_trees import CONFIG, _node, _tree

CLOSED = f"{OUTPUT}two{OUTPUT_END}"


def ending(value, text, tag="0.0"):
    return dataclasses.replace(_node(0, tag, value, terminal=True), text=text)


def why(*trees, **changes):
    config = dataclasses.replace(CONFIG, **changes)
    causes, dropped = Causes(), {}
    for tree in trees:
        found, left = pairs_of(tree, config, prompt_tokens=11, seed=0)
        assert not found
        causes.note(tree)
        dropped |= left
    return causes.of_none(config, dropped)


def judged(tree, answers):
    return dataclasses.replace(tree, counters={"judged": float(answers)})


def test_nothing_has_a_value():
    tree = judged(_tree(_node(0, "0.0", 0.0, visits=0), _node(0, "0.1", 0.0, visits=0)), 40)
    assert "no step has a value, for none of the 40 answers that were judged has a score" in why(
        tree
    )


def test_malformed_answers_of_equal_value_are_not_a_gap():
    tree = _tree(ending(-1.0, "two it is"), ending(-1.0, "three", "0.1"))
    said = why(tree)
    assert "none of 2 whole responses in the trees has a closed block" in said
    assert "stage sft" in said
    assert "min_value_gap" not in said


def test_equal_values_of_good_answers_are_the_judges():
    said = why(_tree(ending(1.0, CLOSED), ending(1.0, CLOSED + ".", "0.1")))
    assert "the judge finds its answers alike" in said
    assert "min_value_gap" not in said


@pytest.mark.parametrize(
    ("values", "changes", "said"),
    [
        ((0.9, 0.5), {}, "widest gap between siblings is 0.4, it must exceed .*min_value_gap=0.5"),
        ((0.7, -1.0), {}, r"best value of a step is 0\.7, .*good_value_safety=0\.75"),
        ((1.0, -1.0), {"max_tokens": 11}, r"longer than config\.pairs\.max_tokens=11"),
        ((1.0, -1.0), {"min_visits": 9}, r"fewer than config\.pairs\.min_visits=9"),
        ((1.0, 0.9), {"terminal_only": True}, "no tree has good and bad whole responses"),
    ],
)
def test_the_rule_that_the_best_candidates_failed_is_named(values, changes, said):
    terminal = changes.get("terminal_only", False)
    nodes = [
        _node(0, f"0.{i}", value, terminal=terminal and value > 0.95)
        for i, value in enumerate(values)
    ]
    assert re.search(said, why(_tree(*nodes), **changes))


def test_a_lone_step_has_nothing_to_be_compared_with():
    other = _tree(_node(0, "0.0", 1.0), _node(1, "0.0.0", -1.0))
    assert "no step has a sibling" in why(other)


def why_no_row(*trees, **changes):
    config = dataclasses.replace(PRM_CONFIG, **changes)
    causes, dropped = Causes(), {}
    for tree in trees:
        found, left = comparisons_of(tree, config, seed=0)
        assert not found
        causes.note(tree)
        dropped |= left
    return causes.of_no_row(config, dropped)


def test_a_reward_model_without_rows_is_told_the_true_cause():
    assert "config.prm.eval_share" in why_no_row()
    unjudged = judged(_tree(_node(0, "0.0", 0.0, visits=0)), 8)
    assert "none of the 8 answers" in why_no_row(unjudged)
    malformed = _tree(ending(-1.0, "two"), ending(-1.0, "three", "0.1"))
    assert "closed block" in why_no_row(malformed)
    same = _tree(_node(0, "0.0", 1.0), _node(0, "0.1", -1.0))
    assert "the steps of a pair are the same" in why_no_row(same)
    near = _tree(_node(0, "0.0", 1.0, ids=(1,)), _node(0, "0.1", 0.75, ids=(2,)))
    said = why_no_row(near, min_value_gap=0.5)
    assert "between siblings is 0.25, a pair's must exceed config.prm.min_value_gap=0.5" in said
    assert said.endswith("(left out: 1 small_gap)")
    rare = _tree(_node(0, "0.0", 1.0), _node(0, "0.1", -1.0))
    assert "config.prm.min_visits=99" in why_no_row(rare, min_visits=99)
    lone = _tree(_node(0, "0.0", 1.0), _node(1, "0.0.0", -1.0))
    assert "no step has another one" in why_no_row(lone, min_visits=1)
