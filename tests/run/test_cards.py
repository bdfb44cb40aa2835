"""What cards say of a run: its own entries, today's results, and no path of the machine."""

import json
import pathlib
import re

import pytest

from stair_jax.evals.statistics import mean_of, share
from stair_jax.log.metrics import Metrics
from stair_jax.miniature import tokenizer
from stair_jax.run import card_facts, cards, known_models
from stair_jax.run.known_models import REWARD_MODEL
from stair_jax.run.lineage import Lineage
from stair_jax.run.workdir import Run
from tests.support import specs
from tests.support.configs import tiny

OWN = {
    "answered": share([1.0, 1.0, 0.0]) | {"missing": 2, "protocol": "/secret/place/mine.jsonl"},
    "safety": mean_of([0.5, 1.0]) | {"missing": 3, "protocol": "/secret/place/mine.jsonl"},
}
HARMLESS = {"accuracy": share([1.0] * 9 + [0.0]), "malformed": share([0.0] * 10)}


def make(workdir, **changes):
    """A run of which the lineage alone is there: two rounds, a reward model, an evaluation."""
    workdir.mkdir(exist_ok=True)
    run = Run(
        tiny(workdir=str(workdir), **{"dpo__beta": 0.7, **changes}),
        workdir,
        Lineage(workdir / "lineage.json"),
        Metrics(workdir),
    )
    add(run, "sft", "sft", inputs={"data.sft": "a" * 32}, rows=8)
    before = "sft"
    for k in (1, 2):
        trees, pairs, made = (f"round-{k}/{name}" for name in ("trees", "pairs", "dpo"))
        add(run, trees, "search", (before,), {"data.prompts": str(k) * 32}, trees=10 * k)
        add(run, pairs, "pairs", (trees,), trees=10 * k, pairs=100 * k)
        add(run, made, "dpo", (before, pairs), pairs=100 * k)
        before = made
    evaluated(run, "sft", "sft", harmless=HARMLESS)
    evaluated(run, "dpo-2", "round-2/dpo", harmless=HARMLESS)
    return run


def add(run, name, stage, parents=(), inputs=None, **facts):
    run.begin(name, stage, parents, inputs)
    run.lineage.finish(name, f"hash of {name}", **facts)


def evaluated(run, name, *parents, **results):
    add(run, f"evals/{name}", "evaluate", parents, results=results)


def add_reward_model(run):
    readout = {"position": "step_end", "loss": "implicit", "low": -3.0, "high": 3.0}
    add(run, "prm", "prm", ("round-2/dpo", "round-1/trees"), start="dpo-2", readout=readout)
    (run.workdir / "prm").mkdir()
    report = {"held_out": {"trees": 5, "accuracy": 0.75, "ece": 0.5, "calibrated": False}}
    (run.workdir / "prm" / "report.json").write_text(json.dumps(report))


def facts(run, name):
    return card_facts.of(run, known_models.of_name(run, name))


def test_data_rounds_and_settings_are_those_of_what_the_model_came_from(tmp_path):
    run = make(tmp_path / "w")
    last, first = facts(run, "dpo-2"), facts(run, "dpo-1")
    assert last.data == [
        ("sft", "miniature", "a" * 32),
        ("round-1/trees", "miniature", "1" * 32),
        ("round-2/trees", "miniature", "2" * 32),
    ]
    assert last.rounds == [("1", "10", "100"), ("2", "20", "200")]
    assert first.rounds == [("1", "10", "100")]
    assert not facts(run, "sft").rounds
    assert ("dpo.beta", "0.7", "0.1") in last.settings  # differs from its default
    assert ("search.num_children", "4", "4") in last.settings  # matters
    shown = {key for key, _, _ in last.settings}
    assert not {"dpo.label_smoothing", "engine.slots", "data.sft"} & shown
    assert "dpo.beta" not in {key for key, _, _ in facts(run, "sft").settings}


