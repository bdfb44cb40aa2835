"""Shares, means and correlations with their uncertainty: 95 % intervals.

A share has Wilson's interval, which holds for any share of any number of rows. What has no formula
is resampled: `bootstrap` and its kin draw as many rows as there are, with replacement, many times,
and read the interval off the values that the statistic takes. That is good from some twenty rows
on, and it cannot know of what no row shows: where all rows are alike the interval has no width. Use
`share` for figures of 0 and 1.
"""

import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar

import numpy as np

Row = TypeVar("Row")

Z95 = 1.959963984540054  # normal quantile of a two-sided 95 % interval
CONFIDENCE = 0.95  # of resampled intervals
RESAMPLES = 9_999  # the interval's ends then move by a hundredth of its width from seed to seed
_BATCH = 2_000_000  # numbers drawn at once: 16 MB of indices, and as much of what they point at


def wilson(successes: int | float, count: int | float) -> tuple[float, float]:
    """Returns the 95 % Wilson score interval of a share; (0, 1) where nothing was counted.

    Both may be fractions: the effective number of rows that are not independent.

    Source: Wilson 1927; Brown, Cai, DasGupta 2001, equation 4.
    """
    if not 0 <= successes <= count:
        raise ValueError(f"wilson: {successes} successes of {count}")
    if count == 0:
        return 0.0, 1.0
    share, spread = successes / count, Z95**2 / count
    centre = (share + spread / 2) / (1 + spread)
    half = Z95 * math.sqrt(share * (1 - share) / count + spread / (4 * count)) / (1 + spread)
    # At shares of 0 and 1 rounding would leave the share itself just outside.
    return max(0.0, min(share, centre - half)), min(1.0, max(share, centre + half))


def share(hits: Sequence[float]) -> dict[str, float]:
    """Returns {value, n, low, high}: the share of ones among ones and zeros, and its interval."""
    count, found = len(hits), int(sum(hits))
    low, high = wilson(found, count)
    return {"value": found / count if count else math.nan, "n": count, "low": low, "high": high}


def clustered_share(clusters: Iterable[Sequence[float]]) -> dict[str, float]:
    """Returns {value, n, low, high}: the share of ones, where rows of a cluster are much alike.

    Such as the answers to several attacks with one request. The value is that of `share`; the
    interval is Wilson's of fewer rows: n over the design effect, how many times the variance of the
    share is that of independent rows. Where all rows are alike no variance can be seen, and a
    cluster counts as one row.

    Source: Kish 1965, section 8.2 (the variance of a ratio of cluster totals); Korn and Graubard
    1998 (the effective number of rows in an interval for a share).
    """
    groups = [list(cluster) for cluster in clusters if len(cluster)]
    hits = [hit for group in groups for hit in group]
    found, count = share(hits), len(hits)
    if len(groups) == count:
        return found
    value, most = found["value"], len(groups)
    apart = math.fsum(math.fsum(hit - value for hit in group) ** 2 for group in groups)
    alone = value * (1 - value) * count
    if alone and most > 1:
        effect = apart * most / (most - 1) / alone
        rows = min(float(count), count / effect) if effect else float(count)
    else:
        rows = float(most)
    low, high = wilson(value * rows, rows) if rows else (0.0, 1.0)
    return found | {"low": low, "high": high}


def mean(values: Sequence[float]) -> float:
    """Returns the mean of the values that are finite; not a number where there is none."""
    known = [value for value in values if math.isfinite(value)]
    return math.fsum(known) / len(known) if known else math.nan


def mean_of(values: Sequence[float]) -> dict[str, float]:
    """Returns {value, n, low, high}: a mean of scores in [-1, 1] and its normal 95 % interval.

    With less than two scores nothing is known of their spread: the interval is all of [-1, 1].
    """
    count, value = len(values), mean(values)
    if count < 2:
        return {"value": value, "n": count, "low": -1.0, "high": 1.0}
    variance = math.fsum((x - value) ** 2 for x in values) / (count - 1)
    half = Z95 * math.sqrt(variance / count)
    return {"value": value, "n": count, "low": value - half, "high": value + half}


