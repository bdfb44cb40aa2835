"""The length-controlled win rate: against scikit-learn's regression, and what it is to control.

The recorded numbers are of scikit-learn 1.9.1 on the rows that `made` gives: LogisticRegression
(l1, liblinear, no intercept, tol 1e-12) on each row twice, won and lost, weighted by its chance;
C as `best_strength` says it.
"""

import math

import numpy as np
import pytest
from scipy import optimize

from stair_jax.evals import length_control

COUNT = 40  # instructions


def difficulty(number):
    return ((37 * number) % 23 - 11) / 8


def gamed_rows():
    rows = []
    for shift in (-1.5, 1.25):  # a concise model and a verbose one
        for number in range(COUNT):
            delta = shift + ((29 * number) % 13 - 6) / 10
            score = -1.2 * math.tanh(delta) + 0.4 * difficulty(number)
            score += -0.5 + ((17 * number) % 11 - 5) / 6
            rows.append(gamed_row(number, round(1 / (1 + math.exp(-score)), 4), delta))
    return [(f"df.csv:{place}", row) for place, row in enumerate(rows, start=1)]


def gamed_row(number, preference, delta):
    """A row as a .csv file gives it: all of it text."""
    found = {"index": number, "preference": preference, "std_delta_len": delta}
    found |= {"instruction_difficulty": difficulty(number), "not_gamed_baseline": False}
    return {"model": "m", **{key: str(value) for key, value in found.items()}}


def made():
    """Preferences from 0 to 1, and lengths of both answers."""
    lengths = [(400 + (331 * n) % 1999, 300 + (457 * n) % 2411) for n in range(COUNT)]
    apart = np.array([a - b for a, b in lengths], float)
    apart = apart / apart.std(ddof=1)
    scores = [
        -math.tanh(apart[n]) + 0.5 * difficulty(n) - 0.3 + ((13 * n) % 7 - 3) / 2
        for n in range(COUNT)
    ]
    return [round(1 / (1 + math.exp(-score)), 4) for score in scores], lengths


AGAINST = length_control.gamed(gamed_rows(), "df.csv")
PREFERENCES, LENGTHS = made()


def rate(preferences=PREFERENCES, lengths=LENGTHS):
    return length_control.win_rate(preferences, lengths, range(COUNT), AGAINST)


def rows_of(preferences):
    apart = np.array([float(a - b) for a, b in LENGTHS])
    apart = apart / apart.std(ddof=1)
    features = [(math.tanh(apart[n]), difficulty(n), 1.0) for n in range(COUNT)]
    own = (np.array(features), np.array(preferences), np.ones(COUNT))
    return length_control.Rows(
        *(np.concatenate(both) for both in zip(AGAINST.rows, own, strict=True))
    )


def test_the_rate_is_scikit_learns():
    found = rate()
    assert found["value"] == pytest.approx(0.4490712118363498, abs=1e-9)
    assert found["n"] == COUNT
    assert abs(found["value"] - np.mean(PREFERENCES)) > 0.002  # the raw one is another
    some = [None if n in (3, 17) else one for n, one in enumerate(PREFERENCES)]
    assert rate(some)["value"] == pytest.approx(0.44496687491256337, abs=1e-9)
    assert rate(some)["n"] == COUNT  # what the judge did not say is predicted


def test_coefficients_and_their_penalty_are_scikit_learns():
    rows = rows_of(PREFERENCES)
    strength = length_control.best_strength(rows)
    assert strength == pytest.approx(166.81005372000558)
    best = [-0.7623224233292726, 0.5200579608467013, -0.20108724848629989]
    assert length_control.fit(rows, strength) == pytest.approx(best, abs=1e-8)
    few = [-0.3789019015794281, 0.2575771080089252, 0.0]
    assert length_control.fit(rows, 0.5) == pytest.approx(few, abs=1e-8)


def test_coefficients_are_the_minimum_that_scipy_finds():
    rows, strength = rows_of(PREFERENCES), 3.0

    def objective(coefficients):
        score = rows.features @ coefficients
        loss = np.logaddexp(0, score) - rows.preferences * score
        return np.abs(coefficients).sum() + strength * rows.weights @ loss

    found = optimize.minimize(objective, np.full(3, 0.1), method="Nelder-Mead", tol=1e-12)
    assert length_control.fit(rows, strength) == pytest.approx(found.x, abs=1e-5)


def test_preferences_without_a_pattern_are_worth_one_half():
    noise = [((31 * n) % 10) / 10 + 0.05 for n in range(COUNT)]
    assert length_control.best_strength(rows_of(noise)) == length_control.STRENGTHS[0]
    assert rate(noise)["value"] == 0.5


def test_what_length_alone_won_is_taken_away():
    # A judge that prefers the longer answer, and a model that always writes longer ones.
    longer = [(1000, 1300 + 40 * n) for n in range(COUNT)]
    apart = np.array([a - b for a, b in longer], float)
    apart = apart / apart.std(ddof=1)
    won = [1 / (1 + math.exp(1.2 * math.tanh(delta))) for delta in apart]
    assert np.mean(won) > 0.7
    assert rate(won, longer)["value"] < np.mean(won) - 0.1


@pytest.mark.parametrize(
    ("name", "value"),
    [("GAMED_WEIGHT", 1.0), ("STRENGTHS", np.array([0.5])), ("FOLDS", 4), ("_MOST_SWEEPS", 2)],
)
def test_each_constant_reaches_the_rate(monkeypatch, name, value):
    monkeypatch.setattr(length_control, name, value)
    against = length_control.gamed(gamed_rows(), "df.csv")
    found = length_control.win_rate(PREFERENCES, LENGTHS, range(COUNT), against)
    assert abs(found["value"] - 0.4490712118363498) > 1e-7


def test_a_gamed_answer_without_a_preference_says_how_difficult_its_instruction_is():
    rows = [("r:1", gamed_row(7, "", 0.5)), ("r:2", gamed_row(8, 0.25, 0.5))]
    found = length_control.gamed(rows, "r")
    assert found.difficulty == {7: difficulty(7), 8: difficulty(8)}
    assert found.rows.preferences.tolist() == [0.25]
    assert found.rows.weights.tolist() == [0.1]
    real = [("r:2", gamed_row(8, 0.25, 0.5) | {"not_gamed_baseline": "True"})]
    assert length_control.gamed(real, "r").rows.weights.tolist() == [1.0]


REFUSED = [
    ({"preference": "1.5"}, r"r:1: preference: found 1\.5, expected a number from 0 to 1"),
    ({"std_delta_len": ""}, r"r:1: std_delta_len: found '', expected a number"),
    ({"instruction_difficulty": None}, r"r:1: instruction_difficulty: found None, expected a num"),
    ({"index": "x"}, r"r:1: index: found 'x', expected a number"),
    ({"not_gamed_baseline": "0"}, r"r:1: not_gamed_baseline: found '0', expected True or False"),
    ({"preference": ""}, r"r: found no preference, expected those of gamed baselines"),
]


@pytest.mark.parametrize(("change", "message"), REFUSED)
def test_rows_that_are_none_of_that_file_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        length_control.gamed([("r:1", gamed_row(0, 0.5, 0.1) | change)], "r")


def test_without_preferences_or_lengths_that_differ_there_is_no_rate():
    with pytest.raises(ValueError, match="found 0 preferences"):
        rate([None] * COUNT)
    with pytest.raises(ValueError, match=r"a spread of lengths of 0\.0"):
        rate(lengths=[(10, 20)] * COUNT)
