"""Which kernels a call spends its time in, from JAX's own trace."""

import collections
import pathlib
from collections.abc import Callable
from typing import Any

import jax

from benchmarks.on_gpu.child import Job

MOST = 16  # kernels told


def file(job: Job, call: Callable[[], Any]) -> None:
    """Files the kernels that a call spends its time in; a profile that fails is left out."""
    try:
        found = kernels(call, job.path / "profile")
    except Exception as error:  # a profile is a help, not a figure
        job.leave_out(f"profile: {type(error).__name__}: {error}"[:200])
        return
    for name, (count, ms) in found.items():
        job.row("profile", name, count=count, ms=ms)


def kernels(call: Callable[[], Any], folder: pathlib.Path) -> dict[str, tuple[int, float]]:
    """Returns (count, milliseconds in all) of the kernels that take longest, by name.

    The call must have been compiled, and must wait for the device. "all kernels" comes first.
    """
    with jax.profiler.trace(str(folder)):
        call()
    files = sorted(folder.rglob("*.xplane.pb"))
    return longest(jax.profiler.ProfileData.from_file(str(files[-1])))


def longest(data: Any) -> dict[str, tuple[int, float]]:
    """Returns the kernels of a trace; on a CPU, whatever ran there."""
    planes = list(data.planes)
    gpus = [p for p in planes if p.name.startswith("/device:GPU")]
    counts: collections.Counter[str] = collections.Counter()
    nanoseconds: collections.Counter[str] = collections.Counter()
    for plane in gpus or planes:
        for line in plane.lines:
            if gpus and not line.name.startswith("Stream"):
                continue  # sums over kernels, which would count them twice
            for event in line.events:
                counts[event.name[:60]] += 1
                nanoseconds[event.name[:60]] += event.duration_ns
    found = {"all kernels": (counts.total(), nanoseconds.total() / 1e6)}
    return found | {name: (counts[name], ns / 1e6) for name, ns in nanoseconds.most_common(MOST)}
