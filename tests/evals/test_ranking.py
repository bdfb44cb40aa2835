import dataclasses
import json
import math
from typing import Any

import numpy as np
import pytest
import scipy.stats

from stair_jax.evals import ranking, reward_models, statistics
from stair_jax.evals.reward_models import Scored
from stair_jax.model.reward import Readout
from tests.support.comparisons import CONFIG, FAMILY, node, tree

READOUT = Readout(position="eos", loss="bce", low=-3.0, high=3.0)


def test_pair_accuracy_by_hand():
    better, worse = np.array([2.0, 1.0, 0.0, 5.0]), np.array([1.0, 1.0, 3.0, 4.0])
    assert ranking.pair_accuracy(better, worse) == 2.5 / 4
    assert math.isnan(ranking.pair_accuracy(better[:0], worse[:0]))


@pytest.mark.parametrize("levels", [3, 1000])
def test_auroc_is_the_mann_whitney_statistic(levels):
    rng = np.random.default_rng(levels)
    scores = rng.integers(0, levels, 200) / levels  # with 3 levels most are ties
    good = rng.random(200) < 0.2 + 0.5 * scores
    theirs: Any = scipy.stats.mannwhitneyu(scores[good], scores[~good])
    found = ranking.auroc(scores, good)
    assert found == pytest.approx(theirs.statistic / (good.sum() * (~good).sum()), rel=1e-12)
    assert ranking.auroc(-scores, good) == pytest.approx(1 - found)


def test_auroc_by_hand_and_of_one_class():
    assert ranking.auroc(np.array([0.1, 0.4, 0.35, 0.8]), np.array([False, False, True, True])) == (
        3 / 4
    )
    assert math.isnan(ranking.auroc(np.array([1.0, 2.0]), np.array([True, True])))


def test_calibration_error_by_hand():
    units = np.array([0.05, 0.15, 0.17, 1.0, 0.95])
    values = np.array([0.0, 0.5, 0.3, 1.0, 0.5])
    # Bins [0, .1), [.1, .2) and [.9, 1]: distances of means .05, .24, .225, shares 1/5, 2/5, 2/5.
    want = 0.2 * 0.05 + 0.4 * 0.24 + 0.4 * 0.225
    assert ranking.calibration_error(units, values) == pytest.approx(want)
    one_bin = abs(units.mean() - values.mean())
    assert ranking.calibration_error(units, values, bins=1) == pytest.approx(one_bin)
    assert one_bin != pytest.approx(want)


def test_correlation_against_scipy():
    rng = np.random.default_rng(0)
    x = rng.normal(size=50)
    y = x + rng.normal(size=50)
    assert ranking.correlation(x, y) == pytest.approx(scipy.stats.pearsonr(x, y)[0])
    assert math.isnan(ranking.correlation(x, np.ones(50)))


def test_gap_closed_by_hand():
    first = (np.array([1.0, 3.0]), np.array([0.0, 1.0]))  # the best one: gains .5 of .5
    second = (np.array([9.0, 2.0, 1.0]), np.array([0.0, 3.0, 0.0]))  # a bad one: -1 of 2
    tied = (np.array([1.0, 1.0]), np.array([0.0, 1.0]))  # one of two: 0 of .5
    assert ranking.gap_closed([first]) == 1
    assert ranking.gap_closed([second]) == -0.5
    assert ranking.gap_closed([first, second, tied]) == pytest.approx(-0.5 / 3)
    assert math.isnan(ranking.gap_closed([(np.array([1.0, 2.0]), np.array([1.0, 1.0]))]))


def logit(q):
    return math.log(q / (1 - q))


