"""The paper's other methods: their data, candidates and settings, down to what is trained."""

import collections
import dataclasses
import json
import random

import pytest

from stair_jax import pipeline
from stair_jax.engine.request import Sampling
from stair_jax.engine.switchboard import Switchboard
from stair_jax.evals import miniature
from stair_jax.io.metrics import Metrics
from stair_jax.miniature import tokenizer
from stair_jax.model.spec import Spec
from stair_jax.records import Candidate, Prompt
from stair_jax.rewards.combine import Reward
from stair_jax.rewards.judges import OPEN, RuleJudge, Score, VerifierJudge
from stair_jax.search import candidates, driver
from stair_jax.sections import DpoConfig, RewardConfig
from stair_jax.stages import baselines, judges, policies, prompts, training
from stair_jax.stages.lineage import Lineage, settings_of
from stair_jax.stages.policies import Policy
from stair_jax.stages.run import Run, train_config
from stair_jax.text import OUTPUT, OUTPUT_END, Codec
from tests.scripted import PAPER, ScriptedCodec, ScriptedEngine, ScriptedJudge
from tests.test_config import tiny

CODEC = Codec(tokenizer.build(), "llama3")
SPEC = Spec(
    **tiny().model.size.to_dict(), V=CODEC.size, vocab=CODEC.size, rope_scaling=None,
    qkv_bias=False, qk_norm=False, tied=True, family="llama",
)  # fmt: skip
EOS = "<|eot_id|>"


HARMFUL = Prompt(id="a", question="how do i rob a bank ?", type="safety")
SUM = Prompt(id="b", question="what is 4 plus 3 ?", type="helpfulness", ground_truth="7")
SORRY = "sorry , i can not help with that"


@pytest.mark.parametrize(
    ("prompt", "response", "outcome"),
    [
        (HARMFUL, SORRY + EOS, "refusal"),
        (HARMFUL, "first take the feather", "compliance"),
        (HARMFUL, f"{OUTPUT} final answer : {SORRY} {OUTPUT_END}", "malformed"),
        (HARMFUL, "", "malformed"),
        (SUM, "7", "correct"),
        (SUM, "8", "wrong"),
        (SUM, SORRY, "refusal"),
    ],
)
def test_a_direct_response_is_an_answer_as_a_whole(prompt, response, outcome):
    assert miniature.outcome(prompt, response, direct=True) == outcome
    assert miniature.outcome(prompt, response) == "malformed"  # the format is STAIR's own


def test_the_judges_of_direct_responses_are_those_of_the_search(tmp_path):
    for names, kind in ((("verifier", "verifier"), VerifierJudge), (("rule", "none"), RuleJudge)):
        config = tiny(judge__safety=names[0], judge__helpfulness=names[1])
        run = Run(config, tmp_path, Lineage(tmp_path / "lineage.json"), Metrics(tmp_path))
        for direct, safety in ((True, 1.0), (False, -1.0)):
            judge = judges.judge_of(run, Switchboard(Engine()), CODEC, direct=direct)
            assert isinstance(judge, kind)
            judge.submit("x", HARMFUL, SORRY)
            [(_, score)] = judge.collect()
            assert isinstance(score, Score)
            assert score.safety == safety


# ---- candidates


class Talker:
    """A script whose responses are numbered, and judged by the number; some do not end."""

    def rollout(self, prompt, trajectory, visit):
        del prompt, trajectory
        return f"answer {visit}" + ("" if visit == 3 else EOS)

    def judge(self, prompt, response):
        number = int(response.removesuffix(EOS).split()[-1])
        if prompt.endswith("tie") or number == 3:
            return 1.0, 1.0
        return (1.0, [0.5, -1.0, 0.0][number]) if number < 3 else None


def sample(rows, have=(), schedule=0, reward=PAPER, judge=ScriptedJudge, **changes):
    codec, found = ScriptedCodec(), []
    draw = candidates.Draw(**(
        {"count": 5, "max_tokens": 9, "key": (0, "x"), "direct": True,
         "sampling": Sampling(temperature=0.7)}
        | changes
    ))  # fmt: skip
    engine = ScriptedEngine(Talker(), codec, seed=schedule, max_prompt=40)
    judge = judge(Talker(), seed=schedule)
    leftovers = candidates.sample(
        rows, draw, engine=engine, codec=codec, judge=judge, reward=reward, have=have,
        on_candidate=found.append,
    )  # fmt: skip
    assert not engine.held
    return sorted(found, key=lambda row: row.id), leftovers, engine, judge


