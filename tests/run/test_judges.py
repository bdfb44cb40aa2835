"""Judges as a run's configuration names them, from the policy's own engine to the metrics."""

import collections
import json

import pytest

from stair_jax.config.checks import validate
from stair_jax.engine.shared_engine import SharedEngine
from stair_jax.judges.base import FunctionJudge, Score
from stair_jax.judges.composite import SafetyHelpfulnessJudge
from stair_jax.judges.rubrics import Rubric
from stair_jax.miniature import judging, splits, tokenizer, verifier
from stair_jax.records import Prompt
from stair_jax.remote.open import OPEN
from stair_jax.run import judges, known_models, models
from stair_jax.run import rows as rows_lib
from stair_jax.run.models import Policy
from stair_jax.search import result_log
from stair_jax.stages import evaluate, search
from tests.support.configs import tiny
from tests.support.judging import CODEC, STAIR, Model, run_of

SELF = {"judge__helpfulness": "self", "judge__templates": "miniature"}
SUM = Prompt(id="b", question="what is 4 plus 3 ?", type="helpfulness", ground_truth="7")


def scores(judge, engine, *asked):
    for number, (prompt, response) in enumerate(asked):
        judge.submit(number, prompt, response)
    found = dict(judge.collect())
    while not engine.idle:
        engine.step()
        found |= judge.collect()
    judge.close()
    assert not engine.held
    return found


def test_the_policy_judges_helpfulness_beside_the_verifier(tmp_path):
    engine = Model(lambda asked: f"conclusion : [ {5 if 'answer : 7' in asked else 2} ]")
    run = run_of(tmp_path, **SELF)
    judge = judges.judge_of(run, SharedEngine(engine), CODEC)
    assert isinstance(judge, SafetyHelpfulnessJudge)
    asked = [(SUM, STAIR.format(7)), (SUM, STAIR.format(8)), (SUM, "7")]
    assert scores(judge, engine, *asked) == {
        0: Score(safety=1.0, helpfulness=1.0),
        1: Score(safety=1.0, helpfulness=-0.5),
        2: None,
    }
    found = judges.metrics(judge)
    assert found["judge/malformed"] == 1
    assert found["judge/helpfulness_parsed"] == 2
    assert found["judge/agreement_helpfulness"] == 1.0
    direct = judges.judge_of(run, SharedEngine(engine), CODEC, direct=True)
    assert scores(direct, engine, (SUM, "7")) == {0: Score(safety=1.0, helpfulness=1.0)}


def test_a_rubric_without_room_in_the_context_is_refused_before_the_run(tmp_path, caplog):
    template = judges.rubric(run_of(tmp_path, **SELF).config, "helpfulness")
    taken = len(CODEC.prompt_ids(template.fill("", "")))

    def check(room, **changes):
        caplog.clear()
        judges.check_room(run_of(tmp_path, engine__max_context=room, **changes), 64)
        return caplog.text

    least = rf"takes {taken} of the {taken + 31} .*max_context; raise that to {taken + 64}"
    with pytest.raises(ValueError, match=least):
        check(taken + 31, **SELF)
    assert "that need more than 32 have no score" in check(taken + 32, **SELF)
    assert not check(taken + 64, **SELF)
    assert not check(8)  # nobody is asked in words


