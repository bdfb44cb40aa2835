import dataclasses

import numpy as np
import pytest

from stair_jax.data import examples, preview
from stair_jax.data.examples import ComparisonExample
from stair_jax.data.reward_batches import ComparisonData, ValuedData
from stair_jax.model.reward import Readout
from stair_jax.records import Label, ValuedTrajectory
from stair_jax.text import Codec
from tests.support.codecs import CODEC, EOS, OTHER_END, OUTPUT_END, STEP_END
from tests.support.reward_rows import COMPARISON, ROW
from tests.support.training import train_config

PAD = 0
PAIR = ComparisonExample(id="p", prompt=(5, 6), better=(7, 8, 9), worse=(4,), depth=2)


def label(tokens, value=0.0, **change):
    values = {"tokens": tokens, "depth": 1, "value": value, "weight": 1.0, "tag": "0.0"} | change
    return Label(**values)


VALUED = ValuedTrajectory(
    id="w",
    question="why",
    type="safety",
    ids=(7, STEP_END, 8, OUTPUT_END),
    labels=(label(2, 0.0), label(4, 3.0, depth=2, weight=5.0)),
)


def comparison_data(rows, shards=1, seed=0, **change):
    return ComparisonData(rows, train_config(**change), seed=seed, pad_id=PAD, row_shards=shards)


def valued_data(rows, shards=1, seed=0, **change):
    return ValuedData(rows, train_config(**change), seed=seed, pad_id=PAD, row_shards=shards)


def readout(**change):
    values = {"position": "step_end", "loss": "bce", "low": -3.0, "high": 3.0}
    return Readout(**(values | change))


# Examples.


@pytest.mark.parametrize(
    ("ids", "at_eos"),
    [
        ((7, STEP_END), (7, STEP_END, EOS)),  # unfinished ones too
        ((7, OUTPUT_END), (7, OUTPUT_END, EOS)),
        ((7, EOS), (7, EOS)),
        ((7, OTHER_END), (7, OTHER_END, EOS)),
    ],
)
def test_eos_stands_behind_every_trajectory_that_lacks_it(ids, at_eos):
    assert examples.read_to(ids, "eos", CODEC) == at_eos
    assert examples.read_to(ids, "step_end", CODEC) == ids


def token_read(tokens, read):
    return np.take_along_axis(tokens, read, axis=-1).tolist()


@pytest.mark.parametrize(
    ("position", "last"), [("eos", [EOS, EOS]), ("step_end", [STEP_END, STEP_END])]
)
def test_both_sides_of_a_comparison_are_read_at_their_exact_token(position, last):
    [row] = examples.comparison_examples([COMPARISON], CODEC, position)
    batch = comparison_data([row]).batch_at(0)
    tokens, read = batch.tokens[0, 0], batch.read[0, 0]
    assert token_read(tokens, read[:, None]) == [[x] for x in last]
    behind = position == "eos"
    assert read.tolist() == [2 + 4 - 1 + behind, 2 + 2 - 1 + behind]  # a prompt of two tokens
    assert tokens[0, : read[0] + 1].tolist() == [13, 11, 7, STEP_END, 8, STEP_END, *[EOS] * behind]
    assert (tokens[0, read[0] + 1 :] == PAD).all()
    assert batch.depth[0, 0] == 2


def test_a_trajectory_with_values_is_read_at_the_end_of_each_step():
    [row] = examples.valued_examples([VALUED], CODEC, readout())
    batch = valued_data([row]).batch_at(0)
    assert token_read(batch.tokens[0], batch.read[0]) == [[STEP_END, OUTPUT_END]]
    assert (row.targets, row.weights, row.depths) == ((0.5, 1.0), (1.0, 5.0), (1, 2))


def test_at_eos_a_row_is_read_once_at_its_end():
    one = dataclasses.replace(VALUED, labels=(label(4, 3.0),))
    [row] = examples.valued_examples([one], CODEC, readout(position="eos"))
    batch = valued_data([row]).batch_at(0)
    assert token_read(batch.tokens[0], batch.read[0]) == [[EOS]]
    with pytest.raises(ValueError, match=r"tree node w: a label after 2 of 4 tokens"):
        examples.valued_examples([VALUED], CODEC, readout(position="eos"))


