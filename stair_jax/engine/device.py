"""The device's side of the engine: weights, pool and programs.

Shape letters as in `decode`: B slots  R requests of a chunk  W pages per request.
"""

import dataclasses
import functools
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from stair_jax import ops
from stair_jax.config.schema import EngineConfig
from stair_jax.engine import ahead, decode, placing, sampling
from stair_jax.engine.ahead import Early, Key
from stair_jax.engine.batch import COLUMNS
from stair_jax.engine.prefill import Block, PagedModel
from stair_jax.engine.request import Sampling
from stair_jax.engine.siblings import TOGETHER, Siblings
from stair_jax.log import progress
from stair_jax.model import views
from stair_jax.model.groups import SharedPrefixCache
from stair_jax.model.spec import Spec
from stair_jax.model.views import SlotCache
from stair_jax.program import Program, distinct

log = logging.getLogger(__name__)

ATTENTION = ("auto", "views", "xla", "pallas")
_SHARE = 0.85  # of a device's free memory that the pool takes; the rest is for temporaries


def attention_of(choice: str) -> str:
    """Resolves "auto": "views" on CPUs, else what `ops.paged_choice` says.

    Raises:
      ValueError: an unknown implementation, or one that cannot run here.
    """
    if choice not in ATTENTION:
        raise ValueError(f"engine.attention {choice!r} is unknown, expected one of {ATTENTION}")
    if choice == "views" or (choice == "auto" and jax.default_backend() == "cpu"):
        return "views"
    return ops.paged_choice(choice)


def joins(config: EngineConfig) -> bool:
    """Returns whether weights that are multiplied together are joined when they are placed.

    XLA would join them in every step otherwise, where it compiles for an accelerator. On CPUs it
    does not, and one larger product may round differently.
    """
    return attention_of(config.attention) != "views"