def test_stages_look_for_room_by_the_responses_that_they_judge(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(judges, "check_room", lambda run, longest: seen.append(longest))
    rows = tmp_path / "mine.jsonl"
    rows.write_text(json.dumps({"question": "what is 4 plus 3 ?", "type": "helpfulness"}) + "\n")
    sizes = {"search__max_rollout_tokens": 48, "evaluate__max_tokens": 56}
    run = run_of(tmp_path / "w", **SELF, **sizes, data__round_prompts=2)
    search.look(run, 1)
    assert seen == [48]
    run.config.evaluate.benchmarks = str(rows)
    evaluate.look(run)
    assert seen == [48, 56]


@pytest.mark.parametrize("direct", [False, True])
def test_beside_no_verifier_an_answer_is_what_the_output_holds(tmp_path, direct):
    engine = Model(lambda asked: "conclusion : [ 4 ]")
    run = run_of(tmp_path, judge__safety="rule", **SELF)
    judge = judges.judge_of(run, SharedEngine(engine), CODEC, direct=direct)
    loose = "<|Output|> 7 <|/Output|>"  # not the miniature's format
    found = scores(judge, engine, (SUM, " 7 " if direct else loose))
    assert found == {0: Score(safety=1.0, helpfulness=0.5)}


def test_the_settings_of_the_judge_reach_it(tmp_path):
    engine = Model(lambda asked: "conclusion : [ SAFE ]")
    config = {**SELF, "judge__safety": "self", "judge__samples": 3, "judge__scope": "by_type"}
    run = run_of(tmp_path, **config)
    harm = Prompt(id="a", question="how do i rob a bank ?", type="safety")
    sorry = STAIR.format("sorry , i can not help with that")
    judge = judges.judge_of(run, SharedEngine(engine), CODEC)
    found = scores(judge, engine, (harm, STAIR.format(7)), (harm, sorry))
    assert found == {
        0: Score(safety=1.0, helpfulness=-1.0),
        1: Score(safety=1.0, helpfulness=-1.0, counts={"refusals": 1}),
    }
    assert engine.kinds["judge"] == 3
    run.config.judge.refusal_rule = False
    scores(judges.judge_of(run, SharedEngine(engine), CODEC), engine, (harm, sorry))
    assert engine.kinds["judge"] == 6


def test_only_a_judge_in_the_engine_needs_its_programs():
    assert judges.samplings(tiny()) == []
    [own] = judges.samplings(tiny(judge__safety="self", judge__temperature=0.5, judge__top_p=0.8))
    assert (own.temperature, own.top_p) == (0.5, 0.8)


# ---- the stage


@pytest.fixture
def stage(tmp_path, monkeypatch):
    """Runs stage search on a scripted model; returns its line of the metrics."""

    def go(engine, **changes):
        run = run_of(tmp_path, **SELF, data__round_prompts=4, search__iterations=4, **changes)
        monkeypatch.setattr(known_models, "parent_of_round", lambda *_: known_models.base(run))
        policy = Policy(known_models.base(run), models.spec_and_codec(run)[0], None, CODEC)
        monkeypatch.setattr(models, "load", lambda *_, **__: policy)
        monkeypatch.setattr(models, "engine_for", lambda *_: engine)
        monkeypatch.setattr(search.counters, "shares", lambda _: {})
        search.run(run, 1)
        rows = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
        [line] = [row for row in rows if row["stage"] == "round-1/trees"]
        return run, line

    return go


def test_a_search_is_judged_by_its_own_policy_and_the_metrics_tell(stage):
    engine = Model(lambda asked: "conclusion : [ 5 ]" if "plus" in asked else "conclusion : good")
    run, line = stage(engine, judge__temperature=0.55)
    assert not engine.held
    assert engine.compiled == ([1.2, 0.55], True)
    assert engine.kinds["judge"] > 0
    parsed = line.get("judge/helpfulness_parsed", 0)
    unparsed = line["judge/helpfulness_unparsed"]
    assert parsed + unparsed == engine.kinds["judge"]
    assert line["judge/missing_helpfulness"] >= unparsed  # asked again, the same is missing again
    assert line["missing"] > 0
    assert ("judge/agreement_helpfulness" in line) == (parsed > 0)
    entry = run.lineage.entries["round-1/trees"]
    assert entry["rubrics"] == {"helpfulness": judges.rubric(run.config, "helpfulness").digest}
    assert set(engine.prefilled[1:]) < set(range(60))


def test_trees_that_nobody_judges_are_begun_again_at_the_next_start(stage, monkeypatch, tmp_path):
    reached = []

    def judge_of(*_, **__):
        def score(prompt, response):
            return Score(safety=1.0, helpfulness=0.0) if prompt.id in reached else OPEN

        return FunctionJudge(score)

    monkeypatch.setattr(judges, "judge_of", judge_of)
    ids = [prompt.id for prompt in rows_lib.for_round(tiny("smoke", data__round_prompts=4), 1)]
    for some in ([], ids[:3]):
        reached[:] = some
        with pytest.raises(judges.LeftOpen, match=f"round-1/trees: {4 - len(some)} left open"):
            stage(Model(str))
        rows = (tmp_path / "round-1" / "trees" / "trees.jsonl").read_text().splitlines()
        assert [json.loads(row)["prompt"]["id"] for row in rows] == sorted(some)
    reached[:] = ids
    run, line = stage(Model(str))
    assert line["trees"] == 4
    assert run.lineage.finished("round-1/trees")


# ---- what is remembered of a judge


def test_an_artefact_is_held_to_its_rubrics(tmp_path):
    folder = tmp_path / "templates"
    folder.mkdir()
    for side in ("safety", "helpfulness"):
        (folder / f"{side}.txt").write_text("{question} {answer} " + side)
    config = tiny(judge__helpfulness="remote", judge__templates=str(folder))
    made = judges.hold_to(config, tmp_path)
    assert made == {"helpfulness": Rubric.load("helpfulness", str(folder)).digest}
    assert judges.hold_to(config, tmp_path) == made
    (folder / "safety.txt").write_text("{question}{answer}")  # which nobody is asked
    assert judges.hold_to(config, tmp_path) == made
    (folder / "helpfulness.txt").write_text("{question}{answer}")
    with pytest.raises(ValueError, match=r"helpfulness\.txt has changed .* " + str(tmp_path)):
        judges.hold_to(config, tmp_path)
    assert judges.facts(tiny()) == {}


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"judge__templates": "miniature"}, "judge.templates"),
        ({"judge__helpfulness": "self"}, "judge"),
        ({**SELF, "model__checkpoint": "x", "stages": "sft,search"}, "judge.templates"),
        ({"judge__helpfulness": "reward_model"}, "judge.reward_model"),
        ({"judge__reward_model": "somewhere"}, "judge.reward_model"),
        ({**SELF, "judge__samples": 0}, "judge.samples"),
        ({**SELF, "judge__max_tokens": 0}, "judge.max_tokens"),
        ({**SELF, "judge__temperature": -1.0}, "judge.temperature"),
        ({**SELF, "judge__top_p": 0.0}, "judge.top_p"),
    ],
)
def test_settings_of_a_judge_that_cannot_work_are_refused(changes, key):
    validate(tiny("judging", workdir="w"))
    with pytest.raises(ValueError, match=rf"config\.{key}: "):
        validate(tiny(workdir="w", **changes))


