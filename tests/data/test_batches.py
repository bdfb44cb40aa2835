import dataclasses
import json

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stair_jax.data import dataset, trajectories
from stair_jax.data.examples import PairExample, SftExample
from tests.support.batches import PAD, ROW, dpo, pair, sft


def many(n, low=3, high=9):
    rng = np.random.default_rng(0)
    size = rng.integers(low, high, n)
    return [
        SftExample(id=str(i), prompt=(5, 100 + i), response=(7,) * (k - 2))
        for i, k in enumerate(size)
    ]


def table(data):
    """Per-token log-probs that tell trajectories and places apart."""
    return {
        key: np.array([sum(prompt + response) + 1000.0 * i for i in range(len(response))])
        for key, (prompt, response) in data.trajectories().items()
    }


def ids_of_epoch(data, epoch=0):
    steps = range(epoch * data.steps_per_epoch, (epoch + 1) * data.steps_per_epoch)
    return [x.id for step in steps for x in data.rows_at(step)]


def equal(one, other):
    """Whether two batches have the same form and the same numbers."""
    return all(jax.tree.leaves(jax.tree.map(np.array_equal, one, other)))


# Arrays.


def test_sft_masks_by_hand():
    batch = sft([ROW, dataclasses.replace(ROW, id="b")], batch=3, shards=3).batch_at(0)
    np.testing.assert_array_equal(batch.tokens[0], [[5, 6, 7, 8, 9, 0]] * 2 + [[0] * 6])
    np.testing.assert_array_equal(batch.loss_mask[0], [[0, 0, 1, 1, 1, 0]] * 2 + [[0] * 6])
    np.testing.assert_array_equal(batch.weight, [[1, 1, 0]])
    assert batch.tokens.dtype == np.int32
    assert batch.loss_mask.dtype == bool
    assert batch.weight.dtype == np.float32


def test_dpo_masks_by_hand():
    data = dpo([pair()], [ROW], per_pair=1.0, batch=3, shards=3)
    logp = table(data)
    assert data.batch_at(0).ref_logp is None
    data = data.with_reference(logp)
    batch, rows = jax.tree.map(lambda x: x[0], data.batch_at(0)), data.rows_at(0)
    p, a = rows.index(pair()), rows.index(ROW)
    np.testing.assert_array_equal(batch.tokens[p], [[5, 6, 7, 8, 9, 10, 0], [5, 6, 7, 11, 0, 0, 0]])
    np.testing.assert_array_equal(
        batch.step_mask[p], [[0, 0, 0, 1, 1, 1, 0], [0, 0, 0, 1, 0, 0, 0]]
    )
    np.testing.assert_array_equal(batch.sft_mask[p], [0, 0, 1, 1, 1, 1, 0])
    np.testing.assert_array_equal(batch.tokens[a], [[5, 6, 7, 8, 9, 0, 0], [0] * 7])
    assert not batch.step_mask[a].any()
    np.testing.assert_array_equal(batch.sft_mask[a], [0, 0, 1, 1, 1, 0, 0])
    assert [batch.weight[p], batch.weight[a], batch.weight[2]] == [1, 0, 0]
    assert [batch.sft_weight[p], batch.sft_weight[a], batch.sft_weight[2]] == [1, 1, 0]
    assert [batch.depth[p], batch.depth[a]] == [3, 0]
    # Sums over the step alone: the prefix is the first token of the response.
    chosen, rejected = (5 + 6 + 7 + 8 + 9 + 10, 5 + 6 + 7 + 11)
    want = [3 * chosen + 1000 * (1 + 2 + 3), rejected + 1000]
    np.testing.assert_array_equal(batch.ref_logp[p], want)
    np.testing.assert_array_equal(batch.ref_logp[a], [0, 0])