def test_the_table_has_the_model_and_its_parents_and_its_searches_alone(tmp_path):
    run = make(tmp_path / "w")
    evaluated(run, "dpo-2/best_of_2", "round-2/dpo", harmless=HARMLESS)
    evaluated(run, "dpo-1/best_of_2", "round-1/dpo", harmless=HARMLESS)
    assert models_of(facts(run, "dpo-2")) == ["sft", "dpo-2", "dpo-2/best_of_2"]
    assert models_of(facts(run, "dpo-1")) == ["sft", "dpo-1/best_of_2"]
    assert "90.0 (60-98)" in facts(run, "dpo-2").results
    assert facts(run, "dpo-2").notes == ["harmless: 10 prompts"]


def models_of(found):
    return [line.split("|")[1].strip() for line in found.results.splitlines()[2:]]


def test_results_of_a_model_that_was_made_anew_do_not_count(tmp_path):
    run = make(tmp_path / "w")
    run.lineage.entries["round-2/dpo"]["hash"] = "another"
    assert models_of(facts(run, "dpo-2")) == ["sft"]
    assert "Everything: stage evaluate has not" in facts(run, "dpo-2").missing[0]


def test_a_baseline_came_from_its_own_steps_and_answers_directly(tmp_path):
    run = make(tmp_path / "w")
    add(run, "baselines/sacpo-1", "baselines.sacpo", inputs={"data.preferences": "b" * 32})
    add(run, "baselines/sacpo", "baselines.sacpo", ("baselines/sacpo-1",))
    evaluated(run, "baseline-sacpo", "baselines/sacpo", harmless=HARMLESS)
    found = facts(run, "baseline-sacpo")
    assert found.direct
    assert "not by STAIR" in found.about
    assert found.data == [("baselines/sacpo-1", "miniature", "b" * 32)]
    assert models_of(found) == ["baseline-sacpo"]
    line = known_models.line_of(run, known_models.baseline("sacpo"))
    assert [model.name for model in line] == ["base", "baseline-sacpo-1", "baseline-sacpo"]


def test_what_was_not_measured_follows_from_what_was(tmp_path):
    run = make(tmp_path / "w", seed=5)
    said = "\n".join(facts(run, "dpo-2").missing)
    assert "not run: harmful, jailbreak, lookalike." in said
    assert "gsm8k" not in said  # the world's model does not speak its language
    assert "Attacks:" in said
    assert "no judge has scored" in said
    assert "with seed 5" in said
    evaluated(run, "dpo-2", "round-2/dpo", harmless={"accuracy": share([1.0])})
    assert "Attacks:" in "\n".join(facts(run, "dpo-2").missing)  # asked, but no attack
    evaluated(run, "dpo-1", "round-1/dpo", jailbreak={"compliance": share([0.0])}, mine=OWN)
    said = "\n".join(facts(run, "dpo-1").missing)
    assert "Attacks:" not in said
    assert "no judge" not in said
    assert "not run: harmful, lookalike, harmless." in said


def test_a_published_benchmarks_judge_is_a_judge(tmp_path):
    run = make(tmp_path / "w")
    verdict = {**share([1.0]), "missing": 0, "parse_failures": 0, "protocol": "own words, judge m"}
    evaluated(run, "dpo-1", "round-1/dpo", xstest_safe={"refusal": share([0.0])})
    assert "no judge" in "\n".join(facts(run, "dpo-1").missing)
    evaluated(run, "dpo-1", "round-1/dpo", xstest_safe={"any_refusal": verdict})
    assert "no judge" not in "\n".join(facts(run, "dpo-1").missing)


def test_prompts_of_a_file_are_shown_with_their_judge_and_without_their_place(tmp_path):
    run = make(tmp_path / "w")
    evaluated(run, "dpo-1", "round-1/dpo", **{"mine|<b>": OWN})
    add(run, "evals/ratings", "evaluate.rated")
    found = facts(run, "dpo-1")
    assert "| mine&#124;&#60;b&#62;: safety ↑" in found.results
    assert "0.75 (0.26 to 1.24)" in found.results
    assert found.notes[1:] == [
        "mine|<b>: 5 prompts, prompts of a file",
        "Safety and helpfulness are scores in [-1, 1]: safety by the truth of the made-up world,"
        " helpfulness by the truth of the made-up world",
    ]


