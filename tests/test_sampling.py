import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from stair_jax.engine import sampling
from stair_jax.engine.engine import key_of
from stair_jax.engine.request import Sampling

V = 7
LOGITS = np.array([1.0, 0.2, -0.5, 2.0, 0.2, -3.0, 0.9], np.float32)
draw = jax.jit(sampling.draw, static_argnames="candidates")


def rows(count, temperature=1.0, top_k=0, top_p=1.0, logits=LOGITS):
    keys = np.stack([key_of(("test", i)) for i in range(count)])
    full = lambda x, dtype: jnp.full((count,), x, dtype)  # noqa: E731
    return {
        "logits": jnp.tile(jnp.asarray(logits)[None], (count, 1)),
        "key": jnp.asarray(keys),
        "index": jnp.arange(count, dtype=jnp.int32) % 5,
        "temperature": full(temperature, jnp.float32),
        "top_k": full(top_k, jnp.int32),
        "top_p": full(top_p, jnp.float32),
    }


def exact(temperature, top_k, top_p):
    """The distribution by the definition: temperature, then top-k, then top-p; scalar code."""
    weight = np.exp(LOGITS.astype(np.float64) / temperature)
    prob, order = weight / weight.sum(), np.argsort(-LOGITS, kind="stable")
    kept = list(order[:top_k] if top_k else order)
    total, mass, nucleus = sum(prob[i] for i in kept), 0.0, []
    for i in kept:
        if nucleus and mass >= top_p:
            break
        nucleus.append(i)
        mass += prob[i] / total
    out = np.zeros(V)
    out[nucleus] = prob[nucleus]
    return out / out.sum()


CASES = [(1.0, 0, 1.0), (0.7, 0, 1.0), (1.3, 3, 1.0), (1.0, 0, 0.6), (0.9, 5, 0.8), (1.5, 1, 1.0)]


@pytest.mark.parametrize(("temperature", "top_k", "top_p"), CASES)
def test_tokens_follow_the_exact_distribution(temperature, top_k, top_p):
    count = 4000
    candidates = 0 if (top_k, top_p) == (0, 1.0) else V
    token, _ = draw(**rows(count, temperature, top_k, top_p), candidates=candidates)
    want = exact(temperature, top_k, top_p)
    found = np.bincount(np.asarray(token), minlength=V)
    assert not found[want == 0].any()
    if (want > 0).sum() > 1:
        test = stats.chisquare(found[want > 0], count * want[want > 0])
        assert test.pvalue > 1e-3  # keys are fixed, so this is no lottery


def test_cases_differ_in_distribution():
    distributions = [exact(*case).round(6).tobytes() for case in CASES]
    assert len(set(distributions)) == len(CASES)


def test_zero_temperature_takes_the_largest_logit_whatever_the_filters():
    token, logp = draw(**rows(9, 0.0, 2, 0.5), candidates=V)
    assert (np.asarray(token) == LOGITS.argmax()).all()
    np.testing.assert_allclose(logp, jax.nn.log_softmax(jnp.asarray(LOGITS))[3], rtol=1e-6)


def test_log_probs_are_at_the_temperature_and_before_the_filters():
    token, logp = draw(**rows(50, 1.3, 3, 0.9), candidates=V)
    want = jax.nn.log_softmax(jnp.asarray(LOGITS) / 1.3)
    np.testing.assert_allclose(logp, np.asarray(want)[np.asarray(token)], rtol=1e-5)


def test_the_number_of_candidates_changes_no_draw():
    args = rows(300, 1.2, 3, 0.9)
    some, _ = draw(**args, candidates=3)
    every, _ = draw(**args, candidates=V)
    np.testing.assert_array_equal(some, every)
    args |= {"top_k": args["top_k"] * 0, "top_p": args["top_p"] * 0 + 1}
    plain, _ = draw(**args, candidates=0)
    unfiltered, _ = draw(**args, candidates=V)
    np.testing.assert_array_equal(plain, unfiltered)
    assert (np.asarray(plain) != np.asarray(some)).any()


def test_a_row_does_not_see_its_neighbours_and_every_token_draws_anew():
    args = rows(20, 1.0)
    token, _ = draw(**args, candidates=0)
    order = np.random.default_rng(0).permutation(20)
    shuffled, _ = draw(**{name: x[order] for name, x in args.items()}, candidates=0)
    np.testing.assert_array_equal(shuffled, np.asarray(token)[order])
    later, _ = draw(**(args | {"index": args["index"] + 1}), candidates=0)
    assert (np.asarray(later) != np.asarray(token)).any()


def test_edges_ties_large_k_and_tiny_p():
    tie = np.array([1.0, 1.0, 1.0, -9.0, -9.0, -9.0, -9.0], np.float32)
    token, _ = draw(**rows(400, 1.0, 2, 1.0, tie), candidates=2)
    assert set(np.asarray(token)) == {0, 1}  # top-2 keeps two of three equal logits, the lowest ids
    token, _ = draw(**rows(400, 1.0, 100, 1.0), candidates=100)
    assert len(set(np.asarray(token))) == V
    token, _ = draw(**rows(9, 1.0, 0, 1e-6), candidates=V)
    assert (np.asarray(token) == LOGITS.argmax()).all()


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p", "want"),
    [([1, 1], [0, 0], [1, 1], 0), ([1, 1], [3, 5], [1, 1], 5), ([1, 1], [3, 0], [1, 0.9], 99),
     ([0, 1], [0, 4], [1, 0.9], 4), ([0, 0], [7, 0], [0.5, 1], 0)],
)  # fmt: skip
def test_candidates_serve_every_row(temperature, top_k, top_p, want):
    found = sampling.candidates_for(
        np.array(temperature, np.float32), np.array(top_k), np.array(top_p, np.float32), 99
    )
    assert found == want


@pytest.mark.parametrize("wrong", [{"temperature": -1.0}, {"top_k": -1}, {"top_p": 0.0}])
def test_impossible_sampling_is_refused(wrong):
    with pytest.raises(ValueError, match="expected"):
        Sampling(**wrong)
