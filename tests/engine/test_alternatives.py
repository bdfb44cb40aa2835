"""Log-probs of given tokens with the likeliest others, against one plain forward."""

import numpy as np
import pytest

from stair_jax.engine.likelihood import Alternatives, Likelihood
from tests.support.likelihoods import plain, weights
from tests.support.scoring import CONFIG, SPEC, TOLERANCE, some

ROWS = [some(np.random.default_rng(n), n) for n in (2, 5, 11, 23, 40)]


@pytest.fixture(scope="module")
def reader():
    return Alternatives(SPEC, weights(0), config=CONFIG)


@pytest.mark.parametrize("top", [0, 1, 4])
def test_all_that_is_told_of_a_row_is_what_one_forward_finds(reader, top):
    for row, told in zip(ROWS, reader.tell(ROWS, top), strict=True):
        np.testing.assert_allclose(told.logps, plain(0, row), atol=TOLERANCE)
        assert told.top_ids.shape == told.top_logps.shape == (len(row) - 1, top)
        for at in range(len(row) - 1) if top else ():
            # What the model finds of every token that may stand there.
            each = np.array([plain(0, [*row[: at + 1], id])[-1] for id in told.top_ids[at]])
            np.testing.assert_allclose(told.top_logps[at], each, atol=TOLERANCE)
            assert (np.diff(told.top_logps[at]) <= 0).all()


def test_the_likeliest_is_the_likeliest_of_all(reader):
    (told,) = reader.tell([ROWS[1]], 1)
    every = [plain(0, [*ROWS[1][:3], id])[-1] for id in range(SPEC.V)]
    assert told.top_ids[2, 0] == int(np.argmax(every))


def test_a_token_that_is_the_likeliest_has_the_same_log_prob_to_the_last_bit(reader):
    (told,) = reader.tell([ROWS[2]], 1)
    row = [*ROWS[2][:5], int(told.top_ids[4, 0])]
    (told,) = reader.tell([row], 3)
    assert told.logps[4] == told.top_logps[4, 0]


def test_nothing_of_the_rows_stays(reader):
    reader.tell(ROWS, 2)
    assert len(reader._store.pages.free) == len(reader._store.pages.owners)
    with pytest.raises(ValueError, match="expected 1 to 40"):
        reader.tell([ROWS[0], some(np.random.default_rng(0), 41)], 0)
    with pytest.raises(ValueError, match="0 tokens to score"):
        reader.tell([[3]], 0)
    assert len(reader._store.pages.free) == len(reader._store.pages.owners)


@pytest.mark.parametrize("top", [-1, SPEC.V + 1])
def test_more_alternatives_than_tokens_are_refused(reader, top):
    with pytest.raises(ValueError, match=f"top={top}, expected 0 to {SPEC.V}"):
        reader.tell(ROWS, top)


def test_a_likelihood_says_the_same_as_before():
    model = Likelihood(SPEC, weights(0), config=CONFIG)
    root = model.root(ROWS[3][:4])
    ((grown, logps),) = model.extend([(root, ROWS[3][4:])])
    np.testing.assert_allclose(logps, plain(0, ROWS[3])[3:], atol=TOLERANCE)
    model.release(root)
    model.release(grown)