@pytest.mark.parametrize("batching", ["bucket", "tree"])
def test_scopes_choose_what_is_compared_and_what_is_trained(batching):
    def counts(**more):
        data = dpo([pair()], more=more, batch=1, batching=batching)
        batch = data.with_reference(table(data)).batch_at(0)
        return {
            "step": np.sum(batch.step_mask, axis=-1).ravel().tolist(),
            "sft": int(np.sum(batch.sft_mask)),
            "ref": np.ravel(batch.ref_logp).tolist(),
        }

    step = counts()
    whole = counts(scope="response")
    assert step["step"] == [3, 1]
    assert whole["step"] == [4, 2]
    assert whole["sft"] == step["sft"] == 4
    assert counts(sft_scope="step")["sft"] == 3
    assert whole["ref"] == [step["ref"][0] + 45, step["ref"][1] + 29]  # the prefix's first token


def test_reference_log_probs_need_every_trajectory_in_its_length():
    data = dpo([pair()])
    whole = table(data)
    assert len(whole) == 2
    with pytest.raises(ValueError, match=r"log-probs of p0: found none, expected 4 tokens"):
        data.with_reference({})
    key = trajectories.key_of((5, 6), (7, 11))
    with pytest.raises(ValueError, match=r"log-probs of p0: found 1, expected 2 tokens"):
        data.with_reference(whole | {key: whole[key][:1]})


def test_a_batch_says_which_tokens_the_losses_read():
    """Of a pair its compared step and the chosen response, of an anchor its response."""

    def wanted(batching, **how):
        data = dpo([pair()], [ROW], per_pair=1.0, batch=3, shards=3, batching=batching)
        batch = data.batch_at(0).joined()
        assert (batch.layout is None) == (batching == "bucket")
        assert np.sum(batch.present) == 2
        return batch, batch.wanted(**how)

    batch, found = wanted("bucket")
    (p,), (a,) = np.flatnonzero(batch.weight), np.flatnonzero(batch.sft_weight > batch.weight)
    assert found[p].astype(int).tolist() == [[0, 0, 1, 1, 1, 1, 0], [0, 0, 0, 1, 0, 0, 0]]
    assert found[a].astype(int).tolist() == [[0, 0, 1, 1, 1, 0, 0], [0] * 7]
    assert batch.scored() == 5 + 3
    assert wanted("bucket", sft=False)[1].sum(axis=(1, 2)).tolist() == (batch.weight * 4).tolist()
    trees, found = wanted("tree")
    assert found.shape == trees.tokens.shape
    assert sorted(trees.tokens[found].tolist()) == sorted([7, 8, 9, 10, 11, 7, 8, 9])


def test_a_batch_goes_through_a_program_as_what_it_is():
    for batching in ("bucket", "tree"):
        batch = dpo([pair()], batching=batching).batch_at(0)
        assert batch.ref_logp is None
        out = jax.jit(lambda x: x)(batch)
        assert type(out) is type(batch)
        assert (out.layout is None) == (batch.layout is None) == (batching == "bucket")
        assert equal(out, batch)


# What is dropped, what is set aside.


def test_rows_that_do_not_fit_are_dropped_whole_and_listed():
    long = dataclasses.replace(ROW, id="long", response=(7,) * 8)
    just = dataclasses.replace(ROW, id="just", response=(7,) * 7)
    empty = dataclasses.replace(ROW, id="empty", response=())
    data = sft([ROW, long, just, empty])
    assert data.dropped == {"too long": ["long"], "empty response": ["empty"]}
    assert [x.id for x in data.examples] == ["a", "just"]


def test_pairs_that_teach_nothing_are_dropped_and_listed():
    bad = [
        pair(1, chosen=()),
        pair(2, rejected=(8, 9, 12), chosen=(8, 9, 12)),
        pair(3, rejected=(7,) * 7),
    ]
    data = dpo([pair(), *bad])
    assert data.pairs == 1
    assert data.dropped == {"empty step": ["p1"], "equal steps": ["p2"], "too long": ["p3"]}
    both = pair(4, chosen=(8, 9, 10, 12), rejected=(11, 12, 13))  # 7 tokens a side, 10 as a tree
    assert not dpo([both]).dropped
    assert dpo([pair(), both], batching="tree").dropped == {"too long with both steps": ["p4"]}