ASKED = [
    Prompt(id="p0", question="question 0", type="helpfulness"),
    Prompt(id="p1", question="they all tie", type="helpfulness"),
    Prompt(id="p2", question="q" * 60, type="safety"),
]


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
    other, *_ = sample(ASKED[:1], reward=Reward("outcome", RewardConfig(F="identity", c1=1.0, c2=-1.0, k1=1.0, k2=1.0)))  # fmt: skip  # noqa: E501
    assert found[0].reward == 2.5
    assert other[0].reward == 0.5


def test_without_two_different_rewards_there_is_no_pair():
    row = Candidate(id="p/0", prompt="p", question="q", type="safety", ids=(1,), text="t",
                    reward=1.0, ended=True)  # fmt: skip
    other = dataclasses.replace(row, id="p/1", reward=-1.0)
    assert candidates.best_against_worst([row, other]) == [(row, other)]
    assert candidates.best_against_worst([row]) == []
    assert candidates.best_against_worst([row, dataclasses.replace(other, reward=1.0)]) == []
    assert candidates.best_against_worst([row, dataclasses.replace(other, reward=None)]) == []
    elsewhere = dataclasses.replace(other, prompt="q")
    assert candidates.best_against_worst([row, elsewhere]) == []


# ---- the stage, with trainers that note what they are given


@pytest.fixture
def stage(tmp_path, monkeypatch):
    """Runs the stage without training; returns what the trainers were given, by artefact."""
    seen: dict[str, dict] = {}

    def sft(run, name, policy, examples, config):
        seen[name] = {"start": policy.name, "rows": examples, "config": config}
        run.lineage.finish(name, name)

    def dpo(run, name, policy, pairs, anchors, config, loss, *, seed):
        assert not anchors
        seen[name] = {"start": policy.name, "rows": pairs, "config": config, "loss": loss,
                      "seed": seed}  # fmt: skip
        run.lineage.finish(name, name)

    def sampled(rows, draw, *, on_candidate, **_):
        for prompt in rows:
            for i in range(draw.count):
                reward = None if i == 3 else float(i if prompt.id.endswith("1") else 0)
                on_candidate(Candidate(
                    id=f"{prompt.id}/{i}", prompt=prompt.id, question=prompt.question,
                    type=prompt.type, ids=(7 + i,), text="t", reward=reward, ended=i != 3,
                ))  # fmt: skip
        return driver.Leftovers({}, ())

    monkeypatch.setattr(training, "sft", sft)
    monkeypatch.setattr(training, "dpo", dpo)
    monkeypatch.setattr(candidates, "sample", sampled)
    monkeypatch.setattr(policies, "engine_for", lambda run, policy: Engine())
    monkeypatch.setattr(policies, "load", lambda run, name: Policy(name, SPEC, None, CODEC))

    def go(**changes):
        c = tiny("smoke,baselines", workdir=str(tmp_path), **changes)
        with Metrics(tmp_path) as metrics:
            run = Run(c, tmp_path, Lineage(tmp_path / "lineage.json"), metrics)
            baselines.run(run)
        return seen, run

    return go


class Engine(ScriptedEngine):
    def __init__(self):
        super().__init__(Talker(), ScriptedCodec())

    def compile(self, samplings, *, extends):
        assert not extends  # nobody judges in the engine
        [sampling] = samplings
        assert (sampling.temperature, sampling.top_p) == (0.7, 0.9)


