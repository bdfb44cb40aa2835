"""SI-MCTS at test time under a scripted reward model, against the plain search."""

import collections
import dataclasses
import functools
import math
import statistics
from typing import Any

import pytest

from stair_jax import config as config_lib
from stair_jax.config.schema import GuidedConfig
from stair_jax.guided import mcts
from stair_jax.guided.loop import Guide
from stair_jax.records import Node, Prompt, Tree
from stair_jax.search import driver
from stair_jax.search.mcts import TIE
from tests.golden import scripted_policy
from tests.support import scripted
from tests.support.plain_mcts import PlainSearch
from tests.support.scripted import (
    PAPER,
    RandomScript,
    ScriptedCodec,
    ScriptedEngine,
    ScriptedRewardModel,
    search_config,
)

SCRIPT = RandomScript("tree", names=5, ends=0.25, uncut=0.8)
CONFIG = dataclasses.replace(GuidedConfig.of(config_lib.default().evaluate), max_tokens=100)
ITERATIONS = 21
HOWS = ("last", "min", "mean", "product")


def run(
    *,
    script=SCRIPT,
    rows=None,
    seed=3,
    schedule=0,
    appetite=None,
    kind=ScriptedEngine,
    model=ScriptedRewardModel,
    config=CONFIG,
    iterations=ITERATIONS,
    max_depth=4,
    **search,
):
    """Returns {prompt id: what was picked}, engine, reward model and codec."""
    codec, found = ScriptedCodec(), {}
    engine, reader = kind(script, codec, seed=schedule, appetite=appetite), model(codec)
    guide = Guide(
        engine=engine,
        reward_model=reader,
        codec=codec,
        config=config,
        max_depth=max_depth,
        seed=seed,
    )
    some = mcts.config_of(search_config(**search), guide, iterations)
    try:
        passed_over = mcts.find(
            scripted.prompts(9) if rows is None else rows,
            some,
            guide=guide,
            on_found=lambda prompt, picked: found.update({prompt.id: picked}),
        )
    finally:
        assert not engine.held, "sequences of the engine were kept"
        assert not reader.held, "sequences of the reward model were kept"
    return found, engine, reader, passed_over


class Plain(PlainSearch):
    """The plain search with aggregated values, also of what ends."""

    def __init__(self, prompt, how, script=SCRIPT, iterations=ITERATIONS, **changes):
        config = search_config(value="prm", iterations=iterations, max_depth=4, **changes)
        super().__init__(script, prompt, config, PAPER, ScriptedRewardModel(ScriptedCodec()))
        self.how = how

    def worth(self, node):
        assert self.model is not None
        question, low, high = self.prompt.question, self.model.readout.low, self.model.readout.high
        raw = [self.model.score(question, node.trajectory[: end + 1]) for end in range(node.depth)]
        units = [1 / (1 + math.exp(-x)) for x in raw]
        unit = (
            0.5
            if not units
            else {
                "last": units[-1],
                "min": min(units),
                "mean": statistics.fmean(units),
                "product": math.prod(units),
            }[self.how]
        )
        return low + (high - low) * unit

    def evaluate(self, node):
        if node.ends:
            node.terminal, node.reward = True, self.worth(node)
        super().evaluate(node)

    def answer(self, limit):
        """The best node, and whether it ended."""
        codec = ScriptedCodec()
        ids = {node: codec.encode("".join(node.trajectory)) for node in self.nodes}
        ended = [node for node in self.nodes if node.terminal and len(ids[node]) <= limit]
        leaves = ended or [node for node in self.nodes if not node.children]
        top = max(self.worth(node) for node in leaves)
        node = next(node for node in leaves if self.worth(node) >= top - TIE)
        return tuple(ids[node][:limit]), bool(ended)


def plain(prompt, how="last", limit=100, **changes):
    return Plain(prompt, how, **changes).run().answer(limit)


def said(found):
    return {id: (picked.ids, picked.ended) for id, picked in found.items()}


@pytest.mark.parametrize("how", HOWS)
def test_the_answer_is_that_of_the_plain_search(how):
    config, rows = dataclasses.replace(CONFIG, aggregation=how), scripted.prompts(9)
    found, *_ = run(config=config)
    assert said(found) == {prompt.id: plain(prompt, how) for prompt in rows}
    others = [said(run(config=dataclasses.replace(CONFIG, aggregation=h))[0]) for h in HOWS]
    assert sum(said(found) == other for other in others) == 1  # no two aggregations agree


