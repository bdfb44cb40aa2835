import errno
import fcntl
import os

import pytest

from stair_jax import config as config_lib
from stair_jax import jsonl
from stair_jax.config.schema import KNOBS
from stair_jax.config.stages import RESULTS
from stair_jax.log.metrics import Metrics
from stair_jax.run.hashes import digest_of
from stair_jax.run.lineage import Lineage, settings_of
from stair_jax.run.workdir import Run, locked, need_disk
from tests.support.configs import keys

# Which stage is run, where it lies, how it is watched, and how work is laid out.
RUN_ONLY = {
    "stages",
    "workdir",
    "rounds",
    "status",
    "plan",
    "redo",
    "edited",
    "profile",
    "trackers",
    "project",
    "mesh.shape",
    "mesh.replicas",
    "mesh.written_for",
    "evaluate.benchmarks",
    "evaluate.rows",
    "data.root",
    "data.corpora",
    "baselines.names",
    "compile_cache",
    "deterministic",
    "evaluate.models",
    "evaluate.search",
    "evaluate.searched",
    "evaluate.interventions",
    "evaluate.judged",
    "evaluate.judges",
    "evaluate.prompts",
    *(
        f"evaluate.{key}"
        for key in (
            "attacks",
            "attacker",
            "attack_judge",
            "pair_prompts",
            "annotations",
            "gamed",
            "imported",
        )
    ),
    "export.model",
    "export.dtype",
    "export.push",
    "export.push_private",
    "search.trees_in_flight",
    "search.export_official",
    "search.first_answers",
    "search.least_well_formed",
    *(f"judge.{key}" for key in ("endpoint", "concurrency", "timeout", "retries", "cache")),
    *(
        f"{stage}.train.{key}"
        for stage in ("sft", "dpo", "prm")
        for key in ("micro_tokens", "head_chunk", "remat", "save_every", "keep", "max_skipped")
    ),
}


# Which results each setting moves, by its key or the longest section that is named here: of every
# stage that reads it itself. What a parent read is guarded by the parent's hash.
_TREES = {"search", "prm"}  # prm samples, judges and values as the search does
_SFT = {"sft", "baselines.start"}
_PREFERENCES = {"baselines.sft", "baselines.dpo", "baselines.sacpo"}
_DPO = {"dpo", "baselines.dpo", "baselines.sacpo", "baselines.self-rewarding"}
_TRAINED = {*_SFT, *_DPO, "baselines.sft", "prm"}
_FOUND = {"evaluate.guided", "evaluate.mcts"}  # answers that are not greedy
_CHANGED = "evaluate.interventions"  # greedy answers behind changed steps
_ATTACKER = {"evaluate.pair", "evaluate.pap"}  # attacks whose prompts a model writes
_ATTACKED = {*_ATTACKER, "evaluate.escalation"}
_ANSWERS = {"evaluate", _CHANGED, *_ATTACKED, *_FOUND}
_CANDIDATES = "baselines.candidates"
_LOOP = "search.attacks"  # rewrites that are tried on a round's model
_DATA, _TAUGHT = "prepare", "prepare.taught"
GUARDS = {
    "seed": {
        *_TRAINED,
        _DATA,
        _TAUGHT,
        "search",
        _LOOP,
        "pairs",
        _CANDIDATES,
        _CHANGED,
        *_ATTACKED,
        *_FOUND,
        "evaluate.rated",
    },
    "model": {
        *_TRAINED,
        _DATA,
        _TAUGHT,
        "search",
        _LOOP,
        _CANDIDATES,
        *_ANSWERS,
        "evaluate.rated",
        "export",
    },
    "data.recipe": {_DATA},
    "data.columns": {_DATA},
    "data.decontaminate": {_DATA},
    "recipe": {_DATA},
    "recipe.held_out": {_DATA, _LOOP},
    "recipe.teacher": {_DATA, _TAUGHT},
    "recipe.teacher_temperature": {_DATA, _TAUGHT},
    "recipe.teacher_top_p": {_DATA, _TAUGHT},
    "recipe.teacher_max_tokens": {_DATA, _TAUGHT},
    "recipe.instruction": {_DATA, _TAUGHT},
    "data.sft": _SFT,
    "data.sft_rows": _SFT,
    "data.format": _SFT,
    "data.prompts": {*_TREES, _LOOP, _CANDIDATES},
    "data.round_prompts": {"search", _LOOP, _CANDIDATES},
    "data.preferences": _PREFERENCES,
    "data.preference_rows": _PREFERENCES,
    "data.preferences_format": _PREFERENCES,
    "data.split": {*_SFT, *_TREES, _LOOP, *_PREFERENCES, _CANDIDATES},
    "sft": {*_SFT, "baselines.sft"},
    "dpo": _DPO,
    "search": _TREES,
    "search.reward": {*_TREES, _CANDIDATES},
    "search.max_rollout_tokens": {*_TREES, _LOOP, _CANDIDATES},
    **{
        f"search.{key}": {*_TREES, _LOOP}
        for key in ("attacks", "attack_families", "attack_share", "attack_pool")
    },
    "search.max_depth": {*_TREES, *_FOUND},
    **{
        f"search.{key}": {*_TREES, "evaluate.mcts"}
        for key in ("num_children", "c", "score", "prior", "reselect_terminal", "ties")
    },
    "search.max_step_tokens": {*_TREES, "evaluate.mcts"},
    "reward": {*_TREES, _CANDIDATES},
    "judge": {*_TREES, _LOOP, _CANDIDATES, "evaluate.rated", _TAUGHT},
    "judge.helpfulness": {*_TREES, _LOOP, _CANDIDATES, "evaluate.rated"},
    "judge.scope": {*_TREES, _LOOP, _CANDIDATES, "evaluate.rated"},
    "judge.reward_model": {*_TREES, _LOOP, _CANDIDATES, "evaluate.rated"},
    "judge.leave_out": {
        _TAUGHT,
        *_TREES,
        _LOOP,
        _CANDIDATES,
        "evaluate.rated",
        "evaluate.verdicts",
        *_ATTACKER,  # of an endpoint
    },
    "judge.templates": {
        *_TREES,
        _LOOP,
        _CANDIDATES,
        "evaluate.rated",
        _TAUGHT,
        *_SFT,
    },  # what stage 1 teaches
    "engine": {_DATA, _TAUGHT, *_TREES, _LOOP, _CANDIDATES, *_ANSWERS, "evaluate.rated"},
    "pairs": {"pairs"},
    "prm": {"prm"},
    "baselines.sft_lr": {"baselines.sft"},
    "baselines.sacpo_betas": {"baselines.sacpo"},
    "baselines.buckets": {"baselines.start", *_PREFERENCES, "baselines.self-rewarding"},
    "baselines.candidates": {_CANDIDATES},
    "baselines.temperature": {_CANDIDATES},
    "baselines.top_p": {_CANDIDATES},
    "evaluate": _FOUND,
    "evaluate.split": _ANSWERS,
    "evaluate.max_tokens": _ANSWERS,
    "evaluate.attack_calls": _ATTACKED,
    "evaluate.attacker_tokens": _ATTACKER,
    "evaluate.attack_judge_tokens": {"evaluate.pair"},
    "evaluate.pair_streams": {"evaluate.pair"},
    "evaluate.pair_iterations": {"evaluate.pair"},
    "evaluate.pap_techniques": {"evaluate.pap"},
}
KEYS = list(keys(config_lib.default()))


