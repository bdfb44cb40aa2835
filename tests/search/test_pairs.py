import collections
import dataclasses
import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stair_jax.records import Prompt
from stair_jax.search.pairs import good_and_bad, pairs_of, responses_of
from tests.support.pair_trees import CONFIG, _node, _tree
from tests.support.scripted import RandomScript, prompts, run, search_config


def _two(better, worse, **of_worse):
    return _tree(_node(0, "0.0", worse, **of_worse), _node(0, "0.1", better))


def _deep(tokens):
    """Two ends of 30 and of `tokens` tokens behind a step of 40."""
    return _tree(
        _node(0, "0.0", 0.5, ids=tuple(range(40))),
        _node(1, "0.0.0", -1.0, ids=tuple(range(30))),
        _node(1, "0.0.1", 1.0, ids=tuple(range(tokens))),
    )


def _config(**changes):
    return dataclasses.replace(CONFIG, **changes)


def _pairs(tree, prompt_tokens=11, seed=0, **changes):
    return pairs_of(tree, _config(**changes), prompt_tokens=prompt_tokens, seed=seed)


def _responses(tree, prompt_tokens=11, **changes):
    return responses_of(tree, _config(**changes), prompt_tokens=prompt_tokens)


def test_a_pair_splits_into_shared_steps_and_two_ends():
    tree = _tree(
        _node(0, "0.0", 0.5, ids=(1, 2)),
        _node(1, "0.0.0", -1.0, ids=(3,), terminal=True, visits=1),
        _node(1, "0.0.1", 1.0, ids=(4, 5, 6)),
    )
    [pair], dropped = _pairs(tree)
    assert not dropped
    assert (pair.prefix, pair.chosen, pair.rejected) == ((1, 2), (4, 5, 6), (3,))
    assert (pair.chosen_text, pair.rejected_text) == ("<0.0><0.0.1>", "<0.0><0.0.0>")
    assert (pair.chosen_value, pair.rejected_value) == (1.0, -1.0)
    assert (pair.chosen_terminal, pair.rejected_terminal) == (False, True)
    assert (pair.id, pair.depth, pair.type) == ("x/0.0.1/0.0.0", 2, "safety")


@pytest.mark.parametrize(
    ("tree", "kept", "reason"),
    [
        (_two(0.75, 0.125), 1, None),  # good at the threshold
        (_two(0.625, -1.0), 0, "not_good"),
        (_two(1.0, 0.5), 0, "small_gap"),  # the gap itself is not enough
        (_two(1.0, 0.25), 1, None),
        (_two(1.0, -1.0, visits=3), 0, "few_visits"),
        (_two(1.0, -1.0, visits=3, terminal=True), 1, None),
        (_two(1.0, -1.0, visits=0), 0, "unvisited"),
        (_two(1.0, -1.0, ids=tuple(range(89))), 1, None),  # 11 + 89 tokens
        (_two(1.0, -1.0, ids=tuple(range(90))), 0, "too_long"),
        (_deep(49), 1, None),  # 11 + 40 + 49 tokens
        (_deep(50), 0, "too_long"),
        (_tree(_node(0, "0.0", 1.0), _node(1, "0.0.0", -1.0)), 0, None),  # no siblings
    ],
)
def test_thresholds_of_step_pairs(tree, kept, reason):
    pairs, dropped = _pairs(tree)
    assert len(pairs) == kept
    assert +dropped == ({reason: 1} if reason else {})


def test_each_type_of_prompt_has_its_own_good_value():
    tree = _two(1.0, -1.0)
    helpful = dataclasses.replace(tree, prompt=Prompt(id="x", question="q", type="helpfulness"))
    assert len(_pairs(tree)[0]) == 1
    assert len(_pairs(helpful)[0]) == 0
    assert len(_pairs(helpful, good_value_helpfulness=1.0)[0]) == 1
    assert len(_pairs(tree, good_value_safety=1.5)[0]) == 0


@pytest.mark.parametrize("min_visits", [0, 1])
def test_a_node_never_visited_gives_no_row_whatever_is_asked(min_visits):
    tree = _two(1.0, -1.0, visits=0)
    assert _pairs(tree, min_visits=min_visits)[1]["unvisited"] == 1
    responses, dropped = _responses(tree, good_value_safety=-9.0, min_visits=min_visits)
    assert [r.id for r in responses] == ["x/0.1"]
    assert dropped["unvisited"] == 1


