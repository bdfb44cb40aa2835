"""Training steps of the product on one device: time, share of the peak, memory, losses."""

import statistics
import time
from collections.abc import Callable
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import roofline
from benchmarks.on_gpu import profile
from benchmarks.on_gpu.child import Job
from stair_jax import mesh as mesh_lib
from stair_jax import ops
from stair_jax.data.batches import PairBatch, SftBatch, TrainingBatch
from stair_jax.model.spec import Spec
from stair_jax.train import step as step_lib
from stair_jax.train import throughput
from stair_jax.train.logprobs import Scorer
from stair_jax.train.losses import Dpo, Loss, Sft
from stair_jax.train.optimizer import adamw

LR = 1e-4
LOSSES = 3  # steps whose losses are told
TIMED = 5
ADAMW = adamw(beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.0, clip_norm=1.0)
ROOM = 20  # seconds that one more kind of step takes


def ours(job: Job) -> None:
    """Files SFT under three kinds of recomputation, DPO, and SFT with products in float32."""
    sizes = job.sizes.training
    spec = roofline.SPECS[sizes.size]
    rows, kept = job.some(sizes.rows), job.some(sizes.kept_rows)
    full = sft_batch(spec, rows, sizes.tokens)
    head = sizes.head_chunk
    job.report(model=sizes.size)
    loss = sft_loss(spec, "products", head)
    main = measure(job, spec, "sft remat products", loss, full, profiled=True)
    job.report(
        sft_tokens_per_s=main["tokens_per_s"], sft_mfu=main["mfu"], sft_losses=main["losses"]
    )
    kinds: list[tuple[str, Callable[[], Any]]] = [
        (
            "dpo remat products",
            lambda: measure(
                job,
                spec,
                "dpo remat products",
                dpo_loss(spec, "products", head),
                dpo_batch(spec, job.some(sizes.pairs), sizes.pair_tokens),
            ),
        ),
        (
            "sft remat none",
            lambda: measure(
                job,
                spec,
                "sft remat none",
                sft_loss(spec, "none", head),
                sft_batch(spec, kept, sizes.tokens),
            ),
        ),
        (
            "sft larger head chunk",
            lambda: measure(
                job, spec, "sft larger head chunk", sft_loss(spec, "products", 4 * head), full
            ),
        ),
        ("sft remat full, float32 products", lambda: _with_float32_products(job, spec, full)),
    ]
    for name, run in kinds:
        if job.left() < ROOM:
            job.leave_out(f"{name}: no time")
            continue
        try:
            run()
        except Exception as error:
            job.row("training", name, died=f"{type(error).__name__}: {error}"[:500])
            raise


def _with_float32_products(job: Job, spec: Spec, batch: SftBatch) -> None:
    """Measures the step with layers whose products are written, and so differentiated, in float32.

    That is how they were before; beside it the same step as it is. The losses must agree.
    """
    loss = sft_loss(spec, "full", job.sizes.training.head_chunk)
    ours = measure(job, spec, "sft remat full", loss, batch)
    jax.clear_caches()  # the objective is the same: its program must be traced anew
    with mock.patch.object(ops, "matmul", _float32_matmul):
        theirs = measure(job, spec, "sft remat full, float32 products", loss, batch)
    jax.clear_caches()
    apart = max(abs(a - b) for a, b in zip(ours["losses"], theirs["losses"], strict=True))
    job.report(losses_apart=apart, float32_products_slower=theirs["step_ms"] / ours["step_ms"])


def _float32_matmul(x: jax.Array, w: jax.Array, *, over: int = 1, out: Any = None) -> jax.Array:
    """Returns the product rounded from float32, so that its gradient multiplies float32."""
    rows, inner = x.shape[: x.ndim - over], int(np.prod(x.shape[x.ndim - over :]))
    w_2 = w.astype(x.dtype).reshape(inner, -1)
    y = jnp.dot(x.reshape(-1, inner), w_2, preferred_element_type=jnp.float32)
    return y.astype(out or jnp.float32).reshape(*rows, *w.shape[over:])


