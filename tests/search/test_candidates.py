"""Candidates of a prompt: drawn and judged once, and the pairs that they make."""

import dataclasses
import math
import random

from stair_jax.config.schema import RewardConfig
from stair_jax.engine.request import Sampling
from stair_jax.records import Candidate
from stair_jax.remote.open import OPEN
from stair_jax.search import candidates
from stair_jax.search.reward import Reward
from tests.support.candidates import ASKED, EOS, Talker
from tests.support.scripted import PAPER, ScriptedCodec, ScriptedEngine, ScriptedJudge


def sample(rows, have=(), schedule=0, reward=PAPER, judge=ScriptedJudge, given=(), **changes):
    codec, found = ScriptedCodec(), []
    draw = candidates.Draw(
        **(
            {
                "count": 5,
                "max_tokens": 9,
                "key": (0, "x"),
                "direct": True,
                "sampling": Sampling(temperature=0.7),
            }
            | changes
        )
    )
    engine = ScriptedEngine(Talker(), codec, seed=schedule, max_prompt=40)
    judge = judge(Talker(), seed=schedule)
    leftovers = candidates.sample(
        rows,
        draw,
        engine=engine,
        codec=codec,
        judge=judge,
        reward=reward,
        have=have,
        on_candidate=found.append,
        given={name: codec.encode(text) for name, text in given},
    )
    assert not engine.held
    return sorted(found, key=lambda row: row.id), leftovers, engine, judge


def test_candidates_are_judged_and_the_best_meets_the_worst():
    found, leftovers, engine, judge = sample(ASKED)
    assert set(leftovers.passed_over) == {"p2"}
    assert not leftovers.left_open
    assert len(found) == 10
    assert len(set(engine.keys)) == 10
    by_id = {row.id: row for row in found}
    assert by_id["p0/0"].text == "answer 0"  # the end of the turn is no part of the text
    assert by_id["p0/0"].ids[-1] in ScriptedCodec().end_stop
    assert [by_id[f"p0/{i}"].reward for i in range(5)] == [2.5, 1.0, 2.0, None, None]
    assert not by_id["p0/3"].ended  # ran into the limit: judged well, but not rewarded
    assert {text for _, _, text in judge.asked} == {f"answer {i}" for i in range(5)}
    [(best, worst)] = candidates.best_against_worst(random.Random(0).sample(found, 10))
    assert (best.id, worst.id) == ("p0/0", "p0/1")


def test_candidates_that_reason_keep_their_last_tag():
    found = {row.id: row for row in sample(ASKED, direct=False)[0]}
    assert found["p0/0"].text == "answer 0" + EOS


def test_the_candidates_of_a_prompt_are_the_leaves_of_a_tree():
    found = sample(ASKED)[0]
    first, _ = candidates.as_trees(random.Random(0).sample(found, 10))
    assert first.prompt.id == "p0"
    root, *leaves = first.nodes
    assert [leaf.reward for leaf in leaves] == [
        2.5,
        1.0,
        2.0,
    ]  # those without a reward are left out
    assert all(leaf.terminal and leaf.visits == 1 and leaf.depth == 1 for leaf in leaves)
    assert [leaf.ids for leaf in leaves] == [row.ids for row in found[:3]]
    assert (root.visits, root.value) == (3, 5.5 / 3)


def test_candidates_that_are_there_are_not_sampled_again():
    found, *_ = sample(ASKED)
    again, _, engine, _ = sample(ASKED, have={"p0/0", "p1/4"}, schedule=3)
    assert len(again) == 8 == len(engine.keys)
    assert again == [row for row in found if row.id not in ("p0/0", "p1/4")]
    fewer, *_, longer = sample(ASKED, count=2, key=(1, "x"))[0], sample(ASKED, key=(1, "x"))[2]
    assert [row.id for row in fewer] == ["p0/0", "p0/1", "p1/0", "p1/1"]
    assert set(longer.keys).isdisjoint(engine.keys)


