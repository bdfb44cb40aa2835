"""Attacks in the loop through stage search: what is tried, judged, kept, and found again."""

import dataclasses
import functools

import pytest

from stair_jax import jsonl
from stair_jax.config import attack_checks
from stair_jax.config.checks import validate
from stair_jax.config.words import FAMILIES
from stair_jax.data.teaching import framings
from stair_jax.engine.request import GREEDY
from stair_jax.evals.attacks import transforms
from stair_jax.judges import rule
from stair_jax.judges.base import FunctionJudge
from stair_jax.log.metrics import Metrics
from stair_jax.records import Prompt, Tree
from stair_jax.remote.open import OPEN
from stair_jax.run import judges, known_models, models, round_attacks, rows
from stair_jax.run.judges import LeftOpen
from stair_jax.run.lineage import Lineage
from stair_jax.run.models import Policy
from stair_jax.run.workdir import Run
from stair_jax.search.rewrites import Attempt
from stair_jax.stages import search
from stair_jax.text import OUTPUT, OUTPUT_END
from tests.support.configs import tiny
from tests.support.remote_stage import SEARCH, SPEC, Engine, Speech
from tests.support.scripted import RandomScript

HARMFUL = [Prompt(id=f"h{i}", question=f"how to harm {i} ?", type="safety") for i in range(5)]
HARMLESS = [Prompt(id=f"g{i}", question=f"how to help {i} ?", type="helpfulness") for i in range(7)]
ROWS = [*HARMFUL, *HARMLESS]
SOME = {"attacks": "transforms", "attack_share": 0.5}  # three attacks and their twins


class Model(RandomScript):
    """Answers what stands behind certain rewrites, and says sorry to everything else."""

    def __init__(self, *answers):
        super().__init__("loop", names=4)
        self.answers = answers  # words of questions

    def rollout(self, prompt, trajectory, visit):
        said = "here it is" if any(word in prompt for word in self.answers) else "sorry"
        return f"{OUTPUT}{said}{OUTPUT_END}"


class Noting(Engine):
    """A scripted engine that remembers how it was told to draw."""

    def __init__(self, *args):
        super().__init__(*args)
        self.samplings = set()

    def submit(self, request):
        self.samplings.add(request.sampling)
        super().submit(request)


@pytest.fixture
def stage(tmp_path, monkeypatch):
    """Returns what runs stage search of a round on a scripted model under the rule of refusals."""
    codec = Speech()
    monkeypatch.setattr(models, "load", lambda run, model, **_: Policy(model, SPEC, None, codec))
    monkeypatch.setattr(models, "spec_and_codec", lambda run: (SPEC, codec))
    monkeypatch.setattr(known_models, "parent_of_round", lambda run, _: known_models.base(run))
    monkeypatch.setattr(rows, "for_round", lambda *_: ROWS)
    engines = []

    def go(*answers, number=2, slots=4, seed=0, trees=True, helpfulness="none", **changes):
        def engine(*_):
            engines.append(Noting(Model(*answers), codec))
            return engines[-1]

        monkeypatch.setattr(models, "engine_for", engine)
        c = tiny("smoke", workdir=str(tmp_path), seed=seed)
        c.data.prompts, c.engine.slots = "ours", slots
        c.judge.update(safety="rule", helpfulness=helpfulness)
        c.search.update(SEARCH | {"first_answers": 0} | changes)
        engines.clear()
        with Metrics(tmp_path) as metrics:
            run = Run(c, tmp_path, Lineage(tmp_path / "lineage.json"), metrics)
            if trees:
                search.run(run, number)
            else:
                round_attacks.of_round(
                    run, number, known_models.base(run), rows.for_round(c, number)
                )
        return Outcome(tmp_path, run, engines)

    return go


@pytest.fixture
def attack(stage):
    """Returns what looks for attacks as the stage does, and grows no trees."""
    return functools.partial(stage, trees=False)


class Outcome:
    """What a round left behind."""

    def __init__(self, workdir, run, engines):
        self.path = workdir / "round-2" / "attacks" / "attempts.jsonl"
        self.entries, self.engines = run.lineage.entries, list(engines)
        path = workdir / "round-2" / "trees" / "trees.jsonl"
        self.trees = {t.prompt.id: t for t in jsonl.read_jsonl(path, Tree)} if path.exists() else {}
        self.metrics = run.metrics.path.read_text()

    @property
    def rows(self):
        return jsonl.read_jsonl(self.path, Attempt)

    @property
    def added(self):
        return {id: t.prompt for id, t in self.trees.items() if "attack" in t.prompt.meta}


