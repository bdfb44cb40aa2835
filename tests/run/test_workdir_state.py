"""What was made stays what it was: through the pipeline, on a model of next to nothing."""

import io
import json
import logging
import os
import pathlib
import re
import shutil
import sys
import types

import jax
import numpy as np
import pytest

from stair_jax import chat, jsonl, main, pipeline, records
from stair_jax.model import lora
from stair_jax.run import known_models, models
from stair_jax.run import rows as rows_lib
from stair_jax.run import trees as run_trees
from stair_jax.run.known_models import SFT_MODEL
from stair_jax.run.lineage import Lineage
from stair_jax.run.workdir import CHECKPOINT, Run, need_disk, need_room, size_of
from stair_jax.search.tree_file import open_to_append
from stair_jax.train import checkpoint
from tests.support.workdirs import run, toy

ANSWER = "<|Reasoning_step|>count<|/Reasoning_step|><|Output|>two<|/Output|>"


def rows(count, answer=ANSWER):
    return [{"question": f"what is {i} ?", "response": answer} for i in range(count)]


def write(path, found):
    path.write_text("".join(json.dumps(row) + "\n" for row in found))
    return str(path)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A checkpoint in Hugging Face's layout."""
    workdir = tmp_path_factory.mktemp("base")
    run(workdir, stages="export", seed=5)
    return workdir / "export" / "base"


@pytest.fixture
def mine(base, tmp_path):
    """Flags for a model and rows of a user's own."""
    data = write(tmp_path / "sft.jsonl", rows(8))
    judge = {"judge__safety": "rule", "judge__helpfulness": "none"}
    return {"data__sft": data, "data__prompts": "p.jsonl", "model__checkpoint": str(base)} | judge


@pytest.fixture(scope="module")
def adapted(tmp_path_factory):
    """A workdir whose model was trained by adapters of a scale that is not the default."""
    workdir = tmp_path_factory.mktemp("adapted") / "w"
    run(workdir, sft__train__lora_rank=2, sft__train__lora_alpha=64.0, seed=3)
    return workdir


@pytest.fixture
def copied(adapted, tmp_path):
    """A copy of it, to be changed."""
    return pathlib.Path(shutil.copytree(adapted, tmp_path / "w"))


def opened(workdir, **changes):
    """Returns the run as a library would open it, with today's settings."""
    from stair_jax.log.metrics import Metrics

    lineage = Lineage(workdir / "lineage.json")
    return Run(toy(workdir, **changes), workdir, lineage, Metrics(workdir))


def base_of(run):
    return models.load(run, known_models.base(run)).params


def leaves(params):
    return [np.asarray(x) for x in jax.tree.leaves(params)]


