"""What a machine allows, and what the engine's programs make of it. Shared by two benchmarks.

The bound of a program is the longer of two times: its bytes at the machine's copy bandwidth, its
arithmetic at the machine's matrix rate; both are measured in the same run. Where weights and keys
fit in a cache the bytes come faster than that, and a share above 1 is possible.

Shape letters: see `stair_jax.model.spec.Spec`.
"""

import dataclasses
import statistics
import time
from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from stair_jax.config.schema import EngineConfig
from stair_jax.engine import placing
from stair_jax.engine.device import joins
from stair_jax.engine.engine import Engine
from stair_jax.engine.request import Prefix, Request, Sampling
from stair_jax.model import transformer
from stair_jax.model.spec import RopeScaling, Spec

SAMPLING = Sampling(temperature=1.2, top_k=50, top_p=0.9)
TIMED = 4  # chunks of a timed stretch of decoding
_llama = partial(
    Spec, eps=1e-5, theta=5e5, rope_scaling=None, qkv_bias=False, qk_norm=False, family="llama"
)
_stretched = partial(RopeScaling, low=1.0, high=4.0, original=8192)
SPECS = {
    "miniature": _llama(
        L=3, D=128, N=4, K=2, H=32, F=352, V=411, vocab=411, theta=100.0, tied=True
    ),
    "least": _llama(L=2, D=32, N=4, K=2, H=8, F=48, V=90, vocab=90, theta=100.0, tied=False),
    "small": _llama(L=4, D=512, N=8, K=4, H=64, F=1408, V=8192, vocab=8192, theta=1e4, tied=False),
    "1b": _llama(  # Llama-3.2-1B
        L=16,
        D=2048,
        N=32,
        K=8,
        H=64,
        F=8192,
        V=128_256,
        vocab=128_256,
        tied=True,
        rope_scaling=_stretched(factor=32.0),
    ),
    "8b": _llama(  # Llama-3.1-8B
        L=32,
        D=4096,
        N=32,
        K=8,
        H=128,
        F=14_336,
        V=128_256,
        vocab=128_256,
        tied=False,
        rope_scaling=_stretched(factor=8.0),
    ),
}


@dataclasses.dataclass(frozen=True)
class Ceilings:
    """What the machine does at best."""

    bytes_per_s: float  # a large array read and written
    flops_per_s: float  # a large square matrix product

    def seconds(self, cost: "Cost") -> float:
        """Returns the least time that `cost` takes."""
        return max(cost.bytes / self.bytes_per_s, cost.flops / self.flops_per_s)


@dataclasses.dataclass(frozen=True)
class Cost:
    """Bytes that must be moved at least, and floating-point operations."""

    bytes: float
    flops: float


def weights(spec: Spec, dtype: str, seed: int = 0) -> Any:
    """Returns random parameters of the scale of `transformer.init`, drawn on the device in `dtype`.

    They are drawn a layer at a time, so that little memory is needed beside them, and by the
    generator that an accelerator has in hardware.
    """
    scales = {"embed": 0.02, "head": 0.02, "wo": (spec.N * spec.H) ** -0.5, "w_down": spec.F**-0.5}
    shapes = jax.eval_shape(partial(transformer.init, spec), jax.random.key(0))

    def leaf(path: Any, shape: Any, key: jax.Array) -> jax.Array:
        name, layered = str(path[-1].key), str(path[0].key) == "layers"
        if "norm" in name:
            return jnp.ones(shape.shape, dtype)

        def one(key: jax.Array) -> jax.Array:
            x = jax.random.normal(key, shape.shape[1 if layered else 0 :], jnp.float32)
            return (scales.get(name, spec.D**-0.5) * x).astype(dtype)

        return jax.lax.map(one, jax.random.split(key, shape.shape[0])) if layered else one(key)

    def draw(key: jax.Array) -> Any:
        leaves, tree = jax.tree_util.tree_flatten_with_path(shapes)
        keys = jax.random.split(key, len(leaves))
        drawn = [leaf(path, x, k) for (path, x), k in zip(leaves, keys, strict=True)]
        return jax.tree.unflatten(tree, drawn)

    return jax.block_until_ready(jax.jit(draw)(jax.random.key(seed, impl="rbg")))


def best_time(call: Callable[[], Any], repetitions: int = 5) -> float:
    """Returns the seconds of the fastest of some calls, after one that compiles."""
    jax.block_until_ready(call())
    times = []
    for _ in range(repetitions):
        start = time.perf_counter()
        jax.block_until_ready(call())
        times.append(time.perf_counter() - start)
    return min(times)


def ceilings(dtype: str, *, copy_bytes: int, side: int) -> Ceilings:
    """Measures both ceilings.

    Args:
      copy_bytes: of the array that is read; as many are written. Far more than the caches hold.
      side: of the square matrices.
    """
    return Ceilings(copy_rate(copy_bytes), product_rate(side, dtype, "float32"))


