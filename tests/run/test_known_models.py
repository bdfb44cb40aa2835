"""The models of a run as values: names and artefacts that are contracts, and which there are."""

import pytest

from stair_jax.config.stages import BASELINES, DPO, PRM, SFT
from stair_jax.log.metrics import Metrics
from stair_jax.run import known_models
from stair_jax.run.known_models import REWARD_MODEL, SFT_MODEL, baseline, of_round
from stair_jax.run.lineage import Lineage
from stair_jax.run.workdir import Run
from tests.support.workdirs import toy


def run_with(folder, *artefacts, **changes):
    """A run whose lineage has these artefacts, and one that is begun: round-2/dpo."""
    lineage = Lineage(folder / "lineage.json")
    for name in ("round-2/dpo", *artefacts):
        lineage.entries[name] = {"finished": name in artefacts, "settings": {}}
    return Run(toy(folder, rounds=2, **changes), folder, lineage, Metrics(folder))


def test_names_and_artefacts_are_those_of_results_and_lineage(tmp_path):
    base = known_models.base(run_with(tmp_path))
    made = [base, SFT_MODEL, of_round(3), baseline("sacpo-1"), REWARD_MODEL]
    assert [model.name for model in made] == ["base", "sft", "dpo-3", "baseline-sacpo-1", "prm"]
    found = [model.artefact for model in made]
    assert found == ["", "sft", "round-3/dpo", "baselines/sacpo-1", "prm"]
    assert [model.stage for model in made] == [None, SFT, DPO, BASELINES, PRM]
    assert [model.parents for model in made[:2]] == [(), ("sft",)]
    assert [model.is_baseline for model in made] == [False, False, False, True, False]
    assert [model.direct for model in made] == [False, False, False, True, False]


def test_only_what_is_finished_is_known_and_rounds_beyond_are_not(tmp_path):
    run = run_with(tmp_path, "sft", "round-1/dpo", "round-3/dpo", "baselines/sacpo-1")
    assert known_models.stair_models(run)[1:] == [SFT_MODEL, of_round(1)]
    assert known_models.baselines(run) == []
    for model in (SFT_MODEL, of_round(1), baseline("sacpo-1"), known_models.base(run)):
        assert known_models.named(run, model.name) == model
    known = r"is not one of \['base', 'sft', 'dpo-1'\]"
    for name in ("dpo-2", "dpo-3", "baseline-sft", "prm", "dpo-x", ""):
        with pytest.raises(ValueError, match=f"model {name!r} {known}"):
            known_models.named(run, name)
    assert known_models.of_name(run, "dpo-3") == of_round(3)  # the lineage names it
    for name in ("prm", "sft-2", "dpo-x", "nonsense", ""):
        with pytest.raises(ValueError, match=f"model {name!r} is none that a run can have"):
            known_models.of_name(run, name)


def test_a_round_starts_from_the_model_before_it(tmp_path):
    def before(number, *artefacts, **changes):
        return known_models.before_round(run_with(tmp_path, *artefacts, **changes), number)

    assert before(1) is None
    assert before(1, "sft") == SFT_MODEL
    given = before(1, model__checkpoint="somewhere")
    assert given is not None
    assert (given.name, given.checkpoint) == ("base", "somewhere")
    assert before(2, "sft", model__checkpoint="somewhere") is None
    assert before(2, "sft", "round-1/dpo") == of_round(1)


def test_the_reward_model_starts_from_the_model_named_or_the_newest(tmp_path):
    run = run_with(tmp_path, "sft", "round-1/dpo")
    assert known_models.start_of_prm(run) == of_round(1)
    run = run_with(tmp_path, "sft", "round-1/dpo", prm__model="sft")
    assert known_models.start_of_prm(run) == SFT_MODEL


def test_searched_rounds_are_those_whose_trees_are_whole(tmp_path):
    run = run_with(tmp_path, "round-1/trees", "round-3/trees")
    assert known_models.searched_rounds(run) == [1]
