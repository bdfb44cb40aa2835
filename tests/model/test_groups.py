"""Reading a shared prefix once gives what reading it for every sibling does."""

import dataclasses
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stair_jax.engine.device import Device
from stair_jax.engine.siblings import TOGETHER, Siblings
from stair_jax.model.groups import SharedPrefixCache
from tests.support import paged
from tests.support.paged import L, Z

SLOTS, WIDTH = 9, 8


def siblings_of(shared, table, page_size, counts):
    """`Siblings.of` of each slot's (group, tokens in common), or None."""
    numbers = {common: number for number, common in enumerate(dict.fromkeys(filter(None, shared)))}
    team = np.array([-1 if common is None else numbers[common] for common in shared])
    tokens = np.array([0 if common is None else common[1] for common in shared], np.int32)
    return Siblings.of(team, tokens, table, page_size, counts)


def family(N, K, *, seed, teams, whole, length):
    """A case whose teams of slots have their first `whole` pages in common."""
    case = paged.case(N, K, seed=seed, slots=SLOTS, width=WIDTH)
    for team, pages in zip(teams, whole, strict=True):
        case.table[team, :pages] = case.table[team[0], :pages]
    case.length[:], case.count[:] = length, np.array(length) > 0
    return case


def counts_of(slots, attention="xla"):
    """What the device compiles for."""
    config = SimpleNamespace(slots=slots)
    fget: Any = Device.group_counts.fget
    return fget(SimpleNamespace(attention=attention, _config=config))


COUNTS = [2, 4, 9]  # of nine slots


def groups(case, siblings):
    arrays: Any = siblings.arrays()
    return SharedPrefixCache(case.pool, **arrays)


def both(case, shared, steps=3):
    """Outputs and pool at the end: of groups, and of slots on their own."""
    siblings = siblings_of(shared, case.table, Z, counts_of(len(case.table)))
    grouped, alone = groups(case, siblings), SharedPrefixCache(case.pool)
    outs = []
    for step in range(steps):
        for layer in range(L):
            rows, token = case.after(step), case.token(step)
            own = dataclasses.replace(rows, table=jnp.asarray(siblings.own))
            out, grouped = paged.attend(grouped, layer, own, *token)
            want, alone = paged.attend(alone, layer, rows, *token)
            outs.append((out[case.active], want[case.active]))
    jax.tree.map(np.testing.assert_array_equal, grouped.pool, alone.pool)
    assert (np.asarray(grouped.pool.k) != case.pool.k).any()
    return np.array(outs), siblings


TEAMS = [[0, 3, 5, 8], [1], [2, 7], [4]]
LENGTHS = [9, 8, 20, 8, 3, 11, 0, 24, 29]  # team 0 at, over and far over its 8 tokens; 6 is idle


@pytest.mark.parametrize(("N", "K"), paged.GQA.values(), ids=paged.GQA)
def test_sharing_equals_not_sharing(N, K):
    """Groups of four, one and two, a slot without one, an idle slot, splits at a length."""
    case = family(N, K, seed=0, teams=TEAMS[:3], whole=[2, 2, 5], length=LENGTHS)
    common = {0: 8, 1: 8, 2: 20}
    shared = [
        next(((t, common[t]) for t in common if slot in TEAMS[t]), None) for slot in range(SLOTS)
    ]
    outs, siblings = both(case, shared)
    assert siblings.length.tolist() == [8, 8, 20, 0]
    assert (case.length >= siblings.split).all()
    assert (case.length == siblings.split).sum() == 4  # the new token is all they have of their own
    np.testing.assert_allclose(outs[:, 0], outs[:, 1], rtol=1e-5, atol=1e-5)
    # What is shared is read from the group's table: another prefix there gives another answer.
    other = dataclasses.replace(siblings, table=siblings.table + 1)
    rows = dataclasses.replace(case.rows, table=jnp.asarray(siblings.own))
    out = paged.attend(groups(case, other), 0, rows, *case.token(0))[0]
    moved = np.abs(np.asarray(out)[case.active] - outs[0, 0]).max(axis=(1, 2, 3)) > 1e-3
    assert moved.tolist() == (siblings.split[case.active] > 0).tolist()


def test_two_groups_may_have_the_same_prefix_and_a_group_may_be_split_in_two():
    case = family(4, 2, seed=1, teams=[list(range(9))], whole=[3], length=[15] * 9)
    outs, siblings = both(case, [("a", 12)] * 6 + [("b", 12)] * 2 + [None])
    assert (siblings.length == 12).sum() == 3
    assert (siblings.table[:3, :3] == case.table[0, :3]).all()
    np.testing.assert_allclose(outs[:, 0], outs[:, 1], rtol=1e-5, atol=1e-5)


