"""Drawn tokens against the definition in scalar code, by both ways of filtering."""

import itertools
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import stats

from stair_jax.engine import sampling
from stair_jax.engine.request import Sampling, key_of
from stair_jax.engine.sampling import ALL

V = 7
LOGITS = np.array([1.0, 0.2, -0.5, 2.0, 0.2, -3.0, 0.9], np.float32)
SEARCHED, UNORDERED = -1, -2  # in place of tokens that were not drawn from candidates
token_and_logp = jax.jit(sampling.draw, static_argnames="candidates")
kept_of_all = jax.jit(sampling.kept_of_all)
kept_of_sorted = jax.jit(sampling.kept_of_sorted, static_argnames="vocab")


def draw(**how):
    return token_and_logp(**how)[0]


def keys(count):
    return np.stack([key_of(("test", i)) for i in range(count)])


def rows(count, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, logits=LOGITS):
    """Arguments of `draw` for rows that differ in key and index alone."""
    full = lambda x, dtype: jnp.full((count,), x, dtype)  # noqa: E731
    return {
        "logits": jnp.tile(jnp.asarray(logits)[None], (count, 1)),
        "key": jnp.asarray(keys(count)),
        "index": jnp.arange(count, dtype=jnp.int32) % 5,
        "temperature": full(temperature, jnp.float32),
        "top_k": full(top_k, jnp.int32),
        "top_p": full(top_p, jnp.float32),
        "min_p": full(min_p, jnp.float32),
    }


def ways(args, candidates):
    """[B] tokens that were drawn from candidates; SEARCHED or UNORDERED for the other rows."""

    def instead(mark):
        return lambda rows, *_: jnp.full(rows.top.shape, mark, jnp.int32)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampling, "_searched", instead(SEARCHED))
        patch.setattr(sampling, "_without_order", instead(UNORDERED))
        return np.asarray(jax.jit(partial(sampling.draw, candidates=candidates))(**args)[0])


def definition(logits: Any, top_k: Any, top_p: Any, min_p: Any, slack: float = 0.0):
    """Ids that stay, the likeliest first; scalar code. `slack` moves the bounds of mass apart."""
    order = sorted(range(len(logits)), key=lambda i: (-logits[i], i))
    weight = [float(np.exp(np.float64(logits[i]) - np.float64(logits[order[0]]))) for i in order]
    inside = min(top_k, len(order)) if top_k else len(order)
    total, before, kept = sum(weight[:inside]), 0.0, []
    for rank, i in enumerate(order):
        in_p = top_p >= 1 or before < (top_p + slack) * total
        if rank == 0 or (rank < inside and in_p and weight[rank] >= min_p - slack):
            kept.append(i)
        before += weight[rank]
    return kept


def exact(temperature, top_k, top_p, min_p):
    """The distribution by the definition."""
    kept = definition(LOGITS / temperature, top_k, top_p, min_p)
    weight = np.zeros(V)
    weight[kept] = np.exp(LOGITS[kept].astype(np.float64) / temperature)
    return weight / weight.sum()


CASES = list(itertools.product((1.0, 1.6), (0, 4), (1.0, 0.9), (0.0, 0.2)))
COUNT = 4000


def drawn(candidates):
    """[case, row] tokens of all cases in one batch: every row has filters of its own."""
    batch = [rows(COUNT, *case) for case in CASES]
    stacked = {name: jnp.concatenate([b[name] for b in batch]) for name in batch[0]}
    order = np.random.default_rng(0).permutation(len(CASES) * COUNT)
    token = np.asarray(draw(**{n: x[order] for n, x in stacked.items()}, candidates=candidates))
    return token[np.argsort(order)].reshape(len(CASES), COUNT)


@pytest.fixture(scope="module")
def tokens():
    return drawn(ALL)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_tokens_follow_the_exact_distribution(tokens, case):
    want = exact(*case)
    found = np.bincount(tokens[CASES.index(case)], minlength=V)
    assert not found[want == 0].any()
    test = stats.chisquare(found[want > 0], COUNT * want[want > 0])
    assert test.pvalue > 1e-3  # keys are fixed, so this is no lottery