def test_a_limit_keeps_the_widest_gaps_in_the_trees_order():
    tree = _tree(*[_node(0, f"0.{i}", v) for i, v in enumerate((2.0, 0.0, 1.25, -3.0))])
    every, _ = _pairs(tree)
    assert len(every) == 5
    kept, dropped = _pairs(tree, max_per_prompt=3)
    assert [p.id for p in kept] == ["x/0.0/0.1", "x/0.0/0.3", "x/0.2/0.3"]
    assert dropped["over_limit"] == 2
    assert [p for p in every if p in kept] == kept


def _ended(*rewards):
    return _tree(
        *[_node(0, f"0.{i}", reward, visits=1, terminal=True) for i, reward in enumerate(rewards)]
    )


@pytest.mark.parametrize(
    ("rewards", "ratio", "count"),
    [
        ((1, 1, 1, 1, 1, -1), 9, 5),  # 5 // 1 + 1 = 6 copies: five good ones find a partner
        ((1, 1, 1, 1, 1, -1), 3, 3),
        ((1, -1, -1, -1, -1), 2, 2),
        ((1, 1, -1, -1), 4, 2),  # equally many: the bad ones are repeated, the good ones are not
        ((1, 1, 1, -1, -1), 4, 3),
        ((1, 1, 1), 4, 0),
        ((-1, -1), 4, 0),
    ],
)
def test_terminal_pairs_repeat_the_shorter_side(rewards, ratio, count):
    tree = _ended(*map(float, rewards))
    pairs, dropped = _pairs(tree, terminal_only=True, max_good_bad_ratio=ratio)
    assert len(pairs) == count
    assert all(p.chosen_value == 1 and p.rejected_value == -1 for p in pairs)
    assert dropped["one_sided"] == (0 if count else len(rewards))
    for side in ("chosen_text", "rejected_text"):
        uses = collections.Counter(getattr(p, side) for p in pairs)
        assert max(uses.values(), default=0) <= ratio


def test_sides_of_terminal_pairs_include_their_thresholds():
    tree = _ended(0.75, 0.5, 0.25, 0.3, 2.0)
    assert good_and_bad(tree, CONFIG) == ([1, 5], [3])
    assert _pairs(tree, terminal_only=True)[1]["between"] == 2


def test_terminal_pairs_are_drawn_by_the_seed():
    tree = _ended(*[1.0] * 9, *[-1.0] * 8)
    draws = {seed: _pairs(tree, terminal_only=True, seed=seed)[0] for seed in (0, 1)}
    assert draws[0] != draws[1]
    assert draws[0] == _pairs(tree, terminal_only=True, seed=0)[0]


def test_terminal_pairs_of_two_prompts_are_drawn_apart():
    tree = _ended(*[1.0] * 9, *[-1.0] * 8)
    other = dataclasses.replace(tree, prompt=dataclasses.replace(tree.prompt, id="y"))
    met = [
        [(pair.chosen_text, pair.rejected_text) for pair in _pairs(some, terminal_only=True)[0]]
        for some in (tree, other)
    ]
    assert len(met[0]) == len(met[1]) == 9
    assert met[0] != met[1]


def test_terminal_pairs_share_only_the_steps_that_are_the_same_nodes():
    twins = _node(0, "0.0", 0.0, ids=(1,)), _node(0, "0.1", 0.0, ids=(1,))
    ends = (
        _node(1, "0.0.0", 1.0, ids=(2,), terminal=True),
        _node(2, "0.1.0", -1.0, terminal=True),
        _node(1, "0.0.1", -1.0, ids=(3,), terminal=True),
    )
    pairs, _ = _pairs(_tree(*twins, *ends), terminal_only=True)
    prefixes = {pair.rejected_text: (pair.prefix, pair.chosen) for pair in pairs}
    assert prefixes.get("<0.1><0.1.0>", ((), (1, 2))) == ((), (1, 2))
    assert prefixes.get("<0.0><0.0.1>", ((1,), (2,))) == ((1,), (2,))


