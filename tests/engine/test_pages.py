"""Pages and sequences under random operations, next to a model that knows what every page holds."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from stair_jax.engine.pages import OutOfPages, Pages
from stair_jax.engine.sequences import Held, Store

COUNT, SIZE = 9, 4


class Run:
    """A continuation: `pages` for the keys of `keys`, and what it was forked from."""

    def __init__(self, source, keys, pages):
        self.source, self.keys, self.pages = source, keys, pages


class PagesAndSequences(RuleBasedStateMachine):
    """Plays the engine: every key is a number of its own, and is looked for where it was put."""

    def __init__(self):
        super().__init__()
        self.pages = Pages(COUNT)
        self.store = Store(self.pages, SIZE)
        self.content = [[None] * SIZE for _ in range(COUNT)]
        self.keys: dict[Held, list[int]] = {}  # of sequences not released, or still in use
        self.recent: list[Held] = []  # that hold pages, least recently used first
        self.runs: list[Run] = []
        self.evicted = self.stamp = 0

    # What is to happen, in plain words

    def holders(self, page, without=()):
        lists = [s.pages for s in self.keys if s not in without] + [r.pages for r in self.runs]
        return sum(pages.count(page) for pages in lists)

    def victims(self, count, pinned):
        """Who has to go so that `count` pages are free, and whether that is enough."""
        free = lambda gone: sum(self.holders(page, gone) == 0 for page in range(COUNT))  # noqa: E731
        idle = [s for s in self.recent if not s.users and s not in pinned]
        waited_for = [s for s in self.recent if s.users and s not in pinned]
        gone: list[Held] = []
        for sequence in idle + waited_for:
            if free(gone) >= count:
                break
            gone.append(sequence)
        return gone, free(gone) >= count

    def take(self, what, count, pinned):
        """Returns what `what` does after checking who was evicted for it; None without pages."""
        gone, enough = self.victims(count, pinned)
        if enough:
            found = what()
        else:
            with pytest.raises(OutOfPages):
                what()
            found = None
        for sequence in gone:
            assert sequence.pages == []
            self.recent.remove(sequence)
        self.evicted += len(gone)
        return found

    def write(self, pages, keys, start):
        """Puts keys from `start` on into pages that nobody else holds."""
        for at in range(start, len(keys)):
            page = pages[at // SIZE]
            assert self.pages.owners[page] == 1
            self.content[page][at % SIZE] = keys[at]

    def fresh(self, count):
        self.stamp += count
        return list(range(self.stamp - count, self.stamp))

    def forget(self, sequence):
        """After `release` or `leave`: it may be gone for good."""
        if sequence.released and not sequence.users:
            del self.keys[sequence]
            self.recent = [s for s in self.recent if s is not sequence]
            assert sequence.pages == []

    def pick(self, data, some):
        return data.draw(st.sampled_from(some))

    # Operations

    @rule(tokens=st.integers(1, 20))
    def root(self, tokens):
        self.keys[Held(range(tokens))] = self.fresh(tokens - 1)

    @precondition(lambda self: any(not s.computed for s in self.keys))
    @rule(data=st.data())
    def compute(self, data):
        sequence = self.pick(data, [s for s in self.keys if not s.computed])
        pinned = [sequence, *data.draw(st.lists(st.sampled_from(list(self.keys)), max_size=2))]
        count = self.store.size(sequence.wanted)
        pages = self.take(lambda: self.store.take(count, pinned), count, pinned)
        if pages is None:
            return
        self.store.hold(sequence, pages)
        self.write(pages, self.keys[sequence], 0)
        self.recent.append(sequence)

    @precondition(lambda self: any(not s.released for s in self.keys))
    @rule(data=st.data())
    def use(self, data):
        """A request is queued."""
        self.pick(data, [s for s in self.keys if not s.released]).users += 1

    @precondition(lambda self: any(s.computed and self.queued(s) for s in self.keys))
    @rule(data=st.data())
    def fork(self, data):
        """A queued request starts."""
        sequence = self.pick(data, [s for s in self.keys if s.computed and self.queued(s)])
        whole, rest = divmod(sequence.wanted, SIZE)
        before = list(sequence.pages)
        fork = lambda: self.store.fork(sequence, [sequence])  # noqa: E731
        found = self.take(fork, 1 if rest else 0, [sequence])
        if found is None:
            return
        pages, copy = found
        assert pages[:whole] == before[:whole]
        assert len(pages) == whole + bool(rest)
        assert copy == ([before[whole], pages[whole]] if rest else [])
        if copy:  # the page that will be written is its own
            assert self.holders(pages[whole]) == 0
            self.content[copy[1]] = list(self.content[copy[0]])
        if sequence in self.recent:
            self.recent.remove(sequence)
            self.recent.append(sequence)
        self.runs.append(Run(sequence, list(self.keys[sequence]), pages))

    @precondition(lambda self: self.runs)
    @rule(data=st.data(), tokens=st.integers(1, 9))
    def decode(self, data, tokens):
        run = self.pick(data, self.runs)
        missing = max(0, self.store.size(len(run.keys) + tokens) - len(run.pages))
        pages = self.take(lambda: self.store.take(missing), missing, [])
        if pages is not None:
            run.pages += pages
            start = len(run.keys)
            run.keys += self.fresh(tokens)
            self.write(run.pages, run.keys, start)

    @precondition(lambda self: self.runs)
    @rule(data=st.data(), spare=st.integers(0, 2))
    def deliver(self, data, spare):
        """A request ends: its pages become a sequence's, and it leaves the one it came from."""
        run = self.pick(data, self.runs)
        if spare <= len(self.pages.free):
            run.pages += self.store.take(spare)  # reserved for tokens that never came
        used = self.store.size(len(run.keys))
        self.runs.remove(run)
        self.pages.drop(run.pages[used:])
        sequence = Held(range(len(run.keys) + 1))
        self.store.hold(sequence, run.pages[:used])
        self.keys[sequence] = run.keys
        self.recent += [sequence] if used else []
        self.store.leave(run.source)
        self.forget(run.source)

    @precondition(lambda self: self.runs)
    @rule(data=st.data(), again=st.booleans())
    def withdraw(self, data, again):
        """A request is preempted, or cancelled."""
        run = self.pick(data, self.runs)
        self.runs.remove(run)
        self.pages.drop(run.pages)
        if not again:
            self.store.leave(run.source)
            self.forget(run.source)

    @precondition(lambda self: any(self.queued(s) for s in self.keys))
    @rule(data=st.data())
    def cancel(self, data):
        sequence = self.pick(data, [s for s in self.keys if self.queued(s)])
        self.store.leave(sequence)
        self.forget(sequence)

    def queued(self, sequence):
        """Requests on a sequence that do not run."""
        return sequence.users - sum(run.source is sequence for run in self.runs)

    @precondition(lambda self: any(not s.released for s in self.keys))
    @rule(data=st.data())
    def release(self, data):
        sequence = self.pick(data, [s for s in self.keys if not s.released])
        self.store.release(self.store.held(sequence))
        self.forget(sequence)
        with pytest.raises(ValueError, match="released"):
            self.store.held(sequence)

    # What must hold after each of them

    @invariant()
    def references_add_up(self):
        for page in range(COUNT):
            assert self.pages.owners[page] == self.holders(page)

    @invariant()
    def the_free_list_is_exact(self):
        free = [page for page in range(COUNT) if self.holders(page) == 0]
        assert sorted(self.pages.free) == free
        assert self.pages.high_water <= COUNT

    @invariant()
    def every_key_is_where_its_sequence_looks_for_it(self):
        found = [(s.pages, self.keys[s]) for s in self.keys if s.pages]
        found += [(run.pages, run.keys) for run in self.runs]
        for pages, keys in found:
            assert keys == [self.content[pages[at // SIZE]][at % SIZE] for at in range(len(keys))]

    @invariant()
    def only_who_may_be_evicted_was(self):
        assert self.store.evicted == self.evicted
        assert {s for s in self.keys if s.pages} == set(self.recent)

    def teardown(self):
        for run in self.runs:
            self.pages.drop(run.pages)
            self.store.leave(run.source)
        self.runs = []
        for sequence in list(self.keys):
            while self.queued(sequence):
                self.store.leave(sequence)
            if not sequence.released:
                self.store.release(sequence)
        assert not any(self.pages.owners)


PagesAndSequences.TestCase.settings = settings(
    max_examples=150, stateful_step_count=50, deadline=None
)
TestPagesAndSequences = PagesAndSequences.TestCase


def test_pages_come_lowest_first_and_all_or_none():
    pages = Pages(4)
    assert pages.take(3) == [0, 1, 2]
    with pytest.raises(OutOfPages, match="2 pages wanted, 1 free"):
        pages.take(2)
    assert pages.free == [3]
    assert pages.high_water == 3
    pages.drop([1])
    assert sorted(pages.take(2)) == [1, 3]
    assert pages.high_water == 4