def test_random_families():
    rng = np.random.default_rng(0)
    for seed in range(8):
        order = rng.permutation(SLOTS).tolist()
        cuts = sorted(rng.choice(np.arange(1, SLOTS), size=3, replace=False).tolist())
        teams = [order[a:b] for a, b in zip([0, *cuts], [*cuts, SLOTS], strict=True)]
        whole = rng.integers(0, WIDTH - 2, size=4)
        length = np.zeros(SLOTS, int)
        for team, pages in zip(teams, whole, strict=True):
            length[team] = rng.integers(pages * Z, WIDTH * Z - 4, size=len(team))
        case = family(4, 2, seed=seed, teams=teams, whole=whole, length=length)
        shared: list = [None] * SLOTS
        for name, (team, pages) in enumerate(zip(teams, whole, strict=True)):
            for slot in team:  # not always whole pages, and not always known to be siblings
                if length[slot] and rng.random() < 0.8:
                    shared[slot] = name, int(pages * Z)
        outs, siblings = both(case, shared, steps=2)
        assert (siblings.split > 0).any()
        np.testing.assert_allclose(outs[:, 0], outs[:, 1], rtol=1e-5, atol=1e-5)


# Who shares what

TABLE = np.arange(SLOTS * WIDTH, dtype=np.int32).reshape(SLOTS, WIDTH)


def teams_of(siblings):
    return [[slot for slot in row if slot < SLOTS] for row in siblings.member.tolist()]


def test_slots_with_the_same_group_are_grouped_and_strangers_are_not():
    shared = [("a", 9), None, ("b", 8), ("a", 9), ("a", 8), ("c", 3), None, ("b", 8), ("d", 12)]
    found = siblings_of(shared, TABLE, Z, COUNTS)
    # "a" with 9 and with 8 tokens in common is not the same; "c" has no whole page.
    assert teams_of(found) == [[0, 3], [2, 7], [4], [8]]
    assert found.length.tolist() == [8, 8, 8, 12]
    assert found.split.tolist() == [8, 0, 8, 8, 8, 0, 0, 8, 12]
    for slot, split in enumerate(found.split):
        pages = split // Z
        if split:
            group, seat = divmod(int(found.place[slot]), TOGETHER)
            assert found.member[group, seat] == slot
            first = found.member[group, 0]
            assert found.table[group, :pages].tolist() == TABLE[first, :pages].tolist()
        assert found.own[slot, : WIDTH - pages].tolist() == TABLE[slot, pages:].tolist()
        assert not set(found.own[slot, : WIDTH - pages]) & set(TABLE[slot, :pages])


def test_more_siblings_than_fit_form_another_group():
    found = siblings_of([("a", 5)] * SLOTS, TABLE, Z, COUNTS)
    assert teams_of(found) == [[0, 1, 2, 3], [4, 5, 6, 7], [8], []]
    assert found.length.tolist() == [4, 4, 4, 0]


def test_nobody_shares_where_no_slot_has_a_group():
    found = siblings_of([None] * SLOTS, TABLE, Z, COUNTS)
    assert not found.split.any()
    assert not found.length.any()
    assert (found.member == SLOTS).all()
    np.testing.assert_array_equal(found.own, TABLE)


@pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 5, 9])
def test_shapes_are_few_and_known_beforehand(count):
    shared = [(slot, 4) if slot < count else None for slot in range(SLOTS)]
    found = siblings_of(shared, TABLE, Z, COUNTS)
    groups = len(found.length)
    assert groups == (2 if count <= 2 else 4 if count <= 4 else 9)
    assert found.table.shape == (groups, WIDTH)
    assert found.member.shape == (groups, TOGETHER)
    assert found.place.shape == found.split.shape == (SLOTS,)
    assert found.own.shape == (SLOTS, WIDTH)

    def shapes(siblings):
        arrays = dataclasses.asdict(siblings).values()
        return [(x.shape, x.dtype) for x in arrays]

    assert shapes(found) == shapes(Siblings.empty(groups, SLOTS, WIDTH))
    assert set(found.arrays()) == {"table", "length", "member", "place", "split"}


@pytest.mark.parametrize("slots", [1, 2, 3, 5, 256])
def test_every_number_of_slots_finds_a_shape(slots):
    counts = counts_of(slots)
    assert len(counts) <= 3
    assert counts[-1] == slots
    table = np.zeros((slots, WIDTH), np.int32)
    found = siblings_of([(slot, Z) for slot in range(slots)], table, Z, counts)
    assert sorted(found.member[found.member < slots].tolist()) == list(range(slots))


def test_with_the_kernel_the_number_of_groups_does_not_follow_the_company():
    assert counts_of(9) == COUNTS
    assert counts_of(9, "pallas") == [9]
