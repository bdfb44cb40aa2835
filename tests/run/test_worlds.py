"""The worlds: found by the words that settings may hold."""

from stair_jax.config.sources import WORLDS, is_world
from stair_jax.evals.benchmark import registered
from stair_jax.run import worlds
from tests.support.configs import tiny


def test_every_word_for_a_world_has_one_and_the_other_way_round():
    assert set(worlds._WORLDS) == set(WORLDS)
    for name in WORLDS:
        found = worlds.of(name)
        assert found is not None
        assert found.name == name
        assert is_world(name)
    for other in ("", "rows.jsonl", "owner/rows"):
        assert worlds.of(other) is None
        assert not is_world(other)


def test_a_benchmark_names_a_world_that_is_there():
    assert {one.world for one in registered().values() if one.world} <= set(WORLDS)


def test_a_model_without_a_checkpoint_speaks_the_language_of_its_teacher():
    assert worlds.of_model(tiny()) is worlds.of(tiny().data.sft)
    assert worlds.of_model(tiny(data__sft="rows.jsonl")).name == WORLDS[0]
