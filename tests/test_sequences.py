"""Page ownership under random operations: references add up, no page is lost or shared unawares."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from stair_jax.engine.pages import OutOfPages, Pages
from stair_jax.engine.sequences import Held, Store

COUNT, SIZE = 12, 4


class PageOwners(RuleBasedStateMachine):
    """Sequences are held, forked, released; slots (lists of pages) come and go."""

    def __init__(self):
        super().__init__()
        self.store = Store(Pages(COUNT), SIZE)
        self.sequences: list[Held] = []
        self.slots: list[list[int]] = []

    @rule(tokens=st.integers(1, 20))
    def hold(self, tokens):
        sequence = Held(range(tokens))
        try:
            pages = self.store.take(self.store.size(sequence.wanted))
        except OutOfPages:
            return
        self.store.hold(sequence, pages)
        self.sequences.append(sequence)

    @precondition(lambda self: any(s.computed for s in self.sequences))
    @rule(data=st.data())
    def fork(self, data):
        sequence = data.draw(st.sampled_from([s for s in self.sequences if s.computed]))
        before = list(sequence.pages)
        try:
            pages, copy = self.store.fork(sequence, pinned=[sequence])
        except OutOfPages:
            return
        whole, rest = divmod(sequence.wanted, SIZE)
        assert pages[:whole] == before[:whole]
        if rest:  # the page that will be written is its own
            assert copy == [before[whole], pages[whole]]
            assert self.store.pages.owners[pages[whole]] == 1
        self.slots.append(pages)

    @precondition(lambda self: self.slots)
    @rule(data=st.data(), tokens=st.integers(0, 6))
    def grow(self, data, tokens):
        slot = data.draw(st.sampled_from(range(len(self.slots))))
        try:
            self.slots[slot] += self.store.take(tokens)
        except OutOfPages:
            assert tokens > len(self.store.pages.free)

    @precondition(lambda self: self.slots)
    @rule(data=st.data())
    def end(self, data):
        slot = data.draw(st.sampled_from(range(len(self.slots))))
        self.store.pages.drop(self.slots.pop(slot))

    @precondition(lambda self: self.sequences)
    @rule(data=st.data())
    def release(self, data):
        sequence = data.draw(st.sampled_from(self.sequences))
        self.sequences.remove(sequence)
        self.store.release(sequence)

    @invariant()
    def references_add_up(self):
        pages = self.store.pages
        holders = [p for s in self.sequences for p in s.pages] + [p for s in self.slots for p in s]
        for page in range(COUNT):
            assert pages.owners[page] == holders.count(page)
        free = [page for page in range(COUNT) if pages.owners[page] == 0]
        assert sorted(pages.free) == free


PageOwners.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestPageOwners = PageOwners.TestCase


def test_eviction_takes_the_least_recently_used_and_spares_the_pinned():
    store = Store(Pages(3), SIZE)
    first, second, third = (Held(range(SIZE + 1)) for _ in range(3))
    for sequence in (first, second, third):
        store.hold(sequence, store.take(1))
    pages, copy = store.fork(first, pinned=[first])  # a use: now `second` is the oldest
    assert copy == []  # its one page is full
    store.pages.drop(pages)
    store.take(1)
    assert [s.computed for s in (first, second, third)] == [True, False, True]
    store.take(1, pinned=[third])
    assert [s.computed for s in (first, second, third)] == [False, False, True]
    assert store.evicted == 2


def test_sequences_that_requests_wait_for_are_evicted_last():
    store = Store(Pages(2), SIZE)
    waited_for, idle = Held(range(3)), Held(range(3))
    for sequence in (waited_for, idle):
        store.hold(sequence, store.take(1))
    waited_for.users = 1
    store.take(1)
    assert waited_for.computed
    assert not idle.computed


def test_double_release_and_free_pages_are_refused():
    pages = Pages(2)
    taken = pages.take(1)
    pages.drop(taken)
    with pytest.raises(RuntimeError, match="free"):
        pages.drop(taken)
    with pytest.raises(RuntimeError, match="free"):
        pages.share(taken)
    store = Store(pages, SIZE)
    sequence = Held(range(3))
    store.hold(sequence, store.take(1))
    store.release(sequence)
    with pytest.raises(ValueError, match="released"):
        store.held(sequence)
