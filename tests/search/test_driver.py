import collections
import math
import random
import statistics

import numpy as np
import pytest

from stair_jax.engine.request import Sampling
from stair_jax.records import Prompt
from stair_jax.search import driver, mcts
from stair_jax.search.growth import Growth, Outcome, Tools, prior
from tests.support.forests import CONFIG, SCRIPT, Watched, forest
from tests.support.plain_mcts import PlainSearch
from tests.support.scripted import (
    PAPER,
    RandomScript,
    ScriptedCodec,
    ScriptedEngine,
    ScriptedJudge,
    prompts,
    run,
    search_config,
)

__all__ = ["forest"]


class OneByOne(Watched):
    """Answers the oldest request only."""

    def step(self):
        for waiting in list(self._waiting.values())[1:]:
            waiting[0] += 1
        super().step()


@pytest.mark.parametrize(("in_flight", "schedule"), [(1, 1), (5, 2), (7, 3)])
def test_trees_do_not_depend_on_what_else_is_in_flight(forest, in_flight, schedule):
    trees, engine, *_ = forest
    rows = prompts(7)
    random.Random(schedule).shuffle(rows)
    assert rows != prompts(7)
    others, other_engine, *_ = run(
        SCRIPT,
        search_config(ties="random", trees_in_flight=in_flight),
        rows=rows,
        schedule=schedule,
    )
    assert other_engine.keys != engine.keys  # asked in another order
    assert sorted(map(str, other_engine.keys)) == sorted(map(str, engine.keys))
    assert others == trees


def test_a_tree_grown_alone_is_the_tree_grown_among_others(forest):
    trees, *_ = forest
    assert run(SCRIPT, CONFIG, rows=prompts(7)[3:4])[0] == {"p3": trees["p3"]}


def test_trees_do_not_depend_on_when_evaluations_start(forest, monkeypatch):
    trees, engine, *_ = forest
    monkeypatch.setattr(Growth, "_start_early", lambda self, child: None)
    others, on_demand, *_ = run(
        SCRIPT, search_config(ties="random", trees_in_flight=1), kind=OneByOne
    )
    assert engine.overlapped
    assert not on_demand.overlapped
    assert others == trees


@pytest.mark.parametrize("visit_all", [True, False])
def test_what_starts_early_is_used_and_nothing_else_is_made(visit_all):
    config, counters = search_config(visit_all_nodes=visit_all), collections.Counter()
    trees, engine, judge, _ = run(SCRIPT, config, rows=prompts(3), kind=Watched)
    assert engine.overlapped == visit_all
    for prompt in prompts(3):
        tree, plain = trees[prompt.id], PlainSearch(SCRIPT, prompt, config, PAPER).run()
        keys = [key[2:4] for key in engine.keys if key[1] == prompt.id]
        rolled = [tag for tag, kind in keys if kind == "rollout"]
        judged = [tree.nodes[task.node].tag for task, id, _ in judge.asked if id == prompt.id]
        wanted = {node.tag: node.draws for node in plain.nodes if node.draws}
        assert collections.Counter(judged) == wanted
        ended = {node.tag for node in plain.nodes if node.ends}
        assert collections.Counter(rolled) == {t: n for t, n in wanted.items() if t not in ended}
        counters.update(tree.counters)
    assert counters["missing"] > 0
    assert counters["duplicates"] > 0


def test_news_that_do_not_fit_are_told_when_they_are_asked_for():
    codec, script = ScriptedCodec(), RandomScript("fit")
    engine, judge = ScriptedEngine(script, codec), ScriptedJudge(script)
    tools = Tools(
        engine=engine, judge=judge, codec=codec, config=search_config(), reward=PAPER, seed=0
    )
    tree = Growth(prompts(1)[0], engine.root(codec.prompt_ids("question 0")), tools)
    tree._outcomes = {n: Outcome(mcts.REWARD, np.float32(n)) for n in (5, 3, 0, 7)}
    assert tree.ready
    told = tree.tell()
    assert (told.kind, list(told.outcomes)) == (mcts.START, [0, 5, 3])
    assert not tree.ready
    tree.evaluate(7)
    assert tree.ready
    assert tree.tell().outcomes == {7: (mcts.REWARD, 7.0)}
    assert not engine.keys


