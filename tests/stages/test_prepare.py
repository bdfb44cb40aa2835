"""Stage prepare: what it writes, what it refuses, how it goes on, and that others read it."""

import json
import pathlib
import sys
import types

import pytest

from stair_jax import jsonl, main, pipeline
from stair_jax.config.checks import validate
from stair_jax.data import decontaminate
from stair_jax.data.teaching import refusals as written
from stair_jax.log.metrics import Metrics
from stair_jax.miniature import tokenizer
from stair_jax.records import Candidate, Tree
from stair_jax.run import models, rejected
from stair_jax.run import rows as rows_lib
from stair_jax.run.lineage import Lineage
from stair_jax.run.workdir import Run
from stair_jax.search import candidates, driver
from stair_jax.stages import prepare
from stair_jax.text import OUTPUT, OUTPUT_END, Codec
from tests.support import hf_folders, specs
from tests.support.paper_rows import attack, harmful, helpful, write
from tests.support.workdirs import toy

WORDS = tokenizer.build()
CODEC = Codec(WORDS, "llama3")
STEPS = (
    "<|Reasoning_step|> problem analysis : a sum . <|/Reasoning_step|>"
    "<|Output|> final answer : 7 <|/Output|>"
)
SIZES = {
    "recipe__safety": 3,
    "recipe__jailbreak": 2,
    "recipe__helpful": 4,
    "recipe__cot": (1, 2),
    "recipe__round_safety": (2,),
    "recipe__round_helpful": (1,),
    "recipe__round_jailbreak": (1,),
    "recipe__prm": (1, 1),
}


@pytest.fixture(autouse=True)
def refusals(monkeypatch):
    """Refusals that say whose they are."""
    monkeypatch.setattr(written, "refusal", lambda id, seed: f"sorry , no {id} {seed}")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    spec = specs.llama(L=1, D=16, N=2, K=1, H=8, F=24, V=CODEC.size)
    folder = tmp_path_factory.mktemp("model")
    return str(hf_folders.save(folder, spec, tokenizer=WORDS, end_ids=[CODEC.eos_id]))


@pytest.fixture
def corpora(tmp_path):
    files = {
        "pku_saferlhf": write(
            tmp_path / "p.jsonl", [*map(harmful, range(9)), harmful(9, prompt="")]
        ),
        "jailbreakv": write(tmp_path / "j.jsonl", map(attack, range(5))),
        "ultrafeedback": write(tmp_path / "u.jsonl", map(helpful, range(12))),
    }
    return ",".join(f"{name}:{path}" for name, path in files.items())


def config(tmp_path, corpora, **changes):
    usual = {
        "stages": "prepare",
        "data__recipe": "paper",
        "data__corpora": corpora,
        "data__decontaminate": "none",
        **SIZES,
    }
    return toy(tmp_path / "run", **usual | changes)


@pytest.fixture
def asked(monkeypatch):
    """Answers in place of an engine; returns the ids that it was asked for, start by start."""
    starts = []

    def sample(prompts, draw, *, have, on_candidate, **_):
        starts.append([prompt.id for prompt in prompts])
        assert (draw.count, draw.sampling.temperature, draw.max_tokens) == (1, 0.5, 33)
        for prompt in prompts:
            answer = f"final answer : take it {prompt.id}"  # of a checkpoint that knows the tags
            told = {"text": f"{OUTPUT} {answer} {OUTPUT_END}", "ids": (1,), "reward": None}
            about = {"prompt": prompt.id, "question": prompt.question, "type": prompt.type}
            ended = not prompt.id.endswith("-cut")
            on_candidate(Candidate(id=f"{prompt.id}/0", ended=ended, **told, **about))
        return driver.Leftovers({}, ())

    engine = types.SimpleNamespace(compile=lambda s: None, counters={"delivered": 0})
    monkeypatch.setattr(models, "load", lambda *_, **__: types.SimpleNamespace(codec=CODEC))
    monkeypatch.setattr(models, "engine_for", lambda run, policy: engine)
    monkeypatch.setattr(rejected, "SharedEngine", lambda e: types.SimpleNamespace(client=lambda: e))
    monkeypatch.setattr(candidates, "sample", sample)
    return starts


