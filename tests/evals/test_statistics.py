"""Intervals: against recorded values and formulas, and how often they hold what is true."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
from scipy import stats

from stair_jax.evals import statistics

# Efron and Tibshirani 1993, table 14.1: a spatial test of 26 children. Table 14.2 has the BCa
# interval of 90 % of their (plug-in) variance.
SPATIAL = [48, 36, 20, 29, 42, 42, 20, 42, 22, 41, 45, 14, 6, 0, 33, 28, 34, 4, 32, 24, 47, 41, 24]
SPATIAL += [26, 30, 41]
VARIANCE, BOOK = 171.5, (115.8, 259.6)
SCORES = [float(x) for x in np.random.default_rng(3).normal(0.2, 0.5, 200)]


def ends(found):
    return found["low"], found["high"]


def undefined(found):
    return all(math.isnan(end) for end in ends(found))


def test_any_statistic_has_the_interval_of_the_book(monkeypatch):
    monkeypatch.setattr(statistics, "CONFIDENCE", 0.9)
    found = statistics.bootstrap(SPATIAL, lambda rows: float(np.var(rows)))
    assert found["value"] == pytest.approx(VARIANCE, abs=0.05)
    assert found["n"] == 26
    assert ends(found) == pytest.approx(BOOK, abs=5)  # their 2,000 draws move it as much
    monkeypatch.undo()
    wider = statistics.bootstrap(SPATIAL, lambda rows: float(np.var(rows)))
    assert wider["low"] < found["low"] - 5
    assert wider["high"] > found["high"] + 5


def test_a_mean_of_many_scores_has_nearly_the_normal_interval():
    found = statistics.bootstrap_mean(SCORES)
    half = float(1.959964 * np.std(SCORES, ddof=1) / math.sqrt(200))
    assert found["value"] == pytest.approx(np.mean(SCORES))
    assert found["n"] == 200
    want = found["value"] - half, found["value"] + half
    assert ends(found) == pytest.approx(want, abs=0.08 * half)


def test_a_mean_of_rows_is_the_mean_of_scores():
    rows = [{"score": score} for score in SCORES[:30]]
    slow = statistics.bootstrap(rows, lambda drawn: sum(row["score"] for row in drawn) / 30)
    assert slow == pytest.approx(statistics.bootstrap_mean(SCORES[:30]))


def test_the_seed_and_the_draws_reach_the_interval():
    same = [statistics.bootstrap_mean(SCORES, seed=7) for _ in range(2)]
    assert same[0] == same[1]
    assert ends(same[0]) != ends(statistics.bootstrap_mean(SCORES, seed=8))
    assert ends(same[0]) != ends(statistics.bootstrap_mean(SCORES, seed=7, resamples=500))
    assert ends(same[0]) == ends(statistics.bootstrap_mean(SCORES, seed=7, resamples=9_999))
    several = [ends(statistics.bootstrap_mean(SCORES, seed=seed)) for seed in range(20)]
    width = same[0]["high"] - same[0]["low"]
    assert np.std(several, axis=0).max() < 0.015 * width


def test_a_batch_bounds_what_is_drawn_at_once(monkeypatch):
    seen, plain = [], stats.bootstrap

    def bootstrap(*args, **kwargs):
        seen.append(kwargs["batch"])
        return plain(*args, **kwargs)

    monkeypatch.setattr(stats, "bootstrap", bootstrap)
    first = statistics.bootstrap_mean(SCORES)
    monkeypatch.setattr(statistics, "_BATCH", 100_000)
    statistics.bootstrap_mean(SCORES)
    monkeypatch.setattr(statistics, "_BATCH", 7)
    few = statistics.bootstrap_mean(SCORES, resamples=200)
    assert seen == [10_000, 500, 1]
    assert few["value"] == first["value"]


def test_every_group_counts_alike():
    groups = {"small": [0.0, 1.0, 0.0, 0.5], "large": SCORES}
    found = statistics.macro_mean(groups)
    assert found["value"] == pytest.approx((0.375 + np.mean(SCORES)) / 2)
    assert abs(found["value"] - np.mean(groups["small"] + SCORES)) > 0.05
    assert found["n"] == 204


def test_rows_are_drawn_within_their_group():
    low, high = SCORES[:100], [score + 50 for score in SCORES[100:]]
    found = statistics.macro_mean({"low": low, "high": high})
    error = math.sqrt(np.var(low, ddof=1) / 100 + np.var(high, ddof=1) / 100) / 2
    want = found["value"] - 1.96 * error, found["value"] + 1.96 * error
    assert ends(found) == pytest.approx(want, abs=0.1 * error)  # 25 times as wide if drawn from all
    sizes = set()

    def statistic(groups):
        sizes.add(tuple((name, len(rows)) for name, rows in groups.items()))
        assert {type(row) for row in groups["a"]} == {str}
        return float(sum(groups["b"]) / 4) + len("".join(groups["a"]))

    mixed = {"a": ["x", "xy", "xyz"], "b": [1, 2, 3, 4]}
    found = statistics.stratified(mixed, statistic, resamples=300)
    assert sizes == {(("a", 3), ("b", 4)), (("a", 3), ("b", 3)), (("a", 2), ("b", 4))}  # jackknife
    assert (found["value"], found["n"]) == (8.5, 7)
    assert 4 <= found["low"] < 8.5 < found["high"] <= 13


def test_a_group_of_one_shows_no_spread():
    assert undefined(statistics.macro_mean({"a": [0.0, 1.0], "b": [1.0]}))
    assert statistics.macro_mean({"a": [0.0, 1.0], "b": [1.0]})["value"] == 0.75
    assert undefined(statistics.bootstrap([4], lambda rows: float(rows[0])))
    assert not undefined(statistics.macro_mean({"a": [0.0, 1.0], "b": [1.0, 0.0]}))


@pytest.mark.parametrize("groups", [{}, {"a": []}, {"a": [1.0, 0.0], "b": []}])
def test_an_empty_group_has_no_mean(groups):
    found = statistics.macro_mean(groups)
    assert math.isnan(found["value"])
    assert undefined(found)


def test_rows_that_are_alike_have_no_width():
    assert ends(statistics.bootstrap_mean([0.25] * 7)) == (0.25, 0.25)
    assert ends(statistics.bootstrap_mean([0.1] * 7)) == pytest.approx((0.1, 0.1))
    assert statistics.share([1.0] * 7)["low"] < 0.7  # which is why shares are Wilson's


def test_pearson_by_hand():
    x, y = [1.0, 2.0, 3.0, 4.0, 6.0], [2.0, 1.0, 4.0, 3.0, 5.0]
    found = statistics.pearson(x, y)
    # Sums of products of distances from the means 3.2 and 3: 10, 14.8 and 10.
    assert found["value"] == pytest.approx(10 / math.sqrt(14.8 * 10))
    assert found["n"] == 5
    assert statistics.pearson(x, [-one for one in x])["value"] == pytest.approx(-1)
    assert statistics.pearson(y, x)["value"] == pytest.approx(found["value"])


def test_pearson_has_nearly_fishers_interval():
    rng = np.random.default_rng(2)
    x = rng.normal(size=400)
    y = 0.7 * x + rng.normal(size=400)
    found = statistics.pearson(x.tolist(), y.tolist())
    want: Any = stats.pearsonr(x, y)
    assert found["value"] == pytest.approx(want.statistic)
    theirs = want.confidence_interval()
    assert ends(found) == pytest.approx((theirs.low, theirs.high), abs=0.015)


@pytest.mark.parametrize("constant", [0.1, 0.0, 50.0])
def test_a_constant_has_no_correlation(constant):
    for pair in itertools.permutations([[constant] * 3, [1.0, 2.0, 4.0]]):
        found = statistics.pearson(*pair)
        assert math.isnan(found["value"])
        assert undefined(found)
        assert found["n"] == 3
    assert math.isnan(statistics.pearson([], [])["value"])


def test_draws_without_a_correlation_do_not_count():
    found = statistics.pearson([0.1, 0.1, 0.1, 0.2], [1.0, 2.0, 3.0, 4.0])
    assert found["value"] == pytest.approx(0.774597)  # 1.5 / sqrt(0.75 * 5)
    assert found["value"] - 0.25 < found["low"] <= found["value"] < found["high"] <= 1


BAD = [
    (lambda: statistics.bootstrap_mean([1.0, math.nan]), "row 1 is nan, expected a finite number"),
    (lambda: statistics.macro_mean({"a b": [math.inf]}), "group 'a b': row 0 is inf"),
    (lambda: statistics.pearson([1.0, 2.0], [1.0, math.nan]), "pearson: y: row 1 is nan"),
    (lambda: statistics.pearson([1.0, 2.0], [1.0]), "2 of x and 1 of y, expected as many"),
]


@pytest.mark.parametrize(("call", "message"), BAD)
def test_what_is_no_number_is_named(call, message):
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("p", [0.05, 0.5])
@pytest.mark.parametrize("count", [20, 100])
def test_how_often_wilson_holds_the_true_share(p, count):
    """Without simulation: over all numbers of hits, each with its chance."""
    covered = 0.0
    for hits in range(count + 1):
        low, high = statistics.wilson(hits, count)
        covered += stats.binom.pmf(hits, count, p) * (low <= p <= high)
    assert 0.92 < covered < 0.98


def test_a_share_of_clusters_has_wilsons_interval_of_fewer_rows():
    # Four requests, each attacked four times. Of totals 4, 4, 0 and 2 the squared distances from
    # half of 4 are 4, 4, 4 and 0: 12 * 4 / 3 is 4 times the 4 of sixteen independent rows.
    clusters = [[1.0] * 4, [1.0] * 4, [0.0] * 4, [1.0, 0.0, 1.0, 0.0]]
    found = statistics.clustered_share(clusters)
    assert (found["value"], found["n"]) == (10 / 16, 16)
    totals = [(sum(one) - 4 * 10 / 16) ** 2 for one in clusters]
    effect = sum(totals) * 4 / 3 / (16 * 10 / 16 * 6 / 16)
    assert 3 < effect < 4
    assert ends(found) == pytest.approx(statistics.wilson(10 / effect, 16 / effect))
    assert found["low"] < statistics.wilson(10, 16)[0] - 0.1


def test_clusters_of_one_row_are_plain_shares_and_alike_ones_count_once():
    assert statistics.clustered_share([[1.0], [0.0], [0.0]]) == statistics.share([1.0, 0.0, 0.0])
    found = statistics.clustered_share([[0.0] * 3] * 5)
    assert (found["value"], found["n"]) == (0, 15)
    assert ends(found) == statistics.wilson(0, 5)
    # Rows that balance each other give no more certainty than independent ones.
    assert ends(statistics.clustered_share([[1.0, 0.0]] * 6)) == statistics.wilson(6, 12)
    nothing = statistics.clustered_share([])
    assert (nothing["n"], *ends(nothing)) == (0, 0, 1)


def test_a_mean_of_groups_that_are_all_wrong_has_an_interval():
    found = statistics.macro_share({"a": [0.0] * 10, "b": [0.0] * 30})
    assert (found["value"], found["n"]) == (0, 40)
    # 4 / (1/10 + 1/30) = 30 rows.
    assert ends(found) == pytest.approx(statistics.wilson(0, 30))
    right = statistics.macro_share({"a": [1.0] * 10, "b": [1.0] * 30})
    assert ends(right) == pytest.approx(statistics.wilson(30, 30))
    mixed = {"a": [0.0, 1.0, 1.0], "b": [0.5, 1.0]}
    assert statistics.macro_share(mixed) == statistics.macro_mean(mixed)
    assert undefined(statistics.macro_share({"a": [0.0], "b": []}))


def coverage(draw, interval, truth, times):
    found = [interval(draw()) for _ in range(times)]
    return np.mean([one["low"] <= truth <= one["high"] for one in found])


def test_how_often_a_bootstrap_of_means_holds_the_true_mean():
    rng = np.random.default_rng(5)
    scores, chances = [-1.0, -0.5, 0.0, 0.5, 1.0], [0.05, 0.1, 0.15, 0.3, 0.4]
    covered = coverage(
        lambda: rng.choice(scores, 40, p=chances).tolist(),
        lambda drawn: statistics.bootstrap_mean(drawn, resamples=999),
        float(np.dot(scores, chances)),
        400,
    )
    assert 0.90 < covered < 0.98


def test_how_often_a_bootstrap_of_groups_holds_the_true_macro_mean():
    rng = np.random.default_rng(6)
    means, sizes = {"a": 0.2, "b": 0.9, "c": -0.4}, {"a": 60, "b": 15, "c": 30}
    covered = coverage(
        lambda: {name: rng.normal(means[name], 1, sizes[name]).tolist() for name in means},
        lambda drawn: statistics.macro_mean(drawn, resamples=999),
        0.7 / 3,
        300,
    )
    assert 0.90 < covered < 0.98


def test_how_often_an_interval_of_clusters_holds_the_true_share():
    rng = np.random.default_rng(8)

    def draw():  # 60 requests, each with its own chance, asked four times
        return [(rng.random(4) < chance).astype(float).tolist() for chance in rng.beta(1, 1.5, 60)]

    known = coverage(draw, statistics.clustered_share, 0.4, 500)
    assert 0.92 < known < 0.98
    rng = np.random.default_rng(8)
    blind = coverage(
        draw, lambda drawn: statistics.share([hit for one in drawn for hit in one]), 0.4, 500
    )
    assert blind < 0.88


def test_how_often_a_bootstrap_of_pairs_holds_the_true_correlation():
    rng = np.random.default_rng(7)

    def draw():
        x = rng.normal(size=98)  # as many as InfoFlow has
        return x.tolist(), (0.75 * x + rng.normal(size=98)).tolist()

    covered = coverage(draw, lambda xy: statistics.pearson(*xy, resamples=999), 0.6, 300)
    assert 0.90 < covered < 0.98


def test_a_number_that_a_file_gives_back_as_none_is_not_a_number():
    figure = {"value": 0.5, "n": 3, "low": None}
    assert statistics.number(figure, "value") == 0.5
    assert math.isnan(statistics.number(figure, "low"))
    assert math.isnan(statistics.number(figure, "high"))
    assert math.isnan(statistics.number(None, "value"))
