"""The engine: whether it is right on this device, how fast it decodes, prefills and grows trees."""

import dataclasses
import gc
import os
import statistics
import time
from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import random_search, roofline
from benchmarks.on_gpu import machine, profile
from benchmarks.on_gpu.child import Job, Wrong
from benchmarks.on_gpu.kernels import JUDGE, PAPER
from benchmarks.on_gpu.sizes import EngineSizes, Shape
from stair_jax import mesh as mesh_lib
from stair_jax.config.schema import EngineConfig
from stair_jax.engine.engine import Engine
from stair_jax.engine.request import GREEDY, Prefix, Request, Sampling
from stair_jax.model import heads, transformer
from stair_jax.model.spec import Spec
from stair_jax.train import step as step_lib

DTYPE: Literal["bfloat16"] = "bfloat16"
STRETCHES = 3  # timed, of which the median counts
LR = 1e-4
TRITON_OFF = "--xla_gpu_enable_triton_gemm=false"
ROOM = 55  # seconds that a second engine of the large model takes, compiling included


# Right


def right(job: Job) -> None:
    """Files what the small model says greedily in float32.

    The weights, the answers, the logits along them and a training step's loss go to a file that the
    peer compares with transformers.

    Raises:
      Wrong: where the answers are not the likeliest tokens.
    """
    # Triton tries dozens of kernels for each shape of a product, and takes minutes to compile them
    # at full float32 precision; cuBLAS has its own.
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {TRITON_OFF}".strip()
    sizes = job.sizes.right
    spec, folder = roofline.SPECS[sizes.size], job.path
    with jax.default_matmul_precision("highest"):
        params = roofline.weights(spec, "float32")
        saved = {"prompts": _prompts(spec, sizes.prompts, sizes.longest)}
        saved["answers"], saved["logps"] = _greedy(job, spec, params, saved["prompts"])
        saved["logits"] = _logits(spec, params, saved["prompts"], saved["answers"])
    own = np.take_along_axis(saved["logits"], saved["answers"][..., None], axis=-1)[..., 0]
    likeliest = float(np.mean(saved["logits"].max(axis=-1) - own <= 1e-4))
    job.report(engine_greedy_is_likeliest=likeliest)  # by the decoder's own forward pass
    saved |= _training_step(job, spec, params)
    arrays: dict[str, Any] = {**saved, **_flat(params)}
    np.savez(folder / "right.npz", **arrays)
    if likeliest != 1:
        raise Wrong(f"{likeliest:.3f} of the greedy tokens are likeliest")


def trees(job: Job) -> None:
    """Files the digest of the small model's trees, grown one by one and all at once.

    Raises:
      Wrong: where trees depend on how many grow at once.
    """
    digests = [trees_digest(job, n) for n in (1, job.sizes.right.trees.in_flight)]
    (job.path / "digest").write_text(digests[0], encoding="utf-8")
    equal = digests[0] == digests[1]
    job.report(trees_equal_in_flight=float(equal))
    if not equal:
        raise Wrong("trees depend on how many grow at once")


def again(job: Job) -> None:
    """Grows the trees of `trees` in another process.

    Raises:
      Wrong: where they are others.
    """
    digest = (job.path / "digest").read_text()
    equal = trees_digest(job, job.sizes.right.trees.in_flight) == digest
    job.report(trees_equal_restarted=float(equal))
    if (other := job.path / "fresh").exists():
        job.report(trees_equal_without_cache=float(other.read_text() == digest))
    if not equal:
        raise Wrong("trees differ from those of the first process")


def fresh(job: Job) -> None:
    """Files the digest of the trees of a process that compiles everything for itself.

    Which algorithms it takes is settled by its own clock; nobody promises equal rounding.
    """
    digest = trees_digest(job, job.sizes.right.trees.in_flight)
    (job.path / "fresh").write_text(digest, encoding="utf-8")


def trees_digest(job: Job, in_flight: int) -> str:
    """Returns a digest of the small model's trees, in bfloat16 as searches run."""
    sizes = job.sizes.right
    spec = roofline.SPECS[sizes.size]
    shape = dataclasses.replace(sizes.trees, in_flight=in_flight)
    engine = roofline.engine_of(
        spec, _small_config(job, DTYPE), random_search.Ids(spec, shape).stops
    )
    return random_search.digest(random_search.grow(engine, spec, shape).trees)


