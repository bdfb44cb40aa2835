"""The engine's inner programs one by one: paged attention, top-k, sampler, page copies.

Each against its oracle, for its error, and against XLA's way and the machine's bounds, for speed.
Shape letters: R rows  K kv heads  M queries a row and kv head  H head dim  L layers  P pages
  Z tokens of a page  W pages of a row  V vocabulary
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.roofline import Ceilings, best_time
from stair_jax.engine import decode, sampling
from stair_jax.kernels import paged_attention as paged
from stair_jax.kernels import top_k
from stair_jax.model.cache import KVPool

CALLS = 16  # of one program: a single kernel is shorter than its launch from the host
SPREAD = 2**28  # bytes of keys that the calls read in turn, so that no cache holds them
MOST_LAYERS = 64

Figures = dict[str, float]


@dataclasses.dataclass(frozen=True)
class Case:
    """Shapes of one call of paged attention."""

    R: int
    M: int
    H: int
    context: int  # tokens of each row
    K: int = 8
    Z: int = 16

    @property
    def W(self) -> int:
        """Pages of a row."""
        return -(-self.context // self.Z)

    def key_bytes(self, itemsize: int) -> int:
        """Returns the bytes of keys and values that one layer's call must read."""
        return 2 * self.R * self.K * self.context * self.H * itemsize