@pytest.mark.parametrize("batching", ["bucket", "tree"])
def test_rows_set_aside_are_whole_prompts_and_never_trained(batching):
    pairs = [pair(i, id=f"p{q}-{i}", prompt=(5, q)) for q in range(8) for i in range(3)]
    anchors = [dataclasses.replace(ROW, id=f"a{q}", prompt=(5, q)) for q in range(8)]
    data = dpo(pairs, anchors, per_pair=1.0, eval_rows=5, batching=batching, buckets=(7, 12))
    held = {x.prompt for x in data.eval_examples}
    assert len(data.eval_examples) == 6  # two prompts of three pairs
    assert len(held) == 2
    assert not held & {x.prompt for x in data.examples}
    assert sorted(data.dropped) == ["prompt set aside"]
    assert len(data.dropped["prompt set aside"]) == 2
    assert data.pairs == 18
    data = data.with_reference(table(data))
    shown = data.eval_batches()
    assert sum(int(b.weight.sum()) for b in shown) == 6
    assert all(not np.any(b.tokens == 99) for b in shown)
    assert all((b.ref_logp[b.weight > 0] != 0).all() for b in shown)
    seen = {x.prompt for step in range(data.steps_per_epoch) for x in data.rows_at(step)}
    assert not held & seen
    other = dpo(pairs, anchors, seed=1, eval_rows=5, batching=batching, buckets=(7, 12))
    assert {x.prompt for x in other.eval_examples} != held
    with pytest.raises(ValueError, match=r"eval_rows: 24 sets all 24 rows aside"):
        dpo(pairs, eval_rows=24, batching=batching, buckets=(7, 12))


def test_sft_rows_are_set_aside_too():
    data = sft(many(20), eval_rows=4, buckets=(4, 6, 9))
    assert len(data.eval_examples) == 4
    assert sorted(ids_of_epoch(data)) == sorted(x.id for x in data.examples)
    assert len(data.examples) == 16
    shapes = {b.tokens.shape[1:] for b in data.eval_batches()}
    assert sum(int(b.weight.sum()) for b in data.eval_batches()) == 4
    assert shapes <= {(2, 4), (2, 6), (2, 9)}


# Order.


@settings(deadline=None, max_examples=15)
@given(
    n=st.integers(1, 20),
    batch=st.integers(1, 7),
    seed=st.integers(0, 9),
    shards=st.sampled_from([1, 2, 8]),
    micro=st.sampled_from([1, 30, 1000]),
    batching=st.sampled_from(["bucket", "pack"]),
)
def test_an_epoch_shows_every_row_once(n, batch, seed, shards, micro, batching):
    change = {"batch": batch, "seed": seed, "batching": batching}
    data = sft(many(n), shards=shards, micro_tokens=micro, **change)
    plain = sft(many(n), **change)
    for epoch in range(2):
        assert sorted(ids_of_epoch(data, epoch)) == sorted(x.id for x in data.examples)
        first = epoch * data.steps_per_epoch
        steps = range(first, first + data.steps_per_epoch)
        for step in steps:
            out, rows = data.batch_at(step), data.rows_at(step)
            assert rows == plain.rows_at(step)
            assert out.tokens.shape[1] % shards == 0
            assert np.sum(out.tokens == 5) == len(rows)  # the first token of every prompt
            assert out.loss_mask.sum() == sum(x.length - len(x.prompt) for x in rows)
            assert not out.loss_mask[out.weight == 0].any()
            assert out.real_tokens() == sum(x.length for x in rows)
        short = [step for step in steps if len(data.rows_at(step)) < batch]
        assert len(short) <= 1