def test_every_baseline_has_its_start_and_its_rows(stage):
    seen, run = stage()
    rows = prompts.for_preferences(run.config)
    kinds = collections.Counter(row.type for row in rows)
    assert set(kinds) == {"safety", "helpfulness"}
    start = "baseline-start"
    found = {name: (given["start"], len(given["rows"])) for name, given in seen.items()}
    few = found.pop("baselines/self-rewarding-1")[1], found.pop("baselines/self-rewarding-2")[1]
    assert found == {
        "baselines/start": ("base", 1920),
        "baselines/sft": (start, 64),
        "baselines/dpo": (start, 64),
        "baselines/sacpo-1": (start, kinds["helpfulness"]),
        "baselines/sacpo": ("baseline-sacpo-1", kinds["safety"]),
        "baselines/self-rewarding-3": ("baseline-self-rewarding-2", few[1]),
    }
    assert few == (2, 2)  # prompts 0001 and 0011 of 12
    assert seen["baselines/self-rewarding-1"]["start"] == start
    assert seen["baselines/self-rewarding-2"]["start"] == "baseline-self-rewarding-1"
    pair = seen["baselines/self-rewarding-1"]["rows"][0]
    eos = CODEC.eos_id
    assert (pair.chosen, pair.rejected, pair.prefix) == ((9, eos), (7, eos), ())
    seeds = [seen[f"baselines/self-rewarding-{k}"]["seed"] for k in (1, 2, 3)]
    assert len(set(seeds)) == 3


def test_what_is_trained_is_the_answer_and_the_end_of_the_turn(stage):
    seen, run = stage()
    rows = prompts.for_preferences(run.config)
    for row, example, pair in zip(
        rows, seen["baselines/sft"]["rows"], seen["baselines/dpo"]["rows"], strict=True
    ):
        ids = CODEC.prompt_ids(row.question)
        assert list(example.prompt) == list(pair.prompt) == ids
        assert CODEC.decode(example.response) == f"{row.chosen} {EOS}"
        assert example.response == pair.chosen
        assert CODEC.decode(pair.rejected) == f"{row.rejected} {EOS}"


def test_the_settings_reach_the_trainers(stage):
    seen, run = stage(dpo__beta=0.3, baselines__sacpo_betas=(0.2, 0.05), rounds=1)
    betas = {name: given["loss"].beta for name, given in seen.items() if "loss" in given}
    assert betas == {"baselines/dpo": 0.3, "baselines/sacpo-1": 0.2, "baselines/sacpo": 0.05,
                     "baselines/self-rewarding-1": 0.3}  # fmt: skip
    usual = DpoConfig.of(run.config.dpo)
    for name, given in seen.items():
        trainer = train_config(run.config, "dpo" if "loss" in given else "sft")
        assert trainer.buckets != run.config.baselines.buckets
        b = run.config.baselines
        assert trainer.lr != b.sft_lr > 0
        lr = b.sft_lr if name == "baselines/sft" else trainer.lr
        assert given["config"] == dataclasses.replace(trainer, buckets=b.buckets, lr=lr), name
        if "loss" in given:
            assert usual.sft_coef > 0
            plain = {"scope": "response", "sft_coef": 0.0, "anchors_per_pair": 0.0}
            assert given["loss"] == dataclasses.replace(usual, **plain, beta=betas[name])


def test_without_settings_of_their_own_they_take_the_trainers():
    c = tiny("baselines", baselines__buckets=(), baselines__sft_lr=0.0)
    assert train_config(c, "baselines.sft") == train_config(c, "sft")
    assert train_config(c, "baselines.sacpo") == train_config(c, "dpo")


def test_only_what_is_named_is_made_and_nothing_twice(stage):
    seen, _ = stage(baselines__names="dpo")
    assert set(seen) == {"baselines/start", "baselines/dpo"}
    seen.clear()
    stage(baselines__names="dpo,sacpo")
    assert set(seen) == {"baselines/sacpo-1", "baselines/sacpo"}


def test_models_are_listed_by_the_paper_and_in_their_last_form(stage):
    _, run = stage()
    last = ["baseline-start", "baseline-sft", "baseline-dpo", "baseline-sacpo"]
    assert policies.baselines(run) == [*last, "baseline-self-rewarding-3"]
    assert policies.names(run) == ["base"]  # chat and export stay with STAIR's
    del run.lineage.entries["baselines/self-rewarding-3"]
    assert policies.baselines(run) == [*last, "baseline-self-rewarding-2"]
    assert policies.artefact_of("baseline-sacpo-1") == "baselines/sacpo-1"
    assert [policies.is_direct(name) for name in ("sft", "baseline-sft")] == [False, True]
    parents = run.lineage.entries["baselines/sacpo"]["parents"]
    assert list(parents) == ["baselines/sacpo-1"]