def test_adapters_are_scaled_as_they_were_trained_whatever_todays_settings_say(adapted):
    lineage = Lineage(adapted / "lineage.json")
    assert lineage.entries["sft"]["settings"]["sft.train.lora_alpha"] == 64.0
    today = opened(adapted, sft__train__lora_rank=2, sft__train__lora_alpha=16.0, seed=0)
    mine = leaves(models.load(today, SFT_MODEL).params)
    base, found = models.load(today, known_models.base(today)), models.adapters_of(today, SFT_MODEL)
    assert found is not None
    wanted = leaves(lora.merge(base.params, found.factors, scale=32.0))
    quarter = leaves(lora.merge(base.params, found.factors, scale=8.0))
    assert any(np.abs(a - b).max() > 1e-4 for a, b in zip(mine, quarter, strict=True))
    for a, b in zip(mine, wanted, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    for_engine = models.load(today, SFT_MODEL, for_engine=True).params
    weight = for_engine["layers"]["wq"].make()
    np.testing.assert_allclose(
        np.asarray(weight), models.load(today, SFT_MODEL).params["layers"]["wq"]
    )


def test_random_weights_are_those_that_the_run_began_with(adapted):
    as_made, today = (base_of(opened(adapted, seed=s)) for s in (3, 0))
    fresh = base_of(opened(adapted.parent / "nothing", seed=0))
    for a, b in zip(leaves(as_made), leaves(today), strict=True):
        np.testing.assert_array_equal(a, b)
    assert any((a != b).any() for a, b in zip(leaves(today), leaves(fresh), strict=True))


def test_a_flag_need_not_be_repeated_and_one_that_contradicts_is_refused(copied, caplog):
    caplog.set_level(logging.INFO)
    with pytest.raises(ValueError, match=r"config\.sft\.train\.lora_rank: 4, but sft was made"):
        run(copied, stages="export", sft__train__lora_rank=4)
    run(copied, stages="sft,export")  # neither seed nor adapters are repeated
    assert "config.sft.train.lora_alpha: 64.0, as the command that made sft had it" in caplog.text
    report = json.loads((copied / "export" / "sft" / "export_report.json").read_text())
    assert report["max_abs_diff"] < 1e-4


def test_a_changed_file_is_no_flag_that_was_forgotten(copied):
    """What nobody gave as a flag is refused by name when the configuration has changed."""
    with pytest.raises(ValueError, match=r"config\.sft\.train\.lr: 0\.5, but sft was made with"):
        pipeline.run(toy(copied, sft__train__lr=0.5))


def test_rows_that_changed_under_a_finished_model_are_refused_by_name(tmp_path, mine):
    run(tmp_path / "w", **mine)
    run(tmp_path / "w", **mine)  # nothing to do, nothing said
    data = pathlib.Path(mine["data__sft"])
    write(data, [*rows(1, ANSWER.replace("two", "one")), *rows(8)[1:]])
    with pytest.raises(ValueError, match=r"config\.data\.sft: what it names has changed since"):
        run(tmp_path / "w", **mine)
    data.unlink()  # what is finished needs its rows no more
    run(tmp_path / "w", **mine)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"data__sft": "/nowhere/sft.jsonl"}, "no such file"),
        ({"model__checkpoint": "/nowhere"}, "checkpoint '/nowhere'"),
    ],
)
def test_a_typo_does_not_lock_the_workdir(tmp_path, mine, wrong, message):
    with pytest.raises(ValueError, match=message):
        run(tmp_path / "w", **mine | {"sft__train__lr": 0.3} | wrong)
    run(tmp_path / "w", **mine)
    assert Lineage(tmp_path / "w" / "lineage.json").finished("sft")


def test_settings_bind_once_something_was_made_with_them(tmp_path):
    lineage = Lineage(tmp_path / "lineage.json")
    folder = tmp_path / "round-1" / "trees"
    folder.mkdir(parents=True)
    lineage.begin("round-1/trees", "search", {"search.c": 1.0}, ())
    for idle in ("trees.jsonl", "rubrics.json", "preview.txt", "7.orbax-checkpoint-tmp"):
        (folder / idle).write_text("" if idle == "trees.jsonl" else "x")
    lineage.begin("round-1/trees", "search", {"search.c": 2.0}, ())
    assert lineage.entries["round-1/trees"]["settings"] == {"search.c": 2.0}
    assert not (folder / "rubrics.json").exists()  # of the start that made nothing
    (folder / "trees.jsonl").write_text("{}\n")
    with pytest.raises(ValueError, match=r"config\.search\.c: 3\.0, but round-1/trees was made"):
        lineage.begin("round-1/trees", "search", {"search.c": 3.0}, ())


def test_answers_under_a_strategy_do_not_bind_the_greedy_ones(tmp_path):
    lineage = Lineage(tmp_path / "lineage.json")
    for name in ("evals/sft", "evals/sft/best_of_2"):
        lineage.begin(name, "evaluate", {"evaluate.max_tokens": 3}, ())
    folder = tmp_path / "evals" / "sft" / "best_of_2"
    folder.mkdir(parents=True)
    (folder / "harmful.jsonl").write_text("{}\n")
    assert lineage.binds("evals/sft/best_of_2")
    assert not lineage.binds("evals/sft")


