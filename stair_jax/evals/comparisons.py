"""Whether two models differ on the prompts that both answered, and the table that says so."""

import dataclasses
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from stair_jax.evals import statistics

Figures = Mapping[str, float | None]  # of one metric by the prompt's id; None is missing
ByMetric = Mapping[str, Mapping[str, Figures]]  # by benchmark and metric, of one model

FLIPS = 9_999  # random sign flips, where there are more than can be tried
_BATCH = 2_000_000  # signs drawn at once
_NAMES = ("model", "against", "benchmark", "metric")
_HEADER = (*_NAMES, "n", "left out", "difference", "p", "Holm's p")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
    """How far one model's mean figure is from another's.

    Attributes:
      model: of whom it is said.
      against: the other model.
      benchmark: the benchmark's name.
      metric: the figure's name.
      n: how many prompts have a figure of both models.
      left_out: how many prompts have one of one model, or of none.
      difference: the mean of `model` less that of `against`; not a number where n is 0.
      low: end of the 95 % interval of the difference; not a number where n is too small.
      high: the other end.
      p: two-sided, of no difference; not a number where n is 0.
      p_adjusted: the same by Holm's correction over all comparisons of a table.
    """

    model: str
    against: str
    benchmark: str
    metric: str
    n: int
    left_out: int
    difference: float
    low: float
    high: float
    p: float
    p_adjusted: float


def mcnemar(ours: int, theirs: int) -> float:
    """Returns the two-sided p of McNemar's exact test; 1 where no prompt tells the two apart.

    Under no difference a prompt on which one model has a 1 and the other a 0 is a fair coin.

    Source: McNemar 1947; the exact form is a binomial test of the discordant pairs.

    Args:
      ours: prompts on which only the one model has a 1.
      theirs: prompts on which only the other has.
    """
    if not ours + theirs:
        return 1.0
    from scipy import stats  # heavy, and only needed here

    return float(stats.binomtest(ours, ours + theirs, 0.5).pvalue)


def newcombe(both: int, ours: int, theirs: int, neither: int) -> tuple[float, float]:
    """Returns the 95 % interval of the difference of two shares of the same prompts.

    It squares and adds the distances to the ends of both Wilson intervals, less what the pairs'
    correlation explains. It has a width where no pair is discordant, which a bootstrap has not.

    Source: Newcombe 1998 (Statistics in Medicine 17, 2635), method 10: the correlation is corrected
    for continuity.

    Args:
      both: prompts on which both models have a 1.
      ours: on which only the first has.
      theirs: on which only the second has.
      neither: on which both have a 0.
    """
    count = both + ours + theirs + neither
    if not count:
        return -1.0, 1.0
    first, second = (both + ours) / count, (both + theirs) / count
    low_1, high_1 = statistics.wilson(both + ours, count)
    low_2, high_2 = statistics.wilson(both + theirs, count)
    margins = (both + ours) * (theirs + neither) * (both + theirs) * (ours + neither)
    agreed = both * neither - ours * theirs
    # A positive correlation is brought nearer to 0, or pairs that all agree had no interval.
    agreed = max(agreed - count / 2, 0.0) if agreed > 0 else agreed
    phi = agreed / math.sqrt(margins) if margins else 0.0

    def distance(a: float, b: float) -> float:
        return math.sqrt(max(0.0, a * a - 2 * phi * a * b + b * b))

    difference = (ours - theirs) / count
    low = difference - distance(first - low_1, high_2 - second)
    return low, difference + distance(high_1 - first, second - low_2)