def test_every_filter_bites_in_some_cases_and_temperature_in_all():
    sizes = [len(definition(LOGITS / t, *filters)) for t, *filters in CASES]
    assert sizes[:8] == [7, 3, 5, 3, 4, 3, 3, 3]  # by hand
    assert sizes[8:] == [7, 6, 5, 5, 4, 4, 4, 4]
    for cool, warm in zip(CASES[:8], CASES[8:], strict=True):
        assert np.abs(exact(*cool) - exact(*warm)).max() > 0.05


def test_the_number_of_candidates_changes_no_draw(tokens):
    np.testing.assert_array_equal(drawn(V), tokens)
    args = rows(600, 1.2, 3, 0.9)
    every = draw(**args, candidates=ALL)
    for candidates in (2, 3, 5):
        np.testing.assert_array_equal(draw(**args, candidates=candidates), every)
        searched = ways(args, candidates) == SEARCHED
        assert searched.all() if candidates < 3 else not searched.any()
    assert (np.asarray(draw(**(args | {"top_k": args["top_k"] - 1}), candidates=3)) != every).any()


def test_logits_that_differ_by_less_than_the_largest_one_can_show_are_ties_for_all():
    logits = np.array([1.0, 1e-8, 2e-8], np.float32)
    assert logits[1] < logits[2]
    args = rows(200, top_k=2, logits=logits)
    every = np.asarray(draw(**args, candidates=ALL))
    assert set(every) == {0, 1}
    np.testing.assert_array_equal(draw(**args, candidates=2), every)


def test_a_large_vocabulary_is_drawn_from_alike_by_both_ways():
    size, rng = 5000, np.random.default_rng(1)
    logits = rng.normal(size=(64, size)).astype(np.float32) * 2
    logits[::2] = logits[::2].round(1)  # ties, also where top-k cuts
    args = rows(64, 1.3, 40, 0.95, 0.02) | {"logits": jnp.asarray(logits)}
    args["top_k"] = jnp.asarray(rng.integers(1, 64, size=64), jnp.int32)
    args["temperature"] = args["temperature"].at[:7].set(0.0)
    candidates = sampling.candidates_for(args["temperature"], args["top_k"], size)
    assert candidates == 64
    every, some = (np.asarray(draw(**args, candidates=c)) for c in (ALL, candidates))
    assert (ways(args, candidates) >= 0).sum() > 60
    np.testing.assert_array_equal(every, some)
    assert (every[:7] == logits[:7].argmax(axis=-1)).all()
    assert (every[7:] != logits[7:].argmax(axis=-1)).any()


# What stays, against the definition

SPREAD, NEVER, SLACK = 4, 128.0, 1e-5
_PLAIN = st.floats(-8, 8, width=32)
_LOGIT = st.one_of(
    _PLAIN,
    st.sampled_from([0.0, 1.0, 1.0, 2.0]),  # ties
    st.integers(0, 4).map(lambda n: np.nextafter(np.float32(1), np.float32(2)) + n * 2.0**-23),
    st.sampled_from([-1e4, 1e4, 3e4, -130.0, -100.0, 1e-8, 2e-8]),
    st.just(-np.inf),  # spare rows of a vocabulary
)
_CROWD = st.integers(0, 64).map(lambda n: n * 2.0**-12)  # nearly alike, and in any order


@st.composite
def filtered(draw, size):
    """Logits, top_k, top_p, min_p of a row."""
    kind = draw(st.sampled_from([_LOGIT, _PLAIN, _CROWD, st.just(0.5)]))
    logits = np.array(draw(st.lists(kind, min_size=size, max_size=size)), np.float32)
    logits[draw(st.integers(0, size - 1))] = draw(_PLAIN)  # one can be drawn at least
    return (
        logits,
        draw(st.one_of(st.just(0), st.integers(1, size), st.just(size + 9))),
        np.float32(
            draw(
                st.sampled_from([0.0, 1e-30, 1e-6, 0.3, 0.5, 0.9, 1.0]) | st.floats(0, 1, width=32)
            )
        ),
        np.float32(draw(st.sampled_from([0.0, 1.0]) | st.floats(2.0**-20, 1, width=32))),
    )