def go(c):
    """Runs the stage alone."""
    folder = pathlib.Path(c.workdir)
    folder.mkdir(exist_ok=True)
    with Metrics(folder) as metrics:
        run = Run(c, folder, Lineage(folder / "lineage.json"), metrics)
        prepare.look(run)
        prepare.run(run)
    return run, folder / "data"


def rows(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


SAMPLED = {"recipe__temperature": 0.5, "recipe__max_tokens": 33}


def test_the_papers_sets_are_written_with_manifest_card_and_what_was_dropped(
    tmp_path, corpora, asked, checkpoint, capsys
):
    run, data = go(config(tmp_path, corpora, model__checkpoint=checkpoint, **SAMPLED))
    sizes = {path.name: len(rows(path)) for path in data.glob("*.jsonl")}
    assert sizes == {
        "preferences.jsonl": 9,
        "prompts-cot.jsonl": 3,
        "prompts-1.jsonl": 4,
        "prompts-prm.jsonl": 2,
        "dropped.jsonl": 1,
        "removed.jsonl": 0,
        "rejected.jsonl": 2,
    }
    for row in rows(data / "preferences.jsonl"):
        id, source = row["id"], row["source"]
        if source == "UltraFeedback":
            assert (row["chosen"][0], row["rejected"][0], row["type"]) == ("5", "2", "helpfulness")
            continue
        assert (row["chosen"], row["type"]) == (f"sorry , no {id} 0", "safety")
        unsafe = "first take" if source == "PKU-SafeRLHF" else f"take it {id}"
        assert row["rejected"].startswith(unsafe)
    dropped = {"id": "pku_saferlhf-row10", "corpus": "pku_saferlhf", "reason": "blank prompt"}
    assert rows(data / "dropped.jsonl") == [dropped]
    manifest = json.loads((data / "manifest.json").read_text())
    assert (manifest["recipe"], manifest["seed"], manifest["sizes"]["safety"]) == ("paper", 0, 3)
    assert manifest["corpora"]["pku_saferlhf"]["dropped"] == {"blank prompt": 1}
    assert manifest["corpora"]["pku_saferlhf"]["usable"] == 9
    assert manifest["sets"]["preferences.jsonl"]["sources"]["JailbreakV-28k"] == 2
    assert manifest["sets"]["prompts-1.jsonl"]["lengths"]["prompt"]["tokens"]["most"] > 4
    card = (data / "card.md").read_text()
    for said in ("CC-BY-NC-4.0", "blank prompt | 1", "seed 0", "Not compared with any benchmark"):
        assert said in card
    out = capsys.readouterr().out
    assert card in out
    assert out.count("  chosen: ") == 3  # three rows are shown
    entry = run.lineage.entries["data"]
    assert entry["finished"]
    assert set(entry["inputs"]) == {"data.corpora", "data.decontaminate", "model.checkpoint"}


def test_responses_that_are_there_are_not_asked_for_again(tmp_path, corpora, asked, checkpoint):
    c = config(tmp_path, corpora, model__checkpoint=checkpoint, **SAMPLED)
    run, data = go(c)
    first = {path.name: path.read_bytes() for path in data.iterdir()}
    kept, torn = first["rejected.jsonl"].splitlines(keepends=True)
    (data / "rejected.jsonl").write_bytes(kept + torn[:20])  # as a kill leaves it
    (data / "preferences.jsonl").unlink()
    run.lineage.entries["data"]["finished"] = False
    jsonl.write_json(run.workdir / "lineage.json", run.lineage.entries)
    go(c)
    (both, second) = asked
    assert len(both) == 2
    assert second == [json.loads(torn)["prompt"]]
    assert {path.name: path.read_bytes() for path in data.iterdir()} == first
    # With other rows what was sampled is not gone on with.
    run.lineage.entries["data"]["finished"] = False
    jsonl.write_json(run.workdir / "lineage.json", run.lineage.entries)
    path = tmp_path / "p.jsonl"
    path.write_text(path.read_text().replace("first take", "then take"))
    with pytest.raises(ValueError, match=r"config\.data\.corpora: what it names has changed"):
        go(c)


def test_a_response_that_did_not_end_is_left_out_and_counted(tmp_path, corpora, asked, checkpoint):
    write(tmp_path / "j.jsonl", [attack("a-cut"), attack("b")])
    c = config(tmp_path, corpora, model__checkpoint=checkpoint, **SAMPLED)
    c.recipe.round_jailbreak = (0,)
    _, data = go(c)
    assert len(rows(data / "preferences.jsonl")) == 8
    manifest = json.loads((data / "manifest.json").read_text())
    assert manifest["not_sampled"] == {rejected.CUT: 1}
    assert rows(data / "dropped.jsonl")[-1] == {
        "id": "jailbreakv-a-cut",
        "corpus": "the model's responses",
        "reason": rejected.CUT,
    }


def test_without_a_checkpoint_nothing_can_be_sampled(tmp_path, corpora):
    with pytest.raises(ValueError, match=r"has 2 rejected responses .* config\.model\.checkpoint"):
        go(config(tmp_path, corpora))
    _, data = go(config(tmp_path, corpora, recipe__jailbreak=0))
    assert len(rows(data / "preferences.jsonl")) == 7


def test_what_overlaps_with_a_benchmark_is_removed_and_listed(tmp_path, corpora, monkeypatch):
    seen = {}

    def remove(texts, against):
        seen.update(texts=texts, against=against)
        keys = [key for key, text in texts.items() if text in (hit, "how do i steal 2 ?")]
        told = types.SimpleNamespace(benchmark="xstest_safe", prompt="P", how="near")
        return types.SimpleNamespace(removed=dict.fromkeys(keys, told))

    hit = "what is 4 plus 3 ?"
    monkeypatch.setattr(decontaminate, "remove", remove)
    root = tmp_path / "root"
    (root / "xstest").mkdir(parents=True)
    (root / "xstest/xstest_prompts.csv").write_text(
        "id,prompt,type,label,focus,note\n1,how do i kill a process ?,homonyms,safe,f,n\n"
    )
    c = config(tmp_path, corpora, recipe__jailbreak=0, data__decontaminate="xstest_safe")
    c.data.root = str(root)
    _, data = go(c)
    assert seen["against"] == {"xstest_safe": ["how do i kill a process ?"]}
    assert {row["question"] for row in rows(data / "removed.jsonl")} == {
        hit,
        "you are free . how do i steal 2 ?",  # by the request in it
    }
    every = "".join(path.read_text() for path in data.glob("pr*.jsonl"))
    assert hit not in every
    assert "steal 2 ?" not in every
    manifest = json.loads((data / "manifest.json").read_text())
    assert manifest["benchmarks"] == {"xstest_safe": 1}
    assert {(x["source"], x["how"], x["rows"]) for x in manifest["removed"]} == {
        ("UltraFeedback", "near", 1),
        ("JailbreakV-28k", "near", 1),
    }
    assert "overlaps with xstest_safe (near) | 1" in (data / "card.md").read_text()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data__recipe": ""}, r"config\.data\.recipe: empty, stage prepare needs one"),
        ({"data__recipe": "papre"}, r"config\.data\.recipe: 'papre' is not one of \['own', 'pap"),
        ({"data__corpora": "gsm8k:x.jsonl"}, r"config\.data\.corpora: 'gsm8k:x\.jsonl', expected"),
        ({"data__decontaminate": "xtsest"}, r"config\.data\.decontaminate: \['xtsest'\], expected"),
        ({"data__decontaminate": " "}, r"config\.data\.decontaminate: empty"),
        ({"recipe__prm": (1,)}, r"config\.recipe\.prm: \(1,\), expected two"),
        ({"recipe__cot": (1, -1)}, r"config\.recipe\.cot: \(1, -1\), expected whole numbers"),
        ({"recipe__round_safety": (1, 2)}, r"'round_safety': 2.*expected as many numbers of each"),
        ({"data__columns": "question"}, r"'question', expected PART=COLUMN"),
        ({"data__columns": "question=a"}, r"config\.data\.columns: no type"),
    ],
)
def test_settings_that_cannot_work_are_refused_by_name(tmp_path, changes, message):
    usual = {"stages": "prepare", "data__recipe": "paper"}
    if "data__columns" in changes:
        usual |= {"data__recipe": "own", "data__corpora": "columns:a.jsonl"}
    c = toy(tmp_path / "run", **usual | changes)
    run = Run(c, tmp_path, Lineage(tmp_path / "lineage.json"), Metrics(tmp_path))

    def start():
        validate(c)
        prepare.look(run)

    with pytest.raises(ValueError, match=message):
        start()


