"""Trees whose values a reward model gives, or shares."""

import dataclasses
import math

import pytest

from stair_jax.records import Prompt
from stair_jax.search import growth
from stair_jax.text import OUTPUT_END
from tests.golden import scripted_policy
from tests.support import scripted
from tests.support.plain_mcts import PlainSearch
from tests.support.scripted import (
    PAPER,
    RandomScript,
    ScriptedCodec,
    ScriptedRewardModel,
    prompts,
    search_config,
)

SCRIPT = RandomScript("values", names=5, ends=0.25, missing=0.1, uncut=0.8)
PRM = search_config(value="prm", value_weight=0.3, max_depth=4)
MIX = dataclasses.replace(PRM, value="mix")


def grow(config, *, kind=ScriptedRewardModel, **how):
    made = []

    def model(codec):
        made.append(kind(codec))
        return made[0]

    trees, engine, judge, leftovers = scripted.run(SCRIPT, config, model=model, **how)
    assert not engine.held
    assert not made[0].held  # whatever was read was given back
    return trees, engine, judge, made[0], leftovers


def plain(prompt, config):
    model = ScriptedRewardModel(ScriptedCodec())
    return PlainSearch(SCRIPT, prompt, config, PAPER, model).run()


@pytest.mark.parametrize("visit_all", [True, False])
@pytest.mark.parametrize("config", [PRM, MIX], ids=["prm", "mix"])
def test_trees_are_those_of_the_plain_search_with_the_same_values(config, visit_all):
    config = dataclasses.replace(config, visit_all_nodes=visit_all)
    trees, *_ = grow(config)
    usual, *_ = scripted.run(SCRIPT, dataclasses.replace(config, value="rollout"))
    differ = 0
    for prompt in prompts(7):
        tree, want = trees[prompt.id], plain(prompt, config)
        assert [n.tag for n in tree.nodes] == [n.tag for n in want.nodes]
        assert [n.visits for n in tree.nodes] == [n.visits for n in want.nodes]
        assert [n.value_sum for n in tree.nodes] == pytest.approx(
            [n.value_sum for n in want.nodes], abs=1e-4
        )
        assert [n.terminal for n in tree.nodes] == [n.terminal for n in want.nodes]
        differ += [n.tag for n in tree.nodes] != [n.tag for n in usual[prompt.id].nodes]
    assert differ > 3  # the values lead elsewhere


def test_the_reward_model_alone_needs_no_rollout_and_reads_every_step_once():
    trees, engine, judge, model, _ = grow(PRM)
    assert {key[3] for key in engine.keys} == {"step"}
    nodes = [(tree, i, node) for tree in trees.values() for i, node in enumerate(tree.nodes)]
    ended = {(t.prompt.id, i) for t, i, n in nodes if OUTPUT_END in n.text}
    assert {(task.prompt_id, task.node) for task, _, _ in judge.asked} <= ended
    for tree in trees.values():
        steps = [i for i, n in enumerate(tree.nodes) if i and (tree.prompt.id, i) not in ended]
        assert tree.counters["valued"] == len(steps)
        assert tree.counters["rollouts"] == tree.counters["cut_rollouts"] == 0
    assert sum(tree.counters["valued"] for tree in trees.values()) == sum(model.calls)
    assert max(model.calls) > 5  # of several trees together


def test_a_mix_is_the_weighted_mean_and_a_terminal_node_keeps_its_reward():
    config = dataclasses.replace(MIX, iterations=1, max_depth=1, value_weight=0.0)
    # A tree of one level, with every child visited once.
    config = dataclasses.replace(config, iterations=2)
    shares = {}
    for weight in (0.0, 0.25, 1.0):
        some = dataclasses.replace(config, value_weight=weight)
        shares[weight] = grow(some, rows=prompts(20))[0]
    compared = {True: 0, False: 0}
    for id, tree in shares[0.25].items():
        for i, node in enumerate(tree.nodes[1:], 1):
            rolled, read = shares[0.0][id].nodes[i], shares[1.0][id].nodes[i]
            assert node.text == rolled.text == read.text
            if node.visits != 1:
                continue
            mean = 0.75 * rolled.value_sum + 0.25 * read.value_sum
            assert node.value_sum == pytest.approx(mean, abs=1e-6)
            assert not node.terminal or rolled.value_sum == read.value_sum
            compared[node.terminal] += rolled.value_sum != read.value_sum or node.terminal
    assert min(compared.values()) > 3


@pytest.mark.parametrize("config", [PRM, MIX], ids=["prm", "mix"])
def test_trees_do_not_depend_on_what_else_grows(config):
    want = {id: tree.nodes for id, tree in grow(config)[0].items()}
    for schedule, in_flight in ((1, 1), (2, 3)):
        some = dataclasses.replace(config, trees_in_flight=in_flight)
        found, _, _, model, _ = grow(some, schedule=schedule)
        assert {id: tree.nodes for id, tree in found.items()} == want
        assert max(model.calls) <= in_flight * PRM.num_children


