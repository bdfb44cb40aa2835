"""The device's side of the engine: weights, pool and programs.

Shape letters as in `decode`: B slots  R requests of a chunk  W pages per request.
"""

import dataclasses
import functools
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from stair_jax import ops
from stair_jax.config.schema import EngineConfig
from stair_jax.engine import ahead, decode, placing, sampling
from stair_jax.engine.ahead import Key, Program
from stair_jax.engine.batch import COLUMNS
from stair_jax.engine.prefill import Block, PagedModel, shapes
from stair_jax.engine.request import Sampling
from stair_jax.engine.siblings import TOGETHER, Siblings
from stair_jax.log import progress
from stair_jax.model import views
from stair_jax.model.groups import SharedPrefixCache
from stair_jax.model.spec import Spec
from stair_jax.model.views import SlotCache

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
            self._extend(block)

    def _extend(self, block: Block) -> None:
        with self._on_mesh():
            self._pool = self._extend_call(block)()

    def _extend_call(self, block: Block) -> "_Call":
        arrays = block.tokens, block.length, block.count, block.table
        static = {"decoder": self._decoder, "fresh": block.fresh}
        return _Call(decode.extend, (self._params, self._pool, *arrays), static)

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
        self._views = placing.zeros(views.empty, where, pool=like, slots=slots, pages=width)
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
            self._views = decode.load_views(self._views, self._pool, slot, pages)

    def decode(
        self, packed: np.ndarray, table: np.ndarray, siblings: Siblings | None, wanted: "Wanted"
    ) -> decode.Chunk:
        """Starts a chunk and returns what it will give; see `decode.decode_chunk`.

        Args:
          packed: rows of `batch.row`, [R, C] int32.
          table: [R, W] int32, of `width` pages; with siblings, of the slots' own parts.
          siblings: who shares what, where prefixes are shared.
        """
        with self._on_mesh():
            paged, chunk = self._decode_call(packed, table, siblings, wanted)()
        self._pool = paged.pool
        if self._views is not None:
            self._views = dataclasses.replace(paged, pool=None)
        return chunk

    def _decode_call(
        self, packed: np.ndarray, table: np.ndarray, siblings: Siblings | None, wanted: "Wanted"
    ) -> "_Call":
        plan = decode.DecodePlan(
            self._decoder, self._config.chunk, self._vocab, wanted.candidates, wanted.logps
        )
        if self._views is not None:
            paged: Any = dataclasses.replace(self._views, pool=self._pool)
        else:
            shared = {} if siblings is None else siblings.arrays()
            paged = SharedPrefixCache(self._pool, **shared, implementation=self.attention)
        patience = np.int32(self._config.slots // 8)
        args = self._params, paged, packed, table, self._stops, patience
        return _Call(decode.decode_chunk, args, {"plan": plan})

    # Compiling

    def compile(self, wanted: Sequence["Wanted"], *, extends: bool = False) -> None:
        """Compiles every program that requests of the wanted kinds can need, and runs each idle.

        Without this a program is compiled when it is first needed.

        Args:
          extends: whether sequences will be extended, too.
        """
        begun = time.perf_counter()
        where, programs = placing.first_device(self._mesh), self._programs(wanted, extends)
        count, threads = len(programs), ahead.workers()
        with progress.line(f"compiling for {where}", count, "programs") as show:
            if threads > 1:
                ahead.compile_together(programs, show, threads=threads)
            for number, program in enumerate(programs, start=1):
                program.run()
                show(max(number, int(show.done)))
        seconds = time.perf_counter() - begun
        log.info("%s: compiled all %d programs in %.1f s", where, count, seconds)

    def _programs(self, wanted: Sequence["Wanted"], extends: bool) -> list[Program]:
        """Returns every program, in the order in which they may be called."""
        longest, blocks = self._config.max_context, shapes().blocks
        # A prompt of a whole context needs what its later blocks do, at every width.
        extending: dict[Key, Program] = {}
        for tokens in sorted({min(x, longest) for x in (*blocks, longest)}):
            extending |= self._extending(tokens)
        for width in self.widths:
            for block in blocks if extends else ():
                extending |= self._extending(block, width, [1])
        copy = functools.partial(self.copy, [[self.pages, self.pages]])
        decoding = [p for width in self.widths for p in self._decoding(width, wanted)]
        return [*extending.values(), Program(("copy",), copy), *decoding]

    def _extending(
        self, tokens: int, pages: int = 1, starts: Sequence[int] | None = None
    ) -> dict[Key, Program]:
        """Returns the programs that compute the keys of so many tokens, by their keys."""
        found = {}
        for block in self.blocks([[0] * tokens], [[self.pages] * pages], starts):
            key = (block.tokens.size, block.fresh, block.table.shape[1])
            run = functools.partial(self._extend, block)
            lower = functools.partial(self._lowered, self._extend_call, block)
            found[key] = Program(key, run, lower)
        return found

    def _decoding(self, width: int, wanted: Sequence["Wanted"]) -> Iterator[Program]:
        """Yields the programs that decode with tables of this width."""
        slots, views = self._config.slots, self.attention == "views"
        idle = np.zeros((slots + self.waiting_rows, len(COLUMNS)), np.int32)
        table = np.zeros((len(idle), width), np.int32)

        def show() -> None:
            self.width = 0
            self.widen(width, idle=True)
            self.load([slots], table[:1])

        if views:
            yield Program(("show", width), show)
        for kind in wanted:
            for count in self.group_counts if self.shares else [None]:
                siblings = None if count is None else Siblings.empty(count, slots, width)
                call = idle, table, siblings, kind
                lower = functools.partial(self._lowered, self._decode_call, *call)
                yield Program(
                    (slots, "decode", width, kind, count),
                    functools.partial(self.decode, *call),
                    None if views else lower,  # views of this width are there once they are shown
                )

    def _lowered(self, call: Callable[..., "_Call"], *args: Any) -> jax.stages.Lowered:
        with self._on_mesh():
            return call(*args).lowered()


@dataclasses.dataclass(frozen=True)
class _Call:
    """A jitted program with its arguments."""

    program: Any
    args: tuple[Any, ...]
    static: dict[str, Any]

    def __call__(self) -> Any:
        return self.program(*self.args, **self.static)

    def lowered(self) -> jax.stages.Lowered:
        return self.program.lower(*self.args, **self.static)


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