def falls(logits):
    """What the filters compare: differences to the largest logit, in float32 without subnormals."""
    fall = logits - logits.max()
    return np.where(np.abs(fall) < np.finfo(np.float32).tiny, np.float32(0), fall)


@st.composite
def batches(draw):
    size = draw(st.sampled_from([1, 12]))
    return [draw(filtered(size)) for _ in range(SPREAD)]


def stacked(batch):
    logits, top_k, top_p, min_p = (jnp.asarray(np.array(x)) for x in zip(*batch, strict=True))
    return logits, top_k.astype(jnp.int32), top_p, min_p


def row_of(*logits):
    return np.array(logits, np.float32), 0, np.float32(0), np.float32(0)


@settings(max_examples=150, deadline=None)
@given(batches())
@example([row_of(-1e-45, 0.0)] * SPREAD)  # a subnormal number is 0 to XLA
def test_what_stays_is_what_the_definition_says(batch):
    found = np.asarray(kept_of_all(*stacked(batch)))
    for kept, (logits, *filters) in zip(found, batch, strict=True):
        fall = falls(logits)
        fewest, most = (definition(fall, *filters, slack=slack) for slack in (-SLACK, SLACK))
        # Nothing so far below the largest is ever drawn, kept or not.
        fewest, most = ([i for i in some if fall[i] > -NEVER] for some in (fewest, most))
        order = sorted(np.flatnonzero(kept & (fall > -NEVER)), key=lambda i: (-fall[i], i))
        assert len(fewest) <= len(order) <= len(most)
        assert order == most[: len(order)]


@settings(max_examples=150, deadline=None)
@given(batches(), st.sampled_from([1, 5]), st.integers(0, 2**32 - 1))
def test_both_ways_of_filtering_draw_the_same_token(batch, candidates, seed):
    logits, top_k, top_p, min_p = stacked(batch)
    key = np.stack([key_of((seed, i)) for i in range(SPREAD)])
    args = {
        "logits": logits,
        "top_k": top_k,
        "top_p": top_p,
        "min_p": min_p,
        "key": jnp.asarray(key),
        "index": jnp.arange(SPREAD),
        "temperature": jnp.asarray([1.0, 0.5, 3.0, 0.0]),
    }
    every, some = (draw(**args, candidates=c) for c in (ALL, candidates))
    np.testing.assert_array_equal(every, some)
    inverse = 1 / np.array([1.0, 0.5, 3.0, 1.0], np.float32)
    scaled = np.asarray(logits) * inverse[:, None]
    for row, (_, *filters) in enumerate(batch):
        assert every[row] in definition(falls(scaled[row]), *filters, slack=SLACK)


def test_equal_logits_everywhere_stay_in_the_order_of_their_ids():
    logits = jnp.zeros((6, 16), jnp.float32)
    five = np.float32(5 / 16)  # of the mass, exactly: the sixth comes after it
    top_p = jnp.array([1, five, np.nextafter(five, np.float32(1)), 0, 0.5, 1])
    top_k = jnp.array([4, 0, 0, 0, 6, 0], jnp.int32)
    want = np.arange(16)[None] < np.array([4, 5, 6, 1, 3, 16])[:, None]
    for min_p in (jnp.zeros(6), jnp.ones(6)):
        np.testing.assert_array_equal(kept_of_all(logits, top_k, top_p, min_p), want)
        total = jnp.full(6, 16.0)
        kept, sure = kept_of_sorted(logits, total, top_k, top_p, min_p, vocab=16)
        np.testing.assert_array_equal(kept, want)
        # An edge at a sum of weights, or next to one, is nothing that rounding leaves alone.
        np.testing.assert_array_equal(sure, [True, False, False, True, False, True])


