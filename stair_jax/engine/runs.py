"""Requests that have pages, in slots or waiting for one, as arrays: a row each.

Shape letters: R rows  C columns of the packed batch  W pages of a request  T tokens of a context
  X some of the rows  N tokens of a chunk
"""

import collections
import dataclasses
from collections.abc import Hashable, Sequence

import numpy as np

from stair_jax.engine import batch, decode
from stair_jax.engine.request import Request, Sampling, key_of

ALONE = -1  # team of a request that shares no whole page
_AT = {name: column for column, name in enumerate(batch.COLUMNS)}
LAST, LENGTH, MADE, LIMIT, STOP = (_AT[n] for n in ("last", "length", "made", "limit", "stop"))


@dataclasses.dataclass(eq=False)
class ActiveRequest:
    """A request that has pages; what it has drawn lies in `runs`, in its row."""

    request: Request
    runs: "ActiveRequests"
    row: int
    age: int  # rises with every request that gets pages

    @property
    def pages(self) -> list[int]:
        """The pages of its keys, and of those that it has room for."""
        return self.runs.table[self.row, : self.runs.pages[self.row]].tolist()

    @property
    def length(self) -> int:
        """Tokens that have keys."""
        return int(self.runs.columns[self.row, LENGTH])

    @property
    def made(self) -> int:
        """New tokens so far."""
        return int(self.runs.columns[self.row, MADE])


class ActiveRequests:
    """Rows for `count` requests. A row is kept in place, so that a chunk takes no loop over them.

    Args:
      width: pages of a context.
      context: tokens of a context.
      page_size: tokens of a page.
    """

    def __init__(self, count: int, *, width: int, context: int, page_size: int):
        self.columns = np.zeros((count, len(batch.COLUMNS)), np.int32)  # [R, C], see `batch`
        self.table = np.zeros((count, width), np.int32)  # [R, W], zeros behind a row's pages
        self.pages = np.zeros(count, np.int32)  # [R], how many
        self.ids = np.zeros((count, context), np.int32)  # [R, T], the new tokens
        self.logps = np.zeros((count, context), np.float32)  # [R, T]
        self.team = np.full(count, ALONE, np.int64)  # [R], equal where the first pages are shared
        self.shared = np.zeros(count, np.int32)  # [R], tokens that a team has in common
        self.samplings: collections.Counter[Sampling] = collections.Counter()  # of all requests
        self.want_logps = 0  # requests
        self._page_size = page_size
        self._free = list(range(count))[::-1]
        self._begun = 0
        self._teams: dict[tuple[Hashable, int], list[int]] = {}  # -> number, requests

    def begin(
        self, request: Request, pages: Sequence[int], *, stop: int, limit: int
    ) -> ActiveRequest:
        """Returns a run that has drawn nothing; `stop` is the index of the request's stop set."""
        ids, how, row = request.prefix.ids, request.sampling, self._free.pop()
        self.columns[row] = batch.row(
            last=ids[-1],
            length=len(ids) - 1,
            made=0,
            limit=limit,
            active=1,
            stop=stop,
            top_k=how.top_k,
            key=key_of(request.key),
            temperature=how.temperature,
            top_p=how.top_p,
            min_p=how.min_p,
        )
        self.table[row, : len(pages)] = pages
        self.table[row, len(pages) :] = 0
        self.pages[row] = len(pages)
        self.samplings[how] += 1
        self.want_logps += request.logps
        if (common := self._common(request)) is not None:
            team = self._teams.setdefault(common, [self._begun, 0])
            team[1] += 1
            self.team[row], self.shared[row] = team[0], common[1]
        self._begun += 1
        return ActiveRequest(request, self, row, self._begun)

    def _common(self, request: Request) -> tuple[Hashable, int] | None:
        """Returns a request's group and how many tokens it shares, as far as keys were there."""
        shared = min(request.shared, len(request.prefix.ids) - 1)
        return (
            None if request.group is None or shared < self._page_size else (request.group, shared)
        )

    def end(self, run: ActiveRequest) -> None:
        """Frees a request's row; what lies there stays until another one begins in it."""
        how, common = run.request.sampling, self._common(run.request)
        self.samplings[how] -= 1
        if not self.samplings[how]:
            del self.samplings[how]
        self.want_logps -= run.request.logps
        if common is not None:
            self._teams[common][1] -= 1
            if not self._teams[common][1]:
                del self._teams[common]
            self.team[run.row] = ALONE
        self._free.append(run.row)

    def missing(self, rows: np.ndarray, chunk: int) -> np.ndarray:
        """Returns how many pages rows [X] lack for a chunk of so many tokens, [X]."""
        columns = self.columns[rows]
        ahead = np.minimum(chunk, columns[:, LIMIT] - columns[:, MADE])
        wanted = -(-(columns[:, LENGTH] + ahead) // self._page_size)
        return np.maximum(0, wanted - self.pages[rows])

    def add(self, rows: np.ndarray, counts: np.ndarray, pages: Sequence[int]) -> None:
        """Gives rows [X] so many pages each, [X], out of `pages` in turn."""
        row = np.repeat(rows, counts)
        first = np.repeat(np.cumsum(counts) - counts, counts)
        self.table[row, self.pages[row] + np.arange(len(row)) - first] = pages
        self.pages[rows] += counts

    def grow(self, rows: np.ndarray, chunk: decode.Chunk, at: np.ndarray) -> None:
        """Takes up what rows [X] have drawn: the chunk's rows `at` [X], a token or more each."""
        tokens, made = chunk.tokens[at], self.columns[rows, MADE]
        x, n = np.nonzero(tokens != decode.NO_TOKEN)
        self.ids[rows[x], made[x] + n] = tokens[x, n]
        if self.want_logps:
            self.logps[rows[x], made[x] + n] = chunk.logps[at][x, n]
        counts = np.bincount(x, minlength=len(rows)).astype(np.int32)
        self.columns[rows, LAST] = tokens[np.arange(len(rows)), counts - 1]
        self.columns[rows, LENGTH] += counts
        self.columns[rows, MADE] = made + counts

    def ended(self, rows: np.ndarray, stops: np.ndarray) -> np.ndarray:
        """Returns which of the rows [X] have ended, [X] bool, and by a stop token, [2, X] in all.

        Args:
          stops: [E, V] bool, the stop sets.
        """
        columns = self.columns[rows]
        stopped = stops[columns[:, STOP], columns[:, LAST]]
        return np.stack((stopped | (columns[:, MADE] >= columns[:, LIMIT]), stopped))

    def drawn(self, run: ActiveRequest) -> tuple[list[int], list[float]]:
        """Returns a run's new tokens, and their log-probs where they are wanted."""
        row, made = run.row, run.made
        logps = self.logps[row, :made].tolist() if run.request.logps else []
        return self.ids[row, :made].tolist(), logps