GIVEN = [("p0", "answer 1" + EOS), ("p1", "answer 0"), ("p2", "answer 2" + EOS)]


def test_a_response_that_is_given_is_judged_as_one_more_candidate():
    without = sample(ASKED)[0]
    found, leftovers, engine, _ = sample(ASKED, given=GIVEN)
    by_id = {row.id: row for row in found}
    first, second = by_id.pop("p0/given"), by_id.pop("p1/given")
    assert list(by_id.values()) == without  # the samples are what they were
    assert (first.text, first.reward, first.ended) == ("answer 1", 1.0, True)
    assert (second.text, second.reward, second.ended) == ("answer 0", None, False)
    assert set(leftovers.passed_over) == {"p2"}  # there is no room for the prompt
    assert len(engine.keys) == 10  # nothing is decoded for it


def test_a_given_response_that_is_there_is_not_judged_again():
    have = {f"p{i}/{j}" for i in (0, 1) for j in range(5)}
    found, _, engine, _ = sample(ASKED[:2], given=GIVEN, have=have | {"p1/given"})
    assert [row.id for row in found] == ["p0/given"]
    assert not engine.keys


class Unreachable(ScriptedJudge):
    """A judge that cannot be asked about every second answer."""

    def collect(self):
        found = super().collect()
        return [(id, OPEN if str(id).endswith(("1", "3")) else score) for id, score in found]


def test_what_nobody_judges_is_no_candidate_yet():
    whole, *_ = sample(ASKED)
    found, leftovers, _, judge = sample(ASKED, judge=Unreachable)
    assert len(judge.asked) == 10
    assert sorted(leftovers.left_open) == ["p0/1", "p0/3", "p1/1", "p1/3"]
    assert found == [row for row in whole if row.id not in leftovers.left_open]


def test_the_reward_is_the_runs():
    found, *_ = sample(ASKED[:1])
    other, *_ = sample(
        ASKED[:1],
        reward=Reward("outcome", RewardConfig(F="identity", c1=1.0, c2=-1.0, k1=1.0, k2=1.0)),
    )
    assert found[0].reward == 2.5
    assert other[0].reward == 0.5


def test_without_two_different_rewards_there_is_no_pair():
    row = Candidate(
        id="p/0",
        prompt="p",
        question="q",
        type="safety",
        ids=(1,),
        text="t",
        reward=1.0,
        ended=True,
    )
    other = dataclasses.replace(row, id="p/1", reward=-1.0)
    assert candidates.best_against_worst([row, other]) == [(row, other)]
    assert candidates.best_against_worst([row]) == []
    assert candidates.best_against_worst([row, dataclasses.replace(other, reward=1.0)]) == []
    assert candidates.best_against_worst([row, dataclasses.replace(other, reward=None)]) == []
    elsewhere = dataclasses.replace(other, prompt="q")
    assert candidates.best_against_worst([row, elsewhere]) == []


def test_a_reward_that_is_not_finite_is_none_and_in_no_pair():
    class Odd(Talker):
        def judge(self, prompt, response):
            verdict = super().judge(prompt, response)
            return verdict and ((math.nan, 1.0) if response.startswith("answer 0") else verdict)

    class Judge(ScriptedJudge):
        def __init__(self, script, **more):
            del script
            super().__init__(Odd(), **more)

    rows, *_ = sample(ASKED[:1], judge=Judge)
    assert rows[0].reward is None
    usual, *_ = sample(ASKED[:1])
    assert usual[0].reward is not None
    best, worst = candidates.best_against_worst(rows)[0]
    assert rows[0] not in (best, worst)
    odd = [dataclasses.replace(usual[0], reward=math.inf), *usual[1:]]  # as a file may say
    assert odd[0] not in candidates.best_against_worst(odd)[0]
    assert len(candidates.as_trees(odd)[0].nodes) == len(candidates.as_trees(usual)[0].nodes) - 1