@settings(max_examples=100, deadline=None)
@given(batches(), st.integers(1, 12))
def test_sorted_candidates_stay_by_the_same_definition(batch, size):
    batch = [(np.sort(logits)[::-1], *filters) for logits, *filters in batch]
    logits, *filters = stacked(batch)
    fall = logits - logits[:, :1]
    V, size = logits.shape[-1], min(size, logits.shape[-1])
    found, sure = kept_of_sorted(fall[:, :size], jnp.exp(fall).sum(axis=-1), *filters, vocab=V)
    for kept, certain, (logits, *filters) in zip(np.asarray(found), sure, batch, strict=True):
        fewest, most = (
            definition(falls(logits), *filters, slack=slack) for slack in (-SLACK, SLACK)
        )
        assert (kept == (np.arange(size) < kept.sum())).all()
        if certain:  # of what can be drawn at all, nothing is left out
            fall = falls(logits)
            fewest, most = (sum(fall[i] > -NEVER for i in x) for x in (fewest, most))
            assert fewest <= (kept & (fall[:size] > -NEVER)).sum() <= most
        elif size == V:  # nothing can be missing, so it is the rounding
            assert len(definition(falls(logits), *filters, slack=1e-4)) != len(
                definition(falls(logits), *filters, slack=-1e-4)
            )


def test_zero_temperature_takes_the_largest_logit_whatever_the_filters():
    for candidates in (ALL, 2, V):
        token = draw(**rows(9, 0.0, 2, 0.5, 0.3), candidates=candidates)
        assert (np.asarray(token) == LOGITS.argmax()).all()
    tie = np.array([0.0, 1.0, 1.0, -np.inf, 1.0, 0.0, 0.0], np.float32)
    for candidates in (ALL, 2, V):
        assert (np.asarray(draw(**rows(9, 0.0, logits=tie), candidates=candidates)) == 1).all()


def test_edges_ties_large_k_tiny_p_and_full_min_p():
    tie = np.array([1.0, 1.0, 1.0, -9.0, -9.0, -9.0, -9.0], np.float32)
    for candidates in (ALL, 3, V):
        token = draw(**rows(400, 1.0, 2, 1.0, 0.0, tie), candidates=candidates)
        assert set(np.asarray(token)) == {0, 1}  # of three equal logits the lowest ids
        token = draw(**rows(400, 1.0, 0, 1.0, 1.0, tie), candidates=candidates)
        assert set(np.asarray(token)) == {0, 1, 2}
        token = draw(**rows(400, 1.0, 100), candidates=candidates)
        assert len(set(np.asarray(token))) == V
        for tiny in (0.0, 1e-6):
            token = draw(**rows(9, 1.0, 0, tiny), candidates=candidates)
            assert (np.asarray(token) == LOGITS.argmax()).all()


def test_a_row_does_not_see_its_neighbours_and_every_token_draws_anew():
    args = rows(20, 1.0)
    token = draw(**args, candidates=ALL)
    order = np.random.default_rng(0).permutation(20)
    shuffled = draw(**{name: x[order] for name, x in args.items()}, candidates=ALL)
    np.testing.assert_array_equal(shuffled, np.asarray(token)[order])
    others = args | {"logits": args["logits"].at[1:].set(0.0), "top_k": args["top_k"].at[1:].set(1)}
    assert draw(**others, candidates=ALL)[0] == token[0]
    assert (np.asarray(draw(**others, candidates=ALL))[1:] != np.asarray(token)[1:]).any()
    later = draw(**(args | {"index": args["index"] + 1}), candidates=ALL)
    assert (np.asarray(later) != np.asarray(token)).any()


@pytest.mark.parametrize("candidates", [ALL, 3])
def test_log_probs_are_at_the_temperature_and_before_the_filters(candidates):
    temperature = np.array([1.3, 0.5, 0.0] * 30, np.float32)
    args = rows(90, top_k=2) | {"temperature": jnp.asarray(temperature)}
    token, found = token_and_logp(**args, candidates=candidates)
    assert len(set(np.asarray(token))) > 1
    np.testing.assert_array_equal(token, draw(**args, candidates=candidates))
    by = {t: jax.nn.log_softmax(jnp.asarray(LOGITS) / (t or 1.0)) for t in set(temperature)}
    want = [by[t][i] for t, i in zip(temperature, token, strict=True)]
    np.testing.assert_allclose(found, want, rtol=1e-5)


