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


@pytest.mark.parametrize("seed", range(8))
def test_victims_are_those_of_the_plain_rule_in_its_order(seed):
    draw, stores = random.Random(seed), [kind(Pages(23), SIZE) for kind in (Store, PlainStore)]
    pairs, seen = [], set()  # the same sequence in either store
    for _ in range(600):
        what, users = draw.random(), draw.random() < 0.5
        pair = draw.choice(pairs) if pairs else None
        pinned = draw.sample(pairs, draw.randint(0, min(3, len(pairs))))
        if what < 0.3 or pair is None:
            tokens, failed = draw.randint(2, 4 * SIZE), []
            pair = [Held(range(tokens)) for _ in stores]
            for side, (store, sequence) in enumerate(zip(stores, pair, strict=True)):
                try:
                    pages = store.take(store.size(tokens - 1), [both[side] for both in pinned])
                    store.hold(sequence, pages)
                except OutOfPages:
                    failed.append(side)
            assert failed in ([], [0, 1])
            seen.add(f"failed {bool(failed)}")
            if not failed:
                pairs.append(pair)
        elif what < 0.5 and pair[0].computed:
            for store, sequence in zip(stores, pair, strict=True):  # a use that takes no page
                store.pages.drop(store.fork(sequence, [], keys=sequence.wanted // SIZE * SIZE)[0])
        elif what < 0.75:
            for store, sequence in zip(stores, pair, strict=True):
                if users:
                    sequence.users += 1
                elif sequence.users:
                    store.leave(sequence)
        elif what < 0.85:
            pairs.remove(pair)
            for store, sequence in zip(stores, pair, strict=True):
                store.release(sequence)
        assert [[s.computed for s in pair] for pair in pairs] == [
            [s.computed for s in pair[1:] * 2] for pair in pairs
        ]
        held = [[len(s._holding), s.evicted, len(s.pages.free)] for s in stores]
        assert held[0] == held[1]
        seen |= {f"in use {s.users > 0}" for s, _ in pairs if s.evicted}
    assert stores[0].evicted > 50
    assert seen >= {"in use True", "in use False", "failed False"}


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