def test_weights_that_changed_are_refused_by_name(tmp_path, mine, base):
    folder = pathlib.Path(shutil.copytree(base, tmp_path / "model"))
    flags = mine | {"model__checkpoint": str(folder)}
    run(tmp_path / "w", **flags)
    run(tmp_path / "w", **flags)
    entry = Lineage(tmp_path / "w" / "lineage.json").entries["sft"]
    before = opened(tmp_path / "x", **flags)
    assert before.checkpoint == entry["inputs"][CHECKPOINT]
    key = models.digest(before, known_models.base(before))
    weights = folder / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(bytes(data))
    with pytest.raises(ValueError, match=r"config\.model\.checkpoint: what it names has changed"):
        run(tmp_path / "w", **flags)
    # So a table of the reference's log-probs is not taken for one of these weights.
    other = opened(tmp_path / "x", **flags)
    assert models.digest(other, known_models.base(other)) != key


def test_redo_drops_a_stage_and_what_came_from_it_once(copied, mine, caplog):
    run(copied, stages="export")
    caplog.set_level(logging.INFO)
    with pytest.raises(ValueError, match=r"config\.redo: 'dpo' is none of \['export'"):
        run(copied, redo="dpo")
    with pytest.raises(
        ValueError, match=r"config\.seed: 4, but export/sft|config\.seed: 4, but sft"
    ):
        run(copied, seed=4)
    # A mistake beside it costs nothing.
    with pytest.raises(ValueError, match="no such file"):
        run(copied, redo="sft", **mine | {"data__sft": "/nowhere/sft.jsonl"})
    assert Lineage(copied / "lineage.json").finished("sft")
    run(copied, redo="sft", seed=4)
    assert "dropping sft, export/sft" in caplog.text
    entries = Lineage(copied / "lineage.json").entries
    assert [*entries] == ["sft"]
    assert entries["sft"]["settings"]["seed"] == 4
    assert not (copied / "export" / "sft").exists()
    assert not (copied / "redo.json").exists()  # the run came to its end: the next one drops anew


def test_a_run_that_was_killed_after_redo_goes_on_and_drops_nothing_more(copied, monkeypatch):
    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(pipeline, "_run_items", killed)
        with pytest.raises(KeyboardInterrupt):
            run(copied, redo="sft", seed=4)
    assert [*Lineage(copied / "lineage.json").entries] == []
    run(copied, redo="sft", seed=4)
    made = (copied / "lineage.json").read_text()
    note = {"redo": ["sft"], "names": ["sft"], "gone": True, "at": "then"}
    (copied / "redo.json").write_text(json.dumps(note))
    run(copied, redo="sft", seed=4)  # as if it had been killed at the very end
    assert (copied / "lineage.json").read_text() == made


def test_inputs_of_later_rounds_are_looked_at_before_the_first_stage(tmp_path, mine):
    write(tmp_path / "r1.jsonl", [{"question": "a", "type": "safety"}])
    write(tmp_path / "r2.jsonl", [{"question": "a", "type": "safty"}])
    later = {"data__prompts": str(tmp_path / "r{round}.jsonl"), "rounds": 2}
    with pytest.raises(ValueError, match=r"r2\.jsonl:1: type is 'safty'"):
        run(tmp_path / "w", **mine | later, stages="sft,search,pairs,dpo")
    assert not (tmp_path / "w" / "sft").exists()


