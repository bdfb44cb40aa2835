"""What the command line says of keys: all of them, and the nearest to a typo."""

import pytest

from stair_jax import config
from stair_jax.config import keys


def test_every_key_has_a_meaning_of_its_own_line():
    meanings = keys.meanings()
    assert set(meanings) == set(keys.keys(config.default()))
    assert [key for key, meaning in meanings.items() if len(meaning) < 3] == []
    assert meanings["search.c"] == "exploration constant of UCB1 (paper 3.1)"
    assert meanings["mesh.shape"].startswith("devices along data, fsdp, tensor")
    # A comment that goes on below its line, and one that the trainers share.
    assert meanings["judge.scope"].endswith("H of the others with S = +1 (release)")
    shared = {meanings[f"{stage}.train.lr"] for stage in ("sft", "dpo", "prm")}
    assert shared == {"peak, after warm-up"}


def test_a_list_has_defaults_as_a_stage_has_them():
    found = keys.listed("train.lr")
    assert "config.sft.train.lr = 5e-06\n    peak, after warm-up" in found
    assert "config.dpo.train.lr = 1e-06" in found
    assert "search" not in found
    assert len(keys.listed().split("config.")) > 150
    with pytest.raises(ValueError, match=r"no key contains 'epoch_s'; near: .*sft\.train\.epochs"):
        keys.listed("epoch_s")


NEAR = [
    ("stepz", "stages"),
    ("lr", "dpo.train.lr"),
    ("search.max_tokens", "search.max_step_tokens"),
    ("stges", "stages"),
    ("serach.c", "search.c"),
    ("judge.endpont", "judge.endpoint"),
    ("sft.train.epoch", "sft.train.epochs"),
    ("round", "rounds"),
]


@pytest.mark.parametrize(("typo", "meant"), NEAR)
def test_the_nearest_key_is_among_the_first(typo, meant):
    assert meant in keys.nearest(typo)
