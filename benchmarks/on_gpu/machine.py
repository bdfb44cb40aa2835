"""What the machine is, and what it does at best."""

import os
import subprocess
from importlib import metadata
from typing import Any

import jax

from benchmarks import harness, roofline
from benchmarks.on_gpu.child import Job, Wrong
from benchmarks.roofline import Ceilings

PACKAGES = ("flax", "optax", "orbax-checkpoint", "torch", "transformers", "triton")
ASKED = (
    "name",
    "driver_version",
    "clocks.sm",
    "clocks.mem",
    "clocks.max.sm",
    "clocks.max.mem",
    "power.limit",
    "memory.total",
    "memory.used",
    "temperature.gpu",
    "ecc.mode.current",
)


def facts(job: Job) -> None:
    """Files what a reader must know of the machine."""
    if jax.default_backend() == "cpu" and not job.tiny:
        raise Wrong("no GPU: JAX shows CPUs alone (--tiny runs on them)")
    found: dict[str, Any] = harness.machine()
    found["versions"] |= {name: _version(name) for name in PACKAGES}
    found["nvidia_smi"] = _nvidia_smi()
    stats = jax.local_devices()[0].memory_stats() or {}
    found["memory_stats"] = sorted(stats)
    found["bytes_limit"] = stats.get("bytes_limit")
    names = ("XLA_FLAGS", "XLA_PYTHON_CLIENT_MEM_FRACTION", "JAX_COMPILATION_CACHE_DIR")
    found["environment"] = {name: os.environ.get(name, "") for name in names}
    found["memory_kinds"] = [m.kind for m in jax.local_devices()[0].addressable_memories()]
    found["backend"] = jax.default_backend()
    job.report(**found)


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def _nvidia_smi() -> dict[str, str]:
    """Returns what the driver says of the first GPU; nothing where there is none to ask."""
    command = ["nvidia-smi", f"--query-gpu={','.join(ASKED)}", "--format=csv,noheader", "--id=0"]
    try:
        out = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return {}
    return dict(zip(ASKED, (x.strip() for x in out.stdout.split(",")), strict=False))


def ceilings(job: Job) -> None:
    """Files bandwidth, rates of products, and what a look at the device costs."""
    sizes = job.sizes
    job.report(copy_GB_s=roofline.copy_rate(sizes.copied) / 1e9)
    for name, dtype, out in (
        ("bf16_f32_TFLOP_s", "bfloat16", "float32"),
        ("bf16_TFLOP_s", "bfloat16", "bfloat16"),
        ("f32_TFLOP_s", "float32", "float32"),
    ):
        job.report(**{name: roofline.product_rate(sizes.side, dtype, out) / 1e12})
    job.report(sync_us=1e6 * roofline.sync_seconds(sizes.turns))


def limits_of(job: Job) -> Ceilings:
    """Returns the machine's ceilings: those measured before, or now."""
    known = job.known
    if "copy_GB_s" in known and "bf16_f32_TFLOP_s" in known:
        product = max(known["bf16_f32_TFLOP_s"], known.get("bf16_TFLOP_s", 0.0))
        return Ceilings(1e9 * known["copy_GB_s"], 1e12 * product)
    return roofline.ceilings("bfloat16", copy_bytes=job.sizes.copied, side=job.sizes.side)
