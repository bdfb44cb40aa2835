import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stair_jax.io import data as data_lib
from stair_jax.io.data import DpoData, PairExample, SftData, SftExample
from stair_jax.records import Pair, Response, SftRow
from stair_jax.text import Codec

EOS, OUTPUT_END, STEP_END, OTHER_END, PAD = 1, 2, 3, 4, 0


class PlainCodec(Codec):
    """Words are numbers, and a prompt is as long as its question says."""

    def __init__(self):
        self.eos_id, self.pad_id = EOS, PAD
        self.end_ids = frozenset({EOS, OTHER_END})
        self.end_stop = frozenset({EOS, OTHER_END, OUTPUT_END})

    def prompt_ids(self, question):
        return [10 + len(question), 11]

    def response_ids(self, response):
        return [int(word) for word in response.split()]


CODEC = PlainCodec()
ROW = SftExample(id="a", prompt=(5, 6), response=(7, 8, 9))


def pair(i=0, **change):
    values = {"id": f"p{i}", "prompt": (5, 6), "prefix": (7,), "chosen": (8, 9, 10 + i),
              "rejected": (11,)}  # fmt: skip
    return PairExample(**(values | change))


def sft(examples, **change):
    return SftData(examples, **({"buckets": (6, 9), "batch": 2, "seed": 0, "pad_id": PAD} | change))


def dpo(pairs, anchors=(), **change):
    values = {"anchors_per_pair": 0.0, "buckets": (7, 9), "batch": 2, "seed": 0, "pad_id": PAD}
    data = DpoData(pairs, anchors, **(values | change))
    return data.with_reference(np.arange(2.0 * data.pairs).reshape(-1, 2))


def many(n, low=3, high=9):
    rng = np.random.default_rng(0)
    size = rng.integers(low, high, n)
    return [SftExample(id=str(i), prompt=(5,), response=(7,) * (k - 1)) for i, k in enumerate(size)]


# What is trained.


@pytest.mark.parametrize(
    ("ids", "terminal", "want"),
    [
        ((7, STEP_END), False, (7, STEP_END)),  # an unfinished step must not learn to stop
        ((7, OUTPUT_END), True, (7, OUTPUT_END, EOS)),
        ((7, 8), True, (7, 8, EOS)),
        ((7, 8), False, (7, 8)),  # cut off by the token limit
        ((7, EOS), True, (7, EOS)),
        ((7, OTHER_END), True, (7, OTHER_END)),
    ],
)
def test_end_of_sequence_follows_finished_trajectories_only(ids, terminal, want):
    assert data_lib.closed(ids, terminal, CODEC) == want


def test_a_teacher_row_is_finished_by_its_output_block():
    rows = [
        SftRow(id="a", question="why", response=f"7 {OUTPUT_END}"),
        SftRow(id="b", question="why", response=f"7 {STEP_END}"),
    ]
    a, b = data_lib.sft_examples(rows, CODEC)
    assert a == SftExample(id="a", prompt=(13, 11), response=(7, OUTPUT_END, EOS))
    assert b.response == (7, STEP_END)


@pytest.mark.parametrize("chosen_terminal", [True, False])
@pytest.mark.parametrize("rejected_terminal", [True, False])
def test_each_side_of_a_pair_ends_for_itself(chosen_terminal, rejected_terminal):
    row = Pair(
        id="x", question="why", type="safety", prefix=(7, STEP_END), chosen=(8,), rejected=(9, 12),
        chosen_value=1.0, rejected_value=-1.0, chosen_terminal=chosen_terminal,
        rejected_terminal=rejected_terminal, chosen_text="", rejected_text="", depth=2,
    )  # fmt: skip
    (example,) = data_lib.pair_examples([row], CODEC)
    assert example.prefix == (7, STEP_END)
    assert example.chosen == ((8, EOS) if chosen_terminal else (8,))
    assert example.rejected == ((9, 12, EOS) if rejected_terminal else (9, 12))


@pytest.mark.parametrize("terminal", [True, False])
def test_responses_of_trees_keep_their_ids(terminal):
    row = Response(
        id="x", question="", type="safety", ids=(7, 8), text="", value=1.0, terminal=terminal
    )
    (example,) = data_lib.response_examples([row], CODEC)
    assert example.response == ((7, 8, EOS) if terminal else (7, 8))


def test_sft_masks_by_hand():
    batch = sft([ROW]).batch_at(0)
    np.testing.assert_array_equal(batch["tokens"], [[5, 6, 7, 8, 9, 0], [0] * 6])
    np.testing.assert_array_equal(batch["loss_mask"], [[0, 0, 1, 1, 1, 0], [0] * 6])
    np.testing.assert_array_equal(batch["weight"], [1, 0])
    assert batch["tokens"].dtype == np.int32
    assert batch["loss_mask"].dtype == bool


def test_dpo_masks_by_hand():
    data = dpo([pair()], [ROW], anchors_per_pair=1.0, batch=3)
    batch, rows = data.batch_at(0), data.rows_at(0)
    p, a = rows.index(pair()), rows.index(ROW)
    np.testing.assert_array_equal(
        batch["tokens"][p], [[5, 6, 7, 8, 9, 10, 0], [5, 6, 7, 11, 0, 0, 0]]
    )
    np.testing.assert_array_equal(
        batch["step_mask"][p], [[0, 0, 0, 1, 1, 1, 0], [0, 0, 0, 1, 0, 0, 0]]
    )
    np.testing.assert_array_equal(batch["sft_mask"][p], [0, 0, 1, 1, 1, 1, 0])
    np.testing.assert_array_equal(batch["tokens"][a], [[5, 6, 7, 8, 9, 0, 0], [0] * 7])
    assert not batch["step_mask"][a].any()
    np.testing.assert_array_equal(batch["sft_mask"][a], [0, 0, 1, 1, 1, 0, 0])
    assert [batch["weight"][p], batch["weight"][a], batch["weight"][2]] == [1, 0, 0]
    assert [batch["sft_weight"][p], batch["sft_weight"][a], batch["sft_weight"][2]] == [1, 1, 0]
    np.testing.assert_array_equal(batch["ref_logp"][p], [0, 1])
    np.testing.assert_array_equal(batch["ref_logp"][a], [0, 0])