def sft_loss(spec: Spec, remat: str, head_chunk: int) -> Sft:
    """Returns the objective of SFT in bfloat16."""
    return Sft(_scorer(spec, remat, head_chunk))


def dpo_loss(spec: Spec, remat: str, head_chunk: int) -> Dpo:
    """Returns the paper's preference objective in bfloat16, the reference computed before."""
    return Dpo(
        scorer=_scorer(spec, remat, head_chunk),
        loss="sigmoid",
        beta=0.1,
        sft_coef=0.2,
        sft_reduction="sequence",
        label_smoothing=0.0,
        reference="precomputed",
    )


def _scorer(spec: Spec, remat: str, head_chunk: int) -> Scorer:
    return Scorer(
        spec=spec, compute_dtype="bfloat16", remat=remat, head_chunk=head_chunk, lora_scale=0.0
    )


def sft_batch(spec: Spec, rows: int, tokens: int) -> SftBatch:
    """Returns rows of random tokens, all of them trained."""
    draw = np.random.default_rng(0).integers(0, spec.V, (1, rows, tokens))
    mask = np.ones((1, rows, tokens), bool)
    mask[..., 0] = False
    return SftBatch(
        tokens=draw.astype(np.int32), loss_mask=mask, weight=np.ones((1, rows), np.float32)
    )


def dpo_batch(spec: Spec, pairs: int, tokens: int) -> PairBatch:
    """Returns pairs of random tokens that share their first half; the second is compared."""
    rng, half = np.random.default_rng(0), tokens // 2
    ids = rng.integers(0, spec.V, (1, pairs, 2, tokens)).astype(np.int32)
    ids[:, :, 1, :half] = ids[:, :, 0, :half]
    step = np.zeros((1, pairs, 2, tokens), bool)
    step[..., half:] = True
    sft = np.zeros((1, pairs, tokens), bool)
    sft[..., half:] = True
    one = np.ones((1, pairs), np.float32)
    return PairBatch(
        tokens=ids,
        step_mask=step,
        sft_mask=sft,
        weight=one,
        sft_weight=one,
        depth=np.ones((1, pairs), np.int32),
        ref_logp=np.full((1, pairs, 2), -np.log(spec.V) * (tokens - half), np.float32),
    )


def measure(
    job: Job,
    spec: Spec,
    label: str,
    loss: Loss,
    batch: TrainingBatch,
    *,
    profiled: bool = False,
) -> dict[str, Any]:
    """Files and returns the losses of the first steps, and medians of the next ones.

    Args:
      profiled: whether the kernels of one more step are filed.
    """
    before = throughput.peak_bytes() or 0
    mesh = mesh_lib.make((1, 1, 1), jax.local_devices()[:1])
    with jax.set_mesh(mesh):
        params = step_lib.on_mesh(roofline.weights(spec, "float32"), mesh)
        state = step_lib.init(params, ADAMW, mesh)
        del params  # the first step consumes them
        placed, losses, times = step_lib.place(batch, mesh), [], []

        def one() -> None:
            nonlocal state
            state, metrics = step_lib.step(state, placed, LR, loss=loss, tx=ADAMW)
            losses.append(float(jax.block_until_ready(metrics)["loss"]))

        for _ in range(LOSSES + TIMED):
            start = time.perf_counter()
            one()
            times.append(time.perf_counter() - start)
        if profiled:
            profile.file(job, one)
        del state
    if not np.all(np.isfinite(losses)):
        raise RuntimeError(f"{label}: losses {losses}")
    seconds = statistics.median(times[LOSSES:])
    work = throughput.work_of(batch)
    share = throughput.mfu(throughput.step_flops(spec, work), seconds, jax.local_devices()[:1])
    peak = throughput.peak_bytes() or 0
    figures: dict[str, Any] = {
        "step_ms": 1e3 * seconds,
        "tokens_per_s": work.tokens / seconds,
        "mfu": share,
        # A process knows its highest peak alone: an earlier kind's hides a lower one.
        "peak_GB": peak / 1e9 if peak > before else None,
        "losses": losses[:LOSSES],
        "first_s": times[0],
    }
    job.row("training", label, **figures)
    return figures
