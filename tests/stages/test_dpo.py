"""Stage dpo: which weights a round starts from, and which it is held against."""

import dataclasses

import jax
import numpy as np
import pytest

from stair_jax import jsonl
from stair_jax.config import restore
from stair_jax.log.metrics import Metrics
from stair_jax.records import Pair
from stair_jax.run import known_models, models, training
from stair_jax.run.lineage import Lineage
from stair_jax.run.workdir import Run
from stair_jax.stages import dpo
from tests.support.workdirs import run as run_pipeline
from tests.support.workdirs import toy

STEPS = ("<|Reasoning_step|>two<|/Reasoning_step|>", "<|Reasoning_step|>one<|/Reasoning_step|>")


def pairs_of(this, number):
    """Pairs of a round, as stage pairs leaves them."""
    codec = models.spec_and_codec(this)[1]
    better, worse = (tuple(codec.response_ids(step)) for step in STEPS)
    name, folder = f"round-{number}/pairs", this.round_dir(number) / "pairs"
    found = [
        Pair(
            id=f"r{number}-{i}",
            question=f"what is {i} ?",
            type="helpfulness",
            prefix=(),
            chosen=better,
            rejected=worse,
            chosen_value=1.0,
            rejected_value=-1.0,
            chosen_terminal=False,
            rejected_terminal=False,
            chosen_text=STEPS[0],
            rejected_text=STEPS[1],
            depth=1,
        )
        for i in range(4)
    ]
    this.begin(name, "pairs")
    jsonl.write_jsonl(folder / "pairs.jsonl", found)
    jsonl.write_jsonl(folder / "responses.jsonl", [])
    this.lineage.finish(name, f"pairs {number}", [folder / "pairs.jsonl"])


def finished(workdir, *names):
    """A run of three rounds in which these artefacts are finished."""
    lineage = Lineage(workdir / "lineage.json")
    for name in names:
        lineage.begin(name, "dpo", {}, ())
        lineage.finish(name, f"hash of {name}")
    return Run(toy(workdir, rounds=3), workdir, lineage, Metrics(workdir))


def policy_of(run, model):
    """A model without weights."""
    spec, codec = models.spec_and_codec(run)
    return models.Policy(model, spec, None, codec)


MODELS = {"sft": "sft", "dpo-1": "round-1/dpo", "dpo-2": "round-2/dpo", "dpo-3": "round-3/dpo"}


@pytest.mark.parametrize(("number", "before"), [(1, "sft"), (2, "dpo-1"), (3, "dpo-2")])
def test_each_round_hands_the_trainer_the_model_before_it(tmp_path, monkeypatch, number, before):
    """Which is start and reference in one; models of later rounds are there as well."""
    name, given = f"round-{number}/dpo", []
    this = finished(tmp_path, *(made for made in MODELS.values() if made != name))
    pairs_of(this, number)
    monkeypatch.setattr(models, "load", policy_of)
    monkeypatch.setattr(
        training,
        "dpo",
        lambda run, name, policy, pairs, *_, seed: given.append(
            (name, policy.model.name, seed, pairs)
        ),
    )
    dpo.run(this, number)
    ((artefact, start, seed, pairs),) = given
    assert (artefact, start, seed) == (name, before, this.config.seed + number)
    assert [pair.id for pair in pairs] == [f"r{number}-{i}" for i in range(4)]
    parents = this.lineage.entries[name]["parents"]
    assert parents[MODELS[before]] == f"hash of {MODELS[before]}"
    assert set(parents) == {MODELS[before], f"round-{number}/pairs"}


@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_round_waits_for_the_model_before_it(tmp_path, number):
    missing = list(MODELS.values())[number - 1]
    this = finished(tmp_path, *(made for made in MODELS.values() if made != missing))
    assert known_models.before_round(this, number) is None
    with pytest.raises(ValueError, match=f"round {number}: the model that it starts from"):
        known_models.parent_of_round(this, number)


@pytest.fixture(scope="module")
def rounds(tmp_path_factory):
    """Two rounds, and what the trainer and the table of the reference got in each."""
    workdir = tmp_path_factory.mktemp("rounds")
    run_pipeline(workdir)
    settings = {"batch": 4, "buckets": (64,), "micro_tokens": 512, "lr": 1e-2}
    c = toy(workdir, rounds=2, dpo__anchors_per_pair=0.0)
    c.dpo.train.update(settings)
    this = Run(c, workdir, Lineage(workdir / "lineage.json"), Metrics(workdir))
    started, compared = [], []
    with pytest.MonkeyPatch.context() as patch:
        fit, table = training.loop.fit, training.reference.table

        def fitted(params, data, **how):
            started.append(jax.device_get(params))
            return fit(params, data, **how)

        def tabled(scorer, params, trajectories, **how):
            compared.append(jax.device_get(params))
            return table(scorer, params, trajectories, **how)

        patch.setattr(training.loop, "fit", fitted)
        patch.setattr(training.reference, "table", tabled)
        for number in (1, 2):
            pairs_of(this, number)
            dpo.run(this, number)
    return this, started, compared


def apart(a, b):
    return max(
        float(np.abs(x - np.asarray(y)).max())
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


def test_a_round_starts_from_the_model_before_it_and_is_held_against_it(rounds):
    this, started, compared = rounds
    made = {
        model.name: models.load(this, model).params for model in known_models.stair_models(this)
    }
    assert list(made) == ["base", "sft", "dpo-1", "dpo-2"]
    for a, b in (("base", "sft"), ("sft", "dpo-1"), ("dpo-1", "dpo-2")):
        assert apart(jax.device_get(made[a]), made[b]) > 1e-4  # or nothing would be told apart
    for number, before in ((0, "sft"), (1, "dpo-1")):
        assert apart(started[number], made[before]) == 0
        assert apart(compared[number], made[before]) == 0


def test_a_round_comes_from_its_pairs_and_from_the_model_before_it(rounds):
    entries = rounds[0].lineage.entries
    assert set(entries["round-1/dpo"]["parents"]) == {"sft", "round-1/pairs"}
    assert set(entries["round-2/dpo"]["parents"]) == {"round-1/dpo", "round-2/pairs"}
    assert entries["round-2/dpo"]["settings"]["dpo.train.lr"] == 1e-2


def test_pairs_that_were_edited_are_refused_before_training(rounds):
    this, *_ = rounds
    file = this.round_dir(2) / "pairs" / "pairs.jsonl"
    before = file.read_text()
    file.write_text(before.replace("what is 0 ?", "what is 9 ?"))
    try:
        with pytest.raises(ValueError, match=r"pairs\.jsonl: has changed since round-2/pairs"):
            dpo.run(this, 2)
        c = restore(this.config.to_dict())
        c.edited = "round-2/pairs"
        with pytest.raises(ValueError, match=r"round-2/dpo was begun from"):
            dpo.run(dataclasses.replace(this, config=c), 2)  # what was made of the others stays so
    finally:
        file.write_text(before)