@pytest.mark.parametrize(
    ("temperature", "top_k", "vocab", "want"),
    [
        ([0, 0], [7, 0], 9999, 64),
        ([1, 1], [0, 0], 9999, 64),
        ([1, 1], [64, 0], 9999, 64),
        ([1, 1], [65, 3], 9999, 128),
        ([0, 1], [300, 16], 9999, 64),  # a greedy row has no use for candidates
        ([1, 1], [9999, 40], 9999, 64),  # no limit
        ([1, 1], [129, 40], 9999, 256),
        ([1, 1], [50, 40], 999, ALL),
    ],
)
def test_candidates_are_alike_for_all_settings_but_a_large_top_k(temperature, top_k, vocab, want):
    assert sampling.candidates_for(np.array(temperature), np.array(top_k), vocab) == want


# A vocabulary that is longer than its candidates

LONG, FEW = 5003, 64


def long_args(
    logits, temperature: Any = 1.0, top_k: Any = 0, top_p: Any = 1.0, min_p: Any = 0.0, seed=0
):
    """Arguments of `draw` for given logits [B, LONG]; settings are numbers or [B]."""
    full = lambda x, dtype: jnp.broadcast_to(jnp.asarray(x, dtype), (len(logits),))  # noqa: E731
    return {
        "logits": jnp.asarray(logits, jnp.float32),
        "key": jnp.asarray(np.stack([key_of((seed, i)) for i in range(len(logits))])),
        "index": jnp.arange(len(logits), dtype=jnp.int32) % 7,
        "temperature": full(temperature, jnp.float32),
        "top_k": full(top_k, jnp.int32),
        "top_p": full(top_p, jnp.float32),
        "min_p": full(min_p, jnp.float32),
    }


def head_of(size, rng):
    """Logits of which the first `size` in order have .91 of the mass, and one less has not .9."""
    weight = np.full(LONG, 0.09 / (LONG - size))
    weight[:size] = np.linspace(1.3, 0.7, size)
    weight[:size] *= 0.91 / weight[:size].sum()
    return np.log(weight)[rng.permutation(LONG)]


def test_a_nucleus_of_all_candidates_is_drawn_from_them_and_a_wider_one_is_searched(monkeypatch):
    monkeypatch.setattr(sampling, "_TOGETHER", 16)  # so that one turn is not enough
    rng = np.random.default_rng(2)
    sizes = [63, 64, 65] * 20
    args = long_args([head_of(size, rng) for size in sizes], top_p=0.905)
    order = np.argsort(-args["logits"], axis=-1)
    kept = [len(definition(np.asarray(x), 0, 0.905, 0)) for x in args["logits"][:3]]
    assert kept == [63, 64, 65]
    way = ways(args, FEW)
    np.testing.assert_array_equal(way == SEARCHED, np.array(sizes) == 65)
    assert (way == SEARCHED).sum() > sampling._TOGETHER
    token = np.asarray(draw(**args, candidates=FEW))
    np.testing.assert_array_equal(token, draw(**args, candidates=ALL))
    rank = np.array([list(o).index(t) for o, t in zip(order, token, strict=True)])
    assert rank.max() > 50
    assert (rank < sizes).all()


def edges(rng, B):
    """Rows whose top_p lies at a sum of weights, but for some roundings: settings and logits."""
    logits = (rng.normal(size=(B, LONG)) * 4).astype(np.float32)
    fall = -np.sort(-logits) - logits.max(axis=-1, keepdims=True)
    weight = np.exp(fall.astype(np.float64))
    at = rng.integers(0, 40, B)
    edge = np.take_along_axis(np.cumsum(weight, axis=-1), at[:, None], axis=-1)[:, 0]
    return logits, edge / weight.sum(axis=-1)