def sign_flips(differences: Sequence[float], seed: int = 0) -> float:
    """Returns the two-sided p of a mean difference of pairs: a paired permutation test.

    Under no difference a pair's two figures could as well be exchanged, which flips the sign of
    their difference. Up to 13 pairs all flips are tried, else random ones. Of differences of 0, 1
    and -1 it is McNemar's test.

    Source: Fisher 1935, section 21.

    Args:
      differences: of pairs, not empty.
      seed: of the random flips.
    """
    if len(differences) < 2 or not any(differences):
        return 1.0  # a flip of one pair leaves the mean as far from 0
    from scipy import stats  # heavy, and only needed here

    found = stats.permutation_test(
        (np.asarray(differences, dtype=np.float64),),
        lambda flipped, axis: np.abs(flipped.mean(axis=axis)),
        permutation_type="samples",
        alternative="greater",
        n_resamples=FLIPS,
        batch=max(1, _BATCH // len(differences)),
        vectorized=True,
        rng=np.random.default_rng(seed),
    )
    return float(found.pvalue)


def holm(p: Sequence[float]) -> list[float]:
    """Returns p-values corrected for how many they are.

    At a level of 0.05 at most one table in 20 then holds any false difference. Values that are not
    a number stay so, and do not count.

    Source: Holm 1979 (Scandinavian Journal of Statistics 6, 65).
    """
    order = sorted((i for i, one in enumerate(p) if not math.isnan(one)), key=lambda i: p[i])
    found, highest = [math.nan] * len(p), 0.0
    for tried, i in enumerate(order):
        highest = max(highest, min(1.0, (len(order) - tried) * p[i]))
        found[i] = highest
    return found


def compare(
    model: str,
    against: str,
    benchmark: str,
    metric: str,
    figures: tuple[Figures, Figures],
    *,
    seed: int = 0,
) -> Comparison:
    """Compares two models on the prompts that have a figure of both; `p_adjusted` is `p`.

    Figures of 0 and 1 have McNemar's test and Newcombe's interval; others a test by sign flips and
    the bootstrap interval of their mean difference.

    Args:
      model: the first model's name.
      against: the second's.
      benchmark: the benchmark's name.
      metric: the figure's name.
      figures: of the first and of the second model.
      seed: of flips and bootstrap.

    Raises:
      ValueError: where a figure is not finite, naming model, benchmark, metric and prompt.
    """
    for name, known in zip((model, against), figures, strict=True):
        for id, value in known.items():
            if value is not None and not math.isfinite(value):
                where = f"{name}: {benchmark} {metric} of {id!r}"
                raise ValueError(f"{where} is {value}, expected a finite number or None")
    ours, theirs = figures
    pairs = [(ours.get(id), theirs.get(id)) for id in sorted(ours.keys() | theirs.keys())]
    known = [(a, b) for a, b in pairs if a is not None and b is not None]
    difference, low, high, p = _compared(known, seed)
    return Comparison(
        model=model,
        against=against,
        benchmark=benchmark,
        metric=metric,
        n=len(known),
        left_out=len(pairs) - len(known),
        difference=difference,
        low=low,
        high=high,
        p=p,
        p_adjusted=p,
    )


def _compared(pairs: Sequence[tuple[float, float]], seed: int) -> tuple[float, float, float, float]:
    """Returns the mean difference, the ends of its interval, and p."""
    if not pairs:
        return math.nan, math.nan, math.nan, math.nan
    if all(figure in (0, 1) for figure in itertools.chain(*pairs)):
        both, ours, theirs = pairs.count((1, 1)), pairs.count((1, 0)), pairs.count((0, 1))
        low, high = newcombe(both, ours, theirs, pairs.count((0, 0)))
        return (ours - theirs) / len(pairs), low, high, mcnemar(ours, theirs)
    differences = [a - b for a, b in pairs]
    found = statistics.bootstrap_mean(differences, seed=seed)
    return found["value"], found["low"], found["high"], sign_flips(differences, seed)


def compare_all(
    figures: Mapping[str, ByMetric], pairs: Iterable[tuple[str, str]], *, seed: int = 0
) -> list[Comparison]:
    """Compares pairs of models on every metric that both have, with Holm's correction over all.

    Args:
      figures: {model: {benchmark: {metric: {prompt id: figure}}}}.
      pairs: (model, against), in the order of the rows.
      seed: of flips and bootstraps.

    Raises:
      ValueError: where a pair names a model that has no figures, or a figure is not finite.
    """
    rows = []
    for model, against in pairs:
        for name in (model, against):
            if name not in figures:
                raise ValueError(f"no figures of {name!r}, expected one of {list(figures)}")
        for benchmark, metrics in figures[model].items():
            others = figures[against].get(benchmark, {})
            for metric in metrics:
                if metric in others:
                    of_both = metrics[metric], others[metric]
                    rows.append(compare(model, against, benchmark, metric, of_both, seed=seed))
    adjusted = holm([row.p for row in rows])
    return [dataclasses.replace(row, p_adjusted=p) for row, p in zip(rows, adjusted, strict=True)]


def table(rows: Sequence[Comparison]) -> str:
    """Returns comparisons as a Markdown table, and a line that says what was computed."""
    cells = [_HEADER, *map(_cells, rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]

    def line(row: Sequence[str]) -> str:
        return "| " + " | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) + " |"

    rule = "|" + "|".join("-" * (w + 2) for w in widths) + "|"
    tested = sum(not math.isnan(row.p) for row in rows)
    note = (
        "\nDifferences are of means over the n prompts that both models have a figure of, with 95 %"
        " intervals. Figures of 0 and 1: McNemar's exact test, Newcombe's interval. Others: sign"
        f" flips, bootstrap. Holm's correction is over {tested} comparisons.\n"
    )
    return "\n".join([line(cells[0]), rule, *map(line, cells[1:])]) + "\n" + note


def _cells(row: Comparison) -> tuple[str, ...]:
    difference = "-" if math.isnan(row.difference) else f"{row.difference:+.3f}"
    if not math.isnan(row.low):
        difference += f" ({row.low:+.3f} to {row.high:+.3f})"
    # A bar would end the cell.
    names = (getattr(row, name).replace("|", "\\|") for name in _NAMES)
    return *names, str(row.n), str(row.left_out), difference, _p(row.p), _p(row.p_adjusted)


def _p(p: float) -> str:
    if math.isnan(p):
        return "-"
    return "<0.001" if p < 0.001 else f"{p:.3f}"