@pytest.mark.parametrize("config", [PRM, MIX], ids=["prm", "mix"])
@pytest.mark.parametrize("visit_all", [True, False])
def test_a_value_that_is_not_finite_is_missing_and_goes_nowhere(config, visit_all):
    class Odd(ScriptedRewardModel):
        def score(self, prompt, trajectory):
            where = scripted_policy.unit("odd", prompt, *trajectory)
            odd = (math.nan, math.inf, -math.inf)
            return odd[int(where * 9)] if where < 1 / 3 else super().score(prompt, trajectory)

    config = dataclasses.replace(config, visit_all_nodes=visit_all)
    trees, engine, _, model, _ = grow(config, kind=Odd)
    lost = 0
    for tree in trees.values():
        for i, node in enumerate(tree.nodes[1:], 1):
            assert math.isfinite(node.value_sum)
            steps = [step.text for step in tree.path(i)]
            odd = not math.isfinite(model.score(tree.prompt.question, steps))
            if odd and OUTPUT_END not in node.text:
                assert node.visits == 0
                assert tree.scores[i] is None
                lost += 1
        assert tree.counters["missing"] >= tree.counters["not_finite"] > 0
    assert lost > 5
    whole = [tree.counters["iterations"] == config.iterations for tree in trees.values()]
    assert sum(whole) > 3  # the others had no step at all that could be valued
    evaluated = [key[1:3] for key in engine.keys if key[3] == "rollout"]
    if config is PRM or not visit_all:
        return
    for tree in trees.values():
        for i, node in enumerate(tree.nodes):
            if i and tree.scores[i] is None and OUTPUT_END not in node.text:
                assert evaluated.count((tree.prompt.id, node.tag)) <= growth.TRIES


@pytest.mark.parametrize("odd", [math.nan, math.inf])
def test_a_verdict_that_is_not_finite_is_missing_and_tried_once_more(odd):
    class Odd(RandomScript):
        def judge(self, prompt, response):
            safety, helpfulness = super().judge(prompt, response) or (0.0, 0.0)
            return (
                (safety, odd)
                if self._unit("odd", prompt, response) < 0.3
                else (safety, helpfulness)
            )

    trees, _, judge, _ = scripted.run(Odd("odd"), search_config(max_depth=4))
    for tree in trees.values():
        assert all(math.isfinite(node.value_sum) for node in tree.nodes)
        assert all(node.reward is None or math.isfinite(node.reward) for node in tree.nodes)
        assert tree.counters["not_finite"] > 0
    assert max(task.ordinal for task, *_ in judge.asked) > 0


def test_a_step_without_a_token_is_worth_what_its_parent_is():
    class Full(RandomScript):
        """Some steps fill the context, and nothing fits behind them."""

        def expand(self, prompt, trajectory, k):
            full = trajectory[-1] == "" if len(trajectory) > 1 else bool(trajectory) and k == 1
            return "" if full else super().expand(prompt, trajectory, k)

    models = []
    trees, *_ = scripted.run(
        Full("full", ends=0.0),
        dataclasses.replace(PRM, iterations=25),
        model=lambda codec: models.append(ScriptedRewardModel(codec)) or models[0],
    )
    empty = [(t, n) for t in trees.values() for n in t.nodes if n.parent > 0 and not n.ids]
    assert {node.depth for _, node in empty} >= {2, 3}
    for tree, node in empty:
        above, model = tree.nodes[node.parent], models[0]
        while not above.ids:
            above = tree.nodes[above.parent]
        value = model.readout.value(model.score(tree.prompt.question, [above.text]))
        assert node.value_sum == pytest.approx(node.visits * value, abs=1e-4)


def test_a_prompt_that_the_reward_model_has_no_room_for_is_passed_over():
    class Narrow(ScriptedRewardModel):
        def __init__(self, codec):
            super().__init__(codec, max_prompt=20)

    long = Prompt(id="long", question="q" * 21, type="safety")
    trees, *_, leftovers = grow(PRM, kind=Narrow, rows=[*prompts(2), long])
    assert sorted(trees) == ["p0", "p1"]
    assert leftovers.passed_over == {"long": "prompt: 21 tokens, at most 20 expected"}
    trees, *_, leftovers = grow(PRM, rows=[*prompts(2), long], max_prompt=20)  # nor the engine
    assert list(leftovers.passed_over) == ["long"]


def test_values_without_a_reward_model_are_refused():
    with pytest.raises(ValueError, match=r"search.value 'prm' wants a reward model"):
        scripted.run(SCRIPT, PRM)
    trees, *_ = scripted.run(SCRIPT, search_config(iterations=3), model=ScriptedRewardModel)
    assert all(tree.counters["valued"] == 0 for tree in trees.values())  # nobody asks for it
