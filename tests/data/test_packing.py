import dataclasses
import itertools

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stair_jax.data import packing
from stair_jax.data.examples import PairExample, SftExample
from tests.support.batches import ROW, dpo, pair, sft


def path_to(parent, index):
    """Indices from a piece's first token to `index`."""
    path = [index]
    while parent[path[-1]] != path[-1]:
        path.append(parent[path[-1]])
    return path[::-1]


def last(mask):
    return int(np.flatnonzero(mask)[-1])


def rows_of(batch):
    return list(batch.one_by_one())


def check_layout(row):
    """What a token sees is its path and nothing else; positions count along it."""
    width = len(row.tokens)
    see = np.arange(width)[None] <= np.arange(width)[:, None]
    see &= np.arange(width)[:, None] < row.layout.reach[None]
    for q in range(width):
        path = path_to(row.layout.parent, q)
        np.testing.assert_array_equal(np.flatnonzero(see[q]), path)
        assert row.layout.positions[q] == len(path) - 1


def decoded(batch):
    """(prompt and prefix, chosen, rejected, trained) of every pair; an anchor has no step."""
    found = []
    for row in rows_of(batch):
        for p in np.flatnonzero(row.sft_weight):
            steps, context = [], None
            for mask in row.step_mask[p]:
                if mask.any():
                    path = path_to(row.layout.parent, last(mask))
                    marked = [t for t in path if mask[t]]
                    assert len(marked) == mask.sum()  # nothing off the path
                    context = tuple(row.tokens[[t for t in path if not mask[t]]].tolist())
                    steps.append(tuple(row.tokens[marked].tolist()))
            trained = path_to(row.layout.parent, last(row.sft_mask[p]))
            assert set(np.flatnonzero(row.sft_mask[p])) <= set(trained)
            words = tuple(row.tokens[row.sft_mask[p]].tolist())
            found.append((context, *(steps or (None, None)), words, int(row.depth[p])))
    return sorted(found, key=repr)


def expected(rows):
    return sorted(
        [
            (x.prompt + x.prefix, x.chosen, x.rejected, x.prefix + x.chosen, x.depth)
            if isinstance(x, PairExample)
            else (None, None, None, x.response, 0)
            for x in rows
        ],
        key=repr,
    )


IDS = st.lists(st.integers(10, 14), min_size=1, max_size=4).map(tuple)


@st.composite
def forests(draw):
    """Pairs of a few prompts and prefixes, steps shared among them, and anchors."""
    pairs: list[dict] = []
    for q in range(draw(st.integers(1, 4))):
        prompt, prefix = (5, 20 + q % 3), draw(st.sampled_from([(), (7,), (7, 8)]))
        steps = draw(st.lists(IDS, min_size=2, max_size=4, unique=True))
        for chosen, rejected in itertools.combinations(steps, 2):
            pairs.append(
                {
                    "id": f"{q}-{len(pairs)}",
                    "prompt": prompt,
                    "prefix": prefix,
                    "chosen": chosen,
                    "rejected": rejected,
                    "depth": q,
                }
            )
    return pairs, draw(st.integers(0, 2))


@settings(deadline=None, max_examples=20)
@given(forest=forests(), batch=st.integers(1, 9), width=st.sampled_from([12, 20, 40]))
def test_trees_read_back_are_the_pairs(forest, batch, width):
    pairs = [PairExample(**row) for row in forest[0]]
    anchors = [dataclasses.replace(ROW, id=f"a{i}") for i in range(forest[1])]
    data = dpo(
        pairs,
        anchors,
        per_pair=0.5,
        batching="tree",
        batch=batch,
        buckets=(width,),
        micro_tokens=2 * width,
    )
    assert not data.dropped
    for step in range(data.steps_per_epoch):
        out = data.batch_at(step)
        assert decoded(out) == expected(data.rows_at(step))
        for row in rows_of(out):
            check_layout(row)


