"""What engines and reward models have on the device: weights, a pool, keys of given tokens.

Shape letters: X rows  T tokens of one call  W pages per row.
"""

import dataclasses
import functools
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from stair_jax.config.schema import EngineConfig
from stair_jax.engine import decode, placing
from stair_jax.engine.placing import Placed, Planned
from stair_jax.model import cache, transformer
from stair_jax.model.spec import Spec
from stair_jax.program import Program, device_bytes

log = logging.getLogger(__name__)

_HOST_BYTES = 2**30  # of the pool where the device does not say what it has
_LEAST_WIDTH = 16  # pages


@dataclasses.dataclass(frozen=True)
class Shapes:
    """The sizes that programs are compiled for."""

    blocks: tuple[int, ...]  # tokens of one call: the smallest that fits, or the last
    growth: int  # from a table's width to the next, up to all pages that a context can need

    def block_of(self, tokens: int) -> int:
        """Returns how many tokens of a sequence one call computes."""
        return next((block for block in self.blocks if block >= tokens), self.blocks[-1])

    def width_of(self, pages: int, most: int) -> int:
        """Returns the width of a table for rows of so many pages."""
        width = _LEAST_WIDTH
        while width < pages:
            width *= self.growth
        return min(width, most)


# A CPU compiles in a second and pays for every key that it reads; an accelerator compiles an
# unrolled model for minutes. There a call of 33 to 64 tokens a row computes 128 of them, and one
# that reads keys by a table reads up to four times as many as are there; the kernel reads no more
# than there are, so decoding with it pays nothing.
SHAPES = {"cpu": Shapes((16, 32, 64, 128, 256), 2), "": Shapes((32, 128, 256), 4)}


def shapes() -> Shapes:
    """Returns the sizes that programs are compiled for on this process' devices."""
    return SHAPES.get(jax.default_backend(), SHAPES[""])


@dataclasses.dataclass(frozen=True)
class Block:
    """The arguments of one call, of numpy arrays."""

    start: int  # of this block in what the rows compute
    tokens: np.ndarray  # [X, T] int32
    length: np.ndarray  # [X] int32, tokens that have keys already
    count: np.ndarray  # [X] int32, tokens of this call
    table: np.ndarray  # [X, W] int32
    fresh: bool  # none of the rows has keys already