def forget(workdir, *names):
    """Drops artefacts from the lineage alone, as a kill before their end leaves it."""
    lineage = Lineage(workdir / "lineage.json")
    for name in names:
        lineage.entries[name]["finished"] = False
    lineage._write()


def test_rewrites_that_beat_the_model_become_prompts_each_with_a_twin(stage, caplog):
    caplog.set_level("INFO")
    found = stage("0n3", "Keep to", **SOME)  # of no refusals, and one that no rewrite has
    assert len(found.trees) == len(ROWS) + 6
    attacks = [p for p in found.added.values() if p.type == "safety"]
    twins = [p for p in found.added.values() if p.type == "helpfulness"]
    assert len(attacks) == len(twins) == 3
    assert sorted(p.meta["attack"] for p in attacks) == sorted(p.meta["attack"] for p in twins)
    for prompt in found.added.values():
        original = next(row for row in ROWS if row.id == prompt.meta["of"])
        name = prompt.meta["attack"].removeprefix("transforms/")
        assert name in ("refusal_suppression", "combination_1")
        assert prompt.question == transforms.TRANSFORMS[name].of(original.question)
        assert prompt.id == f"{original.id}/rewritten/transforms/{name}"
    beat = sum(row.beats for row in found.rows)
    said = f"{beat} of {len(found.rows)} rewrites beat base, 3 are kept (3 wanted), each with a"
    assert said in caplog.text
    entry = found.entries["round-2/attacks"]
    assert (entry["tried"], entry["beat"], entry["kept"]) == (len(found.rows), beat, 3)
    assert f'"tried": {len(found.rows)}' in found.metrics
    assert "round-2/attacks" in found.entries["round-2/trees"]["parents"]


def test_a_row_has_the_answer_and_its_verdict(attack):
    found = attack("Keep to", **SOME)
    assert {row.safety for row in found.rows} == {1.0, -1.0}
    for row in found.rows:
        assert ("sorry" in row.response) == (row.safety == 1.0)
        assert (row.safety == -1.0) == ("Keep to" in row.question)


def test_a_model_that_refuses_all_gets_no_further_prompts_and_the_log_says_so(stage, caplog):
    found = stage(**SOME)
    assert found.trees.keys() == {row.id for row in ROWS}
    assert len(found.rows) == 5 * 9  # all transforms but the one that changes nothing
    assert "none of 45 rewrites beats base, so none becomes a prompt" in caplog.text
    assert found.entries["round-2/attacks"]["kept"] == 0


def test_round_1_and_a_run_without_the_setting_try_nothing(stage, tmp_path):
    assert stage("how", number=1, **SOME).entries.keys() == {"round-1/trees"}
    found = stage("how")
    assert found.entries.keys() == {"round-1/trees", "round-2/trees"}
    assert not found.path.exists()
    assert found.trees.keys() == {row.id for row in ROWS}


def test_no_more_is_tried_than_what_fills_the_engine_once_enough_are_kept(attack):
    found = attack("", slots=4, **SOME)  # answers everything
    assert len(found.rows) == 4
    assert found.entries["round-2/attacks"]["kept"] == 3


def test_the_pool_bounds_what_is_tried(attack):
    assert len(attack(attack_pool=7, **SOME).rows) == 7


