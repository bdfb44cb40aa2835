"""AlpacaEval's length-controlled win rate: what a judge would say if both answers were as long.

A logistic regression explains the judge's preferences by three features of an answer: the tanh of
its standardised difference in length to the baseline's, how difficult the instruction is, and
whether the model is a real one. Predicted without the first, its mean is the rate. The regression
also sees answers of two gamed baselines (one verbose, one concise), which keep it from explaining
all by length; they and the difficulties are `df_gamed.csv` of the data set tatsu-lab/alpaca_eval
(CC-BY-NC-4.0), which a user who may have it names.

Source: Dubois et al. 2024 (arXiv 2404.04475), tatsu-lab/alpaca_eval glm_winrate.py
(length_controlled_v1, Apache-2.0) for formula, weights and folds; scikit-learn's
LogisticRegressionCV (l1, liblinear, no intercept) for what is minimised:
|coefficients|_1 + C sum of weighted log losses, C the best of ten by five folds of rows. Here the
minimum is found exactly, where liblinear stops at a tolerance; folds take rows in turn, where the
official order hangs on how numpy sorts equal numbers.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from stair_jax import jsonl
from stair_jax.evals import statistics

GAMED_WEIGHT = 0.2 / 2  # of a row of a gamed baseline, of which there are two; others weigh 1
STRENGTHS = np.logspace(-4, 4, 10)  # C, scikit-learn's ten
FOLDS = 5
_STILL, _MOST_SWEEPS = 1e-10, 20_000  # change of a coefficient in the last sweep; sweeps over all
_CLIPPED = 1e-15  # probabilities in the loss of a fold, as in the official code
_COLUMNS = ("std_delta_len", "instruction_difficulty")


class Rows(NamedTuple):
    """What a regression sees: features [N, 3], preferences from 0 to 1 [N], weights [N]."""

    features: np.ndarray
    preferences: np.ndarray
    weights: np.ndarray

    def of(self, kept: np.ndarray) -> "Rows":
        """Returns some rows, by a mask [N]."""
        return Rows(*(part[kept] for part in self))


class Gamed(NamedTuple):
    """The official answers of gamed baselines, and how difficult each instruction is.

    Attributes:
      rows: of these baselines.
      difficulty: by the number of the instruction, from 0.
      source: the file.
    """

    rows: Rows
    difficulty: Mapping[int, float]
    source: str


def gamed(rows: Sequence[tuple[str, Any]], source: str) -> Gamed:
    """Returns the rows of df_gamed.csv; those without a preference count for difficulties alone.

    Raises:
      ValueError: where a row lacks a column or has no number in it, naming it.
    """
    features, preferences, weights = [], [], []
    difficulty: dict[int, float] = {}
    for where, row in rows:
        row = jsonl.object_of(where, row)
        index = int(_number(where, row, "index"))
        real = str(row.get("not_gamed_baseline")).strip().lower()
        if real not in ("true", "false"):
            raise ValueError(f"{where}: not_gamed_baseline: found {real!r}, expected True or False")
        delta, hard = (_number(where, row, name) for name in _COLUMNS)
        preference = _preference(where, row)
        difficulty.setdefault(index, hard)
        if preference is not None:
            features.append(_features(delta, hard, float(real == "true")))
            preferences.append(preference)
            weights.append(1.0 if real == "true" else GAMED_WEIGHT)
    if not features:
        raise ValueError(f"{source}: found no preference, expected those of gamed baselines")
    return Gamed(Rows(*map(np.asarray, (features, preferences, weights))), difficulty, source)


def _number(where: str, row: Mapping[str, Any], name: str) -> float:
    try:
        number = float(str(row.get(name)))
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{where}: {name}: found {row.get(name)!r}, expected a number")
    return number


def _preference(where: str, row: Mapping[str, Any]) -> float | None:
    """Returns a preference from 0 to 1; None where the field is empty."""
    if row.get("preference") == "":
        return None
    found = _number(where, row, "preference")
    if not 0 <= found <= 1:
        raise ValueError(f"{where}: preference: found {found}, expected a number from 0 to 1")
    return found


def _features(delta: float, difficulty: float, real: float) -> tuple[float, float, float]:
    return float(np.tanh(delta)), difficulty, real


def win_rate(
    preferences: Sequence[float | None],
    lengths: Sequence[tuple[int, int]],
    numbers: Sequence[int],
    against: Gamed,
) -> dict[str, float]:
    """Returns {value, n, low, high}: the rate from 0 to 1, and the spread of its predictions.

    The interval is that of the official standard error: of the mean of the predictions, without
    the uncertainty of the regression.

    Args:
      preferences: for the model's answers, from 0 to 1; None is missing, and predicted all the
        same.
      lengths: characters of the baseline's answer and of the model's.
      numbers: of the instructions, from 0.
      against: the gamed baselines.

    Raises:
      ValueError: where there is no preference, or the differences in length are all the same.
    """
    apart = np.array([float(first - second) for first, second in lengths])
    spread = apart.std(ddof=1) if len(apart) > 1 else 0.0
    known = [place for place, one in enumerate(preferences) if one is not None]
    if not known or not spread:
        raise ValueError(
            f"length control: found {len(known)} preferences and a spread of lengths of {spread},"
            " expected more than 0 of both"
        )
    hard = [against.difficulty[number] for number in numbers]
    features = np.array([_features(a, b, 1.0) for a, b in zip(apart / spread, hard, strict=True)])
    own = Rows(
        features[known],
        np.array([one for one in preferences if one is not None]),
        np.ones(len(known)),
    )
    every = Rows(*(np.concatenate(both) for both in zip(against.rows, own, strict=True)))
    coefficients = fit(every, best_strength(every))
    same_length = features * [0.0, 1.0, 1.0]
    found = statistics.mean_of(_logistic(same_length @ coefficients).tolist())
    return found | {"low": max(0.0, found["low"]), "high": min(1.0, found["high"])}


def best_strength(rows: Rows) -> float:
    """Returns C with the best weighted log-likelihood over the rows that a fit has not seen."""
    turns = np.arange(len(rows.preferences))[::-1] % FOLDS
    scores = [
        sum(_score(fit(rows.of(turns != fold), c), rows.of(turns == fold)) for fold in range(FOLDS))
        for c in STRENGTHS
    ]
    return float(STRENGTHS[int(np.argmax(scores))])


def _score(coefficients: np.ndarray, rows: Rows) -> float:
    chance = np.clip(_logistic(rows.features @ coefficients), _CLIPPED, 1 - _CLIPPED)
    won = rows.preferences * np.log(chance) + (1 - rows.preferences) * np.log(1 - chance)
    return float(np.mean(rows.weights * won))


def fit(rows: Rows, strength: float) -> np.ndarray:
    """Returns the coefficients [3] of a logistic regression with l1, without an intercept.

    Found by coordinate descent: each step goes to the minimum of a bound along one coefficient.

    Args:
      rows: with preferences that are chances.
      strength: C, of the losses beside the penalty.
    """
    count = rows.features.shape[1]
    found, score = np.zeros(count), np.zeros(len(rows.preferences))
    # The curvature of a log loss is nowhere above 1/4, so that no step goes too far.
    steepest = strength * (rows.weights @ rows.features**2) / 4
    for _ in range(_MOST_SWEEPS):
        moved = 0.0
        for one in range(count):
            if not steepest[one]:
                continue  # a feature that no row has
            slope = strength * (
                rows.features[:, one] @ (rows.weights * (_logistic(score) - rows.preferences))
            )
            best = found[one] - slope / steepest[one]
            best = np.sign(best) * max(0.0, abs(best) - 1 / steepest[one])
            score = score + (best - found[one]) * rows.features[:, one]
            moved, found[one] = max(moved, abs(best - found[one])), best
        if moved < _STILL:
            break
    return found


def _logistic(x: np.ndarray) -> np.ndarray:
    return np.exp(-np.logaddexp(0.0, -x))