# Scores that are right about FAMILY's nodes but for 0.2, which ends at 3 and looks like -2.9.
RAW = {n.tag: logit((min(max(n.value, -2.9), 2.9) + 3) / 6) for n in FAMILY.nodes[1:] if n.visits}
RAW["0.2"] = RAW["0.1.0"]
TOKENS = {tag: len(tag) // 2 for tag in RAW}


def report(*trees, config=CONFIG, readout=READOUT):
    return reward_models.report(trees, config, readout)


def test_the_report_of_a_tree_by_hand():
    found = report(Scored(FAMILY, RAW, TOKENS))
    assert (found["trees"], found["nodes"]) == (1, 6)  # 0.3 and 0.0.1 do not count
    # Steps: 0.0 > 0.1 right, 0.2 > 0.0 and 0.2 > 0.1 wrong; 0.0.0 > 0.1.1 > 0.1.0 right.
    # Whole: 0.2 > 0.1.0 wrong at best a tie, which counts half; 0.0.0 > 0.1.0 right.
    assert (found["accuracy/depth_1"], found["pairs/depth_1"]) == (1 / 3, 3)
    assert (found["accuracy/depth_2"], found["pairs/depth_2"]) == (1, 2)
    assert (found["accuracy/whole"], found["pairs/whole"]) == (0.75, 2)
    assert (found["accuracy"], found["pairs"]) == (4.5 / 7, 7)
    assert found["accuracy/safety"] == found["accuracy"]
    assert found["accuracy/whole/safety"] == found["accuracy/whole"]
    # Good are 0.2 and 0.0.0, bad is 0.1.0: one pair a tie, one right.
    assert found["auroc/terminal"] == found["auroc/within_tree"] == 0.75
    # The highest score is that of 0.0.0, worth 3, as good as any.
    assert found["gap_closed"] == found["gap_closed/safety"] == 1
    raw = np.array([RAW[t] for t in TOKENS if t != "0.0.1"])
    assert found["score_mean"] == pytest.approx(raw.mean())
    assert found["score_std"] == pytest.approx(raw.std())
    lengths = [TOKENS[t] for t in TOKENS if t != "0.0.1"]
    assert found["length_correlation"] == pytest.approx(scipy.stats.pearsonr(raw, lengths)[0])
    # In the lowest bin 0.1.0, .1/6 above its value, and 0.2, 5.9/6 below; in the highest 0.0.0,
    # .1/6 below; the others agree.
    assert found["ece"] == pytest.approx((5.8 / 6 + 0.1 / 6) / 6)
    json.dumps(found, allow_nan=False)


def test_calibration_is_against_the_values_on_the_read_outs_range():
    scored = Scored(FAMILY, RAW, TOKENS)
    right = report(scored)["ece"]
    assert report(scored, readout=dataclasses.replace(READOUT, high=30.0))["ece"] > right + 0.2
    assert report(scored)["calibrated"]
    for loss in ("bt", "implicit"):
        assert not report(scored, readout=dataclasses.replace(READOUT, loss=loss))["calibrated"]


def test_good_is_above_the_middle_of_the_range_and_within_a_tree_of_its_own():
    safe = tree(
        node(0, "0.0", 1.0, ends=True), node(0, "0.1", 3.0, ends=True), id="y", kind="helpfulness"
    )
    equal = tree(node(0, "0.0", -3.0, ends=True), id="z")
    trees = [
        Scored(safe, {"0.0": 1.0, "0.1": 0.5}, {"0.0": 1, "0.1": 1}),
        Scored(equal, {"0.0": 0.0}, {"0.0": 1}),
    ]
    found = report(*trees)
    assert found["auroc/terminal"] == 1  # 1 and 3 are above 0, -3 is not
    assert found["auroc/within_tree"] == 0  # 3 above 1 in the only tree with two rewards
    assert found["gap_closed"] == found["gap_closed/helpfulness"] == -1
    assert "gap_closed/safety" not in found  # nothing to choose there
    narrow = dataclasses.replace(READOUT, low=0.0)  # the middle is 1.5
    assert report(*trees[:1], readout=narrow)["auroc/terminal"] == 0


def test_nodes_without_a_score_are_left_out():
    some = {tag: x for tag, x in RAW.items() if tag != "0.0.0"}
    found = report(Scored(FAMILY, some, TOKENS))
    assert (found["nodes"], found["pairs"]) == (5, 5)
    assert report() == {"trees": 0, "nodes": 0, "calibrated": True}


def test_the_rules_of_the_training_data_choose_what_is_measured():
    scored = Scored(FAMILY, RAW, TOKENS)
    assert report(scored, config=dataclasses.replace(CONFIG, min_visits=1))["nodes"] == 7
    assert report(scored, config=dataclasses.replace(CONFIG, min_value_gap=4.5))["pairs"] == 3
    assert report(scored, config=dataclasses.replace(CONFIG, pairs_per_tree=1))["pairs"] == 7


@pytest.mark.parametrize("odd", [math.nan, math.inf, -math.inf])
def test_a_score_that_is_not_finite_is_left_out_and_counted(odd):
    some = {tag: x for tag, x in RAW.items() if tag != "0.0.0"}
    want = report(Scored(FAMILY, some, TOKENS))
    found = report(Scored(FAMILY, RAW | {"0.0.0": odd}, TOKENS))
    assert found == want | {"not_finite": 1}
    more, values = np.array([odd, 1.0, 2.0]), np.array([1.0, 0.25, 0.5])
    assert ranking.pair_accuracy(more, np.array([0.0, 2.0, 1.0])) == 0.5
    assert ranking.auroc(more, np.array([True, False, True])) == 1
    assert ranking.correlation(more, values) == pytest.approx(1)
    assert ranking.gap_closed([(more, values), (more[:1], values[:1])]) == 1
    assert ranking.calibration_error(more / 2, values) == ranking.calibration_error(
        more[1:] / 2, values[1:]
    )
    assert statistics.mean([odd, 1.0, 3.0]) == 2