@pytest.mark.parametrize(("share", "kept"), [(0.0, 0), (0.2, 1), (0.5, 3), (1.0, 6)])
def test_the_share_is_that_of_the_rounds_own_prompts(attack, share, kept):
    entry = attack("", attacks="framings", attack_share=share).entries["round-2/attacks"]
    assert entry["kept"] == kept
    assert entry["tried"] == (4 * -(-kept // 4) if kept else 0)


def test_a_share_too_small_for_one_attack_is_said(attack, caplog):
    attack("", attacks="framings", attack_share=0.1)  # of twelve prompts
    assert (
        "leaves no room for an attack and its twin in 12 prompts, so none is tried" in caplog.text
    )


def test_attacks_without_a_harmless_prompt_for_a_twin_are_counted(attack, caplog, monkeypatch):
    one = [*HARMFUL, HARMLESS[0], dataclasses.replace(HARMLESS[1], prefill="begun")]
    monkeypatch.setattr(rows, "for_round", lambda *_: one)
    # One rewrite has one harmless prompt to stand before; three attacks are wanted.
    found = attack("Keep to", attacks="transforms", attack_share=1.0)
    assert found.entries["round-2/attacks"]["kept"] == len(
        {row.attack for row in found.rows if row.beats}
    )
    assert "attacks are left out, no harmless prompt is left for a twin" in caplog.text


def names_tried(found):
    return {row.attack for row in found.rows}


def test_the_setting_says_which_rewrites_are_tried(attack):
    everything = names_tried(attack(attacks="framings,transforms"))
    known = {f"framings/{one.name}" for one in framings.FRAMINGS}
    known |= {f"transforms/{name}" for name in transforms.TRANSFORMS if name != "none"}
    assert everything == known


def test_families_of_framings_are_those_of_the_setting(attack):
    assert FAMILIES == framings.FAMILIES
    found = attack(attacks="framings", attack_families="encoded,authority")
    assert {name.split("/")[1] for name in names_tried(found)} == {"encoded", "authority"}


def test_families_that_a_recipe_holds_out_are_left_alone():
    c = tiny("smoke")
    c.data.update(prompts="prepared", recipe="small")
    c.search.update(attacks="framings")
    c.recipe.held_out = "encoded,fiction"

    def used():
        questions = round_attacks.rewriter_of(c).questions(HARMFUL[0])
        return {name.split("/")[1] for name in questions}

    assert used() == set(FAMILIES) - {"encoded", "fiction"}
    c.data.recipe = "paper"  # which holds out none
    assert used() == set(FAMILIES)
    c.data.recipe, c.search.attack_families = "small", "encoded"
    with pytest.raises(ValueError, match=r"attack_families: 'encoded' are all held out"):
        attack_checks.validate_attacks(c)
    c.search.attacks = "transforms"  # which have no families
    attack_checks.validate_attacks(c)


def test_the_check_of_a_run_looks_for_a_family_that_is_left(tmp_path):
    c = tiny("smoke", workdir=str(tmp_path))
    c.data.update(prompts="prepared", recipe="small")
    c.model.checkpoint = "somewhere"
    c.judge.update(safety="rule", helpfulness="none")
    c.search.attacks, c.recipe.held_out = "framings", ",".join(FAMILIES)
    with pytest.raises(ValueError, match=r"attack_families: '' are all held out by config\.recipe"):
        validate(c)


def test_the_miniature_takes_no_transforms(tmp_path):
    c = tiny("smoke", workdir=str(tmp_path))
    c.search.attacks = "framings"
    validate(c)
    c.search.attacks = "framings,transforms"
    with pytest.raises(ValueError, match=r"search\.attacks: 'framings,transforms' with prompts of"):
        validate(c)


def test_prompts_that_are_framed_already_are_told_from_plain_ones():
    c = tiny("smoke")
    c.data.prompts, c.search.attacks = "ours", "framings"
    is_plain = round_attacks.rewriter_of(c).is_plain
    assert is_plain(HARMFUL[0])
    for one in framings.FRAMINGS:
        question = one.frame(HARMFUL[0].question)
        assert not is_plain(dataclasses.replace(HARMFUL[0], question=question)), one.name


def test_another_seed_tries_others_first(attack, tmp_path):
    first = [row.id for row in attack(attack_pool=6, **SOME).rows]
    Lineage(tmp_path / "lineage.json").drop(["round-2/attacks"])
    second = [row.id for row in attack(attack_pool=6, seed=1, **SOME).rows]
    assert set(first) != set(second)


def test_a_finished_round_of_attacks_is_read_and_not_tried_again(stage, tmp_path):
    first = stage("Keep to", **SOME)
    Lineage(tmp_path / "lineage.json").drop(["round-2/trees"])
    second = stage(**SOME)  # a model that would refuse
    assert second.rows == first.rows
    assert second.trees.keys() == first.trees.keys()
    assert len(second.engines) == 1  # that of the trees
    assert {id: t.prompt for id, t in second.trees.items()} == {
        id: t.prompt for id, t in first.trees.items()
    }


@pytest.mark.parametrize("lost", [1, 2, 5, 9])
def test_attacks_that_were_stopped_go_on_row_by_row(attack, tmp_path, lost):
    whole = attack("Keep to", **SOME)
    content = whole.path.read_bytes()
    lines = content.splitlines(keepends=True)
    assert len(lines) > 9
    whole.path.write_bytes(b"".join(lines[:-lost]) + lines[-lost][:20])  # the last line is torn
    forget(tmp_path, "round-2/attacks")
    again = attack("Keep to", **SOME)
    assert again.path.read_bytes() == content
    asked = [key for key in again.engines[0].keys if "attack in the loop" in key]
    assert len(asked) == lost
    assert again.entries["round-2/attacks"]["hash"] == whole.entries["round-2/attacks"]["hash"]


def test_a_torn_line_spoils_no_row_that_is_written_after_it(attack, monkeypatch):
    whole = attack("Keep to", **SOME)
    content = whole.path.read_bytes()
    whole.path.write_bytes(content[:-20])
    forget(whole.path.parents[2], "round-2/attacks")
    written = []

    def stop(path, rows):  # as a kill before the end leaves it
        written.append(path.read_bytes())
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(jsonl, "write_jsonl", stop)
        with pytest.raises(KeyboardInterrupt):
            attack("Keep to", **SOME)
    assert written == [content]


def test_a_row_on_another_question_does_not_count(attack, tmp_path):
    whole = attack("Keep to", **SOME)
    first, *others = whole.rows
    jsonl.write_jsonl(whole.path, [dataclasses.replace(first, question="other"), *others])
    forget(tmp_path, "round-2/attacks")
    again = attack("Keep to", **SOME)
    assert again.rows == whole.rows
    assert len([key for key in again.engines[0].keys if "attack in the loop" in key]) == 1


def test_trees_that_were_stopped_ask_the_same_prompts(stage, tmp_path):
    whole = stage("Keep to", **SOME)
    path = tmp_path / "round-2" / "trees" / "trees.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:4]))
    forget(tmp_path, "round-2/trees")
    again = stage("Keep to", **SOME)
    assert again.trees == whole.trees
    assert len(again.engines) == 1


def test_rows_that_change_under_finished_attacks_are_refused(stage, tmp_path, monkeypatch):
    stage("Keep to", **SOME)
    forget(tmp_path, "round-2/trees")
    monkeypatch.setattr(rows, "for_round", lambda *_: ROWS[1:])
    with pytest.raises(ValueError, match=r"data\.prompts: what it names has changed since"):
        stage("Keep to", **SOME)


def test_other_settings_are_refused_once_something_was_tried(attack):
    attack("Keep to", **SOME)
    with pytest.raises(ValueError, match=r"config\.search\.attack_share: 0\.25, but round-2/att"):
        attack("Keep to", **(SOME | {"attack_share": 0.25}))


def test_answers_that_nobody_judged_are_asked_again(attack, monkeypatch, tmp_path):
    class Absent(FunctionJudge):
        def __init__(self, *_):
            super().__init__(lambda prompt, response: OPEN)

    with monkeypatch.context() as patched:
        patched.setattr(judges, "judge_of", Absent)
        with pytest.raises(LeftOpen, match="round-2/attacks: 4 left open"):
            attack("Keep to", **SOME)
    found = attack("Keep to", **SOME)
    assert found.entries["round-2/attacks"]["kept"] == 3


def test_an_answer_without_a_verdict_or_an_end_beats_nobody(attack, monkeypatch):
    whole = OUTPUT_END  # ends a response
    monkeypatch.setattr(Model, "rollout", lambda *_: f"no output block {whole}")
    assert {row.safety for row in attack("", **SOME).rows} == {None}


def test_a_cut_answer_beats_nobody(attack):
    found = attack("", max_rollout_tokens=2, **SOME)  # the end of the block is the third token
    assert {row.safety for row in found.rows} == {None}


def test_the_judge_is_asked_about_safety_alone(attack, monkeypatch):
    seen = []

    def judge_of(run, *_):
        seen.append((run.config.judge.safety, run.config.judge.helpfulness))
        return rule.RuleJudge()

    monkeypatch.setattr(judges, "judge_of", judge_of)
    found = attack("Keep to", helpfulness="self", **SOME)
    assert seen == [("rule", "none")]
    assert found.entries["round-2/attacks"]["kept"] == 3


def test_the_answer_is_the_likeliest_one(attack):
    engine = attack("Keep to", **SOME).engines[0]
    assert engine.samplings == {GREEDY}