def attention(case: Case, limits: Ceilings, dtype: str, *, interpret: bool) -> Figures:
    """Returns the kernel's and XLA's largest errors and their times, a call over all rows."""
    itemsize = jnp.dtype(dtype).itemsize
    size = case.key_bytes(itemsize)
    layers = 2 if interpret else min(MOST_LAYERS, max(2, SPREAD // size))
    bodies = {
        "kernel": partial(paged.paged_attention, scale=case.H**-0.5, interpret=interpret),
        "xla": partial(paged.reference, scale=case.H**-0.5),
    }
    data = _pages(case, layers, dtype)
    figures = {"R": case.R, "M": case.M, "H": case.H, "context": case.context}
    expected = _oracle(case, data)
    for name, body in bodies.items():
        error = _error(body, data, expected, case)
        seconds = _seconds(body, data, layers, case)
        figures |= {f"{name}_error": error, f"{name}_us": 1e6 * seconds}
        figures[f"{name}_share"] = size / limits.bytes_per_s / seconds
    return figures | {"speedup": figures["xla_us"] / figures["kernel_us"]}


def _pages(case: Case, layers: int, dtype: str) -> dict[str, Any]:
    """Returns queries, a pool of random pages, and tables that hand them out in no order."""
    P = case.R * case.W + 3  # a few pages are nobody's
    keys = iter(jax.random.split(jax.random.key(0), 3))
    shape = (layers, P, case.K, case.Z, case.H)
    draw = jax.jit(partial(jax.random.normal, dtype=jnp.dtype(dtype)), static_argnums=1)
    q, k, v = (
        draw(key, s) for key, s in zip(keys, ((case.R, case.K, case.M, case.H), shape, shape),
                                       strict=True)
    )  # fmt: skip
    table = np.random.default_rng(0).permutation(P)[: case.R * case.W]
    return {"q": q, "k": k, "v": v, "table": jnp.asarray(table.reshape(case.R, case.W), jnp.int32)}


def _lengths(case: Case) -> jax.Array:
    """Returns lengths to find errors with: none, one, page borders, all."""
    every = [case.context, 0, 1, case.Z, case.Z + 1, case.context - 1]
    return jnp.asarray([every[i % len(every)] for i in range(case.R)], jnp.int32)


def _oracle(case: Case, data: dict[str, Any]) -> Any:
    """Returns attention in float32 over the last layer, from the very numbers in the pool."""
    rows = [np.asarray(data[name][-1], np.float32) for name in ("k", "v")]
    k, v = (jnp.asarray(x)[None] for x in rows)
    with jax.default_matmul_precision("highest"):
        return jax.jit(partial(paged.reference, scale=case.H**-0.5))(
            data["q"].astype(jnp.float32), k, v, 0, data["table"], _lengths(case)
        )


def _error(body: Callable[..., Any], data: dict[str, Any], expected: Any, case: Case) -> float:
    """Returns the largest difference to the oracle, of attention and of its log-sum-exp."""
    last = data["k"].shape[0] - 1
    found = jax.jit(body)(
        data["q"], data["k"], data["v"], jnp.int32(last), data["table"], _lengths(case)
    )
    return max(
        float(jnp.abs(a - b).max()) for a, b in zip(found, expected, strict=True)
    )  # fmt: skip


def _seconds(body: Callable[..., Any], data: dict[str, Any], layers: int, case: Case) -> float:
    """Returns the seconds of one call over full rows, from a program of many, layer by layer."""
    calls = 2 if layers == 2 else CALLS
    full = jnp.full(case.R, case.context, jnp.int32)

    @jax.jit
    def many(q: jax.Array, k: jax.Array, v: jax.Array, table: jax.Array) -> jax.Array:
        def one(i: jax.Array, q: jax.Array) -> jax.Array:
            out, _ = body(q, k, v, i % layers, table, full)
            return out.astype(q.dtype)  # the next call waits for this one

        return jax.lax.fori_loop(0, calls, one, q)

    return best_time(lambda: many(**data)) / calls


def largest(rows: int, vocab: int, k: int) -> Figures:
    """Returns the times of the exact top-k and of XLA's, and 1 where they find the same."""
    logits = _logits(rows, vocab)
    ours, theirs = (jax.jit(partial(f, k=k)) for f in (top_k.exact_top_k, top_k.reference))
    pairs = zip(ours(logits), theirs(logits), strict=True)
    same = all(bool((a == b).all()) for a, b in pairs)
    fast, slow = best_time(lambda: ours(logits)), best_time(lambda: theirs(logits))
    return {
        "rows": rows, "V": vocab, "k": k, "equal": float(same), "top_k_us": 1e6 * fast,
        "xla_us": 1e6 * slow, "speedup": slow / fast,
    }  # fmt: skip


def sampler(rows: int, vocab: int, limits: Ceilings) -> Figures:
    """Returns the time of drawing a token a row, under the paper's settings and greedily.

    The bound is one reading of the logits.
    """
    logits = _logits(rows, vocab)
    key = jnp.stack([jnp.arange(rows, dtype=jnp.uint32)] * 2, axis=1)
    whole = partial(jnp.full, rows)
    found: Figures = {"rows": rows, "V": vocab}
    for name, temperature in (("drawn", 1.2), ("greedy", 0.0)):
        candidates = sampling.candidates_for(
            np.full(rows, temperature, np.float32), np.full(rows, 50, np.int32), vocab
        )
        call = jax.jit(partial(sampling.draw, candidates=candidates))
        seconds = best_time(
            partial(
                call, logits, key, whole(7), whole(temperature), whole(50), whole(0.9), whole(0.0)
            )
        )
        found[f"{name}_us"] = 1e6 * seconds
        found[f"{name}_share"] = 4 * rows * vocab / limits.bytes_per_s / seconds
    return found


def _logits(rows: int, vocab: int) -> jax.Array:
    return jax.jit(lambda key: jax.random.normal(key, (rows, vocab)))(jax.random.key(1))


def copies(shape: tuple[int, ...], pairs: int, dtype: str, limits: Ceilings) -> Figures:
    """Returns the time of copying `pairs` pages within a pool of `shape` [L, P, K, Z, H].

    Raises:
      RuntimeError: where a page does not hold what its source does.
    """
    L, P, K, Z, H = shape
    mark = jnp.arange(P, dtype=jnp.float32).astype(dtype)[None, :, None, None, None]
    pool = KVPool(*(jax.jit(lambda m: jnp.broadcast_to(m, shape) + 0)(mark) for _ in range(2)))
    order = np.random.default_rng(0).permutation(P)[: 2 * pairs].astype(np.int32)
    source, target = order[:pairs], order[pairs:]

    def copy() -> jax.Array:
        nonlocal pool
        pool = decode.copy_pages(pool, source, target)
        return pool.v

    seconds = best_time(copy)
    if not bool((pool.v[:, target] == pool.v[:, source]).all()):
        raise RuntimeError("a copied page differs from its source")
    moved = 2 * 2 * pairs * L * K * Z * H * jnp.dtype(dtype).itemsize
    return {
        "pages": pairs, "pool_GB": pool.k.nbytes * 2 / 1e9, "us": 1e6 * seconds,
        "share": moved / limits.bytes_per_s / seconds,
    }  # fmt: skip