class Device(PagedModel):
    """A policy's weights and its pool of pages on a device, or on a mesh of them.

    Args:
      params: parameters of `spec`, in any float dtype and place; or `Placed` on `mesh`.
      stops: [E, V] bool, the stop sets.
      vocab: number of tokens that may be drawn.
      mesh: where the model is to lie; None for the default device.
    """

    def __init__(
        self,
        spec: Spec,
        params: Any,
        *,
        config: EngineConfig,
        stops: np.ndarray,
        vocab: int,
        mesh: jax.sharding.Mesh | None,
    ):
        self.attention = attention_of(config.attention)
        if self.attention == "views" and config.share_prefix == "on":
            raise ValueError("engine.share_prefix 'on': views keep every slot's keys apart")
        self.shares = config.share_prefix == "on" or (
            config.share_prefix == "auto" and self.attention == "pallas"
        )
        super().__init__(spec, params, config=config, mesh=mesh, share=_SHARE, joined=joins(config))
        self._vocab, self._stops = vocab, self._spread(stops, (None, None))
        self.width = 0  # pages of a table while decoding
        self._views: SlotCache | None = None  # without their pool

    @property
    def waiting_rows(self) -> int:
        """Requests that a chunk can hold ready for slots that end."""
        return 2 * self._config.slots if self.attention == "views" else 0

    @property
    def group_counts(self) -> list[int]:
        """Numbers of groups that programs are compiled for; see `Siblings.of`.

        XLA reads the pages of empty groups too, the kernel does not. How the kernel splits its work
        follows the number of rows, so there it must not follow the company.
        """
        slots = self._config.slots
        if self.attention == "pallas":
            return [slots]
        return sorted({max(1, slots // TOGETHER), max(1, slots // 2), slots})

    def extend(
        self,
        ids: Sequence[Sequence[int]],
        pages: Sequence[Sequence[int]],
        starts: Sequence[int] | None = None,
    ) -> None:
        """Computes keys into pages; see `PagedModel.blocks`."""
        for block in self.blocks(ids, pages, starts):
            self._run(self._extending(block))

    def _extending(self, block: Block) -> Program:
        rows, width = block.table.shape
        where = "first" if block.fresh else f"later, {width} pages"
        return Program(
            name=f"prefill {rows} x {block.tokens.shape[1]}, {where}",
            call=decode.extend,
            args=(
                self._params,
                self._pool,
                block.tokens,
                block.length,
                block.count,
                block.table,
            ),
            static={"decoder": self._decoder, "fresh": block.fresh},
            mesh=self._mesh,
            reads=self._keys_read(rows, 0 if block.fresh else width),
        )

    def _run(self, program: Program) -> Any:
        """Runs one of the programs and keeps what it made of the pool or the views."""
        out = program.run()
        if program.call is decode.load_views:
            self._views = out
        elif program.call is decode.decode_chunk:
            paged, chunk = out
            self._pool = paged.pool
            if self._views is not None:
                self._views = dataclasses.replace(paged, pool=None)
            return chunk
        else:
            self._pool = out
        return None

    # Decoding

    def widen(self, pages: int, *, idle: bool) -> bool:
        """Makes room for requests of `pages` pages; True where all slots must be loaded anew.

        Only an idle engine's views shrink again.
        """
        width = self.bucket(pages)
        if width == self.width or (width < self.width and not idle):
            return False
        self.width = width
        if self.attention != "views":
            return False
        slots, spec = self._config.slots, self._spec
        # The sizes of axes without a name count for nothing: k and v lie alike.
        where = placing.sharding(views.VIEW_AXES, (slots, spec.K, 1, 1), self._mesh)
        like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), self._pool)
        self._views = self._made(views.empty, where, pool=like, slots=slots, pages=width)
        return True

    def load(self, slots: Sequence[int], table: np.ndarray) -> None:
        """Shows what the pages of `table` [n, W] hold in the views of n slots."""
        if self._views is None:
            return
        together = max(1, self._config.slots // 4)
        for start in range(0, len(slots), together):
            some = slots[start : start + together]
            slot = np.full(together, self._config.slots, np.int32)
            pages = np.zeros((together, self.width), np.int32)
            slot[: len(some)] = some
            pages[: len(some)] = table[start : start + together, : self.width]
            self._run(self._loading(slot, pages))

    def _loading(self, slot: np.ndarray, pages: np.ndarray) -> Program:
        return Program(
            name=f"show {len(slot)} slots, {self.width} pages",
            call=decode.load_views,
            args=(self._views, self._pool, slot, pages),
            beside={"weights": self.weight_bytes},
        )

    def decode(
        self, packed: np.ndarray, table: np.ndarray, siblings: Siblings | None, wanted: "Wanted"
    ) -> decode.Chunk:
        """Starts a chunk and returns what it will give; see `decode.decode_chunk`.

        Args:
          packed: rows of `batch.row`, [R, C] int32.
          table: [R, W] int32, of `width` pages; with siblings, of the slots' own parts.
          siblings: who shares what, where prefixes are shared.
        """
        return self._run(self._decoding(packed, table, siblings, wanted))

    def _decoding(
        self, packed: np.ndarray, table: np.ndarray, siblings: Siblings | None, wanted: "Wanted"
    ) -> Program:
        plan = decode.DecodePlan(
            self._decoder, self._config.chunk, self._vocab, wanted.candidates, wanted.logps
        )
        if self._views is not None:
            paged: Any = dataclasses.replace(self._views, pool=self._pool)
        else:
            shared = {} if siblings is None else siblings.arrays()
            paged = SharedPrefixCache(self._pool, **shared, implementation=self.attention)
        slots, width = self._config.slots, table.shape[1]
        return Program(
            name=f"decode {slots} slots, {width} pages",
            call=decode.decode_chunk,
            args=(self._params, paged, packed, table, self._stops, np.int32(slots // 8)),
            static={"plan": plan},
            mesh=self._mesh,
            reads=self._keys_read(slots, width),
        )

    # Compiling

    def compile(self, wanted: Sequence["Wanted"], *, extends: bool = False) -> None:
        """Compiles every program that requests of the wanted kinds can need, by running each idle.

        Without this a program is compiled when it is first needed.

        Args:
          extends: whether sequences will be extended, too.
        """
        begun = time.perf_counter()
        where, kinds = placing.first_device(self._mesh), self._kinds(wanted, extends)
        count, threads = len(kinds), ahead.workers()
        with progress.line(f"compiling for {where}", count, "programs") as show:
            if threads > 1:
                ahead.compile_together(
                    self._early(kinds), lambda done: show(min(done, count)), threads=threads
                )
            for number, kind in enumerate(kinds, start=1):
                for program in kind.programs():
                    self._run(program)
                show(max(number, int(show.done)))
        seconds = time.perf_counter() - begun
        log.info("%s: compiled all %d programs in %.1f s", where, count, seconds)

    def programs(self, wanted: Sequence["Wanted"], *, extends: bool = False) -> list[Program]:
        """Returns what `compile` runs, each program once; of a planned device, to be compiled."""
        return distinct(p for kind in self._kinds(wanted, extends) for p in kind.programs())

    def _early(self, kinds: Sequence["_Kind"]) -> list[Early]:
        """Returns those that can be lowered before any has run, each once."""
        programs = distinct(p for kind in kinds if kind.early for p in kind.programs())
        return [Early(self._products(program), program.lowered) for program in programs]

    def _products(self, program: Program) -> Key:
        """Returns what a program's products depend on: its rows first of all."""
        if program.call is decode.decode_chunk:
            return self._config.slots, "decode", program.args[3].shape[1], program.key
        tokens, table = program.args[2], program.args[5]
        return tokens.size, program.static["fresh"], table.shape[1]

    def _kinds(self, wanted: Sequence["Wanted"], extends: bool) -> list["_Kind"]:
        """Returns what yields the programs, with idle arguments, in the order they may be called.

        A program that was yielded is to be run before the next one is asked for: it donates the
        pool. Of shapes nothing is donated.
        """
        config = self._config
        rows = config.slots + self.waiting_rows
        idle = np.zeros((rows, len(COLUMNS)), np.int32)
        table = np.zeros((rows, self.context_pages), np.int32)
        counts = self.group_counts if self.shares else [None]

        def extend(blocks: Callable[[], Iterator[Block]]) -> Iterator[Program]:
            return map(self._extending, blocks())

        def copy() -> Iterator[Program]:
            yield self.copying([[self.pages, self.pages]])

        def show(width: int) -> Iterator[Program]:
            self.width = 0
            self.widen(width, idle=True)
            if self._views is not None:
                together = max(1, config.slots // 4)
                slot = np.full(together, config.slots, np.int32)
                yield self._loading(slot, np.zeros((together, width), np.int32))

        def decode(width: int, count: int | None, kind: Wanted) -> Iterator[Program]:
            siblings = None if count is None else Siblings.empty(count, config.slots, width)
            yield self._decoding(idle, table[:, :width], siblings, kind)

        every, of_prompts = self.every_block(extends=extends), len(self.every_block(extends=False))
        found = [_Kind(functools.partial(extend, blocks), early=True) for blocks in every]
        found.insert(of_prompts, _Kind(copy))
        for width in self.widths:
            found.append(_Kind(functools.partial(show, width)))
            found += [
                _Kind(functools.partial(decode, width, count, kind), self.attention != "views")
                for kind in wanted
                for count in counts
            ]
        return found


class _Kind(NamedTuple):
    """What yields programs, and whether they can be lowered before those of earlier kinds ran."""

    programs: Callable[[], Iterator[Program]]
    early: bool = False


@dataclasses.dataclass(frozen=True)
class Wanted:
    """What a chunk's requests want, as far as programs differ by it."""

    candidates: int  # see `sampling.candidates_for`
    logps: bool

    @classmethod
    def of(cls, sampled: Sequence[Sampling], *, logps: bool, vocab: int) -> "Wanted":
        """Returns what serves all of some `Sampling`s."""
        temperature = np.array([how.temperature for how in sampled])
        top_k = np.array([how.top_k for how in sampled])
        return cls(sampling.candidates_for(temperature, top_k, vocab), logps)
