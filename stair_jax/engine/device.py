"""The device's side of the engine: weights, pool and programs.

Shape letters as in `decode`: B slots  R requests at hand  W pages per request.
"""

import contextlib
import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from stair_jax import mesh as mesh_lib
from stair_jax import ops
from stair_jax.engine import decode, sampling
from stair_jax.engine.batch import COLUMNS
from stair_jax.engine.request import Sampling
from stair_jax.engine.siblings import TOGETHER, Siblings
from stair_jax.model import cache, transformer, views
from stair_jax.model.groups import Groups
from stair_jax.model.spec import Spec
from stair_jax.model.views import Views
from stair_jax.sections import EngineConfig

ATTENTION = ("auto", "views", "xla", "pallas")
BLOCKS = (16, 32, 64, 128, 256)  # prompt tokens of one call: the smallest that fits, or the last
_SHARE = 0.85  # of a device's free memory that the pool takes; the rest is for temporaries
_HOST_BYTES = 2**30  # of the pool where the device does not say what it has
_LEAST_WIDTH = 16  # pages; tables have a power of two of them, or all that a context can need


def attention_of(choice: str) -> str:
    """Returns what "auto" stands for: "views" on CPUs, else what `ops.paged_choice` says.

    Raises:
      ValueError: an unknown implementation, or one that cannot run here.
    """
    if choice not in ATTENTION:
        raise ValueError(f"engine.attention {choice!r} is unknown, expected one of {ATTENTION}")
    if choice == "views" or (choice == "auto" and jax.default_backend() == "cpu"):
        return "views"
    return ops.paged_choice(choice)


def block_of(tokens: int) -> int:
    """Returns how many tokens of a prompt one call computes."""
    return next((block for block in BLOCKS if block >= tokens), BLOCKS[-1])