def test_a_reward_model_has_its_figures_and_the_searches_under_it(tmp_path):
    run = make(tmp_path / "w", prm__reference="start")
    add_reward_model(run)
    evaluated(run, "dpo-2/beam_2x2", "round-2/dpo", "prm", harmless=HARMLESS)
    evaluated(run, "dpo-2/random_of_2", "round-2/dpo", harmless=HARMLESS)
    found = card_facts.of(run, REWARD_MODEL)
    assert models_of(found) == ["dpo-2", "dpo-2/beam_2x2"]
    assert found.scores
    assert (found.scores.beta, found.scores.reference, found.scores.trees) == (0.3, "dpo-2", 5)
    assert [value for _, value in found.scores.held_out] == ["0.750"]  # no calibration: no aim
    assert found.rounds == [("1", "10", "100"), ("2", "20", "200")]


def test_a_checkpoint_in_a_folder_gives_its_name_its_licence_and_no_path(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    base, words = tmp_path / "private" / "my-base", tokenizer.build()
    words.save_pretrained(base)  # a card needs no weights
    spec = specs.llama(L=1, D=8, N=1, K=1, H=8, F=8, V=len(words))
    (base / "config.json").write_text(json.dumps(spec.to_hf()))
    (base / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    rows = tmp_path / "private" / "rows.jsonl"
    rows.write_text("")
    changes = {"data__sft": str(rows), "data__prompts": "some/prompts"}
    changes |= {"judge__templates": str(base)}
    changes |= {"judge__safety": "self", "judge__helpfulness": "self"}
    run = make(tmp_path / "w", model__checkpoint=str(base), **changes)
    found = facts(run, "dpo-2")
    assert (found.base, found.license) == ("my-base", "apache-2.0")
    assert re.fullmatch("[0-9a-f]{32}", found.base_hash)
    assert found.data[0] == ("sft", "rows.jsonl", "a" * 32)
    assert found.datasets == ["some/prompts"]
    text = cards.text_for(run, known_models.of_name(run, "dpo-2"), tmp_path / "nowhere")
    for place in (str(tmp_path), "private", tmp_path.name, str(pathlib.Path.cwd())):
        assert place not in text
    assert "safety by the policy of the round itself" in text


@pytest.fixture
def exported(tmp_path):
    """A run with an export of its last model, and where its card lies."""
    run = make(tmp_path / "w")
    add(run, "export/dpo-2", "export", ("round-2/dpo",))
    folder = run.workdir / "export" / "dpo-2"
    folder.mkdir(parents=True)
    cards.update_all(run)
    return run, folder / "README.md"


def test_a_later_evaluation_brings_the_card_up_to_date(exported):
    run, file = exported
    before = file.read_text()
    stamp = file.stat().st_mtime_ns
    cards.update_all(run)
    assert file.stat().st_mtime_ns == stamp  # nothing is new
    evaluated(run, "dpo-2", "round-2/dpo", lookalike=HARMLESS)
    cards.update_all(run)
    assert "look-alike: right" not in before
    assert "look-alike: right" in file.read_text()


def test_a_card_that_was_edited_by_hand_is_left_alone_until_it_is_deleted(exported, caplog):
    run, file = exported
    mine = file.read_text() + "\nAsk me about it.\n"
    file.write_text(mine)
    evaluated(run, "dpo-2", "round-2/dpo", lookalike=HARMLESS)
    with caplog.at_level("INFO"):
        cards.update_all(run)
    assert file.read_text() == mine
    assert "edited by hand, left as it is; delete it for a new one" in caplog.text
    file.unlink()
    cards.update_all(run)
    assert "look-alike: right" in file.read_text()


def test_an_export_that_is_gone_gets_no_card(exported):
    run, file = exported
    file.unlink()
    file.parent.rmdir()
    cards.update_all(run)
    assert not file.parent.exists()