@settings(deadline=None, max_examples=15)
@given(sizes=st.lists(st.integers(3, 9), min_size=1, max_size=12), batch=st.integers(1, 6))
def test_packed_rows_read_back_are_the_examples(sizes, batch):
    examples = [
        SftExample(id=str(i), prompt=(5, 20 + i), response=tuple(range(30, 28 + n)))
        for i, n in enumerate(sizes)
    ]
    data = sft(examples, batch=batch, buckets=(9, 18), batching="pack", micro_tokens=18)
    for step in range(data.steps_per_epoch):
        found = []
        out = data.batch_at(step)
        for row in rows_of(out):
            check_layout(row)
            assert row.layout is not None
            mask, parent = row.loss_mask, row.layout.parent
            for end in np.flatnonzero(mask):
                if end + 1 < len(mask) and mask[end + 1] and parent[end + 1] == end:
                    continue
                path = path_to(parent, end)
                sides = [t for t in path if not mask[t]], [t for t in path if mask[t]]
                found.append(tuple(tuple(row.tokens[side].tolist()) for side in sides))
        rows = [x for x in data.rows_at(step) if isinstance(x, SftExample)]
        assert sorted(found) == sorted((x.prompt, x.response) for x in rows)
        weight = out.weight.ravel()
        assert (np.diff(weight) <= 0).all()  # rows in use come first


@settings(deadline=None, max_examples=30)
@given(sizes=st.lists(st.integers(2, 10), max_size=20), width=st.integers(10, 25))
def test_rows_never_exceed_their_width_and_hold_every_piece_once(sizes, width):
    pieces = [packing.Piece((i,), ((7,) * (n - 1),), ()) for i, n in enumerate(sizes)]
    rows = packing.fit(pieces, width)
    assert all(sum(piece.length for piece in row) <= width for row in rows)
    assert sorted(piece.context for row in rows for piece in row) == [
        (i,) for i in range(len(sizes))
    ]
    # First fit leaves no two rows that could be one.
    loads = sorted(sum(piece.length for piece in row) for row in rows)
    assert len(loads) < 2 or loads[0] + loads[1] > width
    if sizes:
        with pytest.raises(ValueError, match="a piece of 30 tokens, expected"):
            packing.fit([packing.Piece((1,) * 30, (), ())], width)


def test_a_group_shares_context_and_steps_once():
    pairs = [
        pair(0),
        pair(1),
        pair(2, rejected=(8, 9, 10)),
    ]  # the last rejects what the first chose
    data = dpo(pairs, batching="tree", batch=3, buckets=(9, 20))
    batch = data.batch_at(0)
    tokens = batch.tokens.ravel()
    # 5 6 7, then five distinct steps' tokens: (8 9 10) (11) (8 9 11) (8 9 12).
    assert np.sum(tokens != 0) == 3 + 3 + 1 + 3 + 3
    assert batch.tokens.shape == (1, 1, 20)
    assert batch.step_mask.shape == (1, 1, 3, 2, 20)
    assert sorted(batch.depth.ravel()) == [3, 3, 3]


def test_a_group_beyond_the_last_bucket_becomes_several_pieces_of_one_step():
    pairs = [pair(i, prefix=(7,) * 3) for i in range(6)]
    data = dpo(pairs, batching="tree", batch=2, buckets=(13,))
    assert len(data.pieces(np.arange(6))) == 3  # two pairs each: 5 + 3 + 3 + 1
    assert data.steps_per_epoch == 1  # groups are not split, whatever `batch` says
    assert decoded(data.batch_at(0)) == expected(pairs)


def test_packed_shapes_are_one_program_for_the_whole_run():
    rng = np.random.default_rng(1)
    pairs = [
        pair(i, id=f"{q}/{i}", prompt=(5, 20 + q))
        for q in range(30)
        for i in range(rng.integers(1, 6))
    ]
    data = dpo(pairs, batching="tree", batch=8, buckets=(12, 24), micro_tokens=48, epochs=3.0)
    shapes = {
        tuple(x.shape for x in jax.tree.leaves(data.batch_at(step)))
        for step in range(3 * data.steps_per_epoch)
    }
    assert len(shapes) == 1
    used = [data.batch_at(s).filled for s in range(3 * data.steps_per_epoch)]
    assert all((np.diff(x.astype(int)) <= 0).all() for x in used)  # empty micro-batches come last
    assert any(x.all() for x in used)  # no larger than the fullest batch needs


def test_a_batch_that_was_not_planned_still_fits():
    planned = packing.Packer.plan([[packing.chain(ROW, 0)]], (6, 12), lambda w, n: (n, 1), 0)
    assert (planned.width, planned.passes, planned.micro, planned.slots) == (6, 1, 1, 1)
    out = planned.pack([packing.chain(ROW, i) for i in range(3)])
    assert out.tokens.shape == (3, 6)
    assert out.passes == 3
    assert [(at, slot.row) for at, slot in out.slots.items()] == [((i, 0), i) for i in range(3)]