def test_rows_changed_by_hand_are_refused_or_taken_on_purpose(tmp_path):
    lineage = Lineage(tmp_path / "lineage.json")
    lineage.begin("round-1/pairs", "pairs", {}, ())
    file = tmp_path / "round-1" / "pairs" / "pairs.jsonl"
    jsonl.write_text(file, "one\n")
    lineage.finish("round-1/pairs", "hash", [file])
    lineage.verify("round-1/pairs")
    file.write_text("two\n")
    with pytest.raises(ValueError, match=r"pairs\.jsonl: has changed since round-1/pairs was made"):
        lineage.verify("round-1/pairs")
    lineage.verify("round-1/pairs", ["round-1/pairs"])
    entry = Lineage(tmp_path / "lineage.json").entries["round-1/pairs"]
    assert "edited" in entry  # the lineage records it
    assert entry["hash"] != "hash"  # what comes from it comes from something else
    lineage.verify("round-1/pairs")
    file.unlink()
    with pytest.raises(ValueError, match=r"pairs\.jsonl: is gone since"):
        lineage.verify("round-1/pairs", ["round-1/pairs"])


def test_the_same_question_is_one_prompt_wherever_it_stands(tmp_path, caplog):
    asked = [{"question": q, "type": "helpfulness"} for q in ("a", "b", "a")]
    found = rows_lib.for_round(toy("x", data__prompts=write(tmp_path / "p.jsonl", asked)), 1)
    assert [p.question for p in found] == ["a", "b"]
    assert "1 of 3 rows ask what another row asks" in caplog.text
    moved = [{"question": "new", "type": "safety"}, *asked]
    again = rows_lib.for_round(toy("x", data__prompts=write(tmp_path / "q.jsonl", moved)), 1)
    assert again[1:] == found
    other = [{"question": "a", "type": "safety"}]
    third = rows_lib.for_round(toy("x", data__prompts=write(tmp_path / "r.jsonl", other)), 1)
    assert third[0].id not in {p.id for p in found}
    shared = [{"id": 7, **asked[0]}, {"id": "7", **asked[1]}]
    with pytest.raises(ValueError, match=r"s\.jsonl:2: id is '7', which .*s\.jsonl:1 has"):
        rows_lib.for_round(toy("x", data__prompts=write(tmp_path / "s.jsonl", shared)), 1)


def test_another_round_draws_other_noise_for_the_same_question():
    ours, world = toy("x", data__prompts="p.jsonl"), toy("x")
    assert len({rows_lib.noise_seed(ours, number) for number in (1, 2, 3)}) == 3
    assert rows_lib.noise_seed(ours, 1) == ours.seed
    assert {rows_lib.noise_seed(world, number) for number in (1, 2, 3)} == {world.seed}


def test_checkpoints_that_are_there_need_no_room_again(tmp_path, monkeypatch):
    this = opened(tmp_path)
    free = types.SimpleNamespace(free=13 * 10**9)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: free)
    there: list[int] = []
    monkeypatch.setattr(checkpoint, "saved_steps", lambda folder: there)
    with pytest.raises(ValueError, match=r"needs 36\.0 GB"):
        need_disk(this, "sft", 10**9, keep=2, saves=9)
    there += [1, 2]
    need_disk(this, "sft", 10**9, keep=2, saves=9)  # room for one more is enough
    free.free = 11 * 10**9
    with pytest.raises(ValueError, match=r"needs 12\.0 GB"):
        need_disk(this, "sft", 10**9, keep=2, saves=9)
    need_disk(this, "sft", 10**9, keep=2, saves=2)  # nothing is left to be written


def test_a_full_disk_leaves_whole_lines(tmp_path):
    class Full(io.FileIO):
        """A file on a disk that takes ten bytes more."""

        left = 10

        def write(self, data):
            if not self.left:
                raise OSError(28, "No space left on device")
            part = data[: self.left]
            self.left -= len(part)
            return super().write(part)

    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"a": 1}\n')
    reply = b'{"a": "a long reply that was paid for"}\n'
    with Full(path, "ab") as file, pytest.raises(OSError, match="No space left"):
        jsonl.append(file, reply)
    assert path.read_bytes() == b'{"a": 1}\n'
    with open(path, "ab", buffering=0) as file:
        jsonl.append(file, b'{"a": 2}\n')
    assert [row["a"] for row in jsonl.read_json_lines(path)] == [1, 2]