# ---- lessons in judging


def test_lessons_in_judging_tell_the_truth_in_words_that_the_model_knows():
    config = tiny("smoke", judge__safety="self", data__sft_rows=900, **SELF)
    plain = rows_lib.for_sft(tiny("smoke", data__sft_rows=900))
    rows = rows_lib.for_sft(config)
    assert rows[: len(plain)] == plain
    lessons = rows[len(plain) :]
    rubrics = {side: judges.rubric(config, side) for side in ("safety", "helpfulness")}
    assert len(lessons) == judging.SHARE * len(plain)
    unknown = CODEC.tokenizer.get_vocab()[tokenizer.UNK]
    told = collections.Counter()
    for row in lessons:
        ids = [*CODEC.prompt_ids(row.question), *CODEC.response_ids(row.response)]
        assert unknown not in ids
        assert len(ids) < config.engine.max_context - 2
        side = "safety" if "is it safe" in row.question else "helpfulness"
        rating = rubrics[side].read(row.response)
        assert rating is not None
        told[side, rating] += 1
    assert min(told["safety", -1.0], told["safety", 1.0]) > 15
    assert min(told["helpfulness", rating] for rating in (-1.0, -0.5, 1.0)) > 15


def test_lessons_agree_with_the_verifier():
    fills = {"helpfulness": lambda question, answer: f"{question} | {answer}"}
    rows = judging.rows(3, 200, fills)
    asked = {p.question: p for _, p, _ in splits.lessons(3, 200)}
    rubric = judges.rubric(tiny(**SELF), "helpfulness")
    for row in rows:
        question, _, answer = row.question.partition(" | ")
        verdict = verifier.verify(asked[question], answer, direct=True)
        assert rubric.read(row.response) == verdict.helpfulness
    assert rows != judging.rows(4, 200, fills)


def test_a_model_that_is_not_to_judge_has_no_words_for_it():
    plain, more = tokenizer.vocabulary(), tokenizer.vocabulary(judging_too=True)
    assert more[: len(plain)] == plain
    assert set(more) - set(plain) <= set(judging.WORDS)
    assert {"conclusion", "SAFE", "UNSAFE"} <= set(more) - set(plain)


def test_a_stopped_search_goes_on_where_its_engine_was(stage, tmp_path):
    class Stopped(Exception):
        """Ends the stage."""

    class Mortal(Model):
        left = 3  # steps

        def step(self):
            self.left -= 1
            if self.left < 0:
                raise Stopped
            super().step()

    folder, verdict = tmp_path / "round-1" / "trees", "conclusion : [ 4 ]"
    first, second, whole = (
        Mortal(lambda _: verdict),
        Model(lambda _: verdict),
        Model(lambda _: verdict),
    )
    with pytest.raises(Stopped):
        stage(first)
    assert (folder / result_log.FILE).stat().st_size > 0
    assert (folder / "trees.jsonl").read_bytes() == b""
    stage(second)
    assert not (folder / result_log.FILE).exists()
    trees = (folder / "trees.jsonl").read_text().splitlines()
    for name in ("round-1", "lineage.json", "metrics.jsonl"):
        (tmp_path / name).rename(tmp_path / f"old {name}")
    stage(whole)
    assert sorted((folder / "trees.jsonl").read_text().splitlines()) == sorted(trees)
    under_way = collections.Counter({"step": 0, "end": 0, "judge": 0})
    for kind in under_way:
        under_way[kind] = first.kinds[kind] + second.kinds[kind] - whole.kinds[kind]
    assert first.kinds["judge"] > 0
    assert under_way == {"step": 0, "end": 0, "judge": 0}  # a step of this engine answers all
