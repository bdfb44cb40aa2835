"""Log-probs with the cache, and the reward model made of them, against one plain forward each."""

import itertools

import numpy as np
import pytest

from stair_jax.engine.likelihood import Likelihood
from stair_jax.engine.request import Prefix
from stair_jax.model.reward import Readout
from stair_jax.prm.implicit import ImplicitRewardModel
from stair_jax.prm.reader import RewardModelLike
from tests.support.likelihoods import plain, weights
from tests.support.scoring import CONFIG, CONTEXT, SPEC, TOLERANCE, family

READOUT = Readout(position="step_end", loss="implicit", low=-3.0, high=3.0)
BETA = 0.7


def likelihood(seed, pages=0):
    size = 2 * SPEC.L * CONFIG.page_size * SPEC.K * SPEC.H * 4
    return Likelihood(SPEC, weights(seed), config=CONFIG, pool_bytes=pages * size)


def reader(pages=0, beta=BETA):
    return ImplicitRewardModel(likelihood(0, pages), likelihood(1, pages), READOUT, beta)


def by_hand(prompt, steps, beta=BETA):
    ids = [*prompt, *itertools.chain(*steps)]
    ratio = np.cumsum((plain(0, ids) - plain(1, ids))[len(prompt) - 1 :])
    return [beta * ratio[end - 1] for end in itertools.accumulate(map(len, steps))]


def stepwise(model, rows):
    prefixes: list[Prefix] = [model.root(prompt) for prompt, _ in rows]
    found = [[] for _ in rows]
    for turn in range(3):
        out = model.read([(p, [rows[i][1][turn]]) for i, p in enumerate(prefixes)])
        for i, reading in enumerate(out):
            model.release(prefixes[i])
            prefixes[i] = reading.prefix
            found[i] += reading.raw
    for prefix in prefixes:
        model.release(prefix)
    return found


@pytest.mark.parametrize("pages", [0, CONTEXT + 2])
def test_log_probs_with_the_cache_are_those_of_a_plain_forward(pages):
    model, rows = likelihood(0, pages), family(1)
    prefixes: list[Prefix] = [model.root(prompt) for prompt, _ in rows]
    found = [[] for _ in rows]
    for turn in range(3):
        out = model.extend([(p, rows[i][1][turn]) for i, p in enumerate(prefixes)])
        prefixes = [prefix for prefix, _ in out]
        for i, (_, scores) in enumerate(out):
            found[i] += scores.tolist()
    for (prompt, steps), scores in zip(rows, found, strict=True):
        want = plain(0, [*prompt, *itertools.chain(*steps)])[len(prompt) - 1 :]
        np.testing.assert_allclose(scores, want, atol=TOLERANCE)
    assert (model.counters["evicted"] > 0) == bool(pages)


@pytest.mark.parametrize("pages", [0, CONTEXT + 2])
def test_steps_read_one_by_one_or_at_once_are_log_ratios_up_to_their_ends(pages):
    rows, model = family(2), reader(pages)
    assert isinstance(model, RewardModelLike)
    at_once = model.read([(model.root(prompt), steps) for prompt, steps in rows])
    one_by_one = stepwise(reader(pages), rows)
    for (prompt, steps), reading, raw in zip(rows, at_once, one_by_one, strict=True):
        want = by_hand(prompt, steps)
        assert np.ptp(want) > 100 * TOLERANCE
        np.testing.assert_allclose(reading.raw, want, atol=10 * TOLERANCE)
        np.testing.assert_allclose(raw, want, atol=10 * TOLERANCE)
        assert reading.prefix.ids == (*prompt, *itertools.chain(*steps))


def test_beta_scales_the_score():
    (prompt, steps) = family(3)[1]
    raw = {}
    for beta in (0.5, 1.0):
        model = reader(beta=beta)
        raw[beta] = np.array(model.read([(model.root(prompt), steps)])[0].raw)
    np.testing.assert_allclose(raw[1.0], 2 * raw[0.5], rtol=1e-6)


def test_without_a_reference_the_score_is_the_scaled_log_likelihood():
    model = ImplicitRewardModel(likelihood(0), None, READOUT, BETA)
    (prompt, steps) = family(4)[2]
    raw = model.read([(model.root(prompt), steps)])[0].raw
    sums = np.cumsum(plain(0, [*prompt, *itertools.chain(*steps)])[len(prompt) - 1 :])
    want = [BETA * sums[end - 1] for end in itertools.accumulate(map(len, steps))]
    np.testing.assert_allclose(raw, want, atol=10 * TOLERANCE)
    assert abs(np.subtract(want, by_hand(prompt, steps))).max() > 100 * TOLERANCE


def test_nothing_is_computed_twice_and_all_is_given_back():
    model, rows = reader(), family(5)
    stepwise(model, rows)
    unique = sum(len(prompt) + sum(map(len, steps)) for prompt, steps in rows)
    assert 0.8 < model.counters["prefilled"] / unique <= 1.0  # the last tokens have no keys
    assert not any(part._store._holding for part in model._parts)


def test_what_cannot_be_read_is_refused():
    model = reader()
    with pytest.raises(ValueError, match="expected 1 or more each"):
        model.read([(model.root([1, 2]), [[3], []])])
    with pytest.raises(ValueError, match="not made by this reward model"):
        model.read([(Prefix([1]), [[3]])])
