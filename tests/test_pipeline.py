"""The run as a whole, on settings so small that the model learns little more than the format."""

import json
import math
import os
import pathlib
import random
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest

from stair_jax import chat, jsonl, main, pipeline
from stair_jax.config import restore
from stair_jax.records import Answer, Pair, Tree
from stair_jax.run.lineage import Lineage
from stair_jax.run.workdir import locked
from tests.support.configs import tiny

ROOT = pathlib.Path(__file__).parents[1]
SMALL = {
    "rounds": 2,
    "evaluate.split": "dev",
    "evaluate.benchmarks": "harmful,jailbreak,harmless",
}


def small(workdir, **changes):
    flat = {k.replace(".", "__"): v for k, v in SMALL.items()}
    return tiny("smoke", workdir=str(workdir), **(flat | changes))


def command(workdir, *flags):
    values = [f"--config.{key}={value}" for key, value in SMALL.items()]
    return [
        sys.executable,
        "-m",
        "stair_jax.main",
        "--config=configs/tiny.py:smoke",
        f"--config.workdir={workdir}",
        *values,
        *flags,
    ]


def environment(cache):
    # Compiled programs are shared by all starts of the test, which are many.
    cached = {
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PLATFORMS": "cpu",
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    return os.environ | cached


def last_metrics(workdir):
    """The last line of every stage, without what a clock or a session decides."""
    lines = jsonl.read_json_lines(workdir / "metrics.jsonl")
    drop = ("time", "tokens_per_s", "data_wait_ms", "seconds", "trees_per_hour")
    return {
        line["stage"]: {k: v for k, v in line.items() if k not in drop and "engine/" not in k}
        for line in lines
    }


def outcome(workdir):
    """All that a run leaves behind: content hashes, settings, parents, metrics, results, table."""
    clock = ("begun", "ended", "folder", "files")  # trees are in the order in which they ended
    lineage = json.loads((workdir / "lineage.json").read_text())
    trees = sorted(workdir.glob("round-*/trees/trees.jsonl"))
    return {
        "lineage": {
            name: {k: v for k, v in entry.items() if k not in clock}
            for name, entry in lineage.items()
        },
        "metrics": last_metrics(workdir),
        "results": json.loads((workdir / "evals" / "results.json").read_text()),
        "table": (workdir / "report" / "table.md").read_text(),
        "trees": [sorted(jsonl.read_jsonl(p, Tree), key=lambda t: t.prompt.id) for p in trees],
    }


@pytest.mark.slow
def test_a_run_killed_ten_times_ends_as_an_undisturbed_one(tmp_path):
    whole, torn, cache = tmp_path / "whole", tmp_path / "torn", tmp_path / "cache"
    env = environment(cache)
    subprocess.run(command(whole), cwd=ROOT, env=env, check=True)
    shutil.rmtree(whole)  # a second run, its programs compiled, tells how long one takes
    begin = time.monotonic()
    with subprocess.Popen(command(whole), cwd=ROOT, env=env) as process:
        while not (whole / "lineage.json").exists():
            time.sleep(0.02)
        awake = time.monotonic() - begin
    assert process.returncode == 0
    work = time.monotonic() - begin - awake
    draw, kills, interrupted = random.Random(0), 0, set()
    while True:
        process = subprocess.Popen(command(torn), cwd=ROOT, env=env)
        try:
            # Pieces so small that ten of them do not make a run.
            piece = awake + work * draw.uniform(0.01, 0.14)
            process.wait(timeout=piece if kills < 12 else None)
            break
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills += 1
            entries = Lineage(torn / "lineage.json").entries
            interrupted |= {e["stage"] for e in entries.values() if not e["finished"]}
    assert process.returncode == 0
    print(f"{kills} kills, in the middle of {sorted(interrupted)}")
    assert kills >= 10
    assert len(interrupted) >= 3
    want, found = outcome(whole), outcome(torn)
    for part in want:
        assert found[part] == want[part], part


@pytest.mark.slow
def test_sigterm_in_the_middle_of_training_saves_and_the_run_ends_as_a_whole_one(tmp_path):
    whole, torn, env = tmp_path / "whole", tmp_path / "torn", environment(tmp_path / "cache")
    flags = ("--config.stages=sft", "--config.sft.train.save_every=1000")
    subprocess.run(command(whole, *flags), cwd=ROOT, env=env, check=True)
    with subprocess.Popen(
        command(torn, *flags), cwd=ROOT, env=env, stderr=subprocess.PIPE, text=True
    ) as process:
        while not (torn / "metrics.jsonl").exists():
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        message = process.communicate()[1].splitlines()[-1]
    assert process.returncode == 128 + signal.SIGTERM
    assert re.fullmatch(
        r"sft: stopped, step \d+ of 60 is saved; the same command goes on .*", message
    )
    assert not Lineage(torn / "lineage.json").finished("sft")
    subprocess.run(command(torn, *flags), cwd=ROOT, env=env, check=True)
    hashes = [Lineage(x / "lineage.json").entries["sft"]["hash"] for x in (whole, torn)]
    assert hashes[0] == hashes[1]


@pytest.mark.slow
def test_packed_rows_trees_and_adapters_through_the_whole_run(tmp_path):
    small_rounds = {
        "rounds": 1,
        "stages": "sft,search,pairs,dpo,evaluate,export",
        "evaluate__search": "greedy",
        "sft__train__batching": "pack",
        "sft__train__buckets": (192,),
        "dpo__train__batching": "tree",
        "dpo__train__buckets": (96, 192),
        "dpo__train__lora_rank": 4,
        "dpo__reference": "lora_base",
        "sft__train__eval_rows": 64,
        "sft__train__result": "best",
        "pairs__export": "trl,openrlhf,llamafactory",
    }
    workdir = tmp_path / "w"
    pipeline.run(small(workdir, **small_rounds))
    lines = jsonl.read_json_lines(workdir / "metrics.jsonl")
    first = next(x for x in lines if x["stage"] == "round-1/dpo")
    assert abs(first["rewards/margins"]) < 1e-5
    assert first["dpo_loss"] == pytest.approx(math.log(2), rel=1e-5)
    assert {"eval_loss", "bf16_changed"} <= {key for x in lines for key in x}
    entry = Lineage(workdir / "lineage.json").entries["round-1/dpo"]
    assert entry["adapters_of"] == "sft"
    assert (workdir / "export" / "dpo-1-adapters" / "adapter_model.safetensors").exists()
    report = json.loads((workdir / "export" / "dpo-1" / "export_report.json").read_text())
    assert report["max_abs_diff"] < 1e-4
    assert (workdir / "sft" / "preview.txt").read_text().count("<|Output|>") >= 3
    for name in ("trl", "openrlhf", "llamafactory"):
        assert any((workdir / "round-1" / "pairs" / "export" / name).iterdir())


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A small run, whole, and its workdir; made once."""
    workdir = tmp_path_factory.mktemp("run") / "w"
    pipeline.run(small(workdir, trackers="tensorboard", search__export_official=True))
    return workdir


@pytest.mark.slow
def test_a_run_leaves_all_that_it_promises(finished):
    found = {str(p.relative_to(finished)) for p in finished.rglob("*") if p.is_file()}
    for name in (
        "config.json",
        "lineage.json",
        "metrics.jsonl",
        "report/table.md",
        "report/rounds.png",
        "report/search.png",
        "evals/results.json",
        "evals/tokens.json",
        "prm/report.json",
        "prm/responses/candidates.jsonl",
        "evals/dpo-2/harmful.jsonl",
        "round-1/trees/trees.jsonl",
        "round-2/trees/official.json",
        "round-1/pairs/pairs.jsonl",
        "round-2/pairs/responses.jsonl",
    ):
        assert name in found
    assert list(finished.glob("tensorboard/sft/events*"))
    assert {"sft/checkpoints", "round-2/dpo/checkpoints"} <= {
        str(p.relative_to(finished)) for p in finished.rglob("checkpoints")
    }
    results = json.loads((finished / "evals" / "results.json").read_text())
    searched = [f"dpo-2/{name}" for name in ("best_of_2", "oracle_of_2", "beam_1x2")]
    assert list(results) == ["base", "sft", "dpo-1", "dpo-2", *searched]
    for model in results.values():
        assert set(model) == {"harmful", "jailbreak", "harmless"}
        for share in (s for bench in model.values() for s in bench.values()):
            assert share["low"] <= share["value"] <= share["high"]
            assert share["n"] >= 300
        assert sum(s["value"] for s in model["harmful"].values()) == pytest.approx(1)
    answers = jsonl.read_jsonl(finished / "evals" / "sft" / "harmful.jsonl", Answer)
    rate = sum(a.outcome == "refusal" for a in answers) / len(answers)
    assert rate == results["sft"]["harmful"]["refusal"]["value"]
    assert all(a.tokens <= tiny().evaluate.max_tokens for a in answers)


@pytest.mark.slow
def test_trees_pairs_and_lineage_hang_together(finished):
    lineage = Lineage(finished / "lineage.json")
    assert all(entry["finished"] for entry in lineage.entries.values())
    assert lineage.entries["round-2/dpo"]["parents"] == {
        "round-1/dpo": lineage.entries["round-1/dpo"]["hash"],
        "round-2/pairs": lineage.entries["round-2/pairs"]["hash"],
    }
    trees = jsonl.read_jsonl(finished / "round-1" / "trees" / "trees.jsonl", Tree)
    assert len(trees) == small("x").data.round_prompts
    by_id = {tree.prompt.id: tree for tree in trees}
    pairs = jsonl.read_jsonl(finished / "round-1" / "pairs" / "pairs.jsonl", Pair)
    assert pairs
    for pair in pairs:
        name, better, worse = pair.id.split("/")
        node = {n.tag: n for n in by_id[name].nodes}
        assert node[better].value - node[worse].value > small("x").pairs.min_value_gap
        assert pair.chosen == node[better].ids


@pytest.mark.slow
def test_a_finished_run_started_again_redoes_nothing(finished):
    before = {p: p.stat().st_mtime_ns for p in finished.rglob("trees.jsonl")}
    lineage = (finished / "lineage.json").read_text()
    c = small(finished, stages="sft,search,pairs,dpo")
    pipeline.run(c)
    assert {p: p.stat().st_mtime_ns for p in before} == before
    assert (finished / "lineage.json").read_text() == lineage


@pytest.mark.slow
def test_mixed_settings_and_a_second_run_are_refused(finished):
    with pytest.raises(ValueError, match=r"config\.search\.c: 9\.0, but round-1/trees was made"):
        pipeline.run(small(finished, search__c=9.0))
    with pytest.raises(ValueError, match=r"config\.seed: 1, but"):
        pipeline.run(small(finished, seed=1))
    with pytest.raises(ValueError, match=r"config\.model\.size\.D: 256, but sft was made with 128"):
        pipeline.run(small(finished, stages="pairs", model__size__D=256))
    with locked(finished), pytest.raises(ValueError, match="in use by another run"):
        pipeline.run(small(finished))


@pytest.mark.slow
def test_status_tells_what_is_done_without_starting(finished, tmp_path, capsys):
    pipeline.run(small(finished, status=True, rounds=3))
    said = capsys.readouterr().out
    assert "round-2/dpo" in said
    for line in said.splitlines()[1:]:
        assert ("left" if "round-3" in line else "done") in line
    pipeline.run(small(tmp_path / "new", status=True))
    lines = capsys.readouterr().out.splitlines()[1:]
    assert lines
    assert all("left" in line for line in lines)
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
def test_export_writes_the_last_model_or_the_one_named(finished):
    for name, asked in (("dpo-2", ""), ("sft", "sft")):
        pipeline.run(small(finished, stages="export", export__model=asked))
        report = json.loads((finished / "export" / name / "export_report.json").read_text())
        assert report["max_abs_diff"] <= 1e-4
        assert report["prompts"] >= 1
    with pytest.raises(ValueError, match=r"model 'dpo-7' is not one of"):
        pipeline.run(small(finished, stages="export", export__model="dpo-7"))


@pytest.mark.slow
def test_chat_talks_to_the_last_model(finished, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["chat", str(finished), "--max_tokens=20"])
    monkeypatch.setattr(sys, "stdin", iter(["what is 1 2 plus 3 4 ?\n", "\n"]))
    chat.main()
    out, err = capsys.readouterr()
    assert "dpo-2" in err
    assert out.strip()
    saved = json.loads((finished / "config.json").read_text())
    assert saved["mesh"]["shape"] == [1, 1, 1]
    assert restore(saved).mesh.shape == (1, 1, 1)


def test_a_stage_without_its_parents_is_refused_in_words(tmp_path):
    with pytest.raises(ValueError, match=r"stage search of round 1 needs a model to start from"):
        pipeline.run(small(tmp_path, stages="search"))


def run_main(*flags):
    run = [sys.executable, "-m", "stair_jax.main", *flags]
    env = os.environ | {"JAX_PLATFORMS": "cpu"}
    return subprocess.run(run, cwd=ROOT, env=env, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--config=configs/tiny.py", "--config.stages=serch"], "config.stages: ['serch'] not in"),
        (["--config=configs/llama8b.py"], "config.workdir: not set"),
        (["--config=configs/tiny.py", "--config.serch.c=1"], "did you mean config.search.c"),
        (["chat", "nowhere", "--search=bestof"], "--search: 'bestof' is none of greedy"),
        (["keys", "nonsense_q"], "no key contains 'nonsense_q'"),
        (["--config=configs/tiny.py", "--config.workdir=/proc/nowhere"], "/proc/nowhere"),
    ],
)
def test_bad_flags_end_in_one_line_and_a_failure(flags, message):
    found = run_main(*flags)
    assert found.returncode != 0
    assert message in found.stderr
    errors = [line for line in found.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "Traceback" not in found.stderr


TYPOS = [
    (
        ["--config=configs/tiny.py", "--config.serch.c=1"],
        "--config.serch.c: no such key; did you mean config.search.c",
    ),
    (["--config", "configs/tiny.py", "--config.stepz=1"], "(stair-jax keys lists all)"),
    (["--config=configs/tiny.py", "--noconfig.statis"], "did you mean config.status"),
    (["--config=configs/tiny.py", "--config.search=1"], "--config.search: a section, expected"),
    (
        ["--config=configs/tiny.py", "--config.seed=one"],
        "config.seed=one: 'one', expected a whole number",
    ),
    (["--config=configs/tiny.py", "--config.seed=1.5"], "config.seed"),
    (["--config=configs/tiny.py", "--config.search.c=x"], "'x', expected a number"),
    (["--config=configs/tiny.py", "--config=configs/tiny.py:smoke"], "--config: found more than"),
    (["--config=configs/tiny.py", "--config.status=perhaps"], "config.status"),
    (["--config=configs/tiny.py", "--confg.seed=1"], "confg.seed"),
    (["--config=configs/tiny.py:smok"], "config argument 'smok' is not one of ['baselines'"),
    (["--config=configs/tinny.py"], "configs/tinny.py: no such file; did you mean configs/tiny"),
    (["--config=configs"], "configs: no such file; did you mean"),
    (["--config=README.md"], "README.md: "),
    (["--config"], "--config is missing, expected --config=FILE"),
    ([], "--config is missing, expected --config=FILE"),
]


@pytest.mark.parametrize(("words", "message"), TYPOS, ids=lambda x: str(x)[:60])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # how ml-collections loads a file
def test_a_typo_ends_in_one_line_that_names_it(words, message, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", ["main", *words])  # ml-collections reads it, too
    with pytest.raises(SystemExit) as ended:
        main._parsed(sys.argv)
    assert message in str(ended.value)
    assert str(ended.value).startswith("error: ")
    assert "\n" not in str(ended.value)
    assert "Traceback" not in str(ended.value)


def test_help_says_how_to_list_all_keys_and_they_are_listed():
    shown = run_main("--help")
    assert shown.returncode == 0
    assert "stair-jax keys" in shown.stdout
    listed = run_main("keys", "search.c")
    assert listed.stdout == (
        "config.search.c = 1.5\n    exploration constant of UCB1 (paper 3.1)\n"
    )


def test_ctrl_c_stops_and_says_how_to_go_on(tmp_path):
    with subprocess.Popen(
        command(tmp_path / "w"),
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
    ) as process:
        while not (tmp_path / "w" / "lineage.json").exists():
            time.sleep(0.05)
        time.sleep(1)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert "the same command goes on from here" in err