# What is dropped.


def test_rows_that_do_not_fit_are_dropped_whole_and_listed():
    long = dataclasses.replace(ROW, id="long", response=(7,) * 8)
    just = dataclasses.replace(ROW, id="just", response=(7,) * 7)
    empty = dataclasses.replace(ROW, id="empty", response=())
    data = sft([ROW, long, just, empty])
    assert data.dropped == {"too long": ["long"], "empty response": ["empty"]}
    assert [x.id for x in data.examples] == ["a", "just"]


def test_pairs_that_teach_nothing_are_dropped_and_listed():
    bad = [pair(1, chosen=()), pair(2, rejected=(8, 9, 12), chosen=(8, 9, 12)),
           pair(3, rejected=(7,) * 7)]  # fmt: skip
    data = dpo([pair(), *bad])
    assert data.pairs == 1
    assert data.dropped == {"empty step": ["p1"], "equal steps": ["p2"], "too long": ["p3"]}


# Order.


@settings(deadline=None, max_examples=30)
@given(n=st.integers(1, 40), batch=st.integers(1, 7), seed=st.integers(0, 9))
def test_an_epoch_shows_every_row_once(n, batch, seed):
    data = sft(many(n), batch=batch, seed=seed)
    for epoch in range(2):
        first = epoch * data.steps_per_epoch
        steps = range(first, first + data.steps_per_epoch)
        shown = [x.id for step in steps for x in data.rows_at(step)]
        assert sorted(shown) == sorted(x.id for x in data.examples)
        short = [step for step in steps if data.batch_at(step)["weight"].sum() < batch]
        assert len(short) <= 1


def test_any_batch_can_be_asked_for_at_any_time():
    steps = [7, 0, 13, 3, 7]
    fresh = [sft(many(11)).batch_at(step) for step in steps]
    data = sft(many(11))
    for step, want in zip(steps, fresh, strict=True):
        got = data.batch_at(step)
        assert all(np.array_equal(got[name], want[name]) for name in want)


def test_order_moves_with_seed_and_epoch():
    data = sft(many(23))
    ids = lambda d, epoch: [  # noqa: E731
        x.id for s in range(d.steps_per_epoch) for x in d.rows_at(epoch * d.steps_per_epoch + s)
    ]
    assert ids(data, 0) != ids(data, 1)
    assert ids(data, 0) != ids(sft(many(23), seed=1), 0)
    assert ids(data, 1) == ids(sft(many(23)), 1)


def test_rows_of_a_batch_share_a_bucket_and_it_is_the_smallest_that_fits():
    data = sft(many(60), buckets=(4, 6, 9), batch=4)
    mixed = 0
    for step in range(data.steps_per_epoch):
        lengths = [x.length for x in data.rows_at(step)]
        width = data.batch_at(step)["tokens"].shape[1]
        assert width == min(b for b in (4, 6, 9) if b >= max(lengths))
        mixed += len({int(np.searchsorted((4, 6, 9), k)) for k in lengths}) > 1
    assert mixed <= 2  # one batch at each border


@pytest.mark.parametrize(("per_pair", "want"), [(0.0, 0), (0.5, 2), (1.0, 4), (2.5, 10)])
def test_anchors_join_in_proportion_and_are_used_evenly(per_pair, want):
    anchors = [dataclasses.replace(ROW, id=f"a{i}") for i in range(5)]
    data = dpo([pair(i) for i in range(4)], anchors, anchors_per_pair=per_pair)
    used: dict[str, int] = dict.fromkeys((x.id for x in anchors), 0)
    for epoch in range(5):
        at = range(epoch * data.steps_per_epoch, (epoch + 1) * data.steps_per_epoch)
        ids = [x.id for step in at for x in data.rows_at(step)]
        assert sorted(x for x in ids if x[0] == "p") == ["p0", "p1", "p2", "p3"]
        drawn = [x for x in ids if x[0] == "a"]
        assert len(drawn) == want
        for name in drawn:
            used[name] += 1
    assert max(used.values()) - min(used.values()) == 0


def test_reference_log_probs_follow_their_pairs():
    data = dpo([pair(i) for i in range(5)])
    seen = {}
    for step in range(data.steps_per_epoch):
        for row, x in enumerate(data.rows_at(step)):
            seen[x.id] = data.batch_at(step)["ref_logp"][row].tolist()
    assert seen == {f"p{i}": [2 * i, 2 * i + 1] for i in range(5)}


def test_batches_need_the_reference_first():
    data = DpoData([pair()], anchors_per_pair=0.0, buckets=(7,), batch=1, seed=0, pad_id=PAD)
    with pytest.raises(RuntimeError, match="with_reference"):
        data.batch_at(0)
    with pytest.raises(ValueError, match=r"\(3, 2\), expected \(1, 2\)"):
        data.with_reference(np.zeros((3, 2)))


def test_the_digest_knows_every_row():
    assert sft([ROW]).digest == sft([ROW]).digest
    assert sft([ROW]).digest != sft([dataclasses.replace(ROW, response=(7, 8, 8))]).digest
