"""Scores with the cache against one plain forward of the decoder, without any."""

import dataclasses
import itertools
import re

import jax
import numpy as np
import pytest

from stair_jax import mesh as mesh_lib
from stair_jax.engine.prefill import page_count
from stair_jax.engine.request import Prefix
from stair_jax.engine.scoring import SHARE
from stair_jax.log import compiling
from tests.support.scoring import (
    CONFIG,
    CONTEXT,
    SPEC,
    TOLERANCE,
    family,
    make,
    plain,
    some,
    weights,
)


def stepwise(scoring, rows):
    """Grows all rows a step at a time, side by side; returns the scores of each row's tokens."""
    prefixes = [scoring.root(prompt) for prompt, _ in rows]
    found = [[] for _ in rows]
    for turn in range(3):
        out = scoring.extend([(p, rows[i][1][turn]) for i, p in enumerate(prefixes)])
        for i, (_, scores) in enumerate(out):
            found[i].append(scores)
        for prefix in prefixes:
            scoring.release(prefix)
        prefixes = [prefix for prefix, _ in out]
    for prefix, (prompt, steps) in zip(prefixes, rows, strict=True):
        assert prefix.ids == (*prompt, *itertools.chain(*steps))
        scoring.release(prefix)
    return [np.concatenate(scores) for scores in found]


@pytest.mark.parametrize(("seed", "pages"), [(0, 0), (1, CONTEXT + 1)])
def test_scores_grown_step_by_step_equal_those_of_one_forward(seed, pages):
    params, rows = weights(seed), family(seed)
    scoring = make(params, pages=pages)
    found = stepwise(scoring, rows)
    spread = []
    for (prompt, steps), scores in zip(rows, found, strict=True):
        want = plain(params, [*prompt, *itertools.chain(*steps)])[len(prompt) :]
        assert scores.dtype == np.float32
        np.testing.assert_allclose(scores, want, atol=TOLERANCE)
        spread += want.tolist()
    assert np.std(spread) > 0.1  # they differ by much more than the tolerance
    unique = sum(len(prompt) + sum(map(len, steps)) for prompt, steps in rows)
    counters = scoring.counters
    assert counters["scored"] == sum(len(s) for s in found)
    if pages:
        assert counters["evicted"] > 0
        assert counters["prefilled"] > unique
    else:
        assert counters["evicted"] == 0
        assert counters["prefilled"] == unique
        assert counters["reused"] > unique
    assert not any(scoring._store.pages.owners)  # all was given back


def test_company_and_order_change_no_bit():
    rows = family(3)
    together = stepwise(make(), rows)
    turned = stepwise(make(), rows[::-1])[::-1]
    for row, a, b in zip(rows, together, turned, strict=True):
        assert a.tolist() == b.tolist() == stepwise(make(), [row])[0].tolist()


@pytest.mark.parametrize("pages", [0, CONTEXT + 1])
def test_branches_read_their_stem_once_and_leave_it_alone(pages):
    params, rng = weights(), np.random.default_rng(5)
    stem, branches = some(rng, 13), [some(rng, n) for n in (1, 2, 7, 9, 2)]
    scoring = make(params, pages=pages)
    root = scoring.root(stem)
    grown = scoring.extend([(root, ids) for ids in branches])
    for ids, (_, scores) in zip(branches, grown, strict=True):
        np.testing.assert_allclose(scores, plain(params, stem + ids)[13:], atol=TOLERANCE)
    if not pages:
        assert scoring.counters["prefilled"] == 13 + sum(map(len, branches))
    end = [3]
    longest, ids = grown[3][0], stem + branches[3]
    asked = [(longest, length, end) for length in (13, 15, 16, 20, 22)]
    for (_, length, _), scores in zip(asked, scoring.aside(asked), strict=True):
        want = plain(params, ids[:length] + end)[-1:]
        np.testing.assert_allclose(scores, want, atol=TOLERANCE)
    if not pages:
        assert scoring.counters["prefilled"] == 13 + sum(map(len, branches)) + len(asked)
    more = scoring.extend([(longest, end)])[0][1]  # what was put aside is not in it
    np.testing.assert_allclose(more, plain(params, ids + end)[-1:], atol=TOLERANCE)


def test_a_mesh_changes_no_score():
    mesh = mesh_lib.make((1, 1, 2), jax.devices()[:2])
    alone, spread = make(), make(mesh=mesh)
    assert not spread._device._pool.k.sharding.is_fully_replicated
    assert spread._device._params["score"].sharding.is_fully_replicated
    for a, b in zip(stepwise(alone, family(7)), stepwise(spread, family(7)), strict=True):
        np.testing.assert_allclose(a, b, atol=TOLERANCE)


def test_what_does_not_fit_is_refused_before_anything_is_scored():
    scoring = make()
    root = scoring.root([1] * 30)
    for ids, words in (([], "0 tokens"), ([2] * 11, "41 tokens, expected 1 to 40")):
        with pytest.raises(ValueError, match=words):
            scoring.extend([(root, [2]), (root, ids)])
    with pytest.raises(ValueError, match="40 tokens, expected 1 to 39"):
        scoring.root([1] * 40)
    with pytest.raises(ValueError, match="not made by this engine"):
        scoring.extend([(Prefix([1]), [2])])
    assert scoring.counters["scored"] == scoring.counters["prefilled"] == 0
    full = scoring.extend([(root, [2] * 10)])[0][0]
    assert len(scoring.aside([(full, 40, [3])])[0]) == 1  # an end of sequence fits behind it
    with pytest.raises(ValueError, match="42 tokens, expected 1 to 41"):
        scoring.aside([(full, 40, [3, 3])])
    scoring.release(root)
    with pytest.raises(ValueError, match="released"):
        scoring.extend([(root, [2])])


def test_the_pool_leaves_the_policy_room_and_is_not_the_policys(monkeypatch):
    assert CONFIG.pool_bytes == 1  # the policy's: not even a page
    sizes = dataclasses.replace(CONFIG, pool_bytes=0, max_context=CONFIG.max_context + 1)
    assert make()._device.pages == page_count(SPEC, sizes) == 4 * CONFIG.slots * CONTEXT
    page_bytes = 2 * SPEC.L * CONFIG.page_size * SPEC.K * SPEC.H * 4
    monkeypatch.setattr(
        "stair_jax.engine.prefill.PagedModel._free_bytes", lambda self: 50 * page_bytes
    )
    assert make()._device.pages == int(50 * SHARE)


def test_compiling_is_told_once_a_shape(monkeypatch, caplog):
    """On an accelerator a shape takes ten seconds: a run that is silent meanwhile looks stuck."""
    monkeypatch.setattr(compiling, "LEAST_S", 0.0)
    caplog.set_level("INFO", logger=compiling.__name__)
    scoring = make(weights(0))
    blocks = []
    for _ in range(2):
        stepwise(scoring, family(0))
        blocks.append([r.getMessage() for r in caplog.records])
        caplog.clear()
    first, again = blocks
    rows = CONFIG.prefill_rows
    told = re.compile(rf"scoring: compiled scores of {rows} x \d+ tokens, \d+ pages a row in ")
    assert all(map(told.match, first))
    assert len(first) >= 2  # prompts alone, and steps behind them
    assert again == []