@settings(deadline=None, max_examples=15)
@given(
    sizes=st.lists(st.integers(1, 5), min_size=1, max_size=7),
    batch=st.integers(1, 7),
    seed=st.integers(0, 9),
    shards=st.sampled_from([1, 2, 8]),
    anchors=st.integers(0, 4),
    batching=st.sampled_from(["bucket", "tree"]),
)
def test_an_epoch_shows_every_pair_once(sizes, batch, seed, shards, anchors, batching):
    pairs = [
        pair(i, id=f"p{q}-{i}", prompt=(5, 20 + q)) for q, n in enumerate(sizes) for i in range(n)
    ]
    spare = [dataclasses.replace(ROW, id=f"a{i}") for i in range(anchors)]
    data = dpo(
        pairs,
        spare,
        per_pair=0.5,
        seed=seed,
        shards=shards,
        batch=batch,
        batching=batching,
        buckets=(7, 9, 17),
        micro_tokens=60,
    )
    for epoch in range(2):
        shown = ids_of_epoch(data, epoch)
        assert sorted(x for x in shown if x[0] == "p") == sorted(x.id for x in pairs)
        assert sum(x[0] == "a" for x in shown) == data.anchors
        for step in range(data.steps_per_epoch):
            out, rows = data.batch_at(step), data.rows_at(step)
            assert rows
            assert out.weight.sum() == sum(isinstance(x, PairExample) for x in rows)
            assert out.sft_weight.sum() == len(rows)
            assert out.tokens.shape[1] % shards == 0
            if batching == "tree":
                groups = {x.prompt for x in rows if isinstance(x, PairExample)}
                whole = [x.id for x in pairs if x.prompt in groups]
                assert sorted(x.id for x in rows if x.id[0] == "p") == sorted(whole)
            else:
                assert len(rows) <= batch


def test_any_batch_can_be_asked_for_at_any_time():
    steps = [7, 0, 13, 3, 7]
    fresh = [sft(many(11)).batch_at(step) for step in steps]
    data = sft(many(11))
    for step, want in zip(steps, fresh, strict=True):
        got = data.batch_at(step)
        assert equal(got, want)


def test_the_stream_goes_on_from_its_state():
    data = sft(many(11))
    stream = data.stream(2)
    next(stream)
    state = json.loads(json.dumps(stream.get_state()))
    seen = [next(stream) for _ in range(2 * data.steps_per_epoch)]
    want = [data.batch_at(3 + i) for i in range(len(seen))]
    assert any(not np.array_equal(seen[0].tokens, x.tokens) for x in seen[1:])
    again = data.stream()
    again.set_state(state)
    for got, same, right in zip(seen, again, want, strict=False):
        assert equal(got, right)
        assert equal(same, right)
    stream.close()
    again.close()


def test_order_moves_with_seed_and_epoch():
    data = sft(many(23))
    assert ids_of_epoch(data, 0) != ids_of_epoch(data, 1)
    assert ids_of_epoch(data, 0) != ids_of_epoch(sft(many(23), seed=1), 0)
    assert ids_of_epoch(data, 1) == ids_of_epoch(sft(many(23)), 1)


def test_rows_of_a_batch_share_a_bucket_and_it_is_the_smallest_that_fits():
    data = sft(many(60), buckets=(4, 6, 9), batch=4)
    mixed = 0
    for step in range(data.steps_per_epoch):
        widths = [x.length for x in data.rows_at(step)]
        width = data.batch_at(step).tokens.shape[-1]
        assert width == min(b for b in (4, 6, 9) if b >= max(widths))
        mixed += len({int(np.searchsorted((4, 6, 9), k)) for k in widths}) > 1
    assert mixed <= 2  # one batch at each border


@pytest.mark.parametrize("batching", ["bucket", "tree"])
@pytest.mark.parametrize(("per_pair", "want"), [(0.0, 0), (0.5, 2), (1.0, 4), (2.5, 10)])
def test_anchors_join_in_proportion_and_are_used_evenly(per_pair, want, batching):
    anchors = [dataclasses.replace(ROW, id=f"a{i}") for i in range(5)]
    data = dpo([pair(i) for i in range(4)], anchors, per_pair=per_pair, batching=batching)
    used: dict[str, int] = dict.fromkeys((x.id for x in anchors), 0)
    for epoch in range(5):
        ids = ids_of_epoch(data, epoch)
        assert sorted(x for x in ids if x[0] == "p") == ["p0", "p1", "p2", "p3"]
        drawn = [x for x in ids if x[0] == "a"]
        assert len(drawn) == want
        for name in drawn:
            used[name] += 1
    assert max(used.values()) - min(used.values()) == 0


# Shapes.


