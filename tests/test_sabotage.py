import dataclasses

import pytest

from stair_jax import pipeline
from tests import sabotage
from tests.support.configs import tiny


@pytest.mark.slow
def test_spoilt_lessons_show_in_the_table(tmp_path):
    """About a quarter of an hour: an honest stage 1, then the rounds spoilt in two ways."""
    settings = {"stages": "sft,evaluate", "evaluate__search": "greedy", "seed": 21}
    pipeline.run(tiny(workdir=str(tmp_path / "sft"), **settings))
    for how in ("flipped", "shuffled"):
        results = sabotage.run(how, tmp_path / how, tmp_path / "sft", seed=21)
        assert sabotage.shows(results), how


def test_a_coin_turns_half_of_the_comparisons_round():
    from tests.support.reward_rows import COMPARISON

    rows = [dataclasses.replace(COMPARISON, id=f"c{i}") for i in range(200)]
    tossed, dropped = sabotage.toss(lambda: (rows, "dropped"))()
    assert dropped == "dropped"
    turned = sum(row != old for row, old in zip(tossed, rows, strict=True))
    assert 70 < turned < 130
    assert all(sabotage.swap(sabotage.swap(row)) == row for row in rows)
    assert all(row in (old, sabotage.swap(old)) for row, old in zip(tossed, rows, strict=True))


def test_turning_a_pair_round_twice_gives_it_back():
    from tests.support.rows import ROWS

    pair = ROWS[3]
    assert sabotage.turned(pair) != pair
    assert sabotage.turned(pair).chosen == pair.rejected
    assert sabotage.turned(sabotage.turned(pair)) == pair