def test_targets_are_scaled_by_the_range_and_values_beyond_it_are_refused():
    [row] = examples.valued_examples([VALUED], CODEC, readout(low=-1.0, high=7.0))
    assert row.targets == (0.125, 0.5)
    with pytest.raises(ValueError, match=r"tree node w: value 3.0, expected -1.0 to 1.0"):
        examples.valued_examples([VALUED], CODEC, readout(low=-1.0, high=1.0))


# Arrays.


def arrays(batch):
    """The arrays of a batch that has no layout, by name."""
    return {name: x for name, x in vars(batch).items() if name != "layout"}


def test_comparisons_by_hand():
    batch = comparison_data([PAIR], batch=1, shards=3).batch_at(0)
    assert {name: (x.shape, x.dtype) for name, x in arrays(batch).items()} == {
        "tokens": ((1, 3, 2, 7), np.int32),
        "read": ((1, 3, 2), np.int32),
        "weight": ((1, 3), np.float32),
        "depth": ((1, 3), np.int32),
    }
    np.testing.assert_array_equal(
        batch.tokens[0],
        [[[5, 6, 7, 8, 9, 0, 0], [5, 6, 4, 0, 0, 0, 0]], *[[[0] * 7] * 2] * 2],
    )
    np.testing.assert_array_equal(batch.read[0], [[4, 2], [0, 0], [0, 0]])
    np.testing.assert_array_equal(batch.weight, [[1, 0, 0]])
    np.testing.assert_array_equal(batch.depth, [[2, 0, 0]])
    np.testing.assert_array_equal(batch.lengths(), [[[5, 3], [0, 0], [0, 0]]])
    assert batch.real_tokens() == 8
    assert batch.padding_share() == 1 - 8 / 42


def test_values_by_hand():
    fuller = dataclasses.replace(
        ROW,
        id="f",
        response=(7,) * 4,
        reads=(3, 4, 5),
        targets=(0.0, 0.5, 0.75),
        weights=(1.0, 1.0, 2.0),
        depths=(1, 2, 3),
    )
    data = valued_data([ROW, fuller], batch=2, shards=3)
    batch, first = data.batch_at(0), data.rows_at(0).index(ROW)
    assert {name: (x.shape, x.dtype) for name, x in arrays(batch).items()} == {
        "tokens": ((1, 3, 7), np.int32),
        "read": ((1, 3, 3), np.int32),
        "start": ((1, 3), np.int32),
        "target": ((1, 3, 3), np.float32),
        "weight": ((1, 3, 3), np.float32),
        "depth": ((1, 3, 3), np.int32),
    }
    row = {name: x[0, first].tolist() for name, x in arrays(batch).items()}
    assert row == {
        "tokens": [5, 6, 7, 8, 9, 0, 0],
        "read": [2, 4, 0],
        "target": [0.25, 1.0, 0.0],
        "weight": [1.0, 3.0, 0.0],
        "depth": [1, 2, 0],
        "start": 2,
    }
    assert batch.target[0, 1 - first].tolist() == [0.0, 0.5, 0.75]
    assert not batch.weight[0, 2].any()
    assert sorted(batch.lengths()[0].tolist()) == [0, 5, 6]
    assert batch.real_tokens() == 11


def many(kind, n):
    rng = np.random.default_rng(0)
    sizes = rng.integers(1, 9, (n, 2)).tolist()
    rows = []
    for i, (a, b) in enumerate(sizes):
        one = {"id": str(i), "prompt": (5, 100 + i)}
        if kind is ComparisonData:
            rows.append(dataclasses.replace(PAIR, **one, better=(7,) * a, worse=(8,) * b))
        else:
            rows.append(dataclasses.replace(ROW, **one, response=(7,) * (a + 1), reads=(2, a + 2)))
    return rows


KINDS = [(ComparisonData, comparison_data, 2), (ValuedData, valued_data, 1)]


@pytest.mark.parametrize(("kind", "make", "sides"), KINDS)
def test_an_epoch_shows_every_row_once_in_few_shapes_within_the_budget(kind, make, sides):
    rows = many(kind, 30)
    data = make(rows, micro_tokens=22)
    shown = [x.id for step in range(data.steps_per_epoch) for x in data.rows_at(step)]
    assert sorted(shown) == sorted(x.id for x in rows)
    shapes = {data.batch_at(step).tokens.shape for step in range(data.steps_per_epoch)}
    assert {s[-1] for s in shapes} == {7, 11}
    assert all(s[1] * sides * s[-1] <= max(22, sides * 11) for s in shapes)
    assert len(shapes) == 2
    one_pass = make(rows, micro_tokens=4096).batch_at(0)
    assert one_pass.tokens.shape[0] == 1
    flat, whole = arrays(data.batch_at(0).joined()), arrays(one_pass.joined())
    for name, x in flat.items():  # the cut into passes moves no row
        np.testing.assert_array_equal(x[: len(whole[name])], whole[name][: len(x)])


