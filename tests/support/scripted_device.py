"""A device without a model: it keeps the tokens themselves where keys would lie, and reads them.

What it draws depends on the request's key and on every token that it finds where it looks for the
request's keys. A page that was lost, shared unawares, overwritten, not copied or not shown to a
slot gives other tokens than `drawn` says, so an engine's bookkeeping is tested by its results.
"""

import collections
import zlib
from typing import Any

import numpy as np

from stair_jax.engine import decode
from stair_jax.engine.batch import COLUMNS
from stair_jax.engine.prefill import page_count
from stair_jax.engine.request import key_of
from stair_jax.engine.siblings import TOGETHER

LEAST_WIDTH = 4
_AT = {name: column for column, name in enumerate(COLUMNS)}


def token_of(key, made, context, vocab):
    """The token that follows `context`, int32, all of it."""
    start = zlib.crc32(np.array([*key, made], np.uint32).tobytes())
    return zlib.crc32(np.ascontiguousarray(context, np.int32).tobytes(), start) % vocab


def drawn(request, *, vocab, stops, context):
    """Returns the ids and the finish of a request, by definition."""
    ids, made = list(request.prefix.ids), []
    limit = min(request.max_tokens, context - len(ids))
    while len(made) < limit:
        made.append(token_of(key_of(request.key), len(made), ids, vocab))
        ids.append(made[-1])
        if made[-1] in stops[request.stop]:
            return tuple(made), "stop"
    return tuple(made), "length"


class Steps(np.int32):
    """A number that has arrived."""

    def is_ready(self):
        return True


class ScriptedDevice:
    """Takes the place of `engine.device.Device`."""

    def __init__(self, spec, params, *, config, stops, vocab, mesh):
        del params, mesh
        self.attention = {"auto": "views"}.get(config.attention, config.attention)
        self.shares = config.share_prefix == "on"
        self.group_counts = [max(1, config.slots // 2), config.slots]
        assert not (self.shares and self.attention == "views")
        self.waiting_rows = 2 * config.slots if self.attention == "views" else 0
        self.context_pages = -(-config.max_context // config.page_size)
        self.width, self.pages = 0, page_count(spec, config)
        self.counts: collections.Counter[str] = collections.Counter()
        self._config, self._stops, self._vocab = config, stops, vocab
        # Old keys are there and wrong.
        noise = np.random.default_rng(0).integers(-(2**30), -1, (self.pages, config.page_size))
        self._pool = noise.astype(np.int32)
        self._views: Any = None

    def bucket(self, pages):
        return min(self.context_pages, max(LEAST_WIDTH, 1 << (pages - 1).bit_length()))

    def extend(self, ids, pages, starts):
        assert len(ids) <= self._config.prefill_rows
        assert (
            len(
                {
                    self.bucket(len(table))
                    for table, start in zip(pages, starts, strict=True)
                    if start
                }
            )
            <= 1
        )
        assert len({start > 0 for start in starts}) == 1
        for own, table, start in zip(ids, pages, starts, strict=True):
            for position, token in enumerate(own, start):
                page, offset = divmod(position, self._config.page_size)
                self._pool[table[page], offset] = token
            self.counts["extended"] += len(own)

    def copy(self, pairs):
        targets = {target for _, target in pairs}
        assert len(targets) == len(pairs)
        assert not targets & {source for source, _ in pairs}
        for source, target in pairs:
            self._pool[target] = self._pool[source]

    def widen(self, pages, *, idle):
        width = self.bucket(pages)
        if width == self.width or (width < self.width and not idle):
            return False
        self.width = width
        if self.attention != "views":
            return False
        self._views = np.full((self._config.slots, width * self._config.page_size), -1, np.int32)
        self.counts["views"] += 1
        return True

    def load(self, slots, table):
        if self.attention == "views":
            for slot, pages in zip(slots, table, strict=True):
                self._views[slot] = self._pool[pages].ravel()

    def compile(self, wanted, *, extends=False):
        del extends
        self.counts["compiled"] += len(list(wanted))

    def decode(self, packed, table, siblings, wanted):
        del wanted
        assert table.shape[1] == self.width
        assert len(packed) == self._config.slots + self.waiting_rows
        return _Chunk(self, packed, table, siblings).run()


class _Chunk:
    """One call of `decode`."""

    def __init__(self, device, packed, table, siblings):
        self.device, self.packed, self.table, self.siblings = device, packed, table, siblings
        self.B, self.N = device._config.slots, device._config.chunk
        active = packed[:, _AT["active"]] > 0
        self.row = [row if active[row] else None for row in range(self.B)]
        self.waiting = collections.deque(np.flatnonzero(active[self.B :]) + self.B)
        self.new: list[list[int]] = [[] for _ in packed]
        self.keys = packed[:, [_AT["key0"], _AT["key1"]]].view(np.uint32)

    def run(self):
        steps, busy = 0, self.B - self.row.count(None)
        patience = busy - self.B // 8
        while steps < self.N and any(row is not None for row in self.row):
            if not self.waiting and self.B - self.row.count(None) < patience:
                break
            for slot, row in enumerate(self.row):
                if row is not None and self._draw(slot, row):
                    self.row[slot] = None
            steps += 1
            self._take_up()
        tokens = np.full((len(self.packed), self.N), decode.NO_TOKEN, np.int32)
        for row, new in enumerate(self.new):
            tokens[row, : len(new)] = new
        rows = [decode.NO_ROW if row is None else row for row in self.row]
        logps = np.zeros(tokens.shape, np.float32)
        return decode.Chunk(tokens, logps, np.array(rows, np.int32), Steps(steps))

    def _draw(self, slot, row):
        """Draws a row's next token; True where that ends it."""
        fields = self.packed[row]
        made, new = fields[_AT["made"]] + len(self.new[row]), self.new[row]
        length = fields[_AT["length"]] + len(new)
        self._write(slot, row, length, new[-1] if new else fields[_AT["last"]])
        context = self._context(slot, row, length + 1)
        new.append(token_of(self.keys[row], made, context, self.device._vocab))
        stopped = self.device._stops[fields[_AT["stop"]], new[-1]]
        return stopped or made + 1 >= fields[_AT["limit"]]

    def _split(self, slot):
        return 0 if self.siblings is None else self.siblings.split[slot]

    def _write(self, slot, row, position, token):
        device, own = self.device, position - self._split(slot)
        assert own >= 0  # what is shared is never written
        page, offset = divmod(own, device._config.page_size)
        device._pool[self.table[row, page], offset] = token
        if device.attention == "views":
            device._views[slot, position] = token

    def _context(self, slot, row, length):
        """The tokens of a row, from where its attention would find them."""
        device, split = self.device, self._split(slot)
        if device.attention == "views":
            return device._views[slot, :length]
        own = device._pool[self.table[row]].ravel()[: length - split]
        if not split:
            return own
        group, seat = divmod(self.siblings.place[slot], TOGETHER)
        assert self.siblings.member[group, seat] == slot
        device.counts["shared"] += 1
        shared = device._pool[self.siblings.table[group]].ravel()
        return np.concatenate([shared[: self.siblings.length[group]], own])

    def _take_up(self):
        for slot, row in enumerate(self.row):
            if row is None and self.waiting:
                self.row[slot] = new = int(self.waiting.popleft())
                self.device._views[slot] = self.device._pool[self.table[new]].ravel()
                self.device.counts["taken up"] += 1
