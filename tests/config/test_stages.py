"""The table of stages: names that are contracts, by hand; what else reads it is tested there."""

import importlib

import pytest

from stair_jax import config as config_lib
from stair_jax.config import stages
from stair_jax.config.schema import KNOBS
from stair_jax.config.stages import (
    BASELINES,
    DPO,
    EVALUATE,
    EXPORT,
    PAIRS,
    PREPARE,
    PRM,
    RESULTS,
    SEARCH,
    SFT,
    STAGES,
    stage_of,
)


def test_the_names_of_artefacts_are_those_of_lineage_json():
    assert [stage.artefact() for stage in (SFT, PRM)] == ["sft", "prm"]
    assert PREPARE.artefact() == "data"
    found = [stage.artefact(2) for stage in STAGES if stage.in_rounds]
    assert found == ["round-2/trees", "round-2/pairs", "round-2/dpo"]
    assert [stage for stage in STAGES if not stage.output] == [BASELINES, EVALUATE, EXPORT]


def test_every_kind_of_result_has_the_name_of_its_stage():
    for stage in STAGES:
        assert {stage_of(result.name) for result in stage.results} == {stage.name}
    assert len(RESULTS) == sum(len(stage.results) for stage in STAGES)
    assert RESULTS["evaluate.mcts"] in EVALUATE.results


def test_what_a_stage_reads_is_made_before_it():
    assert (PAIRS.after, DPO.after, PRM.after) == (SEARCH, PAIRS, SEARCH)
    for stage in STAGES:
        assert stage.after is None or STAGES.index(stage.after) < STAGES.index(stage)
    assert PRM.start in KNOBS


def test_a_trainer_is_a_section_with_one():
    assert stages.TRAINERS == ("sft", "dpo", "prm")
    assert BASELINES.trainers == ("sft", "dpo")
    for section in stages.TRAINERS:
        assert f"{section}.train.lr" in KNOBS


def test_settings_of_results_are_settings_or_sections():
    for result in RESULTS.values():
        for word in result.settings:
            assert any(key == word or key.startswith(f"{word}.") for key in KNOBS), word


def with_names(names, **flat):
    c = config_lib.default()
    c.rounds, c.baselines.names = 5, names
    return config_lib.with_values(c, {k.replace("__", "."): v for k, v in flat.items()})


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ("sft,dpo", {"baselines.start": 1, "baselines.sft": 1, "baselines.dpo": 1}),
        ("sacpo", {"baselines.start": 1, "baselines.sacpo": 2}),
        ("self-rewarding", {"baselines.start": 1, "baselines.self-rewarding": 5}),
    ],
)
def test_how_many_models_are_trained_for_a_result(names, expected):
    def models_of(stage, c):
        return {one.name: n for one in stage.results if (n := one.models(c))}

    c = with_names(names)
    assert models_of(BASELINES, c) == expected
    given = with_names(names, model__checkpoint="x")
    assert models_of(BASELINES, given) == {k: v for k, v in expected.items() if "start" not in k}
    assert [models_of(one, c) for one in (SFT, DPO, PRM)] == [{"sft": 1}, {"dpo": 5}, {"prm": 1}]
    assert not models_of(SEARCH, c) | models_of(EVALUATE, c)


def test_which_stages_sample_from_a_model():
    def found(c):
        return {stage.name for stage in STAGES if stage.decodes(c)}

    assert found(with_names("sft")) == {"search", "evaluate"}
    assert found(with_names("self-rewarding")) == {"search", "evaluate", "baselines"}
    assert found(with_names("sft", prm__prompts=3)) == {"search", "evaluate", "prm"}
    for recipe, samples in (("paper", {"prepare"}), ("own", set())):
        assert found(with_names("sft", data__recipe=recipe)) == {"search", "evaluate"} | samples
    for teacher, judge, samples in (
        ("self", "rule", {"prepare"}),
        ("m@http://h/v1", "self", {"prepare"}),
        ("m@http://h/v1", "rule", set()),
        ("", "self", set()),
    ):
        who = {"recipe__teacher": teacher, "judge__safety": judge}
        asked = found(with_names("sft", data__recipe="own", **who))
        assert asked == {"search", "evaluate"} | samples


def test_stages_that_read_files_look_at_them_first():
    modules = [importlib.import_module(f"stair_jax.stages.{name}") for name in stages.NAMES]
    assert all(callable(module.run) for module in modules)
    looks = [name for name, one in zip(stages.NAMES, modules, strict=True) if hasattr(one, "look")]
    assert looks == ["prepare", "sft", "search", "baselines", "prm", "evaluate", "export"]