def test_a_row_whose_edge_is_as_near_as_rounding_is_searched():
    rng = np.random.default_rng(3)
    logits, edge = edges(rng, 96)
    near = long_args(logits, top_p=edge * (1 + rng.integers(-4, 5, 96) * 2.0**-24))
    assert (ways(near, FEW) == SEARCHED).all()
    np.testing.assert_array_equal(draw(**near, candidates=FEW), draw(**near, candidates=ALL))
    off = long_args(logits, top_p=edge * (1 - 2e-4))
    assert (ways(off, FEW) >= 0).sum() > 80
    np.testing.assert_array_equal(draw(**off, candidates=FEW), draw(**off, candidates=ALL))


KINDS = "plain", "tied", "masked", "coarse", "steep", "alike", "equal"


def long_rows(rng, B):
    """[B, LONG] logits of many kinds, with a finite one in each row."""
    x = rng.normal(size=(B, LONG)) * rng.choice([0.5, 1, 2, 5], size=(B, 1))
    kind = rng.choice(KINDS, B)
    x[kind == "tied"] = x[kind == "tied"].round(1)
    masked = rng.random((B, LONG)) < rng.choice([0.5, 0.98, 0.9999], size=(B, 1))
    x[(kind == "masked")[:, None] & masked] = -np.inf
    x[kind == "coarse"] = x[kind == "coarse"].astype(jnp.bfloat16)
    x[kind == "steep"] *= 9
    x[kind == "alike"] = np.where(rng.random((B, LONG)) < 64 / LONG, 9, 0)[kind == "alike"]
    x[kind == "equal"] = 0.5
    x[np.arange(B), rng.integers(0, LONG, B)] = 1.0
    return x.astype(np.float32)


@pytest.mark.parametrize("seed", range(6))
def test_a_token_is_the_same_in_any_company_and_by_any_way(seed):
    rng, B = np.random.default_rng(seed), 48
    args = long_args(
        long_rows(rng, B),
        temperature=rng.choice([0, 0.2, 0.7, 1, 1.2], B),
        top_k=rng.choice([0, 0, 0, 1, 5, 50, 63, 64, 65, 700, LONG, LONG + 9], B),
        top_p=rng.choice([1, 1, 0.9, 0.5, 0.95, 0.1, 0, 0.999], B),
        min_p=rng.choice([0, 0, 0, 0.02, 0.3, 1], B),
        seed=seed,
    )
    way = ways(args, FEW)
    searched, unordered = (way == SEARCHED).sum(), (way == UNORDERED).sum()
    assert searched > 4
    assert unordered > 0
    assert searched + unordered < B / 2
    every = np.asarray(draw(**args, candidates=ALL))
    token, logp = token_and_logp(**args, candidates=FEW)
    np.testing.assert_array_equal(token, every)
    np.testing.assert_array_equal(way[way >= 0], every[way >= 0])
    some = rng.permutation(B)[:5]
    alone, alone_logp = token_and_logp(**{n: x[some] for n, x in args.items()}, candidates=FEW)
    np.testing.assert_array_equal(alone, every[some])
    np.testing.assert_array_equal(alone_logp, logp[some])


def passes(jaxpr, size):
    """Names of what reads an array of `size` entries and reduces, sorts or gathers it, by depth."""
    found = []
    for eqn in jaxpr.eqns:
        inner = [x for x in jax.tree.leaves(eqn.params, is_leaf=_is_jaxpr) if _is_jaxpr(x)]
        below = [name for x in inner for name in passes(getattr(x, "jaxpr", x), size)]
        branching = eqn.primitive.name in ("cond", "while")
        found += [f"{eqn.primitive.name}.{name}" if branching else name for name in below]
        large = any(x.aval.size >= size for x in eqn.invars if hasattr(x, "aval"))
        if (
            not inner
            and large
            and eqn.primitive.name.startswith(("reduce", "sort", "top_k", "cum"))
        ):
            found.append(eqn.primitive.name)
    return found


def _is_jaxpr(x):
    return hasattr(x, "eqns") or hasattr(x, "jaxpr")