def moved_by(key):
    """The stages whose results a setting moves, as stated above."""
    if key in RUN_ONLY:
        return set()
    named = [name for name in GUARDS if key == name or key.startswith(f"{name}.")]
    assert named, f"config.{key}: say in GUARDS or RUN_ONLY of {__file__} what it moves"
    return GUARDS[max(named, key=len)]


@pytest.mark.parametrize("key", KEYS)
def test_a_setting_guards_exactly_the_stages_that_it_moves(key):
    c = config_lib.default()
    assert {result for result in RESULTS if key in settings_of(c, result)} == moved_by(key)


def test_what_is_stated_of_settings_is_of_settings_that_there_are():
    assert {key for key, knob in KNOBS.items() if knob.free} == RUN_ONLY
    for name in GUARDS:
        assert any(key == name or key.startswith(f"{name}.") for key in KEYS), name
    assert {stage for stages in GUARDS.values() for stage in stages} == set(RESULTS)


def test_a_changed_setting_is_refused_by_name(tmp_path):
    c = config_lib.default()
    lineage = Lineage(tmp_path / "lineage.json")
    lineage.begin("round-1/trees", "search", settings_of(c, "search"), ())
    jsonl.write_text(tmp_path / "round-1" / "trees" / "trees.jsonl", "{}\n")
    lineage = Lineage(tmp_path / "lineage.json")  # as after a restart
    lineage.begin("round-1/trees", "search", settings_of(c, "search"), ())
    c.search.trees_in_flight += 1
    lineage.check("round-1/trees", settings_of(c, "search"))
    c.search.c = 2.0
    with pytest.raises(
        ValueError, match=r"config\.search\.c: 2\.0, but round-1/trees was made with 1\.5"
    ):
        lineage.begin("round-1/trees", "search", settings_of(c, "search"), ())


def test_a_setting_that_came_since_counts_as_its_default(tmp_path):
    c = config_lib.default()
    settings = settings_of(c, "search")
    lineage = Lineage(tmp_path / "lineage.json")
    before = {key: value for key, value in settings.items() if key != "search.c"}
    lineage.begin("round-1/trees", "search", before, ())
    lineage.check("round-1/trees", settings)
    c.search.c = 2.0
    with pytest.raises(ValueError, match=r"config\.search\.c: 2\.0, but .* made with 1\.5"):
        lineage.check("round-1/trees", settings_of(c, "search"))


