import pytest

from stair_jax import pipeline
from tests import sabotage
from tests.test_config import tiny


@pytest.mark.slow
def test_spoilt_lessons_show_in_the_table(tmp_path):
    """About a quarter of an hour: an honest stage 1, then the rounds spoilt in two ways."""
    pipeline.run(tiny(workdir=str(tmp_path / "sft"), stages="sft,evaluate", seed=21))
    for how in ("flipped", "shuffled"):
        results = sabotage.run(how, tmp_path / how, tmp_path / "sft", seed=21)
        assert sabotage.shows(results), how


def test_turning_a_pair_round_twice_gives_it_back():
    from tests.test_records import ROWS

    pair = ROWS[3]
    assert sabotage.turned(pair) != pair
    assert sabotage.turned(pair).chosen == pair.rejected
    assert sabotage.turned(sabotage.turned(pair)) == pair