def test_all_rows_are_read_twice_and_once_more_where_some_want_no_order():
    B, vocab = 80, 128256  # more rows than are searched together
    shape = jax.ShapeDtypeStruct
    args = (
        shape((B, vocab), jnp.float32),
        shape((B, 2), jnp.uint32),
        shape((B,), jnp.int32),
        shape((B,), jnp.float32),
        shape((B,), jnp.int32),
        shape((B,), jnp.float32),
        shape((B,), jnp.float32),
    )

    def found(candidates):
        program = partial(sampling.draw, candidates=candidates)
        return passes(jax.make_jaxpr(program)(*args).jaxpr, B * vocab)

    assert sorted(found(FEW)) == ["cond.cond.reduce_max", "reduce_max", "reduce_sum"]
    assert len(found(ALL)) > 20


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -1.0},
        {"top_k": -1},
        {"top_p": -0.1},
        {"top_p": 1.1},
        {"min_p": -0.1},
        {"min_p": 1.1},
    ],
)
def test_impossible_sampling_is_refused(wrong):
    with pytest.raises(ValueError, match="expected"):
        Sampling(**wrong)


# The noise

MANY = 100_000
WORD = np.array([[0xDEADBEEF, 0x12345678]], np.uint32)


def noise(key, index, token):
    return np.asarray(
        jax.jit(sampling.gumbel)(
            jnp.asarray(key, jnp.uint32),
            jnp.asarray(index, jnp.int32),
            jnp.asarray(token, jnp.int32),
        )
    )


def over_ids():
    return noise(WORD, [0], np.arange(MANY)[None])[0]


def over_index():
    return noise(WORD.repeat(MANY, 0), np.arange(MANY), np.full((MANY, 1), 3))[:, 0]


def over_keys(word):
    key = WORD.repeat(MANY, 0)
    key[:, word] = np.arange(MANY)
    return noise(key, np.zeros(MANY), np.full((MANY, 1), 3))[:, 0]


SEQUENCES = {
    "ids": over_ids,
    "index": over_index,
    "first key": lambda: over_keys(0),
    "second key": lambda: over_keys(1),
}


@pytest.mark.parametrize("along", SEQUENCES)
def test_noise_is_gumbel_and_its_neighbours_know_nothing_of_each_other(along):
    unit = np.exp(-np.exp(-SEQUENCES[along]().astype(np.float64)))
    assert stats.kstest(unit, "uniform").pvalue > 1e-3
    for lag in (1, 2, 3, 4, 8, 16, 64, 256, 4096):
        r = np.corrcoef(unit[lag:], unit[:-lag])[0, 1]
        assert abs(r) < 4 / np.sqrt(MANY), lag
    for lag in (1, 2, 7):  # what correlations do not see: how pairs fall into 16 x 16 fields
        fields = np.histogram2d(unit[::2][:-lag], unit[1::2][lag:], bins=16)[0].ravel()
        assert stats.chisquare(fields).pvalue > 1e-3, lag


def test_noise_of_one_token_knows_nothing_of_the_next_tokens():
    """Along the ids, at neighbouring indices and keys."""
    ids = np.arange(MANY)[None].repeat(4, 0)
    key = WORD.repeat(4, 0)
    key[2, 0] += 1
    key[3, 1] += 1
    rank = noise(key, [0, 1, 0, 0], ids)
    unit = np.exp(-np.exp(-rank.astype(np.float64)))
    corr = np.corrcoef(unit) - np.eye(4)
    assert np.abs(corr).max() < 4 / np.sqrt(MANY)
    for a, b in itertools.combinations(range(4), 2):
        fields = np.histogram2d(unit[a], unit[b], bins=16)[0].ravel()
        assert stats.chisquare(fields).pvalue > 1e-3


def test_noise_reaches_as_far_as_its_bits():
    found = over_ids()
    assert np.isfinite(found).all()
    assert found.max() > 10  # the largest of 1e5 lies about ln(1e5) up
    assert found.min() < -2.2