def test_a_file_that_is_not_there_is_said_to_be_lost(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.jsonl").write_text("{}\n")
    c = config_lib.default()
    c.data.sft = "rows.jsonl"
    lineage = Lineage(tmp_path / "lineage.json")
    lineage.begin("sft", "sft", settings_of(c, "sft"), ())
    jsonl.write_text(tmp_path / "sft" / "checkpoints" / "1" / "x", "")
    for name, told in (("rosw.jsonl", r" \(no such file\),"), ("there.jsonl", ","), ("a/hub", ",")):
        c.data.sft = name
        with pytest.raises(ValueError, match=rf"data\.sft: '{name}'{told} but sft was made"):
            lineage.check("sft", settings_of(c, "sft"))


def test_not_all_keys_need_be_compared(tmp_path):
    c = config_lib.default()
    lineage = Lineage(tmp_path / "lineage.json")
    lineage.begin("sft", "sft", settings_of(c, "sft"), ())
    c.sft.train.lr = 1.0
    of_model = lambda key: key.startswith("model.")  # noqa: E731
    lineage.check("sft", settings_of(c, "sft"), of_model)
    c.model.size.D = 6
    with pytest.raises(ValueError, match=r"config\.model\.size\.D: 6, but sft was made with 128"):
        lineage.check("sft", settings_of(c, "sft"), of_model)


def test_a_parent_that_was_made_anew_is_refused(tmp_path):
    lineage = Lineage(tmp_path / "lineage.json")
    lineage.begin("sft", "sft", {}, ())
    assert not lineage.finished("sft")
    lineage.finish("sft", "one", rows=3)
    assert lineage.finished("sft")
    lineage.begin("round-1/trees", "search", {}, ("sft",))
    assert lineage.entries["round-1/trees"]["parents"] == {"sft": "one"}
    jsonl.write_text(tmp_path / "round-1" / "trees" / "trees.jsonl", "{}\n")
    lineage.finish("sft", "two")
    with pytest.raises(ValueError, match="round-1/trees was begun from"):
        lineage.begin("round-1/trees", "search", {}, ("sft",))


def test_a_workdir_in_use_is_refused_and_free_again_afterwards(tmp_path):
    with (
        locked(tmp_path),
        pytest.raises(ValueError, match="in use by another run"),
        locked(tmp_path),
    ):
        pass
    with locked(tmp_path):
        pass


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (errno.EWOULDBLOCK, r"in use by another run \(process \d+ on "),
        (errno.EAGAIN, "in use by another run"),
        (errno.EACCES, "in use by another run"),  # where locks of another kind stand behind flock
        (errno.ENOSYS, r"cannot be locked \(Function not implemented\).*a file system with locks"),
        (errno.EOPNOTSUPP, r"cannot be locked \(Operation not supported\)"),
        (errno.ENOLCK, r"cannot be locked \(No locks available\)"),
        (errno.EIO, r"cannot be locked \(Input/output error\)"),
    ],
)
def test_only_a_lock_that_is_taken_is_another_run(tmp_path, monkeypatch, number, message):
    def fails(*_):
        raise OSError(number, os.strerror(number))

    with locked(tmp_path):
        pass
    monkeypatch.setattr(fcntl, "flock", fails)
    with pytest.raises(ValueError, match=message) as caught, locked(tmp_path):
        pass
    assert str(caught.value).startswith(f"config.workdir: {tmp_path} ")


def test_digests_tell_content_and_names_apart():
    import numpy as np

    a, b = np.arange(3.0), np.arange(4.0)
    trees = [{"x": a}, {"y": a}, {"x": b}, {"x": a, "y": b}, "text", "texts"]
    assert len({digest_of(tree) for tree in trees}) == len(trees)
    assert digest_of({"x": a}) == digest_of({"x": a.copy()})


def test_checkpoints_that_do_not_fit_the_disk_are_refused_before_any_work(tmp_path, monkeypatch):
    import shutil
    import types

    lineage = Lineage(tmp_path / "lineage.json")
    run = Run(config_lib.default(), tmp_path, lineage, Metrics(tmp_path))
    free = types.SimpleNamespace(free=36 * 10**9)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: free)
    # 12 bytes a parameter, two kept and one being written
    need_disk(run, "sft", 10**9, keep=2, saves=9)
    text = r"36\.0 GB free, what is still to be written of round-1/dpo needs 36\.1 GB: 3 checkp"
    larger = 10**9 + 3 * 10**6
    with pytest.raises(ValueError, match=text):
        need_disk(run, "round-1/dpo", larger, keep=2, saves=9)
    need_disk(run, "round-1/dpo", larger, keep=2, saves=2)  # so few are ever written