class PagedModel:
    """A model's weights and its pool of pages on a device, or on a mesh of them.

    Args:
      params: parameters of `spec`, in any float dtype and place; or `Placed` on `mesh`. With
        `Planned` nothing is allocated, and the programs can be compiled but not run.
      mesh: where the model is to lie; None for the default device.
      share: of the memory that is free beside the weights, the pool's.
      joined: see `placing.place`, as `give_away`.
    """

    def __init__(
        self,
        spec: Spec,
        params: Any,
        *,
        config: EngineConfig,
        mesh: jax.sharding.Mesh | None,
        share: float,
        joined: bool = False,
        give_away: bool = False,
    ):
        self._config, self._spec, self._mesh = config, spec, mesh
        self.context_pages = -(-config.max_context // config.page_size)
        self._decoder = transformer.Decoder(spec, jnp.dtype(config.dtype))
        dtype = jnp.dtype(config.dtype)
        if not isinstance(params, Placed):
            (params,) = placing.place(
                spec, params, [mesh], dtype=dtype, joined=joined, give_away=give_away
            )
        self._params = params.tree
        self._planned = params if isinstance(params, Planned) else None
        self._made = placing.zeros if self._planned is None else placing.empty
        # Now that the weights lie there, what is free is for the pool and the temporaries.
        self.pages = self._page_count(share)
        sizes = {"pages": self.pages, "page_size": config.page_size}
        shape = cache.pool_shape(spec, **sizes)
        self._pool = self._made(
            cache.empty_pool,
            placing.sharding(cache.POOL_AXES, shape, mesh),
            spec=spec,
            dtype=dtype,
            **sizes,
        )

    def _spread(self, x: Any, axes: Sequence[str | None]) -> Any:
        where = placing.sharding(axes, x.shape, self._mesh)
        if self._planned is not None:
            return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where)
        return placing.moved(x, where)

    def _free_bytes(self) -> int | None:
        """Returns what the devices in use have left for a pool; None where they keep no count.

        Heads of the pool are split over the tensor axis, where it divides them.
        """
        first, ways = placing.first_device(self._mesh), 1
        if self._mesh is not None:
            tensor = self._mesh.shape["tensor"]
            ways = tensor if self._spec.K % tensor == 0 else 1
        if self._planned is not None:
            limit, used = self._planned.free_bytes, device_bytes(self._params)
        else:
            stats = first.memory_stats() or {}
            limit, used = stats.get("bytes_limit"), stats.get("bytes_in_use", 0)
        return None if limit is None else ways * (limit - used)

    def _page_count(self, share: float) -> int:
        """Returns how many pages the pool gets, and logs why in one line."""
        config, free = self._config, self._free_bytes()
        first = placing.first_device(self._mesh)
        if free is None and first.platform != "cpu" and not config.pool_bytes:
            log.warning(
                "%s does not say what memory it has (XLA_PYTHON_CLIENT_ALLOCATOR=platform?): the"
                " pool of keys gets %.1f GB only; set engine.pool_bytes",
                first,
                _HOST_BYTES / 1e9,
            )
        budget = None if free is None else int(free * share)
        pages = page_count(self._spec, config, budget)
        bytes_ = pages * page_bytes(self._spec, config)
        if config.pool_bytes:
            why = "engine.pool_bytes"
        elif budget is None or bytes_ + page_bytes(self._spec, config) <= budget:
            why = "four contexts a slot"
        else:
            why = f"{share:.0%} of the {(free or 0) / 1e9:.2f} GB that are free"
        tokens = pages * config.page_size
        log.info(
            "pool on %s: %.2f GB, %d pages, %d tokens: %s", first, bytes_ / 1e9, pages, tokens, why
        )
        return pages

    @functools.cached_property
    def pool_bytes(self) -> int:
        """Bytes of the pool on each device."""
        return device_bytes(self._pool)

    @functools.cached_property
    def weight_bytes(self) -> int:
        """Bytes of the weights on each device."""
        return device_bytes(self._params)

    def _keys_read(self, rows: int, width: int) -> int:
        """Returns the bytes of keys on each device that rows read whose tables are full."""
        return min(self.pool_bytes * rows * width // self.pages, self.pool_bytes)

    # Keys of given tokens

    @property
    def widths(self) -> list[int]:
        """Every width that a table can have, rising."""
        return sorted({self.bucket(pages) for pages in range(1, self.context_pages + 1)})

    def bucket(self, pages: int) -> int:
        """Returns the width of a table for rows of so many pages."""
        return shapes().width_of(pages, self.context_pages)

    def blocks(
        self,
        ids: Sequence[Sequence[int]],
        pages: Sequence[Sequence[int]],
        starts: Sequence[int] | None = None,
    ) -> Iterator[Block]:
        """Yields the calls that compute the keys of up to `prefill_rows` rows, one after the other.

        Args:
          ids: of each row, what is to be computed.
          pages: of each row, all of them; those before `starts` hold keys already.
          starts: tokens of each row that have keys already; None for none.
        """
        config, fresh = self._config, not any(starts or ())
        longest = max(map(len, ids))
        block = shapes().block_of(longest)
        rows, size = config.prefill_rows, -(-longest // block) * block
        tokens, done = np.zeros((rows, size), np.int32), np.zeros(rows, np.int32)
        table, total = np.zeros((rows, self.context_pages), np.int32), np.zeros(rows, np.int32)
        for row, (own, own_pages) in enumerate(zip(ids, pages, strict=True)):
            total[row], tokens[row, : len(own)] = len(own), own
            table[row, : len(own_pages)] = own_pages
            done[row] = 0 if starts is None else starts[row]
        width = self.bucket(max(map(len, pages)))
        for start in range(0, size, block):
            if fresh:
                # A later block sees the pages up to its own end, so that a long prompt's first
                # ones do not read a whole context.
                width = self.bucket(-(-(start + block) // config.page_size))
            yield Block(
                start,
                tokens[:, start : start + block],
                done + np.minimum(total, start),
                np.clip(total - start, 0, block),
                table[:, :width],
                fresh and start == 0,
            )

    def every_block(self, *, extends: bool) -> list[Callable[[], Iterator[Block]]]:
        """Returns what yields the blocks of every shape that can be needed, of one idle row.

        Args:
          extends: whether sequences that have keys will be continued, too.
        """
        most, blocks = self._config.max_context, shapes().blocks

        def block(tokens: int, pages: int = 1, starts: Sequence[int] | None = None) -> Any:
            return functools.partial(self.blocks, [[0] * tokens], [[self.pages] * pages], starts)

        # A prompt of a whole context needs what its later blocks do, at every width.
        found = [block(tokens) for tokens in sorted({min(n, most) for n in (*blocks, most)})]
        if extends:
            found += [block(n, width, [1]) for width in self.widths for n in blocks]
        return found

    def copy(self, pairs: Sequence[Sequence[int]]) -> None:
        """Copies whole pages, [source, target] each, a slotful at a time."""
        for start in range(0, len(pairs), self._config.slots):
            self._pool = self.copying(pairs[start : start + self._config.slots]).run()

    def copying(self, pairs: Sequence[Sequence[int]]) -> Program:
        """Returns the copy of a slotful of pages at most."""
        slots = self._config.slots
        padded = np.full((slots, 2), self.pages, np.int32)
        padded[: len(pairs)] = pairs
        return Program(
            name="copy pages",
            call=decode.copy_pages,
            args=(self._pool, padded[:, 0], padded[:, 1]),
            beside={"weights": self.weight_bytes},
            reads=min(2 * slots * self.pool_bytes // self.pages, self.pool_bytes),
        )


def page_bytes(spec: Spec, config: EngineConfig) -> int:
    """Returns the bytes of a page: keys and values of all layers."""
    one = 2 * spec.L * config.page_size * spec.K * spec.H
    return one * jnp.dtype(config.dtype).itemsize


def page_count(spec: Spec, config: EngineConfig, free_bytes: int | None = None) -> int:
    """Returns how many pages the pool has: `pool_bytes`, else four contexts a slot if they fit.

    Args:
      free_bytes: what the device has left for it; None where it does not say.

    Raises:
      ValueError: where that is too few for one context and a page to fork.
    """
    context = -(-config.max_context // config.page_size)
    one = page_bytes(spec, config)
    budget = _HOST_BYTES if free_bytes is None else free_bytes
    count = config.pool_bytes // one
    if not config.pool_bytes:
        count = min(4 * config.slots * context, budget // one)
    if count < context + 1:
        raise ValueError(
            f"config.engine.pool_bytes: {config.pool_bytes or budget} bytes hold {count} pages of"
            f" {one} bytes, expected at least {context + 1} for one context"
        )
    return count
