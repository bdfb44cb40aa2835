"""What a run says it needs before its first stage: memory, disk, this machine, and the knobs."""

import logging
import re

import pytest

from stair_jax.config.stages import (
    BASELINES,
    DPO,
    EVALUATE,
    EXPORT,
    PAIRS,
    PRM,
    SEARCH,
    SFT,
    STAGES,
)
from stair_jax.log.metrics import Metrics
from stair_jax.run import models, needs
from stair_jax.run.lineage import Lineage
from stair_jax.run.workdir import Run, train_config
from tests.support.configs import tiny

ASKED = [stage for stage in STAGES if stage != BASELINES]


@pytest.fixture
def said(caplog):
    caplog.set_level(logging.INFO, logger="stair_jax.run.needs")
    return lambda: [record.getMessage() for record in caplog.records]


def run_of(folder, **flat):
    return Run(
        tiny(workdir=str(folder), **flat), folder, Lineage(folder / "lineage.json"), Metrics(folder)
    )


def total(run, stage):
    return sum(needs.memory_of(run, stage, models.spec_and_codec(run)[0]).values())


def test_a_run_says_memory_by_stage_disk_machine_and_knobs(tmp_path, said):
    needs.tell(run_of(tmp_path), ASKED)
    text = "\n".join(said())
    for stage in ("sft", "search", "dpo", "prm", "evaluate"):
        assert re.search(rf"^  {stage}: \d+\.\d GB of the host's memory \(.+\)$", text, re.M), stage
    assert "pairs:" not in text  # it holds next to nothing
    assert re.search(r"^  disk: \d+\.\d [GM]B", text, re.M)
    assert re.search(
        r"^this machine has \d+\.\d GB of the host's memory, .* free on disk", text, re.M
    )
    assert "train.micro_tokens" in text
    assert "engine.slots" in text
    assert "hardly fits" not in text


def test_only_what_the_stages_need_is_said(tmp_path, said):
    run = run_of(tmp_path, mesh__written_for="a very large machine")
    needs.tell(run, (EVALUATE,))
    assert "the configuration was written for a very large machine" in said()
    assert said()[-1].startswith("what changes it: engine.slots")
    assert "train." not in said()[-1]
    assert not any("disk:" in text for text in said())
    before = len(said())
    needs.tell(run_of(tmp_path, mesh__written_for=""), (PAIRS,))
    assert not any("written for" in text or "changes" in text for text in said()[before:])


def test_what_does_not_fit_is_warned_of_with_the_knobs_that_help(tmp_path, said, monkeypatch):
    monkeypatch.setattr(needs, "host_bytes", lambda: 2e9)
    run = run_of(tmp_path, engine__slots=4096)
    needs.tell(run, ASKED)
    warned = [text for text in said() if "hardly fits" in text]
    assert [text.split()[1] for text in warned] == ["search", "prm", "evaluate"]
    assert "this machine has 2.0 GB; change engine.slots, engine.max_context" in warned[0]


def test_a_disk_that_is_too_small_is_warned_of(tmp_path, said, monkeypatch):
    run = run_of(tmp_path)
    free = needs.shutil.disk_usage(tmp_path)._replace(free=1)
    monkeypatch.setattr(needs.shutil, "disk_usage", lambda _: free)
    needs.tell(run, ASKED)
    assert f"{tmp_path} has 0.0 MB free, the run writes about" in said()[-1]


def test_disk_by_hand(tmp_path):
    run = run_of(tmp_path, rounds=2, sft__train__keep=3, dpo__train__keep=1)
    spec = models.spec_and_codec(run)[0]
    found = needs.disk_of(run, (SFT, SEARCH, DPO, EXPORT), spec)
    assert found["checkpoints"] == 12 * spec.parameters * (4 + 2 * 2)
    s, prompts = run.config.search, run.config.data.round_prompts
    assert found["trees"] == 2 * prompts * s.iterations * s.max_step_tokens * 8
    assert found["export"] == 4 * spec.parameters


def test_all_prompts_of_a_file_are_counted(tmp_path):
    c = {"data__prompts": str(tmp_path / "prompts-{round}.jsonl"), "data__round_prompts": 0}
    for number, rows in ((1, 3), (2, 5)):
        row = '{"question": "q", "type": "safety"}\n'
        (tmp_path / f"prompts-{number}.jsonl").write_text(row * rows)
    run = run_of(tmp_path, rounds=2, **c)
    s = run.config.search
    found = needs.disk_of(run, (SEARCH,), models.spec_and_codec(run)[0])
    assert found["trees"] == (3 + 5) * s.iterations * s.max_step_tokens * 8