def _small_config(job: Job, dtype: Literal["float32", "bfloat16"]) -> EngineConfig:
    sizes = job.sizes.right
    return EngineConfig(
        slots=sizes.slots,
        page_size=16,
        pool_bytes=0,
        max_context=sizes.context,
        chunk=8,
        prefill_rows=4,
        dtype=dtype,
        attention=job.attention,
    )


def _prompts(spec: Spec, count: int, longest: int) -> np.ndarray:
    """Returns prompts of falling lengths, [count, longest], filled up at the left with -1."""
    rng = np.random.default_rng(0)
    out = rng.integers(0, spec.V - 1, (count, longest))
    for row in range(count):
        out[row, : row * (longest - 3) // count] = -1
    return out


def _real(row: np.ndarray) -> list[int]:
    return row[row >= 0].tolist()


def _greedy(job: Job, spec: Spec, params: Any, prompts: np.ndarray) -> tuple[np.ndarray, Any]:
    """Returns the engine's greedy answers [count, new], and the log-probs of their tokens."""
    new = job.sizes.right.new
    never = {"step": {spec.V - 1}, "end": {spec.V - 1}}
    engine = Engine(
        spec, dict(params), config=_small_config(job, "float32"), stops=never, vocab=spec.V - 1
    )
    requests = [
        Request(
            id=i,
            prefix=engine.root(_real(row)),
            key=(i,),
            stop="end",
            max_tokens=new,
            sampling=GREEDY,
            logps=True,
        )
        for i, row in enumerate(prompts)
    ]
    results = engine.generate(requests)
    return np.asarray([r.ids for r in results]), np.asarray([r.logps for r in results])


def _logits(spec: Spec, params: Any, prompts: np.ndarray, answers: np.ndarray) -> np.ndarray:
    """Returns the decoder's logits at each token of the answers, [count, new, V]."""
    count, new = answers.shape
    width = prompts.shape[1] + new
    tokens, at = np.zeros((count, width), np.int32), np.zeros((count, new), np.int32)
    for row, answer in enumerate(answers):
        ids = [*_real(prompts[row]), *answer.tolist()]
        tokens[row, : len(ids)] = ids
        at[row] = np.arange(new) + len(ids) - new - 1  # the place before each token

    @jax.jit
    def run(params: Any, tokens: jax.Array, at: jax.Array) -> jax.Array:
        decoder = transformer.Decoder(spec, jnp.float32)
        hidden: Any = decoder.apply({"params": params}, tokens)[0]
        picked = jnp.take_along_axis(hidden, at[..., None], axis=1)
        logits = heads.logits(params, picked, spec)
        return jnp.where(jnp.arange(spec.V) < spec.V - 1, logits, -jnp.inf)  # as the engine draws

    return np.asarray(run(params, tokens, at))


def _training_step(job: Job, spec: Spec, params: Any) -> dict[str, Any]:
    """Returns a training batch, and the loss and gradient norm of our step on it in bfloat16."""
    from benchmarks.on_gpu import training

    sizes = job.sizes.right
    batch = training.sft_batch(spec, sizes.rows, sizes.longest)
    mesh = mesh_lib.make((1, 1, 1), jax.local_devices()[:1])
    loss = training.sft_loss(spec, "none", head_chunk=64)
    with jax.set_mesh(mesh):
        own = step_lib.on_mesh(jax.tree.map(lambda x: x + 0, params), mesh)
        state = step_lib.init(own, training.ADAMW, mesh)
        placed = step_lib.place(batch, mesh)
        _, metrics = step_lib.step(state, placed, LR, loss=loss, tx=training.ADAMW)
        found = {name: float(metrics[name]) for name in ("loss", "grad_norm")}
    return {
        "train_tokens": batch.tokens[0],
        "train_loss": found["loss"],
        "train_grad_norm": found["grad_norm"],
    }


def _flat(params: Any) -> dict[str, np.ndarray]:
    """Returns parameters by name, layers stacked."""
    flat = {name: np.asarray(x) for name, x in params.items() if name != "layers"}
    layers = {f"layers.{name}": np.asarray(x) for name, x in params["layers"].items()}
    return {f"params.{name}": x for name, x in (flat | layers).items()}


# Speed


def config_of(
    job: Job, sizes: EngineSizes, *, pool: int = 0, share: Literal["auto", "on", "off"] = "auto"
) -> EngineConfig:
    """Returns an engine's settings, with a share of the slots where the memory was too little.

    Args:
      pool: bytes; 0 leaves it to the engine.
    """
    return EngineConfig(
        slots=job.some(sizes.slots),
        page_size=sizes.page,
        pool_bytes=pool,
        max_context=sizes.context,
        chunk=8,
        prefill_rows=sizes.prefill_rows,
        dtype=DTYPE,
        attention=job.attention,
        share_prefix=share,
    )


def pool_of(job: Job, sizes: EngineSizes) -> int:
    """Returns the bytes of a pool of a whole context and two pages for each slot."""
    spec = roofline.SPECS[sizes.size]
    pages = job.some(sizes.slots) * (-(-sizes.context // sizes.page) + 2)
    return pages * sizes.page * 2 * spec.L * spec.K * spec.H * jnp.dtype(DTYPE).itemsize


def _stops(spec: Spec) -> dict[str, set[int]]:
    """Returns stop sets that never fire, as many as a search has: the programs are the same."""
    return {"step": {spec.V - 1}, "end": {spec.V - 1}}


def decode(job: Job) -> None:
    """Files what decoding takes under some loads and samplers, the main one first."""
    sizes, limits = job.sizes.engine, machine.limits_of(job)
    spec = roofline.SPECS[sizes.size]
    start = time.perf_counter()
    engine = roofline.engine_of(spec, config_of(job, sizes, pool=pool_of(job, sizes)), _stops(spec))
    stats = jax.local_devices()[0].memory_stats() or {}
    job.report(
        model=sizes.size,
        slots=engine.config.slots,
        ready_s=time.perf_counter() - start,
        in_use_GB=stats.get("bytes_in_use", 0) / 1e9,
        peak_GB=stats.get("peak_bytes_in_use", 0) / 1e9,
    )
    loader = Loader(job, engine, spec, limits)
    slots = engine.config.slots
    (share, context), *others = job.sizes.decoding.loads
    main = loader.measure(f"{slots} x {context}", round(slots * share), context)
    job.report(
        decode_step_ms=main["step_ms"],
        decode_tokens_per_s=main["tokens_per_s"],
        decode_share=main["share"],
        decode_host_ms=main["host_ms"],
    )
    drawn = loader.measure(f"{slots} x {context}, all tokens", slots, context, sampling=JUDGE)
    job.report(ms_of_drawing_from_all=drawn["step_ms"] - main["step_ms"])
    loader.measure(f"{slots} x {context}, siblings of 4", slots, context, family=4)
    with loader.running(slots, context, 4):
        profile.file(job, engine.step)
    for share, context in others:
        rows = max(1, round(slots * share))
        loader.measure(f"{rows} x {context}", rows, context)
    if job.attention == "xla" or engine.config.share_prefix == "off" or job.left() < ROOM:
        job.leave_out("decode without sharing prefixes: no time")
        return
    del engine, loader  # their pool and weights go before the next ones come
    gc.collect()
    _, context = job.sizes.decoding.loads[0]
    config = config_of(job, sizes, pool=pool_of(job, sizes), share="off")
    loader = Loader(job, roofline.engine_of(spec, config, _stops(spec)), spec, limits)
    alone = loader.measure(f"{slots} x {context}, sharing off", slots, context)
    job.report(ms_of_sharing_unused=main["step_ms"] - alone["step_ms"])


class Loader:
    """Puts loads of random prompts on an engine; keys once computed serve the next load too."""

    def __init__(self, job: Job, engine: Engine, spec: Spec, limits: roofline.Ceilings):
        self._job, self.engine, self._spec, self._limits = job, engine, spec, limits
        self._roots: dict[int, list[Prefix]] = {}  # by context
        self._asked = 0

    def measure(
        self, label: str, rows: int, context: int, *, family: int = 1, sampling: Sampling = PAPER
    ) -> dict[str, float]:
        """Files and returns medians of some stretches of decoding with `rows` requests.

        Args:
          family: requests that continue the same prompt.
        """
        chunks, chunk = self._job.sizes.decoding.chunks, self.engine.config.chunk
        total = 2 + STRETCHES * chunks
        found = []
        with self.running(rows, context, total, family=family, sampling=sampling):
            for _ in range(STRETCHES):
                found.append(self._stretch(chunks, rows))
        step, device, host = (statistics.median(x) for x in zip(*found, strict=True))
        seen = context - 1 + chunk * (1 + STRETCHES * chunks / 2)
        cost = roofline.decode_cost(self._spec, rows, seen, jnp.dtype(DTYPE).itemsize)
        figures = {
            "step_ms": 1e3 * step,
            "tokens_per_s": rows / step,
            "share": cost.bytes / self._limits.bytes_per_s / step,
            "device_ms": 1e3 * device,
            "host_ms": 1e3 * host,
            "mean_context": seen,
        }
        self._job.row("decode", label, **figures)
        return figures

    def _stretch(self, chunks: int, rows: int) -> tuple[float, float, float]:
        """Returns the seconds of a step: in all, by the device's clock, by the host's."""
        start, before = time.perf_counter(), dict(self.engine.counters)
        for _ in range(chunks):
            self.engine.step()
        seconds = time.perf_counter() - start
        since = {name: x - before[name] for name, x in self.engine.counters.items()}
        steps = since["decoded"] / rows
        if abs(steps - chunks * self.engine.config.chunk) > self.engine.config.chunk:
            raise RuntimeError(f"expected {chunks} full chunks of {rows} rows, found {since}")
        return seconds / steps, since["device_s"] / steps, since["host_s"] / steps

    def running(
        self, rows: int, context: int, chunks: int, *, family: int = 1, sampling: Sampling = PAPER
    ) -> "Running":
        """Returns a block in which `rows` requests decode, for `chunks` chunks at least."""
        tokens = (chunks + 1) * self.engine.config.chunk
        roots = self._prompts(context, -(-rows // family))
        requests = []
        for row in range(rows):
            self._asked += 1
            requests.append(
                Request(
                    id=self._asked,
                    prefix=roots[row // family],
                    key=(self._asked,),
                    stop="end",
                    max_tokens=tokens,
                    sampling=sampling,
                    group=row // family,
                    shared=context,
                )
            )
        return Running(self.engine, requests)

    def _prompts(self, context: int, count: int) -> Sequence[Prefix]:
        roots = self._roots.setdefault(context, [])
        rng = np.random.default_rng(context)
        while len(roots) < count:
            ids = rng.integers(0, self._spec.V - 1, context)
            ids[0] = len(roots)  # no two are alike
            roots.append(self.engine.root(ids.tolist()))
        return roots


class Running:
    """A block in which requests decode; the first chunks, with their prompts, come before it."""

    def __init__(self, engine: Engine, requests: Sequence[Request]):
        self._engine, self._requests = engine, requests

    def __enter__(self) -> None:
        for request in self._requests:
            self._engine.submit(request)
        for _ in range(2):  # compiles, prefills, fills the slots
            self._engine.step()

    def __exit__(self, *error: object) -> None:
        while not self._engine.idle:
            self._engine.step()
        for result in self._engine.collect():
            self._engine.release(result.prefix)


def prefill(job: Job) -> None:
    """Files what the keys of blocks of prompts take: without keys before them, and behind some."""
    sizes, limits = job.sizes.engine, machine.limits_of(job)
    spec = roofline.SPECS[sizes.size]
    engine = roofline.engine_of(spec, config_of(job, sizes, pool=pool_of(job, sizes)), _stops(spec))
    rows, tokens = job.some(sizes.prefill_rows), sizes.block
    for name, start in (("fresh", 0), ("later", job.sizes.later)):
        seconds = roofline.extend_seconds(engine, rows, tokens, start, job.sizes.calls)
        flops = roofline.extend_flops(spec, rows, tokens, start)
        job.report(
            **{
                f"extend_{name}_ms": 1e3 * seconds,
                f"extend_{name}_tokens_per_s": rows * tokens / seconds,
                f"extend_{name}_mfu": flops / seconds / limits.flops_per_s,
            }
        )


# Search


def search(job: Job) -> None:
    """Files a search with the smaller model, with the pool that the engine takes by itself."""
    trees = job.some(job.sizes.search.trees)
    shape = dataclasses.replace(
        job.sizes.search, trees=trees, in_flight=min(trees, job.sizes.search.in_flight)
    )
    _search(job, job.sizes.search_engine, shape, pool=0)


def large_search(job: Job) -> None:
    """Files a search with the larger model, on the pool and programs of `decode`."""
    sizes = job.sizes.engine
    _search(job, sizes, job.sizes.large_search, pool=pool_of(job, sizes))


def _search(job: Job, sizes: EngineSizes, shape: Shape, *, pool: int) -> None:
    limits, spec = machine.limits_of(job), roofline.SPECS[sizes.size]
    stops = random_search.Ids(spec, shape).stops
    engine = roofline.engine_of(spec, config_of(job, sizes, pool=pool), stops)
    stats = jax.local_devices()[0].memory_stats() or {}
    job.report(model=sizes.size, in_use_GB=stats.get("bytes_in_use", 0) / 1e9)
    random_search.warm_up(engine, spec, shape)
    grown = random_search.grow(engine, spec, shape)
    job.report(**random_search.figures(engine, spec, shape, limits, grown))
