"""The engine's inner programs: paged attention, top-k, the sampler; their errors and their speed.

Shape letters: R rows  K kv heads  M queries a row and kv head  H head dim  P pages  Z tokens of a
  page  W pages of a row  V vocabulary
"""

import concurrent.futures
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import roofline
from benchmarks.on_gpu import machine
from benchmarks.on_gpu.child import Job, Wrong
from benchmarks.on_gpu.sizes import Case
from stair_jax.engine import sampling
from stair_jax.engine.request import Sampling
from stair_jax.kernels import paged_attention as paged
from stair_jax.kernels import plans as kernel_plans
from stair_jax.kernels import top_k

DTYPE = "bfloat16"
TOLERANCE = 2e-2  # of the kernel in DTYPE, over the oracle's largest value
LAYERS = 2  # of the pool: the last is read, so that a wrong layer shows
CALLS = 16  # of one program: a single kernel is shorter than its launch from the host
SPREAD = 2**28  # bytes of keys that the calls read in turn, so that no cache holds them
MOST_LAYERS = 16
PAPER = Sampling(temperature=1.2, top_k=50, top_p=0.9)
JUDGE = Sampling(temperature=0.6, top_p=0.9)  # keeps tokens of the whole vocabulary
SURE = 4.0  # times the spread of the other logits


def right(job: Job) -> None:
    """Holds kernels and sampler against their oracles.

    Raises:
      Wrong: where one of them errs.
    """
    faults = _attention_faults(job)
    sizes = job.sizes
    equal = top_k_equal(sizes.sorted_rows, sizes.vocab, sizes.top_k)
    job.report(top_k_equal=float(equal))
    faults += [] if equal else ["top-k differs from lax.top_k"]
    drawn = {}
    for name, how in (("top_k", PAPER), ("all", JUDGE)):
        drawn[name] = draws_equal(sizes.drawn_rows, sizes.vocab, how)
        job.report(**{f"draws_equal_{name}": drawn[name]})
    job.report(draws_equal=min(drawn.values()))
    faults += [f"draws {name}: {share:.3f} equal" for name, share in drawn.items() if share < 0.98]
    if faults:
        raise Wrong("; ".join(faults))


def _attention_faults(job: Job) -> list[str]:
    """Files the kernel's errors, or what it died of; returns what is wrong."""
    interpret, worst, faults = jax.default_backend() == "cpu", 0.0, []
    for case in job.sizes.cases:
        try:
            found = error(case, DTYPE, partial(paged.paged_attention, interpret=interpret))
        except Exception as died:  # the other parts must not be lost; the parent reads the reason
            faults.append(f"paged_attention {case.label}: {type(died).__name__}: {died}"[:500])
            job.row("attention", case.label, died=faults[-1])
            continue
        job.row("attention", case.label, error=found)
        worst = max(worst, found)
        if not found <= TOLERANCE:  # a NaN is wrong as well
            faults.append(f"paged_attention {case.label}: error {found:.3g}")
    finite = worst if np.isfinite(worst) else 1e9
    job.report(kernel_error=finite, kernel_ok=float(not faults))
    return faults


def error(case: Case, dtype: str, body: Callable[..., Any]) -> float:
    """Returns the largest error of attention and of its log-sum-exp, over the oracle's largest.

    Rows have lengths from 0 to all. Pages that nobody owns, and what follows a row's last token in
    its own pages, hold NaN for the body; its tables name such pages past the length.
    """
    data = pages(case, LAYERS, dtype)
    length = lengths(case)
    owned = _owned(case, data["table"], length)[None, :, None, :, None]
    layer = LAYERS - 1
    scale = case.H**-0.5
    with jax.default_matmul_precision("highest"):
        k, v = (jnp.where(owned, x[layer:], 0).astype(jnp.float32) for x in (data["k"], data["v"]))
        oracle = jax.jit(partial(paged.reference, scale=scale))
        expected = oracle(data["q"].astype(jnp.float32), k, v, 0, data["table"], length)
    table = np.where(
        np.arange(case.W)[None] * case.Z < length[:, None], data["table"], _nobody(case)
    )
    k, v = (jnp.where(owned, x, jnp.nan) for x in (data["k"], data["v"]))
    found = jax.jit(partial(body, scale=scale))(
        data["q"], k, v, jnp.int32(layer), jnp.asarray(table, jnp.int32), length
    )
    worst = 0.0
    for ours, theirs in zip(found, expected, strict=True):
        ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
        real = theirs > paged.EMPTY / 2  # the log-sum-exp of no keys is a mark, not a number
        if not np.array_equal(real, ours > paged.EMPTY / 2):
            return float("inf")
        apart = np.abs(ours - theirs)[real].max() / np.abs(theirs[real]).max()
        worst = max(worst, float(apart)) if np.isfinite(apart) else float("inf")
    return worst