def test_every_model_of_the_baselines_has_checkpoints(tmp_path):
    names = "sft,dpo,sacpo,self-rewarding"
    how = {"rounds": 3, "sft__train__keep": 3, "dpo__train__keep": 1}
    run = run_of(tmp_path, **how, baselines__names=names)
    spec = models.spec_and_codec(run)[0]
    found = needs.disk_of(run, (BASELINES,), spec)["checkpoints"]
    # Start and sft as stage sft's; dpo, two steps of sacpo and three rounds as stage dpo's.
    assert found == 12 * spec.parameters * (2 * 4 + (1 + 2 + 3) * 2)
    fewer = needs.disk_of(run_of(tmp_path, **how, baselines__names="dpo"), (BASELINES,), spec)
    assert fewer["checkpoints"] == 12 * spec.parameters * (4 + 2)
    assert not needs.disk_of(run, (PAIRS,), spec)


def test_baselines_that_sample_need_an_engine(tmp_path):
    some = {"baselines__names": "sft,self-rewarding", "engine__slots": 4096}
    assert total(run_of(tmp_path, **some), BASELINES) > total(
        run_of(tmp_path, **some | {"baselines__names": "sft"}), BASELINES
    )


def test_rows_of_new_tags_count_beside_adapters_alone(tmp_path, monkeypatch):
    run = run_of(tmp_path, sft__train__lora_rank=2)
    spec, config = models.spec_and_codec(run)[0], train_config(run.config, "sft")
    before, disk = total(run, SFT), needs.disk_of(run, (SFT,), spec)["checkpoints"]
    monkeypatch.setattr(models, "new_rows", lambda run: (7, 8, 9))
    assert "tables with new rows" in needs.memory_of(run, SFT, spec)
    assert total(run, SFT) > before + 4 * spec.V * spec.D
    own = needs.trained_of(spec, config, 3) - needs.trained_of(spec, config, 0)
    assert own == 3 * spec.D  # the miniature's tables are one
    assert needs.disk_of(run, (SFT,), spec)["checkpoints"] == disk + 12 * own * 3
    full = run_of(tmp_path)
    assert needs.trained_of(spec, train_config(full.config, "sft"), 3) == spec.parameters


@pytest.mark.parametrize(
    ("stage", "more"),
    [
        (SFT, {"sft__train__micro_tokens": 200_000, "sft__train__batch": 4096}),
        (SFT, {"sft__train__head_chunk": 100_000, "sft__train__batch": 4096}),
        (DPO, {"dpo__reference": "on_the_fly"}),
        (PRM, {"prm__more_layers": 40}),
        (SEARCH, {"engine__slots": 480}),
        (SEARCH, {"engine__max_context": 1040}),
        (SEARCH, {"engine__pool_bytes": 400_000_000}),
        (SEARCH, {"mesh__replicas": 4}),
        (EVALUATE, {"engine__slots": 480}),
    ],
)
def test_settings_reach_the_memory_of_their_stage(tmp_path, stage, more):
    plain = {"mesh__replicas": 1}
    assert total(run_of(tmp_path, **(plain | more)), stage) > total(
        run_of(tmp_path, **plain), stage
    )


def test_adapters_need_less_and_lie_on_frozen_weights(tmp_path):
    run = run_of(tmp_path, sft__train__lora_rank=2)
    spec = models.spec_and_codec(run)[0]
    found = needs.memory_of(run, SFT, spec)
    assert found["frozen weights"] == 4 * spec.parameters
    trained = needs.trained_of(spec, train_config(run.config, "sft"), 0)
    assert 0 < trained < spec.parameters
    assert found["moments"] == 8 * trained
    assert needs.disk_of(run, (SFT,), spec)["checkpoints"] == 12 * trained * 3


def test_evaluating_under_a_reward_model_counts_it(tmp_path):
    under = needs.memory_of(run_of(tmp_path), EVALUATE, models.spec_and_codec(run_of(tmp_path))[0])
    assert "the reward model" in under
    greedy = run_of(tmp_path, evaluate__search="greedy")
    assert "the reward model" not in needs.memory_of(
        greedy, EVALUATE, models.spec_and_codec(greedy)[0]
    )


def test_the_hosts_memory_is_what_the_group_may_have(tmp_path):
    limit = tmp_path / "memory.max"
    whole = needs.host_bytes(limit)
    assert whole > 1e8
    limit.write_text("12345\n")
    assert needs.host_bytes(limit) == 12345
    limit.write_text("max\n")
    assert needs.host_bytes(limit) == whole