def test_each_is_alone_whatever_its_company_and_order():
    want, engine, reader, _ = run()
    rows = scripted.prompts(9)
    for schedule, appetite, some, in_flight in ((1, 2, rows[::-1], 3), (2, None, rows[4:6], 1)):
        found, other, other_reader, _ = run(
            schedule=schedule, appetite=appetite, rows=some, trees_in_flight=in_flight
        )
        assert other.keys != engine.keys
        assert max(other_reader.calls) < max(reader.calls)
        assert found == {prompt.id: want[prompt.id] for prompt in some}
    assert len({picked.ids for picked in want.values()}) > 3


def test_what_was_generated_and_read_is_counted_and_nothing_is_rolled_out_or_read_twice():
    spent, seen = collections.Counter(), set()

    class Counted(ScriptedRewardModel):
        def read(self, items):
            readings = super().read(items)
            for reading, (start, steps) in zip(readings, items, strict=True):
                place = tuple(reading.prefix.ids)
                assert place not in seen
                seen.add(place)
                spent[start.prompt] += sum(map(len, steps))
            return readings

    found, engine, _, _ = run(model=Counted)
    assert sum(picked.tokens for picked in found.values()) == engine.counters["tokens"]
    assert {key[3] for key in engine.keys} == {"step"}
    for prompt in scripted.prompts(9):
        picked = found[prompt.id]
        assert 0 < picked.scored == spent[prompt.question]
        assert picked.scored <= picked.tokens  # a step that repeats a sibling is not read
    assert any(picked.scored < picked.tokens for picked in found.values())


def test_the_answer_is_the_best_by_raw_score_and_never_one_without():
    class Odd(ScriptedRewardModel):
        """Some steps have no finite score, and the others are so low that their values round."""

        def score(self, prompt, trajectory):
            raw = 9 * super().score(prompt, trajectory) - 70
            return math.nan if scripted_policy.unit("odd", prompt, *trajectory) < 0.2 else raw

    found, _, reader, _ = run(model=Odd)
    told = []
    for prompt in scripted.prompts(9):
        picked = found[prompt.id]
        steps = split(reader.codec.decode(picked.ids))
        raw = reader.score(prompt.question, steps)
        assert math.isfinite(raw)
        assert reader.readout.unit(raw) == 0
        told.append(raw)
        assert not picked.blind
        assert picked.missing > 0
    assert statistics.fmean(told) > -65  # the middle is -70: rounded values say nothing


@pytest.mark.parametrize(
    ("scores", "chosen"),
    [
        ((0.25, 0.25 + 2e-6), 0),  # equal: rounding
        ((0.25, 0.25 + 4e-5), 1),
        ((-40.0, -40.0 + 2e-4), 0),  # as close, for their size
        ((-40.0, -40.0 + 2e-3), 1),
    ],
)
def test_the_first_of_equal_scores_is_picked_and_of_others_the_best(scores, chosen):
    node = functools.partial(Node, text="", visits=1, value_sum=0.0, p=1.0)
    root = node(parent=-1, ids=(), depth=0, reward=None, terminal=False, tag="0")
    ended = [
        node(parent=0, ids=(i,), depth=1, reward=0.0, terminal=True, tag=f"0.{i}") for i in (0, 1)
    ]
    counters: dict[str, float] = dict.fromkeys(("not_finite", "tokens"), 0.0)
    nodes = (root, *ended)
    tree = Tree(
        prompt=scripted.prompts(1)[0], nodes=nodes, counters=counters, scores=(0.0, *scores)
    )
    picked = mcts.pick(tree, max_tokens=1)
    assert (picked.ids, picked.score) == ((chosen,), scores[chosen])


def test_where_nothing_has_a_score_the_first_step_stands_in_and_is_counted():
    class Silent(ScriptedRewardModel):
        def score(self, prompt, trajectory):
            return math.nan

    found, *_ = run(model=Silent)
    for picked in found.values():
        assert picked.blind
        assert not picked.ended
        assert picked.ids
        assert 0 < picked.missing <= 3  # each child of the root, read once