@pytest.mark.parametrize(
    ("rows", "tokens", "budget", "shards", "want"),
    [
        (32, 96, 8192, 1, (1, 32)),
        (128, 2048, 65_536, 8, (4, 32)),
        (128, 2048, 70_000, 8, (4, 32)),  # 34 fit, 32 is a multiple of the shards
        (33, 96, 32 * 96, 1, (2, 17)),  # equal passes, not 32 and 1
        (5, 96, 1, 1, (5, 1)),
        (5, 96, 1, 4, (2, 4)),  # a row a shard is the least
        (3, 96, 8192, 8, (1, 8)),
    ],
)
def test_micro_batches_are_as_large_as_the_budget_lets_them(rows, tokens, budget, shards, want):
    assert dataset.rows_and_passes(rows, tokens, budget, shards) == want


def test_both_sides_of_a_pair_count_towards_the_budget():
    pairs = [pair(i) for i in range(8)]
    assert dpo(pairs, batch=8, micro_tokens=56).batch_at(0).tokens.shape == (2, 4, 2, 7)
    rows = [dataclasses.replace(ROW, id=str(i)) for i in range(8)]
    assert sft(rows, batch=8, micro_tokens=48).batch_at(0).tokens.shape == (1, 8, 6)


def test_a_bucket_has_one_shape_and_real_tokens_are_counted():
    data = sft(many(50), batch=8, buckets=(4, 6, 9), micro_tokens=24)
    shapes = {data.batch_at(step).tokens.shape for step in range(2 * data.steps_per_epoch)}
    assert shapes == {(2, 4, 4), (2, 4, 6), (4, 2, 9)}
    data = dpo([pair()], [ROW], per_pair=1.0, batch=2, micro_tokens=14)
    batch = data.batch_at(0)
    assert batch.tokens.shape == (2, 1, 2, 7)
    assert batch.real_tokens() == 6 + 4 + 5
    assert batch.padding_share() == 1 - 15 / 28


def test_a_micro_batch_without_weight_is_no_padding():
    data = sft([ROW], batch=1)
    batch = data.batch_at(0)
    more = jax.tree.map(lambda x: np.concatenate([x, np.zeros_like(x)]), batch)
    assert batch.padding_share() == more.padding_share() == 1 - 5 / 6


def test_the_digest_knows_every_row():
    assert sft([ROW]).digest == sft([ROW]).digest
    assert sft([ROW]).digest != sft([dataclasses.replace(ROW, response=(7, 8, 8))]).digest
    assert (
        sft([ROW]).digest
        != sft([dataclasses.replace(ROW, prompt=(5,), response=(6, 7, 8, 9))]).digest
    )
    assert dpo([pair()]).digest != dpo([pair(depth=4)]).digest


# Trajectories.


def test_every_distinct_trajectory_is_scored_once():
    pairs = [pair(0), pair(1), pair(2, rejected=(8, 9, 10)), pair(3, prompt=(5,))]
    data = dpo(pairs, buckets=(6, 7, 9))
    whole = data.trajectories()
    # The rejected step is shared by the first two; the third rejects what the first chose.
    assert sorted(whole.values()) == sorted(
        {
            ((5, 6), (7, 8, 9, 10)),
            ((5, 6), (7, 8, 9, 11)),
            ((5, 6), (7, 8, 9, 12)),
            ((5, 6), (7, 11)),
            ((5,), (7, 8, 9, 13)),
            ((5,), (7, 11)),
        }
    )
    assert trajectories.key_of((5, 6), (7,)) != trajectories.key_of((5,), (6, 7))
    config = dataclasses.replace(data.config, micro_tokens=28, buckets=(4, 7))
    seen, last = {}, 0
    for keys, arrays in trajectories.score_batches(whole, config, pad_id=PAD, row_shards=2):
        assert arrays.tokens.shape in {(2, 4), (4, 7)}
        assert arrays.tokens.size <= 28
        for row, key in enumerate(keys):
            prompt, response = whole[key]
            n = len(prompt) + len(response)
            assert n >= last
            last = n
            assert tuple(arrays.tokens[row, :n]) == prompt + response
            assert tuple(arrays.tokens[row][arrays.loss_mask[row]]) == response
            seen[key] = True
        assert not arrays.loss_mask[len(keys) :].any()
    assert seen.keys() == whole.keys()
    short = dataclasses.replace(config, buckets=(4,))
    with pytest.raises(ValueError, match="6 tokens, expected 4 at most"):
        list(trajectories.score_batches(whole, short, pad_id=PAD, row_shards=1))