def pages(case: Case, layers: int, dtype: str) -> dict[str, Any]:
    """Returns queries, a pool of random pages, and tables that hand them out in no order."""
    P = _nobody(case) + 3  # a few pages are nobody's
    keys = iter(jax.random.split(jax.random.key(0), 3))
    shape = (layers, P, case.K, case.Z, case.H)
    draw = jax.jit(lambda key, shape: jax.random.normal(key, shape).astype(dtype), static_argnums=1)
    q, k, v = (
        draw(key, s)
        for key, s in zip(keys, ((case.R, case.K, case.M, case.H), shape, shape), strict=True)
    )
    table = np.random.default_rng(0).permutation(_nobody(case)).reshape(case.R, case.W)
    return {"q": q, "k": k, "v": v, "table": np.asarray(table, np.int32)}


def _nobody(case: Case) -> int:
    """Returns the first page that no row owns."""
    return case.R * case.W


def lengths(case: Case) -> np.ndarray:
    """Returns lengths to find errors with: none, one, page borders, all, and any."""
    every = [case.context, 0, 1, case.Z, case.Z + 1, case.context - 1]
    some = np.random.default_rng(1).integers(0, case.context + 1, case.R)
    return np.asarray([*every, *some][: case.R], np.int32)


def _owned(case: Case, table: np.ndarray, length: np.ndarray) -> np.ndarray:
    """Marks the places [P, Z] of the pool that hold a token of a row."""
    seen = np.arange(case.W * case.Z)[None] < length[:, None]
    owned = np.zeros((_nobody(case) + 3, case.Z), bool)
    owned[table] = seen.reshape(case.R, case.W, case.Z)
    return owned


def top_k_equal(rows: int, vocab: int, k: int) -> bool:
    """Returns whether the exact top-k finds what XLA's does, among ties and infinities."""

    def logits(key: jax.Array) -> jax.Array:
        x = jnp.round(4 * jax.random.normal(key, (rows, vocab))) / 4
        x = jnp.where(x == 0, 0.0, x)  # one zero only: XLA's order tells -0.0 from 0.0
        x = jnp.where(jax.random.bernoulli(jax.random.key(2), 0.05, x.shape), -jnp.inf, x)
        few = jnp.arange(vocab)[None] < k // 2  # fewer finite entries than are wanted
        return jnp.where((jnp.arange(rows)[:, None] > 0) | few, x, -jnp.inf)

    x = jax.jit(logits)(jax.random.key(1))
    ours, theirs = (jax.jit(partial(f, k=k))(x) for f in (top_k.exact_top_k, top_k.reference))
    return all(bool((a == b).all()) for a, b in zip(ours, theirs, strict=True))


def draws_equal(rows: int, vocab: int, how: Sampling) -> float:
    """Returns the share of rows in which the device draws the token that a CPU draws."""
    logits = (3 * np.random.default_rng(0).normal(size=(rows, vocab))).astype(np.float32)
    found = []
    for device in (jax.local_devices()[0], jax.local_devices(backend="cpu")[0]):
        with jax.default_device(device):
            found.append(np.asarray(drawing(how, rows, vocab)(jax.device_put(logits, device))))
    return float(np.mean(found[0] == found[1]))


def drawing(how: Sampling, rows: int, vocab: int) -> Callable[[jax.Array], jax.Array]:
    """Returns a compiled function from logits to one token a row."""
    key = np.stack([np.arange(rows, dtype=np.uint32)] * 2, axis=1)
    whole = {
        name: np.full(rows, getattr(how, name), dtype)
        for name, dtype in (
            ("temperature", np.float32),
            ("top_k", np.int32),
            ("top_p", np.float32),
            ("min_p", np.float32),
        )
    }
    candidates = sampling.candidates_for(whole["temperature"], whole["top_k"], vocab)
    # The settings are arguments: as constants they would be folded into the program.
    draw = jax.jit(lambda *given, **how: sampling.draw(*given, **how, candidates=candidates)[0])
    return lambda logits: draw(logits, key, np.full(rows, 7, np.int32), **whole)


# Speed