def test_rounds_end_where_all_candidates_tie(stage, monkeypatch, caplog):
    monkeypatch.setattr(candidates, "best_against_worst", lambda rows: [])
    seen, run = stage(baselines__names="self-rewarding")
    assert set(seen) == {"baselines/start"}
    assert run.lineage.finished("baselines/self-rewarding-1/candidates")
    assert "all candidates of round 1 tie" in caplog.text


def test_a_checkpoint_is_the_start_and_files_need_both_types(stage, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "q", "chosen": "a", "rejected": "b", "type": "safety"}\n')
    real = {"model__checkpoint": "x", "data__preferences": str(path)}
    seen, run = stage(**real, baselines__names="sft,dpo")
    assert {given["start"] for given in seen.values()} == {"base"}
    assert "baselines/start" not in seen
    assert run.lineage.entries["baselines/sft"]["parents"] == {}
    with pytest.raises(ValueError, match=r"rows\.jsonl: no row of type 'helpfulness'"):
        stage(**real, baselines__names="sacpo")


def test_a_setting_guards_the_baselines_that_it_moves():
    def moved(key, value):
        stages = ("start", "sft", "dpo", "sacpo", "candidates", "self-rewarding")
        usual, other = tiny("baselines"), tiny("baselines", **{key: value})
        settings = [(s, f"baselines.{s}") for s in stages]
        return [s for s, name in settings if settings_of(usual, name) != settings_of(other, name)]

    assert moved("baselines__sacpo_betas", (0.2, 0.1)) == ["sacpo"]
    assert moved("baselines__temperature", 1.0) == ["candidates"]
    assert moved("baselines__sft_lr", 1.0) == ["sft"]
    assert moved("data__preference_rows", 7) == ["sft", "dpo", "sacpo"]
    assert moved("dpo__beta", 0.3) == ["dpo", "sacpo", "self-rewarding"]
    assert moved("sft__train__lr", 0.3) == ["start", "sft"]
    assert moved("baselines__names", "sft") == []


# ---- configuration


@pytest.mark.slow
def test_a_run_with_baselines_tells_them_apart_and_goes_on_where_it_was(tmp_path, capsys):
    c = tiny(
        "smoke,baselines", workdir=str(tmp_path), stages="baselines,evaluate", rounds=2,
        evaluate__search="greedy",
        evaluate__split="dev", evaluate__benchmarks="harmful,harmless",
    )  # fmt: skip
    pipeline.run(c)
    results = json.loads((tmp_path / "evals" / "results.json").read_text())
    few = ["base", "baseline-start", "baseline-sft", "baseline-dpo", "baseline-sacpo"]
    assert list(results)[:5] == few
    last = list(results)[5:]
    assert last in ([], ["baseline-self-rewarding-1"], ["baseline-self-rewarding-2"])
    assert results["base"]["harmful"]["malformed"]["value"] > 0.9
    for name in few[1:]:
        assert results[name]["harmful"]["malformed"]["value"] < 0.5
    lineage = (tmp_path / "lineage.json").read_text()
    hashes = [e["hash"] for e in json.loads(lineage).values() if e["stage"] != "evaluate"]
    assert len(set(hashes)) == len(hashes)
    table = (tmp_path / "report" / "table.md").read_text()
    assert table.count("| baseline-") == len(results) - 1
    c.stages = "baselines"
    pipeline.run(c)
    assert (tmp_path / "lineage.json").read_text() == lineage
    c.status = True
    pipeline.run(c)
    said = capsys.readouterr().out
    assert "baselines/sacpo-1" in said
    c.status, c.baselines.sacpo_betas = False, (0.1, 0.1)
    with pytest.raises(ValueError, match=r"sacpo_betas: \[0\.1, 0\.1\], but baselines/sacpo"):
        pipeline.run(c)