def test_requests_of_a_family_say_what_they_share(forest):
    trees, engine, *_ = forest
    families = collections.defaultdict(list)
    for request in engine.requests:
        families[request.group].append(request)
    for request in families.pop(None):
        assert (request.id.node, request.id.kind, request.shared) == (0, "rollout", 0)
    sizes = collections.Counter()
    for (prompt, parent), requests in families.items():
        assert len({request.prefix.ids[: request.shared] for request in requests}) == 1
        for request in requests:
            own = len(request.prefix.ids) - request.shared
            if request.id.kind == "step":
                assert (request.id.prompt_id, request.id.node, own) == (prompt, parent, 0)
            else:
                node = trees[prompt].nodes[request.id.node]
                assert (node.parent, len(node.ids)) == (parent, own)
            sizes[prompt, parent, request.id.kind] += 1
    assert len(families) == sum(tree.counters["expansions"] for tree in trees.values())
    assert {n for (*_, kind), n in sizes.items() if kind == "step"} == {CONFIG.num_children}
    assert max(n for (*_, kind), n in sizes.items() if kind == "rollout") > 1


def test_trees_are_planted_while_the_engine_is_hungry(forest):
    trees, engine, *_ = forest
    trees_open = {math.inf: engine.trees_open}
    for appetite in (0, 2):
        others, modest, *_ = run(SCRIPT, CONFIG, kind=Watched, appetite=appetite)
        assert modest.questions == [prompt.question for prompt in prompts(7)]
        assert others == trees
        trees_open[appetite] = modest.trees_open
    assert max(trees_open[math.inf]) == CONFIG.trees_in_flight
    assert set(trees_open[0]) == {1}  # it never is, so one at a time
    assert 1.5 < statistics.mean(trees_open[2]) < statistics.mean(trees_open[math.inf]) - 1


def test_a_larger_number_of_trees_compiles_nothing_new(forest):
    cache_size = mcts.advance._cache_size  # pyright: ignore[reportAttributeAccessIssue]
    compiled = cache_size()
    assert compiled > 0
    run(SCRIPT, CONFIG, rows=prompts(11))
    assert cache_size() == compiled


def test_another_seed_reaches_keys_and_ties(forest):
    trees, engine, *_ = forest
    others, other_engine, *_ = run(SCRIPT, CONFIG, seed=1)
    assert {key[0] for key in engine.keys} == {0}
    assert {key[0] for key in other_engine.keys} == {1}
    # The script does not look at the seed, so only ties can have grown other trees.
    assert [others[id].nodes != tree.nodes for id, tree in trees.items()].count(True) > 1
    assert driver.tie_seed(0, "p0") != driver.tie_seed(1, "p0")
    assert driver.tie_seed(0, "p0") != driver.tie_seed(0, "p1")


def test_request_keys_name_the_node_and_never_repeat(forest):
    trees, engine, *_ = forest
    assert len(set(engine.keys)) == len(engine.keys)
    kinds = collections.Counter()
    for _, prompt, tag, kind, ordinal in engine.keys:
        assert tag in {node.tag for node in trees[prompt].nodes}
        assert ordinal < CONFIG.num_children or kind == "rollout"
        kinds[kind] += 1
    assert kinds["step"] == sum(t.counters["expansions"] for t in trees.values()) * 3
    assert kinds["rollout"] == sum(t.counters["rollouts"] for t in trees.values())


def test_every_sequence_is_given_back_once(forest):
    trees, engine, *_ = forest
    assert engine.held == set()  # the engine itself refuses a second time
    assert engine.released == len(trees) + len(engine.keys)  # a root a tree, a result a request


@pytest.mark.parametrize("after", [0, 2])
def test_an_interrupted_run_gives_everything_back(monkeypatch, after):
    engines = []

    class Interrupted(RuntimeError):
        pass

    take_finished = driver.TreeScheduler._take_finished

    def interrupted(self):
        engines.append(self.tools.engine)
        if len(engines) > 40 + after:
            assert self.tools.engine.held
            raise Interrupted
        return take_finished(self)

    monkeypatch.setattr(driver.TreeScheduler, "_take_finished", interrupted)
    with pytest.raises(Interrupted):
        run(SCRIPT, CONFIG)
    assert engines[0].held == set()
    assert engines[0].idle


def test_counters_tell_what_happened(forest):
    trees, engine, judge, _ = forest
    totals = collections.Counter()
    for tree in trees.values():
        totals.update(tree.counters)
        assert tree.counters["iterations"] == CONFIG.iterations
        # An evaluated node or a missing one each used up a round; revisits need no evaluation.
        assert tree.nodes[0].visits + tree.counters["missing"] >= tree.counters["iterations"]
    assert totals["tokens"] == engine.counters["tokens"]
    assert totals["judged"] == len(judge.asked)
    for name in ("duplicates", "missing", "cut_steps", "revisits"):
        assert totals[name] > 0, name
    assert totals["cut_rollouts"] == 0
    assert totals["judged"] + totals["revisits"] < totals["rollouts"] + 7 * 37
    children = sum(len(tree.nodes) - 1 for tree in trees.values())
    assert children == totals["expansions"] * CONFIG.num_children - totals["duplicates"]