def test_responses_are_the_good_leaves():
    tree = _tree(
        _node(0, "0.0", 2.0, ids=(1,)),  # not a leaf
        _node(1, "0.0.0", 0.75, ids=(2,)),
        _node(1, "0.0.1", 1.0, visits=1, terminal=True, ids=(3,)),
        _node(1, "0.0.2", 1.0, visits=3),
        _node(1, "0.0.3", 0.5),
        _node(0, "0.1", 3.0, visits=0),
        _node(0, "0.2", 1.5, ids=tuple(range(90))),
    )
    responses, dropped = _responses(tree)
    assert [(r.text, r.ids, r.value, r.terminal) for r in responses] == [
        ("<0.0><0.0.0>", (1, 2), 0.75, False),
        ("<0.0><0.0.1>", (1, 3), 1.0, True),
    ]
    assert dropped == {"few_visits": 1, "not_good": 1, "unvisited": 1, "too_long": 1}
    [only], dropped = _responses(tree, terminal_only=True)
    assert only.terminal
    assert dropped["not_terminal"] == 4
    [best], dropped = _responses(tree, max_responses_per_prompt=1)
    assert best.value == 1.0
    assert dropped["over_limit"] == 1


def test_a_limit_keeps_the_best_responses_in_the_trees_order():
    tree = _tree(*[_node(0, f"0.{i}", v) for i, v in enumerate((1.0, 2.0, 0.8, 3.0, 1.0))])
    kept, dropped = _responses(tree, max_responses_per_prompt=3)
    assert [(row.id, row.value) for row in kept] == [("x/0.0", 1.0), ("x/0.1", 2.0), ("x/0.3", 3.0)]
    assert dropped == {"over_limit": 2}


def test_a_root_that_was_never_expanded_is_no_response():
    assert _responses(_tree(), good_value_safety=-9.0) == ([], {})
    assert _pairs(_tree()) == ([], {})


@given(
    salt=st.integers(0, 10**6),
    gap=st.sampled_from([0.0, 0.5, 1.25]),
    good=st.sampled_from([-1.0, 0.75, 2.0]),
    visits=st.sampled_from([1, 2, 5]),
)
@settings(max_examples=12, deadline=None, derandomize=True)
def test_step_pairs_are_all_ordered_pairs_that_pass(salt, gap, good, visits):
    script = RandomScript(salt, names=6, ends=0.3)
    tree = run(script, search_config(visit_all_nodes=False), rows=prompts(1))[0]["p0"]
    config = _config(min_value_gap=gap, good_value_safety=good, min_visits=visits)
    want = [
        (a.tag, b.tag)
        for a, b in itertools.permutations(tree.nodes[1:], 2)
        if a.parent == b.parent
        and all(n.terminal or n.visits >= visits for n in (a, b))
        and a.value_sum / a.visits - b.value_sum / b.visits > gap
        and a.value_sum / a.visits >= good
    ]
    pairs, dropped = pairs_of(tree, config, prompt_tokens=1, seed=0)
    assert sorted(p.id for p in pairs) == sorted(f"p0/{a}/{b}" for a, b in want)
    siblings = collections.Counter(node.parent for node in tree.nodes[1:])
    assert len(pairs) + dropped.total() == sum(n * (n - 1) // 2 for n in siblings.values())


@pytest.mark.parametrize("odd", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite_gives_no_row_and_is_counted(odd):
    tree = _tree(
        _node(0, "0.0", odd, terminal=True),
        _node(0, "0.1", 1.0, terminal=True),
        _node(0, "0.2", -1.0, terminal=True),
    )
    for terminal_only, lost in ((False, 2), (True, 1)):  # pairs with the node, or the node
        pairs, dropped = _pairs(tree, terminal_only=terminal_only)
        assert {(pair.chosen_value, pair.rejected_value) for pair in pairs} == {(1.0, -1.0)}
        assert dropped["not_finite"] == lost
        assert set(+dropped) == {"not_finite"}
    responses, dropped = _responses(tree)
    assert [row.value for row in responses] == [1.0]
    assert dropped == {"not_finite": 1, "not_good": 1}
