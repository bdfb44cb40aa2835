"""Step scores of both read-outs against one plain forward a score."""

import itertools
import math

import numpy as np
import pytest

from stair_jax.model.reward import Readout
from stair_jax.rewards.prm import RewardModel, RewardModelLike, aggregate
from tests.test_scoring import CONTEXT, TOLERANCE, family, make, plain, weights

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
    return [
        (p, [*s[:-1], [*s[-1], EOS] if i % 2 else s[-1]]) for i, (p, s) in enumerate(rows)
    ]  # fmt: skip


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


def test_aggregations_are_what_they_are_called():
    units = [0.5, 0.2, 0.8]
    found = {how: aggregate(units, how) for how in ("last", "min", "mean", "product")}
    assert found == pytest.approx({"last": 0.8, "min": 0.2, "mean": 0.5, "product": 0.08})
    assert len(set(found.values())) == 4
    assert aggregate([0.1] * 10, "mean") == math.fsum([0.1] * 10) / 10
    with pytest.raises(KeyError):
        aggregate(units, "max")