def test_an_unfinished_step_is_a_node_like_any_other(forest):
    trees, *_ = forest
    cut = [
        (tree, i)
        for tree in trees.values()
        for i, node in enumerate(tree.nodes)
        if node.text and not node.text.endswith("|>")
    ]
    assert cut
    assert not any(tree.nodes[i].terminal for tree, i in cut)
    assert any(
        tree.nodes[node.parent] is tree.nodes[i] for tree, i in cut for node in tree.nodes[1:]
    )


def test_a_cut_rollout_is_judged_as_it_stands():
    trees, _, judge, _ = run(SCRIPT, search_config(max_rollout_tokens=2), rows=prompts(1))
    assert trees["p0"].counters["cut_rollouts"] == trees["p0"].counters["rollouts"] > 0
    assert judge.asked[0][2].startswith("<|Output|>final")
    assert not judge.asked[0][2].endswith("<|/Output|>")


def test_a_step_is_cut_at_its_own_limit():
    trees, *_ = run(RandomScript("cut"), search_config(max_step_tokens=2), rows=prompts(1))
    assert max(len(node.ids) for node in trees["p0"].nodes) == 2
    assert trees["p0"].counters["cut_steps"] > 0
    assert trees["p0"].counters["cut_rollouts"] == 0


def test_nodes_hold_the_ids_that_were_drawn(forest):
    codec = ScriptedCodec()
    for tree in forest[0].values():
        assert tree.nodes[0].ids == ()
        for node in tree.nodes:
            assert node.ids == tuple(codec.encode(node.text))


def test_requests_carry_the_search_settings():
    config = search_config(temperature=0.7, top_k=3, top_p=0.8, iterations=3)
    _, engine, *_ = run(RandomScript("requests"), config, rows=prompts(1), seed=5, kind=Watched)
    asked = engine.requests
    assert {r.sampling for r in asked} == {Sampling(temperature=0.7, top_k=3, top_p=0.8)}
    assert {(r.stop, r.max_tokens) for r in asked} == {("step", 50), ("end", 70)}
    assert asked[0].key == (5, "p0", "0", "rollout", 0)
    assert asked[0].prefix.ids == tuple(ScriptedCodec().prompt_ids("question 0"))


@pytest.mark.parametrize("score", ["ucb", "pucb"])
@pytest.mark.parametrize("mean", ["arithmetic", "geometric", "uniform"])
def test_log_probs_are_asked_for_where_the_prior_needs_them(score, mean):
    config = search_config(iterations=3, score=score, prior=mean)
    _, engine, *_ = run(RandomScript("requests"), config, rows=prompts(1), kind=Watched)
    wanted = {r.id.kind for r in engine.requests if r.logps}
    assert wanted == ({"step"} if score == "pucb" and mean != "uniform" else set())


@pytest.mark.parametrize(
    "changes",
    [
        {"iterations": 23},
        {"num_children": 4},
        {"c": 0.2},
        {"max_depth": 2},
        {"score": "pucb"},
        {"visit_all_nodes": False},
        {"reselect_terminal": False},
        {"ties": "first"},
    ],
    ids=str,
)
def test_every_setting_reaches_the_tree(forest, changes):
    trees, *_ = forest
    config = search_config(**({"ties": "random"} | changes))
    assert run(SCRIPT, config, rows=prompts(2))[0]["p1"].nodes != trees["p1"].nodes


def test_priors_are_the_three_means():
    logps = [math.log(0.5), math.log(0.125)]
    of = {p: search_config(score="pucb", prior=p) for p in ("arithmetic", "geometric", "uniform")}
    assert prior(logps, of["arithmetic"]) == pytest.approx(0.3125)
    assert prior(logps, of["geometric"]) == pytest.approx(0.25)
    assert prior(logps, of["uniform"]) == pytest.approx(1 / 3)
    assert prior(logps, search_config(score="ucb")) == 1.0
    assert prior([], of["geometric"]) == 0.0


def test_a_prompt_without_room_is_passed_over_and_listed():
    rows = [*prompts(2), Prompt(id="long", question="q" * 99, type="safety"), *prompts(4)[2:]]
    trees, engine, _, leftovers = run(
        SCRIPT, search_config(trees_in_flight=1, iterations=3), rows=rows, max_prompt=98
    )
    assert sorted(trees) == ["p0", "p1", "p2", "p3"]
    assert leftovers == driver.Leftovers({"long": "prompt: 99 tokens, at most 98 expected"}, ())
    assert engine.held == set()


def test_prompts_that_share_an_id_are_refused():
    with pytest.raises(ValueError, match="'p1' found 2 times"):
        run(SCRIPT, CONFIG, rows=[*prompts(3), prompts(2)[1]])


def test_no_prompts_grow_no_trees():
    assert run(SCRIPT, CONFIG, rows=[])[0] == {}
