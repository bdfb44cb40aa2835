"""AlpacaEval 2: preferences of log-probabilities, and both win rates."""

import csv
import math
import pathlib

import pytest

from stair_jax.evals.graders import alpaca

DATA = pathlib.Path(__file__).parents[4] / "shared" / "data" / "alpaca_eval"
LEADERBOARD = DATA / "leaderboard_weighted_gpt4_turbo.csv"

PREFERENCES = [
    ({"m": math.log(0.25), "M": math.log(0.75)}, 1.75),
    ({"m": math.log(0.2), "M": math.log(0.2), "the": math.log(0.6)}, 1.5),
    ({"M": -0.01}, 2.0),
    ({"m": -3.0, " M": -0.1}, 1.0),  # with a space it is another token
    ({"The": -0.1}, None),
    ({"m": -math.inf}, None),
    ({}, None),
]


@pytest.mark.parametrize(("logprobs", "value"), PREFERENCES)
def test_a_preference_is_of_two_tokens(logprobs, value):
    found = alpaca.preference(logprobs)
    switched = alpaca.preference(logprobs, switched=True)
    if value is None:
        assert found is switched is None
    else:
        assert found == pytest.approx(value)
        assert switched == pytest.approx(3 - value)


def test_raw_and_discrete_win_rates_differ():
    preferences = [1.9, 1.6, 1.5, 1.0, None]
    assert alpaca.win_rate(preferences) == pytest.approx((0.9 + 0.6 + 0.5 + 0.0) / 4)
    assert alpaca.discrete_win_rate(preferences) == pytest.approx(2.5 / 4)


def test_without_a_preference_there_is_no_win_rate():
    assert alpaca.win_rate([None]) is None
    assert alpaca.discrete_win_rate([]) is None


@pytest.mark.skipif(not LEADERBOARD.is_file(), reason=f"{LEADERBOARD} is not there")
def test_the_discrete_win_rates_are_the_published_ones():
    with LEADERBOARD.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    wrong = []
    for row in rows:
        wins, losses, draws = (int(float(row[key])) for key in ("n_wins", "n_wins_base", "n_draws"))
        found = alpaca.discrete_win_rate([1.7] * wins + [1.2] * losses + [1.5] * draws)
        if found is None or 100 * found != pytest.approx(float(row["discrete_win_rate"])):
            wrong.append(row[""])
    assert len(rows) == 223
    # One published row has a rate that is not that of its own counts.
    assert wrong == ["aligner-2b_gpt-4-turbo-2024-04-09"]