def copy_rate(count: int) -> float:
    """Returns the bytes a second, read and written, of negating `count` random bytes in place."""
    draw = jax.jit(lambda key: jax.random.normal(key, (count // 4,)))
    negate = jax.jit(jnp.negative, donate_argnums=0)  # in place: fresh memory is slow to come by
    x = draw(jax.random.key(0, impl="rbg"))

    def move() -> jax.Array:
        nonlocal x
        x = negate(x)
        return x

    return 2 * count / best_time(move, repetitions=8)


def product_rate(side: int, dtype: str, out: str) -> float:
    """Returns the operations a second of a product of two random square matrices.

    Equal entries would flatter a GPU: its clock falls with the bits that change.

    Args:
      dtype: of both factors.
      out: dtype of the product.
    """
    draw = jax.jit(lambda key: jax.random.normal(key, (2, side, side)).astype(dtype))
    a, b = draw(jax.random.key(0, impl="rbg"))
    product = jax.jit(partial(jnp.matmul, preferred_element_type=jnp.dtype(out)))
    return 2 * side**3 / best_time(partial(product, a, b), repetitions=8)


def sync_seconds(turns: int) -> float:
    """Returns the seconds a turn of a loop that asks the device each time whether to go on.

    The decoding loop is of that kind, and pays them once a token.
    """

    @jax.jit
    def loop(x: jax.Array) -> jax.Array:
        return jax.lax.while_loop(lambda x: x < turns, lambda x: x + 1, x)

    return best_time(partial(loop, jnp.int32(0))) / turns


def decode_cost(spec: Spec, rows: int, context: float, itemsize: int) -> Cost:
    """Returns the cost of one token in each of `rows` rows that see `context` tokens each.

    Every row reads its own keys: prefixes that rows share are counted for each of them.
    """
    parameters = spec.matrix_parameters(head=True)
    keys = 2 * spec.L * spec.K * spec.H * itemsize * rows * context
    scores = 4 * spec.L * spec.N * spec.H * rows * context
    return Cost(parameters * itemsize + keys, 2 * parameters * rows + scores)


def extend_cost(spec: Spec, rows: int, tokens: float, itemsize: int) -> Cost:
    """Returns the cost of the keys of `rows` prompts of `tokens` tokens; no logits."""
    parameters = spec.matrix_parameters(head=False)
    keys = 2 * spec.L * spec.K * spec.H * itemsize * rows * tokens
    scores = 4 * spec.L * spec.N * spec.H * rows * tokens * tokens / 2
    return Cost(parameters * itemsize + keys, 2 * parameters * rows * tokens + scores)


def extend_flops(spec: Spec, rows: int, tokens: int, start: int) -> float:
    """Returns the operations of the keys of `rows` blocks of tokens behind `start` tokens each."""
    seen = tokens * start + tokens * (tokens + 1) / 2
    products = 2 * spec.matrix_parameters(head=False) * tokens
    return rows * (products + 4 * spec.L * spec.N * spec.H * seen)


def engine_of(
    spec: Spec, config: EngineConfig, stops: Mapping[str, Collection[int]], seed: int = 0
) -> Engine:
    """Returns an engine with random weights, which nobody else holds.

    The last row of the embedding is never drawn: a stop set of it alone never fires.
    """
    (placed,) = placing.place(
        spec,
        weights(spec, config.dtype, seed),
        [None],
        dtype=config.dtype,
        joined=joins(config),
        give_away=True,
    )
    return Engine(spec, placed, config=config, stops=stops, vocab=spec.V - 1)


def extend_seconds(engine: Engine, rows: int, tokens: int, start: int, calls: int) -> float:
    """Returns the seconds of one call that computes `tokens` of `rows` rows behind `start` tokens.

    It works on the engine's device past its queue, in pages that it may hold keys in: the engine
    must be idle, and is of no use afterwards. The rows' keys before `start` are whatever is there.

    Args:
      calls: that are started one after the other, and waited for together.
    """
    device: Any = engine._device
    width = -(-(start + tokens) // engine.config.page_size)
    pages = [range(row * width, (row + 1) * width) for row in range(rows)]
    ids = np.random.default_rng(0).integers(0, engine._spec.V - 1, (rows, tokens)).tolist()

    def run() -> Any:
        for _ in range(calls):
            device.extend(ids, pages, [start] * rows if start else None)
        return device._pool.k

    return best_time(run, repetitions=3) / calls


@dataclasses.dataclass(frozen=True)
class Load:
    """`rows` sequences of `context` tokens, all continued at once."""

    rows: int
    context: int
    family: int = 1  # sequences that continue the same prompt

    def config(
        self,
        dtype: Literal["float32", "bfloat16"],
        *,
        chunk: int,
        page_size: int,
        prefill_rows: int,
    ) -> EngineConfig:
        """Returns an engine's settings in which the whole load runs at once."""
        return EngineConfig(
            slots=self.rows,
            page_size=page_size,
            pool_bytes=0,
            chunk=chunk,
            dtype=dtype,
            max_context=self.context + (TIMED + 2) * chunk,
            prefill_rows=prefill_rows,
        )

    def pool_bytes(self, spec: Spec, config: EngineConfig) -> int:
        """Returns the bytes of a pool that holds the sequences and what they are continued with.

        A continuation shares the whole pages of its prompt, and has a copy of the one in part.
        """
        pages = self.rows * (-(-config.max_context // config.page_size) + 2)
        itemsize = jnp.dtype(config.dtype).itemsize
        return pages * 2 * spec.L * config.page_size * spec.K * spec.H * itemsize


class Bench:
    """An engine under a load of random prompts whose answers end at their limit only."""

    def __init__(self, spec: Spec, params: Any, load: Load, config: EngineConfig):
        self.spec, self.load = spec, load
        self.config = dataclasses.replace(config, pool_bytes=load.pool_bytes(spec, config))
        # The last row of the embedding is never drawn, so a stop set of it never fires.
        self.engine = Engine(
            spec, params, config=self.config, stops={"never": {spec.V - 1}}, vocab=spec.V - 1
        )
        self._random = np.random.default_rng(0)
        self._asked = 0

    def run(self) -> dict[str, float]:
        """Returns the seconds of extending all prompts, and of one decode step.

        Prompts are extended in the time of their first token less the time of one more token
        after them; the first and the last chunk of the decoding are left out, which also take
        requests up and hand them back.
        """
        roots = self._roots()
        before = self.engine.counters["prefilled"]
        first, second = self._drain(roots, 1), self._drain(roots, 1)
        prefilled = self.engine.counters["prefilled"] - before
        figures = self._decode(roots) | {"prefilled": prefilled, "extend_s": first - second}
        for root in roots:
            self.engine.release(root)
        return figures

    def _roots(self) -> list[Prefix]:
        """Returns prompts at random, one a family."""
        draw = partial(self._random.integers, 0, self.spec.V - 1, self.load.context)
        count = -(-self.load.rows // self.load.family)
        return [self.engine.root(draw().tolist()) for _ in range(count)]

    def _submit(self, roots: list[Prefix], tokens: int) -> None:
        for row in range(self.load.rows):
            self._asked += 1
            family = row // self.load.family
            self.engine.submit(
                Request(
                    id=self._asked,
                    prefix=roots[family],
                    key=(self._asked,),
                    stop="never",
                    max_tokens=tokens,
                    sampling=SAMPLING,
                    group=family,
                    shared=self.load.context,
                )
            )

    def _collect(self) -> None:
        for result in self.engine.collect():
            self.engine.release(result.prefix)

    def _drain(self, roots: list[Prefix], tokens: int) -> float:
        """Returns the seconds until all roots are continued by `tokens`."""
        self._submit(roots, tokens)
        start = time.perf_counter()
        while not self.engine.idle:
            self.engine.step()
            self._collect()
        return time.perf_counter() - start

    def _decode(self, roots: list[Prefix]) -> dict[str, float]:
        """Returns the seconds of a step, in all and on the device, and the mean context."""
        chunk = self.config.chunk
        self._submit(roots, (TIMED + 2) * chunk)
        self.engine.step()
        start, before = time.perf_counter(), dict(self.engine.counters)
        for _ in range(TIMED):
            self.engine.step()
        seconds = time.perf_counter() - start
        since = {name: self.engine.counters[name] - x for name, x in before.items()}
        while not self.engine.idle:
            self.engine.step()
        self._collect()
        if since["steps"] != TIMED * chunk or since["decoded"] != TIMED * chunk * self.load.rows:
            raise RuntimeError(f"expected {TIMED} full chunks of {self.load}, found {since}")
        return {
            "step_s": seconds / since["steps"],
            "device_step_s": since["device_s"] / since["steps"],
            "context": self.load.context - 1 + chunk + TIMED * chunk / 2,
        }


def measure(bench: Bench, limits: Ceilings, repetitions: int) -> dict[str, float | None]:
    """Returns medians of a load's speed, and their shares of the bound.

    What is said of extending is None where its time was lost in the noise of the other parts.
    """
    bench.run()  # warms up
    runs = [bench.run() for _ in range(repetitions)]
    step, device, extend, prefilled, context = (
        statistics.median(run[name] for run in runs)
        for name in ("step_s", "device_step_s", "extend_s", "prefilled", "context")
    )
    rows, itemsize = bench.load.rows, jnp.dtype(bench.config.dtype).itemsize
    decode = limits.seconds(decode_cost(bench.spec, rows, context, itemsize))
    prompts = -(-rows // bench.load.family)
    extended = limits.seconds(extend_cost(bench.spec, prompts, prefilled / prompts, itemsize))
    return {
        "rows": rows,
        "family": bench.load.family,
        "context": context,
        "step_ms": 1e3 * step,
        "device_step_ms": 1e3 * device,
        "tokens_per_s": rows / step,
        "decode_bound_ms": 1e3 * decode,
        "decode_share": decode / step,
        "extend_tokens_per_s": prefilled / extend if extend > 0 else None,
        "extend_bound_ms": 1e3 * extended,
        "extend_share": extended / extend if extend > 0 else None,
    }
