"""Who is evicted, and what is refused; random operations are in test_pages."""

import random
import time

import pytest

from stair_jax.engine.pages import OutOfPages, Pages
from stair_jax.engine.request import Prefix
from stair_jax.engine.sequences import Held, Store

SIZE = 4


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


def test_a_released_sequence_keeps_its_pages_until_the_last_request_has_left():
    store = Store(Pages(2), SIZE)
    sequence = Held(range(3))
    store.hold(sequence, store.take(1))
    sequence.users = 2
    store.release(sequence)
    store.leave(sequence)
    assert sequence.pages
    store.leave(sequence)
    assert sequence.pages == []
    assert sorted(store.pages.free) == [0, 1]


def test_a_sequence_of_one_token_needs_no_page():
    store = Store(Pages(1), SIZE)
    sequence = Held([5])
    assert sequence.computed
    store.take(1)
    assert store.fork(sequence, pinned=[sequence]) == ([], [])
    with pytest.raises(ValueError, match="not made by this engine"):
        store.held(Prefix([5]))


class PlainStore(Store):
    """Evicts by the rule itself: it looks at everything that is held, each time."""

    def __init__(self, pages, page_size):
        super().__init__(pages, page_size)
        self.order = []  # least recently used first

    def _evict(self, count, pinned):
        victims = [s for s in self.order if s not in pinned]
        for sequence in sorted(victims, key=lambda s: s.users > 0):
            if count <= len(self.pages.free):
                break
            self._drop(sequence)
            sequence.evicted = True
            self.evicted += 1

    def _touch(self, sequence):
        super()._touch(sequence)
        self.order = [s for s in self.order if s is not sequence] + [sequence]

    def _drop(self, sequence):
        super()._drop(sequence)
        self.order = [s for s in self.order if s is not sequence]


class Twins:
    """The same sequences in a store and in a plain one, under random operations."""

    def __init__(self, draw):
        self.draw, self.seen = draw, set()
        self.stores = Store(Pages(23), SIZE), PlainStore(Pages(23), SIZE)
        self.pairs = []

    def hold(self):
        tokens, failed = self.draw.randint(2, 4 * SIZE), []
        pinned = self.draw.sample(self.pairs, self.draw.randint(0, min(3, len(self.pairs))))
        pair = [Held(range(tokens)) for _ in self.stores]
        for side, (store, sequence) in enumerate(zip(self.stores, pair, strict=True)):
            try:
                pages = store.take(store.size(tokens - 1), [both[side] for both in pinned])
                store.hold(sequence, pages)
            except OutOfPages:
                failed.append(side)
        assert failed in ([], [0, 1])
        self.pairs += [] if failed else [pair]
        self.seen.add(f"failed {bool(failed)}")

    def use(self, pair):
        for store, sequence in zip(self.stores, pair, strict=True):
            if sequence.computed:  # whole pages only: that takes none
                whole = sequence.wanted // SIZE * SIZE
                store.pages.drop(store.fork(sequence, [], keys=whole)[0])

    def join(self, pair):
        for sequence in pair:
            sequence.users += 1

    def leave(self, pair):
        for store, sequence in zip(self.stores, pair, strict=True):
            if sequence.users:
                store.leave(sequence)

    def release(self, pair):
        self.pairs.remove(pair)
        for store, sequence in zip(self.stores, pair, strict=True):
            store.release(sequence)

    def operate(self):
        if len(self.pairs) < 3 or self.draw.random() < 0.4:
            self.hold()
        else:
            kinds = self.use, self.use, self.join, self.leave, self.release
            self.draw.choice(kinds)(self.draw.choice(self.pairs))

    def check(self):
        for ours, plain in self.pairs:
            assert ours.computed == plain.computed
            self.seen |= {f"in use {ours.users > 0}"} if ours.evicted else set()
        ours, plain = self.stores
        assert (len(ours._holding), ours.evicted) == (len(plain._holding), plain.evicted)


@pytest.mark.parametrize("seed", range(8))
def test_victims_are_those_of_the_plain_rule_in_its_order(seed):
    twins = Twins(random.Random(seed))
    for _ in range(600):
        twins.operate()
        twins.check()
    assert twins.stores[0].evicted > 50
    assert twins.seen >= {"in use True", "in use False", "failed False"}


def test_old_stamps_do_not_add_up():
    store = Store(Pages(9), SIZE)
    sequence = Held(range(SIZE + 1))
    store.hold(sequence, store.take(1))
    for _ in range(500):
        sequence.users += 1
        store.pages.drop(store.fork(sequence, [])[0])
        store.leave(sequence)
    assert len(store._unused) + len(store._used) < 150
    with pytest.raises(OutOfPages):
        store.take(10)
    assert (store.evicted, sequence.computed) == (1, False)


def test_an_eviction_does_not_look_at_all_that_is_held():
    took = []
    for held in (500, 50_000):
        store = Store(Pages(held), SIZE)
        for _ in range(held):
            store.hold(Held(range(3)), store.take(1))
        begun = time.process_time()
        for _ in range(400):
            store.take(1)
        took.append(time.process_time() - begun)
        assert store.evicted == 400
    assert took[1] < 10 * took[0]  # by looking at all, 100 times
