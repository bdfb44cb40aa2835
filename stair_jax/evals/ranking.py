"""How well scores rank what has a known value: accuracy on pairs, AUROC, calibration.

All functions take NumPy arrays, leave out what has a number that is not finite, and give
not-a-number where there is nothing to measure.
"""

import itertools
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float


def pair_accuracy(better: Float[np.ndarray, " n"], worse: Float[np.ndarray, " n"]) -> float:
    """Returns the share of pairs whose better one has the higher score; a tie counts half."""
    better, worse = _known(better, worse)
    return _mean((better > worse) + 0.5 * (better == worse))


def auroc(scores: Float[np.ndarray, " n"], good: Bool[np.ndarray, " n"]) -> float:
    """Returns the chance that a good one scores above a bad one, a tie counting half.

    The area under the ROC curve is the Mann-Whitney statistic over the number of pairs.
    """
    scores, good = _known(scores, good)
    count, positives = len(scores), int(np.sum(good))
    if positives in (0, count):
        return float("nan")
    _, place, sizes = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(sizes) - (sizes - 1) / 2)[place]  # from 1 on; equal scores share their mean
    above = ranks[good].sum() - positives * (positives + 1) / 2
    return float(above / (positives * (count - positives)))


def calibration_error(
    units: Float[np.ndarray, " n"], values: Float[np.ndarray, " n"], bins: int = 10
) -> float:
    """Returns the expected calibration error of scores in [0, 1] against values in [0, 1].

    Over bins of equal width of the score: the distance of mean score and mean value, weighted by
    the bin's share (Naeini et al. 2015; Guo et al. 2017, section 2).
    """
    units, values = _known(units, values)
    if not len(units):
        return float("nan")
    at = np.minimum((units * bins).astype(int), bins - 1)
    # Of a sum over a bin the share cancels the bin's size.
    apart = np.bincount(at, weights=units - values, minlength=bins)
    return float(np.abs(apart).sum() / len(units))


def correlation(x: Float[np.ndarray, " n"], y: Float[np.ndarray, " n"]) -> float:
    """Returns Pearson's correlation."""
    x, y = _known(x, y)
    if len(x) < 2 or np.std(x) == 0 or np.std(y) == 0:
        return float("nan")
    return float(np.corrcoef(x, y)[0, 1])


def gap_closed(
    groups: Sequence[tuple[Float[np.ndarray, " _"], Float[np.ndarray, " _"]]],
) -> float:
    """Returns how much of the way from the mean to the best value the highest score goes.

    It is what choosing by score among several responses gains: 0 as choosing blindly, 1 as with
    the values known, negative where the score misleads. Of equal scores each is as likely.

    Args:
      groups: scores and values of the responses of one prompt each; sums are over all prompts.
    """
    gained = possible = 0.0
    for scores, values in itertools.starmap(_known, groups):
        if not len(scores):
            continue
        mean = values.mean()
        gained += values[scores == scores.max()].mean() - mean
        possible += values.max() - mean
    return gained / possible if possible else float("nan")


def _known(*columns: np.ndarray) -> list[np.ndarray]:
    """Returns the rows in which all columns are finite."""
    kept = np.all([np.isfinite(column) for column in columns], axis=0)
    return [column[kept] for column in columns]


def _mean(values: np.ndarray) -> float:
    return float(np.mean(values)) if len(values) else float("nan")
