"""Rows over a pool full of noise, and attention over them in the plainest code."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from stair_jax.model.cache import KVPool, Rows

B, Z, H, L = 6, 4, 8, 3
GQA = {"every head its own": (4, 4), "two of four": (4, 2), "one for all": (4, 1)}  # N, K


@jax.jit
def attend(cache, layer, rows, q, k, v):
    return cache.attend(layer, rows, q, k, v)


@dataclasses.dataclass
class Case:
    """Slots in the middle of their work."""

    pool: KVPool
    table: np.ndarray  # [B, W] int32
    length: np.ndarray  # [B] int32
    count: np.ndarray  # [B] int32, 0 for an idle slot
    N: int

    @property
    def rows(self) -> Rows:
        return Rows(*map(jnp.asarray, (self.table, self.length, self.count)))

    def after(self, steps: int) -> Rows:
        """The rows some tokens later."""
        return dataclasses.replace(self.rows, length=jnp.asarray(self.length + steps * self.count))

    def token(self, seed: int) -> tuple[Any, Any, Any]:
        """q [B, 1, N, H], and k and v [B, 1, K, H], of a new token."""
        rng, K = np.random.default_rng(1000 + seed), self.pool.k.shape[2]
        q, k, v = np.split(
            rng.normal(size=(len(self.table), 1, self.N + 2 * K, H)), [self.N, self.N + K], axis=2
        )
        return jnp.float32(q), jnp.float32(k), jnp.float32(v)

    @property
    def active(self) -> np.ndarray:
        return np.flatnonzero(self.count)


def case(N: int, K: int, *, seed: int = 0, slots: int = B, width: int = 8, steps: int = 4) -> Case:
    """Rows with pages of their own in any order; the last two are idle."""
    rng, P = np.random.default_rng(seed), slots * width + 5
    noise = rng.normal(size=(2, L, P, K, Z, H)).astype(np.float32)
    table = rng.permutation(P)[: slots * width].reshape(slots, width)
    length = rng.integers(0, width * Z - steps, size=slots)
    length[:2] = 0, width * Z - steps  # nothing cached, and pages filled to the end
    count = np.array([1] * (slots - 2) + [0, 0])
    table, length, count = (x.astype(np.int32) for x in (table, length, count))
    return Case(KVPool(*map(jnp.asarray, noise)), table, length, count, N)


def keys_of(x, layer: int, table: np.ndarray, length: int) -> np.ndarray:
    """The first tokens of a row, [S, K, H], one by one."""
    at = [np.asarray(x)[layer, table[p // Z], :, p % Z] for p in range(length)]
    return np.stack(at) if at else np.zeros((0, *np.asarray(x).shape[2::2]))


def by_hand(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Attention of one query [N, H] over k and v [S, K, H], head by head."""
    out, group = np.zeros(q.shape), q.shape[0] // k.shape[1]
    for head in range(q.shape[0]):
        score = k[:, head // group].astype(np.float64) @ q[head] / np.sqrt(q.shape[1])
        weight = np.exp(score - score.max())
        out[head] = weight @ v[:, head // group] / weight.sum()
    return out