@pytest.mark.parametrize("layout", ["link", "dangling", "leftovers"])
def test_an_export_takes_the_place_of_whatever_stands_there(tmp_path, layout):
    from stair_jax.hf import exporter

    target, elsewhere = tmp_path / "export", tmp_path / "elsewhere"
    if layout == "link":
        elsewhere.mkdir()
        (elsewhere / "old").write_text("x")
    if layout in ("link", "dangling"):
        target.symlink_to(elsewhere)
    else:
        target.mkdir()
        (tmp_path / ".export.old").write_text("a file")
        (tmp_path / ".export.partial").write_text("a file")
    with exporter.whole(target) as folder:
        (folder / "new").write_text("y")
    assert os.listdir(target) == ["new"]
    assert not list(tmp_path.glob(".*"))


def test_an_export_onto_a_file_is_refused_before_any_work(tmp_path):
    from stair_jax.hf import exporter

    (tmp_path / "export").write_text("x")
    with pytest.raises(ValueError, match="export is a file, expected a folder"):
        exporter.whole(tmp_path / "export").__enter__()


def chats(monkeypatch, workdir, *questions):
    monkeypatch.setattr(sys, "argv", ["chat", str(workdir), "--max_tokens=3"])
    monkeypatch.setattr(sys, "stdin", iter(f"{question}\n" for question in questions))
    chat.main()


def test_chat_runs_on_any_machine_and_an_endless_question_does_not_end_it(
    copied, monkeypatch, capsys
):
    saved = json.loads((copied / "config.json").read_text())
    saved["mesh"]["shape"] = [1, 64, 1]  # of a machine that is not there
    (copied / "config.json").write_text(json.dumps(saved))
    room = saved["engine"]["max_context"]
    chats(monkeypatch, copied, "what is 1 ? " * room, "what is 1 2 plus 3 4 ?")
    out, err = capsys.readouterr()
    assert f"of {room} that question and response have" in err
    assert len(out.splitlines()) >= 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "no configuration of this version"),
        ('{"colour": "red"}', "no configuration of this version: .*colour"),
        ("[]", "no configuration of this version"),
        (None, "no config.json, expected the workdir of a run"),
    ],
)
def test_chat_says_in_one_line_what_is_wrong_with_a_workdir(
    tmp_path, monkeypatch, content, message
):
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(SystemExit) as ended:
        chats(monkeypatch, tmp_path, "?")
    assert re.search(message, str(ended.value))
    assert "\n" not in str(ended.value)


@pytest.mark.parametrize("content", ["{", "[1]", '{"sft": 3}'])
def test_a_lineage_that_cannot_be_read_is_told_in_one_line(tmp_path, content):
    (tmp_path / "lineage.json").write_text(content)
    with pytest.raises(ValueError, match=r"lineage\.json: "):
        Lineage(tmp_path / "lineage.json")


def tree(prompt, text="two"):
    node = records.Node(
        parent=-1,
        ids=(),
        text=text,
        depth=0,
        visits=1,
        value_sum=0.0,
        reward=None,
        terminal=False,
        p=1.0,
        tag="0",
    )
    return records.Tree(prompt=prompt, nodes=(node,))