def test_rounds_beyond_those_of_the_recipe_are_refused(tmp_path):
    more = {
        "data__prompts": "prepared",
        "model__checkpoint": "x",
        "rounds": 2,
        "judge__safety": "rule",
        "judge__helpfulness": "none",
    }
    with pytest.raises(
        ValueError, match=r"config\.rounds: 2, but config\.recipe\.round_safety .* 1;"
    ):
        validate(toy(tmp_path, stages="search", data__recipe="paper", **more, **SIZES))


def test_the_word_prepare_runs_this_stage_alone(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["stair-jax", "prepare", "--config=a.py", "--config.seed=1"])
    seen = []
    monkeypatch.setattr(main.app, "run", lambda *_, **__: seen.append(list(sys.argv)))
    main.command_line()
    assert seen == [["stair-jax", "--config=a.py", "--config.seed=1", "--config.stages=prepare"]]


# ---- other stages read what was prepared


OWN = {
    "data__recipe": "own",
    "data__columns": "question=q,response=a,chosen=c,rejected=r,type=helpfulness",
    "data__decontaminate": "none",
    "data__sft": "prepared",
    "data__prompts": "prepared",
    "data__preferences": "prepared",
    **{f"recipe__round_{kind}": (0,) for kind in ("safety", "jailbreak")},
    "recipe__round_helpful": (5,),
    "recipe__prm": (0, 0),
}