def number(figure: Mapping[str, float | None] | None, key: str) -> float:
    """Returns one number of {value, n, low, high}; not a number where it is missing.

    Results that were read from a file hold None where they held not-a-number.
    """
    found = figure.get(key) if figure else None
    return math.nan if found is None else float(found)


def bootstrap_mean(
    values: Sequence[float], *, resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, float]:
    """Returns {value, n, low, high}: a mean of scores on any scale, and its bootstrap interval.

    Args:
      values: the scores; at least two, or the interval is not a number.
      resamples: how often rows are drawn.
      seed: the same seed gives the same interval.

    Raises:
      ValueError: where a score is not finite, naming its place from 0 on.
    """
    return macro_mean({"": values}, resamples=resamples, seed=seed)


def macro_mean(
    groups: Mapping[str, Sequence[float]], *, resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, float]:
    """Returns {value, n, low, high}: the mean over groups of each group's mean.

    Every group counts alike, however many rows it has; a macro average, or a mean over tasks. Rows
    are drawn within their group.

    Args:
      groups: scores by the group's name. The value is not a number where a group is empty;
        the interval's ends are not where a group has one row, which shows no spread.
      resamples: how often rows are drawn.
      seed: the same seed gives the same interval.

    Raises:
      ValueError: where a score is not finite, naming its group and its place from 0 on.
    """
    samples = [_finite(f"macro_mean: group {name!r}", rows) for name, rows in groups.items()]

    def average(*drawn: np.ndarray, axis: int = -1) -> np.ndarray:
        return np.asarray(np.mean([rows.mean(axis=axis) for rows in drawn], axis=0))

    known = bool(samples) and all(len(rows) for rows in samples)
    return _bootstrapped(
        float(average(*samples)) if known else math.nan, samples, average, resamples, seed
    )