def test_trees_are_kept_for_the_questions_that_are_still_asked(tmp_path, caplog):
    """A row that comes in front of the others costs its own tree alone."""
    asked = [{"question": q, "type": "helpfulness"} for q in ("a", "b", "c")]
    c = toy(tmp_path, data__prompts=write(tmp_path / "p.jsonl", asked))
    before, trees = rows_lib.for_round(c, 1), open_to_append(tmp_path)
    for prompt in before:
        trees.append(tree(prompt))

    def kept():
        run_trees.keep_what_is_asked("trees", trees, rows_lib.for_round(c, 1))
        assert set(open_to_append(tmp_path).ids) == set(trees.ids)
        return set(trees.ids)

    write(tmp_path / "p.jsonl", [{"question": "new", "type": "helpfulness"}, *asked])
    assert kept() == {p.id for p in before}
    assert not caplog.text
    changed = [{**asked[0], "type": "safety"}, asked[2]]  # one is another question, one is gone
    write(tmp_path / "p.jsonl", changed)
    assert kept() == {before[2].id}
    assert "trees: 2 of 3 trees dropped" in caplog.text
    assert [t.prompt for t in trees] == [before[2]]
    own = [{**asked[0], "id": "mine"}]
    write(tmp_path / "p.jsonl", own)
    (mine,) = rows_lib.for_round(c, 1)
    trees.append(tree(mine))
    write(tmp_path / "p.jsonl", [{**own[0], "question": "other"}])  # the same id
    assert kept() == set()


def test_trees_begun_by_a_version_that_numbered_prompts_are_refused_in_one_line(tmp_path):
    this = opened(tmp_path, data__prompts="p.jsonl")
    this.begin("round-1/trees", "search")
    run_trees.refuse_numbered(this, "round-1/trees")
    del this.lineage.entries["round-1/trees"]["inputs"]
    run_trees.refuse_numbered(this, "round-1/trees")  # nothing was made
    jsonl.write_text(tmp_path / "round-1" / "trees" / "trees.jsonl", "{}\n")
    with pytest.raises(ValueError, match=r"was begun by a version that knew .* --config\.redo="):
        run_trees.refuse_numbered(this, "round-1/trees")


def test_trees_that_do_not_fit_the_disk_are_refused_before_they_grow(tmp_path, monkeypatch):
    this = opened(tmp_path, search__iterations=100, search__max_step_tokens=500)
    trees = open_to_append(tmp_path)
    assert run_trees.bytes_of_one(this, trees) == 100 * 500 * 8
    for id in ("a", "b"):
        trees.append(tree(records.Prompt(id=id, question="q", type="safety")))
    assert run_trees.bytes_of_one(this, trees) == trees.path.stat().st_size // 2
    free = types.SimpleNamespace(free=10**9)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: free)
    need_room(this, "9 trees", 10**9)
    with pytest.raises(ValueError, match=r"1\.0 GB free, 9 trees need about 1\.2 GB"):
        need_room(this, "9 trees", 12 * 10**8)


@pytest.mark.parametrize(
    "flags",
    [
        {"judge__helpfulness": "reward_model", "judge__reward_model": "/nowhere/judge"},
        {"search__value": "prm", "search__value_model": "/nowhere/prm"},
    ],
    ids=["judge", "value"],
)
def test_reward_models_of_later_stages_are_looked_at_before_the_first(tmp_path, mine, flags):
    asked = write(tmp_path / "p.jsonl", [{"question": "a", "type": "safety"}])
    path = next(value for value in flags.values() if value.startswith("/nowhere"))
    with pytest.raises(ValueError, match=f"'{path}': no such folder"):
        run(tmp_path / "w", **mine | flags | {"data__prompts": asked}, stages="sft,search")
    assert not (tmp_path / "w" / "sft").exists()


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(28, "No space left on device"), "config.workdir: w: No space left on device; the"),
        (
            OSError(28, "No space left on device", "/cache/a"),
            "[Errno 28] No space left on device: ",
        ),
        (OSError(5, "Input/output error"), "[Errno 5] Input/output error"),
        (TimeoutError("no reply"), "no reply"),
    ],
)
def test_a_full_disk_is_named_where_the_system_names_no_file(error, said):
    assert main._of_system(error, "w").startswith(said)


@pytest.mark.parametrize(
    ("bytes_", "said"), [(0, "0.0 MB"), (98_304, "0.1 MB"), (0.1e9, "0.1 GB"), (36.1e9, "36.1 GB")]
)
def test_small_sizes_are_not_said_to_be_nothing(bytes_, said):
    assert size_of(bytes_) == said