class Device:
    """A model's weights and its pool of pages on a device, or on a mesh of them.

    Args:
      params: parameters of `spec`, in any float dtype and place.
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
        self.context_pages = -(-config.max_context // config.page_size)
        self._config, self._spec, self._vocab, self._mesh = config, spec, vocab, mesh
        self._decoder = transformer.Decoder(spec, jnp.dtype(config.dtype))
        self._params, self._stops = self._placed(params), self._spread(stops, (None, None))
        # Once the weights lie there, what is free is for the pool and the temporaries.
        jax.block_until_ready(self._params)
        self.pages = page_count(spec, config, self._free_bytes())
        self.width = 0  # pages of a table while decoding
        pool = cache.empty_pool(
            spec, pages=self.pages, page_size=config.page_size, dtype=jnp.dtype(config.dtype)
        )
        self._pool = self._spread(pool, cache.KVPool(k=cache.POOL_AXES, v=cache.POOL_AXES))
        self._views: Views | None = None  # without their pool

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

    def _placed(self, params: Any) -> Any:
        """Returns the parameters layer by layer, in the engine's dtype, on its mesh."""
        dtype = jnp.dtype(self._config.dtype)
        params = jax.tree.map(lambda x: jnp.asarray(x, dtype), transformer.by_layer(params))
        return self._spread(params, transformer.logical_axes_by_layer(self._spec))

    def _spread(self, tree: Any, axes: Any) -> Any:
        if self._mesh is None:  # said aloud: where it is left open, a program's first call differs
            return jax.device_put(tree, jax.local_devices()[0])
        rules = mesh_lib.ENGINE_RULES
        return jax.device_put(tree, mesh_lib.shardings(axes, self._mesh, tree, rules=rules))

    def _free_bytes(self) -> int | None:
        """Returns what the devices in use have left for a pool; None where they keep no count.

        Heads of the pool are split over the tensor axis, where it divides them.
        """
        first, ways = jax.local_devices()[0], 1
        if self._mesh is not None:
            first, tensor = self._mesh.devices.flat[0], self._mesh.shape["tensor"]
            ways = tensor if self._spec.K % tensor == 0 else 1
        stats = first.memory_stats() or {}
        limit = stats.get("bytes_limit")
        return None if limit is None else ways * (limit - stats.get("bytes_in_use", 0))

    def _on_mesh(self) -> contextlib.AbstractContextManager[Any]:
        return contextlib.nullcontext() if self._mesh is None else jax.set_mesh(self._mesh)

    # Keys of prompts

    def extend(self, ids: Sequence[Sequence[int]], pages: Sequence[Sequence[int]]) -> None:
        """Computes the keys of up to `prefill_rows` sequences, block by block, into their pages."""
        config = self._config
        longest = max(map(len, ids))
        block = block_of(longest)
        rows, size = config.prefill_rows, -(-longest // block) * block
        tokens = np.zeros((rows, size), np.int32)
        table, total = np.zeros((rows, self.context_pages), np.int32), np.zeros(rows, np.int32)
        for row, (own, own_pages) in enumerate(zip(ids, pages, strict=True)):
            total[row], tokens[row, : len(own)] = len(own), own
            table[row, : len(own_pages)] = own_pages
        for start in range(0, size, block):
            # A later block sees the pages up to its own end, so that a long prompt's first ones
            # do not read a whole context.
            width = self._bucket(-(-(start + block) // config.page_size))
            with self._on_mesh():
                self._pool = decode.extend(
                    self._params, self._pool, tokens[:, start : start + block],
                    np.minimum(total, start), np.clip(total - start, 0, block), table[:, :width],
                    decoder=self._decoder, fresh=start == 0,
                )  # fmt: skip

    def copy(self, pairs: Sequence[Sequence[int]]) -> None:
        """Copies whole pages, [source, target] each, a slotful at a time."""
        for start in range(0, len(pairs), self._config.slots):
            some = pairs[start : start + self._config.slots]
            padded = np.full((self._config.slots, 2), self.pages, np.int32)
            padded[: len(some)] = some
            self._pool = decode.copy_pages(self._pool, padded[:, 0], padded[:, 1])

    # Decoding

    def widen(self, pages: int, *, idle: bool) -> bool:
        """Makes room for requests of `pages` pages; True where all slots must be loaded anew.

        Only an idle engine's views shrink again.
        """
        width = self._bucket(pages)
        if width == self.width or (width < self.width and not idle):
            return False
        self.width = width
        if self.attention != "views":
            return False
        fresh = views.empty(self._pool, slots=self._config.slots, pages=width)
        k, v = ([self._spread(x, views.VIEW_AXES) for x in part] for part in (fresh.k, fresh.v))
        self._views = Views(None, tuple(k), tuple(v))
        return True

    def _bucket(self, pages: int) -> int:
        return min(self.context_pages, max(_LEAST_WIDTH, 1 << (pages - 1).bit_length()))

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
        static = decode.Plan(
            self._decoder, self._config.chunk, self._vocab, wanted.candidates, wanted.logps
        )
        if self._views is not None:
            paged: Any = dataclasses.replace(self._views, pool=self._pool)
        else:
            shared = {} if siblings is None else siblings.arrays()
            paged = Groups(self._pool, **shared, implementation=self.attention)
        with self._on_mesh():
            paged, chunk = decode.decode_chunk(
                self._params, paged, packed, table, self._stops,
                np.int32(self._config.slots // 8), plan=static,
            )  # fmt: skip
        self._pool = paged.pool
        if self._views is not None:
            self._views = dataclasses.replace(paged, pool=None)
        return chunk

    # Compiling

    def compile(self, wanted: Sequence["Wanted"]) -> None:
        """Compiles every program that requests of the wanted kinds can need, by running each idle.

        Without this a program is compiled when it is first needed.
        """
        config = self._config
        rows = config.slots + self.waiting_rows
        idle = np.zeros((rows, len(COLUMNS)), np.int32)
        table = np.zeros((rows, self.context_pages), np.int32)
        for tokens in (*BLOCKS, config.max_context):
            self.extend([[0] * min(tokens, config.max_context)], [[self.pages]])
        self.copy([[self.pages, self.pages]])
        for width in sorted({self._bucket(pages) for pages in range(1, self.context_pages + 1)}):
            self.width = 0
            self.widen(width, idle=True)
            self.load([config.slots], table[:1])
            for kind in wanted:
                for siblings in self._all_siblings():
                    self.decode(idle, table[:, :width], siblings, kind)

    def _all_siblings(self) -> list[Siblings | None]:
        """Returns siblings of every shape that a chunk can have at the present width."""
        if not self.shares:
            return [None]
        return [Siblings.empty(c, self._config.slots, self.width) for c in self.group_counts]


@dataclasses.dataclass(frozen=True)
class Wanted:
    """What a chunk's requests want, as far as programs differ by it."""

    candidates: int  # see `sampling.draw`
    logps: bool

    @classmethod
    def of(cls, sampled: Sequence[Sampling], *, logps: bool, vocab: int) -> "Wanted":
        """Returns what serves all of some `Sampling`s."""
        temperature = np.array([how.temperature for how in sampled])
        top_k = np.array([how.top_k for how in sampled])
        return cls(sampling.candidates_for(temperature, top_k, vocab), logps)


def page_count(spec: Spec, config: EngineConfig, free_bytes: int | None = None) -> int:
    """Returns how many pages the pool has: `pool_bytes`, else four contexts a slot if they fit.

    Args:
      free_bytes: what the device has left; None where it does not say.

    Raises:
      ValueError: where that is too few for one context and a page to fork.
    """
    context = -(-config.max_context // config.page_size)
    page_bytes = 2 * spec.L * config.page_size * spec.K * spec.H * jnp.dtype(config.dtype).itemsize
    budget = _HOST_BYTES if free_bytes is None else int(free_bytes * _SHARE)
    count = config.pool_bytes // page_bytes
    if not config.pool_bytes:
        count = min(4 * config.slots * context, budget // page_bytes)
    if count < context + 1:
        raise ValueError(
            f"config.engine.pool_bytes: {config.pool_bytes or budget} bytes hold {count} pages of"
            f" {page_bytes} bytes, expected at least {context + 1} for one context"
        )
    return count