@pytest.mark.parametrize(("kind", "make", "sides"), KINDS)
def test_a_stream_goes_on_where_its_state_says(kind, make, sides):
    rows = many(kind, 30)
    stream = make(rows).stream()
    seen = [next(stream) for _ in range(12)]
    again = make(rows).stream(5)
    np.testing.assert_array_equal(next(again).tokens, seen[5].tokens)
    state = again.get_state()
    other = make(rows).stream()
    other.set_state(state)
    want = arrays(seen[6])
    for name, x in arrays(next(other)).items():
        np.testing.assert_array_equal(x, want[name])
    assert any(
        (make(rows, seed=1).batch_at(i).tokens.tolist()) != seen[i].tokens.tolist()
        for i in range(4)
    )


@pytest.mark.parametrize(("kind", "make", "sides"), KINDS)
def test_whole_prompts_are_set_aside_and_too_long_rows_are_named(kind, make, sides):
    rows = many(kind, 12)
    long = dataclasses.replace(rows[0], id="long", prompt=(5,) * 11)
    data = make([*rows, long], eval_rows=4, batch=3)
    assert data.dropped == {"too long": ["long"]}
    assert len(data.eval_examples) == 4
    assert len(data.examples) == 8
    assert sum(
        int(np.sum(b.weight.reshape(-1, b.weight.shape[-1]) > 0)) for b in data.eval_batches()
    ) == 4 * (1 if sides == 2 else 2)


def test_what_compares_nothing_is_dropped():
    data = comparison_data([PAIR, dataclasses.replace(PAIR, id="e", worse=PAIR.better)])
    assert data.dropped == {"equal trajectories": ["e"]}
    empty = dataclasses.replace(ROW, id="e", response=(), reads=(1, 1))
    assert valued_data([ROW, empty]).dropped == {"empty response": ["e"]}


@pytest.mark.parametrize(
    ("make", "row", "changes"),
    [
        (comparison_data, PAIR, [{"depth": 1}, {"worse": (3,)}, {"id": "q"}]),
        (
            valued_data,
            ROW,
            [
                {"targets": (0.26, 1.0)},
                {"weights": (1.0, 3.5)},
                {"reads": (3, 4)},
                {"depths": (1, 3)},
                {"response": (7, 8, 10)},
            ],
        ),
    ],
)
def test_the_digest_sees_every_number_of_a_row(make, row, changes):
    rows = [dataclasses.replace(row, **change) for change in ({}, *changes)]
    digests = {make([x]).digest for x in rows}
    assert len(digests) == 1 + len(changes)
    assert make([row]).digest in digests


def test_all_rows_in_order_with_their_arrays():
    rows = many(ValuedData, 7)
    data = valued_data(rows, batch=3, eval_rows=2, micro_tokens=11, shards=2)
    seen = []
    for members, batch in data.in_order():
        tokens = batch.tokens.reshape(-1, batch.tokens.shape[-1])
        for row, flat in zip(members, tokens, strict=False):
            assert flat[: row.length].tolist() == [*row.prompt, *row.response]
        seen += [row.id for row in members]
    assert sorted(seen) == sorted(row.id for row in rows)


# Preview.


class Words(Codec):
    def __init__(self):
        pass

    def decode(self, ids):
        return "".join(f"<{i}>" for i in ids)


def lines(data, tmp_path):
    preview.show(data, Words(), tmp_path / "preview.txt")
    return (tmp_path / "preview.txt").read_text().splitlines()


def test_the_preview_shows_where_scores_are_read(tmp_path):
    assert lines(comparison_data([PAIR], shards=2), tmp_path) == [
        "row 1, better",
        "  context: '<5><6><7><8>'",
        "  read: '<9>'",
        "row 1, worse",
        "  context: '<5><6>'",
        "  read: '<4>'",
    ]
    assert lines(valued_data([ROW], shards=2), tmp_path) == [
        "row 1, values 0.25 1.00",
        "  context: '<5><6>'",
        "  read: '<7>'",
        "  context: '<8>'",
        "  read: '<9>'",
    ]