def macro_share(groups: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Returns `macro_mean` of figures from 0 to 1, with an interval also where all are 0 or all 1.

    Draws of such rows show no spread. The interval then is Wilson's of as many rows as give a mean
    over the groups the same variance: groups squared over the sum of 1 / rows of each.

    Args:
      groups: figures by the group's name.
    """
    found = macro_mean(groups)
    if not groups or {x for rows in groups.values() for x in rows} not in ({0.0}, {1.0}):
        return found
    if not all(groups.values()):
        return found
    worth = len(groups) ** 2 / math.fsum(1 / len(rows) for rows in groups.values())
    low, high = wilson(found["value"] * worth, worth)
    return found | {"low": low, "high": high}


def bootstrap(
    rows: Sequence[Row],
    statistic: Callable[[Sequence[Row]], float],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, float]:
    """Returns {value, n, low, high}: any statistic of rows, and its bootstrap interval.

    As `stratified` with one group; `bootstrap_mean` is far faster for a mean.

    Args:
      rows: of any type.
      statistic: of the rows, called once a draw; not a number where it is undefined.
      resamples: how often rows are drawn.
      seed: the same seed gives the same interval.
    """
    return stratified(
        {"": rows}, lambda groups: statistic(groups[""]), resamples=resamples, seed=seed
    )


def stratified(
    groups: Mapping[str, Sequence[Row]],
    statistic: Callable[[Mapping[str, Sequence[Row]]], float],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, float]:
    """Returns {value, n, low, high}: any statistic of groups of rows, drawn within each group.

    It is for what is not a plain mean of the groups' means: an F1 of one task averaged with
    accuracies of others, say.

    Args:
      groups: rows of any type by the group's name; the interval is not a number where a group has
        less than two.
      statistic: of groups of the same names and sizes, called once a draw; not a number where it
        is undefined.
      resamples: how often rows are drawn.
      seed: the same seed gives the same interval.
    """

    def of(*places: np.ndarray) -> float:
        drawn = zip(groups.items(), places, strict=True)
        return float(statistic({name: [rows[i] for i in at] for (name, rows), at in drawn}))

    places = [np.arange(len(rows)) for rows in groups.values()]
    return _bootstrapped(float(statistic(groups)), places, of, resamples, seed)


def pearson(
    x: Sequence[float], y: Sequence[float], *, resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, float]:
    """Returns {value, n, low, high}: Pearson's correlation of pairs, and its bootstrap interval.

    Pairs are drawn together. Where all x or all y are equal the correlation is undefined and the
    value is not a number; draws in which that happens do not count.

    Args:
      x: what is predicted, say.
      y: what is true, as many.
      resamples: how often pairs are drawn.
      seed: the same seed gives the same interval.

    Raises:
      ValueError: where x and y differ in number, or one of them is not finite.
    """
    a, b = _finite("pearson: x", x), _finite("pearson: y", y)
    if len(a) != len(b):
        raise ValueError(f"pearson: {len(a)} of x and {len(b)} of y, expected as many")

    def of(places: np.ndarray, axis: int = -1) -> np.ndarray:
        return _correlation(a[places], b[places], axis)

    places = np.arange(len(a))
    value = float(of(places)) if len(a) else math.nan
    return _bootstrapped(value, [places], of, resamples, seed)


def _correlation(x: np.ndarray, y: np.ndarray, axis: int) -> np.ndarray:
    """Returns Pearson's correlation along an axis, not a number where one side is constant."""
    # By the range: a mean of equal numbers can differ from them in its last bit, so that their
    # variance is not 0.
    constant = (np.ptp(x, axis=axis) == 0) | (np.ptp(y, axis=axis) == 0)
    x, y = x - x.mean(axis=axis, keepdims=True), y - y.mean(axis=axis, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        spread = np.sqrt((x * x).sum(axis=axis) * (y * y).sum(axis=axis))
        found = (x * y).sum(axis=axis) / spread
    return np.where(constant, np.nan, np.clip(found, -1, 1))


def _finite(what: str, values: Sequence[float]) -> np.ndarray:
    """Returns values as an array [n] of float64."""
    found = np.asarray(values, dtype=np.float64)
    if not np.isfinite(found).all():
        place = int(np.argmin(np.isfinite(found)))
        raise ValueError(f"{what}: row {place} is {found[place]}, expected a finite number")
    return found


def _bootstrapped(
    value: float,
    samples: Sequence[np.ndarray],
    statistic: Callable[..., np.ndarray | float],
    resamples: int,
    seed: int,
) -> dict[str, float]:
    """Returns {value, n, low, high} by scipy's bias-corrected and accelerated bootstrap.

    A statistic with an argument `axis` is given many draws at once.

    The plain percentiles of the draws stand in where that correction is undefined: where all draws
    are equal, or some have no value.

    Source: Efron 1987; Efron and Tibshirani 1993, sections 14.3 and 15.4 (several samples).
    """
    count = sum(map(len, samples))
    found = {"value": value, "n": count, "low": math.nan, "high": math.nan}
    if math.isnan(value) or min(map(len, samples)) < 2:
        return found
    from scipy import stats  # heavy, and only needed here

    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # of what is undefined; it is looked at below
        result = stats.bootstrap(
            samples,
            statistic,
            n_resamples=resamples,
            batch=max(1, _BATCH // count),
            confidence_level=CONFIDENCE,
            method="BCa",
            rng=np.random.default_rng(seed),
        )
    interval = np.asarray(result.confidence_interval)
    if not np.isfinite(interval).all():
        draws = result.bootstrap_distribution
        tail = (1 - CONFIDENCE) / 2
        # The rows as they are count as a draw, so that there always is one.
        known = [*draws[np.isfinite(draws)], value]
        interval = np.quantile(known, [tail, 1 - tail])
    return found | {"low": float(interval[0]), "high": float(interval[1])}
