"""Step scores of both read-outs against one plain forward a score."""

import dataclasses
import itertools
import math

import numpy as np
import pytest

from stair_jax.model.reward import Readout
from stair_jax.prm.reader import RewardModel, RewardModelLike, aggregate
from tests.support.scoring import CONTEXT, TOLERANCE, family, make, plain, weights

EOS = 28
READOUTS = {
    position: Readout(position=position, loss="bce", low=-1.0, high=2.0)
    for position in ("step_end", "eos")
}


def reader(position, seed=0, pages=0):
    return RewardModel(make(weights(seed), pages=pages), READOUTS[position], EOS)


def by_hand(params, position, prompt, steps):
    """A forward for each score."""
    found, ids = [], list(prompt)
    for step in steps:
        ids += step
        behind = [EOS] if position == "eos" and step[-1] != EOS else []
        found.append(plain(params, ids + behind)[-1])
    return found


def ended(rows):
    """Rows of which every other one ends with an end of sequence of its own."""
    return [(p, [*s[:-1], [*s[-1], EOS] if i % 2 else s[-1]]) for i, (p, s) in enumerate(rows)]


@pytest.mark.parametrize("pages", [0, CONTEXT + 2])
@pytest.mark.parametrize("position", READOUTS)
def test_a_whole_trajectory_reads_as_it_does_step_by_step(position, pages):
    rows, params = ended(family(4)), weights(4)
    whole, steps = (reader(position, 4, pages) for _ in range(2))
    roots = [[model.root(prompt) for prompt, _ in rows] for model in (whole, steps)]
    at_once = whole.read([(root, row[1]) for root, row in zip(roots[0], rows, strict=True)])
    found, prefixes = [[] for _ in rows], list(roots[1])
    for turn in range(3):
        out = steps.read([(p, [rows[i][1][turn]]) for i, p in enumerate(prefixes)])
        prefixes = [reading.prefix for reading in out]
        for i, reading in enumerate(out):
            found[i] += reading.raw
    for row, reading, prefix, raw in zip(rows, at_once, prefixes, found, strict=True):
        assert reading.prefix.ids == prefix.ids == (*row[0], *itertools.chain(*row[1]))
        want = by_hand(params, position, *row)
        np.testing.assert_allclose(reading.raw, want, atol=TOLERANCE)
        np.testing.assert_allclose(raw, want, atol=TOLERANCE)
    other = by_hand(params, "eos" if position == "step_end" else "step_end", *rows[0])
    assert abs(np.subtract(at_once[0].raw, other)).max() > 100 * TOLERANCE
    for model in (whole, steps):
        assert (model.counters["evicted"] > 0) == bool(pages)


@pytest.mark.parametrize("position", READOUTS)
def test_company_changes_no_bit_and_every_token_is_computed_once(position):
    rows = family(6)
    model = reader(position)
    items = [(model.root(prompt), steps) for prompt, steps in rows]
    together = model.read(items)
    tokens = sum(len(prompt) + sum(map(len, steps)) for prompt, steps in rows)
    ends = 3 * len(rows) if position == "eos" else 0
    assert model.counters["prefilled"] == tokens + ends
    for (prompt, steps), reading in zip(rows, together, strict=True):
        alone = reader(position)
        assert alone.read([(alone.root(prompt), steps)])[0].raw == reading.raw
    for prefix in [*(p for p, _ in items), *(r.prefix for r in together)]:
        model.release(prefix)
    assert not any(model._scoring._store.pages.owners)


def test_empty_steps_are_refused():
    model = reader("eos")
    assert isinstance(model, RewardModelLike)
    root = model.root([1, 2])
    for steps in ([], [[3], []]):
        with pytest.raises(ValueError, match="expected 1 or more each"):
            model.read([(root, steps)])
    assert model.read([]) == []


LOGISTIC = Readout(position="step_end", loss="bt", low=-3.0, high=3.0)
VALUES = dataclasses.replace(LOGISTIC, loss="mse")
HOWS = ("last", "min", "mean", "product")


def score(raw, readout, how):
    found = aggregate(raw, readout, how)
    assert found is not None
    return found


def logit(unit):
    return math.log(unit / (1 - unit))


@pytest.mark.parametrize(
    ("readout", "raw_of"), [(LOGISTIC, logit), (VALUES, lambda unit: 2 * unit - 1)]
)
def test_aggregations_are_what_they_are_called(readout, raw_of):
    raw = list(map(raw_of, [0.5, 0.2, 0.8]))
    found = {how: score(raw, readout, how) for how in HOWS}
    want = {"last": 0.8, "min": 0.2, "mean": 0.5, "product": 0.08}
    assert {how: readout.unit(score) for how, score in found.items()} == pytest.approx(want)
    assert len(set(found.values())) == 4
    with pytest.raises(ValueError, match="'max' is not one of last, min, mean, product"):
        aggregate(raw, readout, "max")


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("sign", [-1, 1])
def test_scores_far_out_do_not_tie(how, sign):
    worse, better = sorted([sign * 1200.0, sign * 45.0])
    assert LOGISTIC.unit(worse) == LOGISTIC.unit(better - 0.25) or sign < 0
    rising = [[worse] * 2, [worse, better - 0.25], [better - 0.25] * 2, [better] * 2]
    found = [score(raw, LOGISTIC, how) for raw in rising]
    assert found == sorted(found)
    assert len(set(found)) == (3 if how == "min" else 4 if how != "last" else 3)
    assert all(map(math.isfinite, found))


def test_a_product_and_a_mean_of_one_score_are_that_score():
    for raw in (-1200.0, -39.0, 0.5, 39.0, 1200.0):
        for how in HOWS:
            assert aggregate([raw], LOGISTIC, how) == pytest.approx(raw, rel=1e-12)


def test_values_beyond_their_scale_are_still_told_apart():
    for how in HOWS:
        found = [score([0.5, x], VALUES, how) for x in (-3.0, -2.0, -1.0, -0.5, 1.5, 2.5)]
        assert found == sorted(found)
        assert len(set(found)) == (5 if how == "min" else 6)
        assert {float(VALUES.unit(x)) for x in (1.5, 2.5)} == {1.0}


@pytest.mark.parametrize("odd", [math.nan, math.inf, -math.inf, None])
def test_a_response_has_no_score_where_one_that_counts_is_missing(odd):
    for how in HOWS:
        assert aggregate([1.0, odd], LOGISTIC, how) is None
        first = aggregate([odd, 1.0], LOGISTIC, how)
        assert first == (1.0 if how == "last" else None)
        assert aggregate([], LOGISTIC, how) is None
