"""Who is evicted, and what is refused; random operations are in test_pages."""

import pytest

from stair_jax.engine.pages import Pages
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
