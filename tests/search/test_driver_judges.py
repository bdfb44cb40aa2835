"""Trees under judges that fall silent: what is asked again, closed, or given up."""

import collections

import pytest

from stair_jax.judges.rule import RuleJudge
from stair_jax.remote.open import OPEN
from stair_jax.search import driver
from stair_jax.text import STEP
from tests.support.forests import SCRIPT, forest
from tests.support.scripted import RandomScript, ScriptedJudge, prompts, run, search_config

__all__ = ["forest"]


def test_a_judge_that_never_answers_with_a_score_still_ends_the_tree():
    config = search_config(iterations=9)
    trees, engine, judge, _ = run(RandomScript("never", missing=1.0), config, rows=prompts(1))
    tree = trees["p0"]
    assert len(tree.nodes) == 1
    assert tree.nodes[0].visits == 0
    # Nine iterations and the last round, two tries each, every try a fresh rollout.
    assert tree.counters["missing"] == 10
    assert [key[-1] for key in engine.keys] == list(range(20))
    assert len(judge.asked) == 20


def test_an_answer_that_cannot_be_judged_is_closed_and_not_asked_about_again():
    class Speechless(RandomScript):
        def judge(self, prompt, response):
            return None if "answer" in response else super().judge(prompt, response)

    config = search_config(visit_all_nodes=False)
    trees, _, judge, _ = run(Speechless("closed", ends=0.5), config, rows=prompts(1))
    tree = trees["p0"]
    asked = collections.Counter(id.node for id, _, response in judge.asked if "answer" in response)
    assert len(asked) > 1
    assert set(asked.values()) == {1}  # the judge would say the same again
    assert tree.counters["missing"] == len(asked)
    assert tree.counters["iterations"] == config.iterations
    for node in asked:
        assert (tree.nodes[node].visits, tree.nodes[node].terminal) == (0, False)
    assert tree.nodes[0].visits == config.iterations - len(asked)


def test_what_a_judge_counts_stands_in_the_trees_counters():
    trees, *_ = run(SCRIPT, search_config(iterations=5), rows=prompts(2), judge=RuleJudge())
    assert trees["p1"].counters["judge_no_judge"] == trees["p1"].counters["judged"]
    assert "judge_no_judge" not in trees["p0"].counters


def test_a_malformed_answer_is_worth_nothing_and_not_one(forest):
    del forest  # compiles the same program

    class Cut(RandomScript):
        def rollout(self, prompt, trajectory, visit):
            if not trajectory:
                return super().rollout(prompt, trajectory, visit)
            return f"{STEP}I never come to {visit}"  # no answer

    judge = RuleJudge()
    trees, *_ = run(Cut("cut", ends=0.5), search_config(iterations=9), rows=prompts(2), judge=judge)
    for id, worth in (("p0", -1.0), ("p1", 2.0)):
        tree = trees[id]
        assert {node.value for node in tree.nodes if node.visits} == {worth}  # of whole answers
        assert tree.counters["missing"] > 0
    # Each of those rollouts and the fresh one after it.
    assert judge.counters["malformed"] == 2 * sum(t.counters["missing"] for t in trees.values())


@pytest.mark.parametrize(("after", "in_flight"), [(0, 5), (3, 1), (6, 2)])
def test_a_tree_that_nobody_judges_is_given_up_and_the_others_grow_on(forest, after, in_flight):
    class Absent(ScriptedJudge):
        """Says nothing of two prompts any more, after a few verdicts on each."""

        def __init__(self, script, **kwargs):
            super().__init__(script, **kwargs)
            self.seen, self.late = collections.Counter(), 0

        def collect(self):
            found = []
            for id, score in super().collect():
                self.seen[id.prompt_id] += 1
                gone = id.prompt_id in ("p1", "p3") and self.seen[id.prompt_id] > after
                self.late += gone and self.seen[id.prompt_id] > after + 1
                found.append((id, OPEN if gone else score))
            return found

    trees, judge = forest[0], Absent(SCRIPT, slowest=40)
    config = search_config(ties="random", trees_in_flight=in_flight)
    others, engine, _, leftovers = run(SCRIPT, config, judge=judge)
    assert leftovers == driver.Leftovers({}, ("p1", "p3"))
    assert others == {id: tree for id, tree in trees.items() if id not in ("p1", "p3")}
    assert engine.held == set()
    assert engine.idle
    assert judge.late > 0 or after < 6  # verdicts that came when their tree was gone
