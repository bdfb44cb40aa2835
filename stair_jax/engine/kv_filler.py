"""Computes the keys that sequences lack, as many at once as there are pages for. Host side only."""

import dataclasses
import itertools
from collections.abc import Callable, Sequence

from stair_jax.engine.pages import OutOfPages
from stair_jax.engine.prefill import shapes
from stair_jax.engine.sequences import Held, Store


@dataclasses.dataclass(frozen=True)
class Job:
    """A sequence that has pages and lacks the keys of its tokens from `start` on."""

    sequence: Held
    base: Held | None  # whose pages it shares, up to `start`
    start: int
    copy: list[int]  # [source, target] of the page that base has partly filled; [] for none
    level: int  # all jobs of lower levels come first

    @property
    def ids(self) -> tuple[int, ...]:
        """The tokens whose keys are computed."""
        return self.sequence.ids[self.start : self.sequence.wanted]


class KvFiller:
    """Gives sequences pages, and fills them.

    Args:
      rows: sequences that one call computes.
      extend: computes the keys of jobs that are alike in their blocks and, where they have a
        start, in the bucket of their pages.
      copy: copies pages, [source, target] each.
      bucket: see `PagedModel.bucket`.
    """

    def __init__(
        self,
        store: Store,
        *,
        rows: int,
        extend: Callable[[Sequence[Job]], None],
        copy: Callable[[Sequence[Sequence[int]]], None],
        bucket: Callable[[int], int],
    ):
        self.prefilled = 0  # tokens computed
        self.reused = 0  # tokens whose keys those could read
        self._store, self._rows = store, rows
        self._extend, self._copy, self._bucket = extend, copy, bucket
        self._jobs: dict[int, Job] = {}  # that have pages and are not done, by their sequence

    def compute(self, sequences: Sequence[Held]) -> int:
        """Computes missing keys; returns how many sequences, from the first on, now have them."""
        ready = len(sequences)
        for index, sequence in enumerate(sequences):
            try:
                self._plan(sequence, sequences[: index + 1])
            except OutOfPages:
                ready = index
                break
        self._work()
        return ready

    def _plan(self, sequence: Held, pinned: Sequence[Held]) -> None:
        """Gives a sequence pages, and its base before it where that lacks keys too.

        What is planned pins its pages and those it reads. Where that is too much, it is done first.
        """
        while not sequence.computed:
            base, keys = sequence.source
            if base is not None:
                self._plan(base, pinned)
            try:
                self._allot(sequence, base, keys, pinned)
            except OutOfPages:
                if not self._jobs:
                    raise
                self._work()

    def _allot(self, sequence: Held, base: Held | None, keys: int, pinned: Sequence[Held]) -> None:
        planned = self._jobs.values()
        bases = [base, *(job.base for job in planned)]
        spared = [*pinned, *(job.sequence for job in planned), *(b for b in bases if b is not None)]
        if base is None:
            pages, copy = self._store.take(self._store.size(sequence.wanted), spared), []
            level = 0
        else:
            pages, copy = self._store.fork(base, spared, keys, sequence.wanted)
            before = self._jobs.get(id(base))
            level = 0 if before is None else before.level + 1
        self._store.hold(sequence, pages)
        self._jobs[id(sequence)] = Job(sequence, base, keys, copy, level)

    def _work(self) -> None:
        """Does what is planned: a level at a time, what is alike together."""
        jobs = sorted(self._jobs.values(), key=lambda job: (job.level, *self._kind(job)))
        for _, same_level in itertools.groupby(jobs, key=lambda job: job.level):
            some = list(same_level)
            self._copy([job.copy for job in some if job.copy])
            for _, alike in itertools.groupby((job for job in some if job.ids), key=self._kind):
                team = list(alike)
                for first in range(0, len(team), self._rows):
                    self._extend(team[first : first + self._rows])
        for job in jobs:
            self.prefilled += len(job.ids)
            self.reused += job.start
            self._store.settle(job.sequence)
        self._jobs = {}

    def _kind(self, job: Job) -> tuple[int, int]:
        """Jobs of one kind fit in one program, whose rounding then is that of the kind."""
        bucket = self._bucket(len(job.sequence.pages)) if job.start else 0
        return bucket, shapes().block_of(len(job.ids))
