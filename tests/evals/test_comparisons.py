"""Two models on the same prompts: recorded p-values and intervals, and how often they err."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
from scipy import stats

from stair_jax.evals import comparisons, statistics
from stair_jax.evals.comparisons import Comparison

# Cavo et al. 2012 and Bentur et al. 2009, the examples of chapter 8 of Fagerland, Lydersen, Laake
# 2017; both numbers as the R package contingencytables records them.
CAVO, CAVO_INTERVAL, CAVO_P = (59, 6, 16, 80), (-0.1186, -0.0046), 0.052479
BENTUR, BENTUR_P = (1, 1, 7, 12), 18 / 256


def pairs_of(both, ours, theirs, neither):
    """Returns figures of two models by prompt."""
    kinds = [(1.0, 1.0)] * both + [(1.0, 0.0)] * ours + [(0.0, 1.0)] * theirs
    kinds += [(0.0, 0.0)] * neither
    first, second = zip(*kinds, strict=True)
    return {f"p{i}": x for i, x in enumerate(first)}, {f"p{i}": x for i, x in enumerate(second)}


def compare(figures, **kwargs):
    return comparisons.compare("new", "old", "bench", "score", figures, **kwargs)


def row(**changes: Any) -> Comparison:
    names: dict[str, Any] = {"model": "a", "against": "b", "benchmark": "d", "metric": "e"}
    names |= {"n": 9, "left_out": 0} | changes
    return Comparison(**names)


def test_mcnemar_by_recorded_values():
    assert comparisons.mcnemar(6, 16) == pytest.approx(CAVO_P, abs=5e-7)
    assert comparisons.mcnemar(16, 6) == pytest.approx(CAVO_P, abs=5e-7)
    assert comparisons.mcnemar(1, 7) == pytest.approx(BENTUR_P)
    assert comparisons.mcnemar(0, 5) == pytest.approx(2 / 32)
    assert comparisons.mcnemar(3, 3) == 1
    assert comparisons.mcnemar(0, 0) == 1


def test_newcombe_by_recorded_values():
    assert comparisons.newcombe(*CAVO) == pytest.approx(CAVO_INTERVAL, abs=5e-5)
    both, ours, theirs, neither = CAVO
    mirrored = comparisons.newcombe(both, theirs, ours, neither)
    assert mirrored == pytest.approx((0.0046, 0.1186), abs=5e-5)


@pytest.mark.parametrize("table", [(0, 0, 0, 9), (9, 0, 0, 0), (5, 0, 0, 4), (0, 9, 0, 0)])
def test_newcombe_has_a_width_where_no_prompts_disagree(table):
    low, high = comparisons.newcombe(*table)
    difference = (table[1] - table[2]) / 9
    assert -1 <= low <= difference <= high <= 1
    assert high - low > 0.1
    assert comparisons.newcombe(0, 0, 0, 0) == (-1, 1)


def test_how_often_newcombe_holds_the_true_difference():
    """Without simulation: over all tables of 15 prompts, each with its chance."""
    parts = np.array(list(itertools.product(range(16), repeat=3)))
    tables = np.column_stack([parts, 15 - parts.sum(axis=1)])
    tables = tables[tables[:, 3] >= 0]
    low, high = np.array([comparisons.newcombe(*map(int, table)) for table in tables]).T
    for chances, least, most in (
        ((0.4, 0.2, 0.1, 0.3), 0.93, 0.98),
        ((0.0, 0.5, 0.5, 0.0), 0.93, 0.98),
        ((0.05, 0.1, 0.02, 0.83), 0.95, 1.0),  # too wide of small shares of few prompts
    ):
        chance = stats.multinomial.pmf(tables, 15, chances)
        truth = chances[1] - chances[2]
        covered = chance[(low <= truth) & (truth <= high)].sum()
        assert chance.sum() == pytest.approx(1)
        assert least < covered < most, chances


def test_how_often_the_interval_of_paired_scores_holds_the_true_difference(monkeypatch):
    monkeypatch.setattr(comparisons, "FLIPS", 9)  # p does not matter here
    rng = np.random.default_rng(4)

    def draw():
        ease = rng.normal(size=40)
        models = (ease + rng.normal(mean, 0.5, 40) for mean in (0.6, 0.3))
        return tuple({str(i): float(x) for i, x in enumerate(one)} for one in models)

    found = [compare(draw()) for _ in range(300)]
    assert 0.90 < np.mean([one.low <= 0.3 <= one.high for one in found]) < 0.98
    # Unpaired, the ease of the prompts would count, and the interval be more than twice as wide.
    unpaired = 2 * 1.96 * math.sqrt(2 * (1 + 0.25) / 40)
    assert np.mean([one.high - one.low for one in found]) < unpaired / 2


def test_sign_flips_by_hand():
    assert comparisons.sign_flips([1.0, 2.0, 3.0]) == pytest.approx(2 / 8)
    assert comparisons.sign_flips([1.0, 2.0, -3.0]) == pytest.approx(1)
    assert comparisons.sign_flips([-0.5] * 6) == pytest.approx(2 / 64)
    assert comparisons.sign_flips([0.0, 0.0]) == 1


def test_random_sign_flips_come_near_to_all():
    many = [0.3, 0.9, -0.2, 0.5, 0.1, -0.4, 0.8, 0.2, -0.1, 0.6, 0.7, -0.3, 0.4, 0.05, -0.6, 0.35]
    flips = np.array(list(itertools.product([1, -1], repeat=16)))
    want = np.mean(np.abs(flips @ many) >= sum(many) - 1e-9)
    found = comparisons.sign_flips(many, seed=3)
    assert found == pytest.approx(want, abs=0.006)  # two standard errors of 9,999 flips
    assert found == comparisons.sign_flips(many, seed=3)
    assert found != comparisons.sign_flips(many, seed=4)


def test_the_number_of_flips_bounds_p(monkeypatch):
    assert comparisons.sign_flips([1.0] * 30) == pytest.approx(1 / 10_000)
    monkeypatch.setattr(comparisons, "FLIPS", 99)
    assert comparisons.sign_flips([1.0] * 30) == pytest.approx(1 / 100)
    batches, plain = [], stats.permutation_test
    monkeypatch.setattr(
        stats,
        "permutation_test",
        lambda *a, **k: (batches.append(k["batch"]), plain(*a, **k))[1],
    )
    comparisons.sign_flips([1.0] * 50)
    monkeypatch.setattr(comparisons, "_BATCH", 500)
    comparisons.sign_flips([1.0] * 50)
    assert batches == [40_000, 10]


def test_sign_flips_of_ones_and_zeros_are_mcnemars_test():
    ours, theirs = pairs_of(2, 3, 7, 1)
    differences = [ours[id] - theirs[id] for id in ours]
    assert comparisons.sign_flips(differences) == pytest.approx(comparisons.mcnemar(3, 7))


def test_holm_by_recorded_values():
    # As statsmodels 0.15 gives them, ties among them.
    assert comparisons.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    many = [0.001, 0.2, 0.0104, 0.0104, 0.6, 0.013]
    want = [0.006, 0.4, 0.052, 0.052, 0.6, 0.052]
    assert comparisons.holm(many) == pytest.approx(want)
    assert comparisons.holm([0.6, 0.7]) == [1, 1]
    assert comparisons.holm([]) == []


def test_holm_counts_no_comparison_that_could_not_be_made():
    found = comparisons.holm([0.01, math.nan, 0.04])
    assert math.isnan(found[1])
    assert [found[0], found[2]] == pytest.approx([0.02, 0.04])


def test_figures_of_0_and_1_are_compared_by_their_pairs():
    found = compare(pairs_of(*CAVO))
    assert (found.n, found.left_out) == (161, 0)
    assert found.difference == pytest.approx(-10 / 161)
    assert (found.low, found.high) == pytest.approx(CAVO_INTERVAL, abs=5e-5)
    assert found.p == found.p_adjusted == pytest.approx(CAVO_P, abs=5e-7)
    names = found.model, found.against, found.benchmark, found.metric
    assert names == ("new", "old", "bench", "score")


def test_scores_are_compared_by_their_differences():
    old = {f"p{i}": x for i, x in enumerate([0.5, -0.5, 0.0, 0.25, 1.0, -1.0, 0.75, 0.1])}
    gains = [0.5, 0.25, 0.0, 0.25, -0.5, 1.0, 0.25, 0.4]
    new = {id: x + gain for (id, x), gain in zip(old.items(), gains, strict=True)}
    found = compare((new, old), seed=1)
    assert found.difference == pytest.approx(2.15 / 8)
    assert -0.5 < found.low < 0.05 < found.difference < found.high < 1
    flips = np.array(list(itertools.product([1, -1], repeat=8))) @ gains
    assert found.p == pytest.approx(np.mean(np.abs(flips) >= 2.15 - 1e-9))
    again = compare((old, new), seed=1)
    assert again.difference == pytest.approx(-found.difference)
    assert again.p == pytest.approx(found.p)


def test_the_seed_reaches_the_interval():
    rng = np.random.default_rng(0)
    figures = tuple({str(i): float(x) for i, x in enumerate(rng.normal(size=25))} for _ in "ab")
    assert compare(figures, seed=1) == compare(figures, seed=1)
    assert compare(figures, seed=1).low != compare(figures, seed=2).low
    assert compare(figures, seed=1).p != compare(figures, seed=2).p


def test_only_prompts_of_both_count():
    ours = {"a": 1.0, "b": 0.0, "c": 1.0, "d": None, "e": 1.0, "x": None}
    theirs = {"f": 1.0, "c": 0.0, "d": 1.0, "b": 1.0, "a": 0.0, "x": None}
    found = compare((ours, theirs))
    assert (found.n, found.left_out) == (3, 4)  # d, e, f, x
    assert found.difference == pytest.approx(1 / 3)
    assert found.p == comparisons.mcnemar(2, 1)


def test_nothing_in_common_is_no_comparison():
    found = compare(({"a": 1.0}, {"b": 1.0}))
    assert (found.n, found.left_out) == (0, 2)
    assert all(math.isnan(x) for x in (found.difference, found.low, found.high, found.p))
    one = compare(({"a": 0.5}, {"a": 0.75}))
    assert (one.n, one.difference, one.p) == (1, -0.25, 1)
    assert math.isnan(one.low)


def test_a_bad_figure_is_named():
    message = "old: bench score of 'b' is nan, expected a finite number or None"
    with pytest.raises(ValueError, match=message) as error:
        compare(({"a": 1.0}, {"b": math.nan}))
    assert "\n" not in str(error.value)


FIGURES = {
    "base": {
        "one": {"right": dict.fromkeys("abcdefgh", 0.0), "odd": {"a": 1.0}},
        "two": {"right": {"a": 1.0, "b": 0.0}},
    },
    "sft": {"one": {"right": dict.fromkeys("abcdefgh", 1.0)}, "two": {"right": {"z": 1.0}}},
    "dpo": {"one": {"right": dict.fromkeys("abcdefg", 1.0) | {"h": 0.0}}, "three": {}},
}


def test_all_comparisons_are_corrected_together():
    rows = comparisons.compare_all(FIGURES, [("sft", "base"), ("dpo", "base"), ("dpo", "sft")])
    assert [(row.model, row.against, row.benchmark) for row in rows] == [
        ("sft", "base", "one"),
        ("sft", "base", "two"),
        ("dpo", "base", "one"),
        ("dpo", "sft", "one"),
    ]
    p = [2 / 256, math.nan, 2 / 128, 1.0]
    assert [row.p for row in rows] == pytest.approx(p, nan_ok=True)
    adjusted = [3 * 2 / 256, math.nan, 2 * 2 / 128, 1.0]
    assert [row.p_adjusted for row in rows] == pytest.approx(adjusted, nan_ok=True)


def test_all_comparisons_hand_on_the_seed():
    rng, ids = np.random.default_rng(0), [f"p{i}" for i in range(25)]
    scores = {
        m: {"b": {"s": dict(zip(ids, rng.normal(size=25).tolist(), strict=True))}} for m in "xy"
    }
    low = [comparisons.compare_all(scores, [("x", "y")], seed=seed)[0].low for seed in (1, 1, 2)]
    assert low[0] == low[1] != low[2]


def test_a_model_without_figures_is_named():
    message = r"no figures of 'dpo-9', expected one of \['base', 'sft', 'dpo'\]"
    with pytest.raises(ValueError, match=message):
        comparisons.compare_all(FIGURES, [("sft", "dpo-9")])


TABLE = """\
| model | against | benchmark | metric | n | left out | difference                | p      | Holm's p |
|-------|---------|-----------|--------|---|----------|---------------------------|--------|----------|
| a     | b\\|c    | d         | e      | 9 | 2        | -0.100 (-0.250 to +0.000) | <0.001 | 0.002    |
| a     | b       | d         | e      | 0 | 7        | -                         | -      | -        |
| a     | b       | d         | e      | 1 | 0        | +0.500                    | 1.000  | 1.000    |

Differences are of means over the n prompts that both models have a figure of, with 95 % intervals.\
 Figures of 0 and 1: McNemar's exact test, Newcombe's interval. Others: sign flips, bootstrap.\
 Holm's correction is over 2 comparisons.
"""  # noqa: E501


def test_the_table():
    nothing = dict.fromkeys(("difference", "low", "high", "p", "p_adjusted"), math.nan)
    rows = [
        row(
            against="b|c",
            left_out=2,
            difference=-0.1,
            low=-0.25,
            high=0.0,
            p=9e-4,
            p_adjusted=0.0018,
        ),
        row(n=0, left_out=7, **nothing),
        row(n=1, difference=0.5, low=math.nan, high=math.nan, p=1.0, p_adjusted=1.0),
    ]
    assert comparisons.table(rows) == TABLE


def test_the_level_of_all_intervals_is_the_same():
    assert stats.norm.ppf((1 + statistics.CONFIDENCE) / 2) == pytest.approx(statistics.Z95)