def plans(job: Job) -> None:
    """Files the kernel's speed under the plans, then that of the other cases and of the sampler."""
    interpret, limits = jax.default_backend() == "cpu", machine.limits_of(job)
    case = job.sizes.cases[0]
    data = pages(case, _layers(case, interpret), DTYPE)
    bytes_s = case.key_bytes(2) / limits.bytes_per_s
    tried = {"default": paged.DEFAULT}
    for plan in kernel_plans.candidates()[1 :: job.sizes.every_plan]:
        tried[f"block {plan.block} warps {plan.warps} stages {plan.stages}"] = plan
    found = {}
    for name, call in _compiled(case, data, tried, interpret, job).items():
        found[name] = roofline.best_time(call) / _calls(interpret)
        job.row("plans", name, us=1e6 * found[name], share=bytes_s / found[name])
    if found:
        best = min(found, key=lambda name: found[name])
        job.report(best_plan=best, best_plan_share=bytes_s / found[best])
        if "default" in found:
            job.report(
                default_plan_share=bytes_s / found["default"],
                best_plan_speedup=found["default"] / found[best],
            )
        if not interpret:
            filed = paged.case_of(queries=case.M, head_dim=case.H, itemsize=2)
            seconds = {tried[name]: found[name] for name in found}
            kernel_plans.choose(jax.local_devices()[0].device_kind, filed, seconds)
    _others(job, limits, data, interpret)


def _layers(case: Case, interpret: bool) -> int:
    return 2 if interpret else min(MOST_LAYERS, max(2, SPREAD // case.key_bytes(2)))


def _calls(interpret: bool) -> int:
    return 2 if interpret else CALLS


def _compiled(
    case: Case, data: dict[str, Any], tried: dict[str, Any], interpret: bool, job: Job
) -> dict[str, Callable[[], Any]]:
    """Returns a program of many calls for each plan that compiles; they compile side by side."""
    programs = {}
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        waiting = {
            name: pool.submit(
                many,
                partial(paged.paged_attention, plan=plan, interpret=interpret),
                data,
                case,
                interpret,
            )
            for name, plan in tried.items()
        }
        for name, future in waiting.items():
            try:
                programs[name] = future.result()
            except Exception as error:  # a plan that asks for too much: the others count
                job.leave_out(f"plan {name}: {type(error).__name__}: {error}"[:200])
    return programs


def many(
    body: Callable[..., Any], data: dict[str, Any], case: Case, interpret: bool
) -> Callable[[], Any]:
    """Returns a compiled program of many calls over full rows, layer by layer."""
    layers, calls = data["k"].shape[0], _calls(interpret)
    full = jnp.full(case.R, case.context, jnp.int32)

    @jax.jit
    def run(q: jax.Array, k: jax.Array, v: jax.Array, table: jax.Array) -> jax.Array:
        def one(i: jax.Array, q: jax.Array) -> jax.Array:
            out, _ = body(q, k, v, i % layers, table, full, scale=case.H**-0.5)
            return out.astype(q.dtype)  # the next call waits for this one

        return jax.lax.fori_loop(0, calls, one, q)

    program: Any = run
    compiled = program.lower(**data).compile()
    return lambda: compiled(**data)


def _others(job: Job, limits: roofline.Ceilings, data: dict[str, Any], interpret: bool) -> None:
    """Files what XLA's attention, the other cases and the sampler take."""
    calls = _calls(interpret)
    for number, case in enumerate(job.sizes.cases):
        bodies = {"kernel": partial(paged.paged_attention, interpret=interpret)}
        if number == 0:
            bodies = {"xla": paged.reference}
        else:
            data = pages(case, _layers(case, interpret), DTYPE)
        for name, body in bodies.items():
            seconds = roofline.best_time(many(body, data, case, interpret)) / calls
            share = case.key_bytes(2) / limits.bytes_per_s / seconds
            job.row("attention_speed", f"{name} {case.label}", us=1e6 * seconds, share=share)
    rows, vocab = job.sizes.sorted_rows, job.sizes.vocab
    logits = jax.jit(lambda key: 3 * jax.random.normal(key, (rows, vocab)))(jax.random.key(1))
    peaked = SURE * logits  # a few tokens hold the nucleus, as in a trained model's answers
    loads = (
        ("greedy", Sampling(temperature=0.0), logits),
        ("top_k", PAPER, logits),
        ("all", JUDGE, logits),
        ("all_peaked", JUDGE, peaked),
    )
    for name, how, given in loads:
        seconds = roofline.best_time(partial(drawing(how, rows, vocab), given))
        share = 4 * rows * vocab / limits.bytes_per_s / seconds  # of reading the logits once
        job.report(**{f"draw_{name}_us": 1e6 * seconds, f"draw_{name}_share": share})