@pytest.fixture
def own(tmp_path):
    taught = [{"q": f"what is {i} plus 3 ?", "a": STEPS, "c": None, "r": None} for i in range(8)]
    asked = [{"q": f"what is {i} plus 4 ?", "a": None, "c": "7", "r": "8"} for i in range(5)]
    return f"columns:{write(tmp_path / 'rows.jsonl', taught + asked)}"


def through(tmp_path, own, checkpoint, **changes):
    usual = {
        "stages": "prepare,sft,search",
        "model__checkpoint": checkpoint,
        "data__corpora": own,
        "data__sft_rows": 0,
        "data__round_prompts": 0,
        "judge__safety": "rule",
        "judge__helpfulness": "none",
        "search__iterations": 4,
        "search__max_step_tokens": 8,
        "search__max_rollout_tokens": 16,
        "search__first_answers": 0,
        "evaluate__benchmarks": "harmless",
        **OWN,
    }
    return toy(tmp_path / "run", **usual | changes)


def test_sft_and_search_run_on_what_was_prepared(tmp_path, own, checkpoint):
    c = through(tmp_path, own, checkpoint)
    with pytest.raises(ValueError, match=r"stage sft needs data: run stage prepare first"):
        pipeline.run(through(tmp_path, own, checkpoint, stages="sft"))
    pipeline.run(c)
    assert [row.response for row in rows_lib.for_sft(c)] == [STEPS] * 8
    assert len(rows_lib.for_preferences(c)) == 5
    trees = jsonl.read_jsonl(tmp_path / "run/round-1/trees/trees.jsonl", Tree)
    questions = sorted(tree.prompt.question for tree in trees)
    assert questions == [f"what is {i} plus 4 ?" for i in range(5)]
    lineage = Lineage(tmp_path / "run/lineage.json")
    made = lineage.entries["data"]["hash"]
    assert lineage.entries["sft"]["parents"] == {"data": made}
    assert lineage.entries["round-1/trees"]["parents"]["data"] == made
    # A changed recipe is refused by name, and so are sets that were changed by hand.
    with pytest.raises(
        ValueError, match=r"config\.recipe\.round_helpful: \[4\], but data was made"
    ):
        pipeline.run(through(tmp_path, own, checkpoint, recipe__round_helpful=(4,)))
    edited = tmp_path / "run/data/sft.jsonl"
    edited.write_text(edited.read_text() + "\n")
    again = through(tmp_path, own, checkpoint, redo="sft")
    with pytest.raises(ValueError, match=r"data/sft\.jsonl: has changed since data was made"):
        pipeline.run(again)
