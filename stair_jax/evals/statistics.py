"""Shares with their uncertainty."""

import math
from collections.abc import Sequence

Z95 = 1.959963984540054  # normal quantile of a two-sided 95 % interval


def wilson(successes: int, count: int) -> tuple[float, float]:
    """Returns the 95 % Wilson score interval of a share; (0, 1) where nothing was counted.

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