def test_where_nothing_ends_the_best_beginning_stands_in():
    endless = RandomScript("endless", ends=0.0)
    found, *_ = run(script=endless)
    assert {ended for _, ended in said(found).values()} == {False}
    assert said(found) == {p.id: plain(p, script=endless) for p in scripted.prompts(9)}


def test_an_answer_longer_than_the_limit_is_none():
    short = dataclasses.replace(CONFIG, max_tokens=5)
    found, *_ = run(config=short)
    assert said(found) == {p.id: plain(p, limit=5) for p in scripted.prompts(9)}
    assert all(len(picked.ids) <= 5 for picked in found.values())
    assert said(found) != said(run()[0])
    tight = dataclasses.replace(CONFIG, max_tokens=2)  # no step is longer either
    assert max(len(picked.ids) for picked in run(config=tight)[0].values()) <= 2


def test_more_iterations_find_better_answers_and_other_settings_others():
    few, many = run(iterations=4)[0], run(iterations=40)[0]
    model = ScriptedRewardModel(ScriptedCodec())

    def score(found):
        totals = []
        for prompt in scripted.prompts(9):
            codec = ScriptedCodec()
            for k in range(5):  # so that it knows the script's words
                codec.encode(f"<|Reasoning_step|>thought {k}<|/Reasoning_step|>")
                codec.encode(f"<|Output|>answer {k}<|/Output|>")
            steps = split(codec.decode(found[prompt.id].ids))
            totals.append(model.readout.unit(model.score(prompt.question, steps)))
        return statistics.fmean(totals)

    assert score(many) > score(few)
    assert sum(p.tokens for p in many.values()) > 2 * sum(p.tokens for p in few.values())
    usual = said(run()[0])
    changes: tuple[dict[str, Any], ...] = {"c": 0.1}, {"num_children": 2}, {"max_depth": 2}
    for change in changes:
        assert said(run(**change)[0]) != usual, change
    assert {key[0] for key in run(seed=4)[1].keys} == {4}


def split(text):
    """The steps of a text; one that is cut begins the next one's tag."""
    steps = text.replace("<|Reasoning_step|>", "\0<|Reasoning_step|>").replace(
        "<|Output|>", "\0<|Output|>"
    )
    return [step for step in steps.split("\0") if step]


def test_tokens_are_drawn_as_in_all_test_time_search():
    seen = set()

    class Watched(ScriptedEngine):
        def submit(self, request):
            seen.add(request.sampling)
            super().submit(request)

    run(kind=Watched, temperature=1.2, top_p=0.5, top_k=3, min_p=0.1)
    run(kind=Watched, config=dataclasses.replace(CONFIG, temperature=0.7, top_p=0.8, top_k=9))
    assert {(s.temperature, s.top_p, s.top_k, s.min_p) for s in seen} == {
        (0.6, 0.9, 50, 0.0),
        (0.7, 0.8, 9, 0.0),
    }


def test_a_prompt_without_room_is_passed_over_and_a_failure_gives_all_back():
    class Narrow(ScriptedRewardModel):
        def __init__(self, codec):
            super().__init__(codec, max_prompt=20)

    long = Prompt(id="long", question="q" * 21, type="safety")
    found, *_, passed_over = run(model=Narrow, rows=[*scripted.prompts(2), long])
    assert sorted(found) == ["p0", "p1"]
    assert list(passed_over) == ["long"]

    class Blind(ScriptedRewardModel):
        def read(self, items):
            if len(self.calls) > 4:
                raise RuntimeError("blind")
            return super().read(items)

    with pytest.raises(RuntimeError, match="blind"):
        run(model=Blind)


@pytest.mark.parametrize(("value", "judge"), [("mix", False), ("rollout", False), ("prm", True)])
def test_a_search_that_needs_a_judge_and_a_reward_is_refused_without(value, judge):
    codec = ScriptedCodec()
    with pytest.raises(ValueError, match=f"'{value}' wants a judge and a reward"):
        driver.grow(
            scripted.prompts(1),
            engine=ScriptedEngine(SCRIPT, codec),
            codec=codec,
            seed=0,
            judge=scripted.ScriptedJudge(SCRIPT) if judge else None,
            reward=None,
            config=search_config(value=value),
            on_tree=print,
            valuer=ScriptedRewardModel(codec),
        )
