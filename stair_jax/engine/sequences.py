"""Sequences and the pages that hold their keys: fork, share, evict. Host side only."""

import heapq
from collections.abc import Collection, Sequence

from stair_jax.engine.pages import Pages
from stair_jax.engine.request import Prefix


class Held(Prefix):
    """A prefix with its pages. Keys are there for all ids but the last one, or for none.

    It may have a `base`, a sequence of the same store whose keys it can read: those of the first
    `common` tokens, which are equal in both.
    """

    def __init__(self, ids: Sequence[int], pages: Sequence[int] = ()):
        super().__init__(ids)
        self.pages = list(pages)
        self.base: Held | None = None
        self.common = 0
        self.users = 0  # requests queued or running on it, and sequences that wait for its keys
        self.waits = False  # for keys of its base, of which it is a user until it has its own
        self.released = False  # by its owner
        self.evicted = False  # once, at least
        self.stamp = 0  # rises with every use; the store's name for it while it holds pages

    @property
    def wanted(self) -> int:
        """Tokens whose keys a continuation reads."""
        return len(self.ids) - 1

    @property
    def computed(self) -> bool:
        """True where the keys are there."""
        return bool(self.pages) or self.wanted == 0

    @property
    def source(self) -> tuple["Held | None", int]:
        """The sequence to compute this one from, and how many of its keys; (None, 0) for none.

        One without keys is worth computing first where others will read them too: where others
        wait for it, or it is young and its owner still has it.
        """
        base, common = self.base, self.common
        while base is not None and not base.computed:
            if base.users > 1 or not (base.released or base.evicted):
                break
            base, common = base.base, min(common, base.common)
        keys = 0 if base is None else min(common, base.wanted)
        return (base, keys) if keys else (None, 0)


class Store:
    """All sequences that hold pages, and in which order they would lose them.

    Sequences that no request waits for go first, the least recently used of them first. Two heaps
    of stamps say so; what changes between the two is found out when it comes up, so that a use
    costs one push, and an eviction what a heap does, however many sequences there are.
    """

    def __init__(self, pages: Pages, page_size: int):
        self.pages, self.page_size = pages, page_size
        self.evicted = 0
        self._holding: dict[int, Held] = {}  # by stamp, the least recently used first
        self._stamp = 0  # the last one given
        self._unused: list[int] = []  # stamps of all without users, and of others, old ones too
        self._used: list[int] = []  # stamps of all that came up above and had users

    def held(self, prefix: Prefix) -> Held:
        """Returns the prefix as this store's own.

        Raises:
          ValueError: where it was released, or comes from elsewhere.
        """
        if not isinstance(prefix, Held) or prefix.released:
            raise ValueError("prefix: released already, or not made by this engine")
        return prefix

    def size(self, tokens: int) -> int:
        """Returns how many pages `tokens` tokens need."""
        return -(-tokens // self.page_size)

    def take(self, count: int, pinned: Collection[Held] = ()) -> list[int]:
        """Takes pages, evicting sequences that are not pinned where it must.

        Raises:
          OutOfPages: where even that frees too few.
        """
        if count > len(self.pages.free):
            self._evict(count, pinned)
        return self.pages.take(count)

    def _evict(self, count: int, pinned: Collection[Held]) -> None:
        """Evicts sequences until so many pages are free, or none is left that may go."""
        spared = {sequence.stamp for sequence in pinned}
        for heap in (self._unused, self._used):
            aside = []
            while heap and count > len(self.pages.free):
                stamp = heapq.heappop(heap)
                sequence = self._holding.get(stamp)
                if sequence is None:
                    continue  # it was used again since, or holds nothing any more
                if stamp in spared:
                    aside.append(stamp)
                elif sequence.users > 0 and heap is self._unused:
                    heapq.heappush(self._used, stamp)
                else:
                    self._drop(sequence)
                    sequence.evicted = True
                    self.evicted += 1
            for stamp in aside:
                heapq.heappush(heap, stamp)

    def hold(self, sequence: Held, pages: Sequence[int]) -> None:
        """Hands `pages` over to a sequence."""
        sequence.pages = list(pages)
        if pages:
            self._touch(sequence)

    def _touch(self, sequence: Held) -> None:
        """Makes a sequence that holds pages the most recently used."""
        self._holding.pop(sequence.stamp, None)
        self._stamp += 1
        sequence.stamp = self._stamp
        self._holding[sequence.stamp] = sequence
        self._may_go(sequence)

    def _may_go(self, sequence: Held) -> None:
        """Puts a sequence where eviction looks first."""
        heapq.heappush(self._unused, sequence.stamp)
        for heap in (self._unused, self._used):
            if len(heap) > 2 * len(self._holding) + 64:  # old stamps must not add up
                heap[:] = sorted(set(heap) & self._holding.keys())

    def extend(self, sequence: Held, base: Held, common: int) -> Held:
        """Makes `sequence`, which is new, a user of a base with `common` equal first tokens."""
        sequence.base, sequence.common, sequence.waits = base, common, True
        base.users += 1
        return sequence

    def fork(
        self, sequence: Held, pinned: Collection[Held], keys: int | None = None, tokens: int = 0
    ) -> tuple[list[int], list[int]]:
        """Returns pages that continue `sequence`, and [source, target] of the copy it takes.

        Whole pages are shared; a page partly filled is copied, because two continuations would
        write to it. No copy is needed where the last page is full.

        Args:
          keys: how many of its keys they are to hold; None for all.
          tokens: how many the pages must have room for, if that is more than the copy gives.

        Raises:
          OutOfPages: where they cannot be had; nothing is taken then.
        """
        whole, rest = divmod(sequence.wanted if keys is None else keys, self.page_size)
        fresh = self.take(max(1 if rest else 0, self.size(tokens) - whole), pinned)
        shared = sequence.pages[:whole]
        self.pages.share(shared)
        if sequence.stamp in self._holding:
            self._touch(sequence)
        return shared + fresh, [sequence.pages[whole], fresh[0]] if rest else []

    def settle(self, sequence: Held) -> None:
        """Ends a sequence's use of its base, if it still waits for that one's keys."""
        if sequence.waits:
            assert sequence.base is not None
            sequence.waits = False
            self.leave(sequence.base)

    def release(self, sequence: Held) -> None:
        """Ends the owner's hold; pages go when the last request has left too."""
        sequence.released = True
        if sequence.users == 0:
            self._end(sequence)

    def leave(self, sequence: Held) -> None:
        """Ends a request's use."""
        sequence.users -= 1
        if sequence.users == 0 and sequence.released:
            self._end(sequence)
        elif sequence.users == 0 and sequence.stamp in self._holding:
            self._may_go(sequence)

    def _end(self, sequence: Held) -> None:
        self._drop(sequence)
        self.settle(sequence)

    def _drop(self, sequence: Held) -> None:
        self._holding.pop(sequence.stamp, None)
        self.pages.drop(sequence.pages)
        sequence.pages = []
