"""XLA's flags for GPUs: the one place where they are set, each with its reason.

They must stand in the environment before JAX starts its backend. XLA aborts on a flag that it does
not know: all of these are known to XLA as of jax 0.10.2, 0.11.2 and 0.12.0, and no others get them.
"""

import importlib.util
import logging
import os
import pathlib

import jax

log = logging.getLogger(__name__)

_FIRST, _BEFORE = (0, 10, 2), (0, 13, 0)  # versions of jax whose XLA knows these flags
_DEVICES = ("/dev/nvidia0", "/dev/nvidiactl", "/dev/dxg")  # dxg: Windows' subsystem for Linux
_DEVICE_FOLDER = pathlib.Path("/dev")
_PLUGINS = ("jax_cuda12_plugin", "jax_cuda13_plugin")

OVERLAP = (
    # Without it a gather of weights or a scatter of gradients runs where its result is needed, and
    # nothing else meanwhile. The scheduler starts it earlier and waits for it later.
    "--xla_gpu_enable_latency_hiding_scheduler=true",
    # Layers are a loop, and its body is scheduled by itself: a layer's weights would be gathered
    # while the GPU waits. Two layers in one body let the second's gather run under the first.
    "--xla_gpu_enable_while_loop_double_buffering=true",
    # These three move a collective over the border of the loop's body: the next layer's weights
    # are gathered, and the last layer's gradients scattered, during this layer.
    "--xla_gpu_enable_pipelined_all_gather=true",
    "--xla_gpu_enable_pipelined_reduce_scatter=true",
    "--xla_gpu_enable_pipelined_all_reduce=true",
    # One collective at a time is under way by default, so a layer's second gather waits for the
    # first. With four, a step of 8B on eight GPUs waits for none, as compiled.
    "--xla_gpu_experimental_parallel_collective_overlap_limit=4",
)
# No operation whose sums depend on the order in which threads arrive: the gradients of an embedding
# and of cuDNN's attention add with atomics otherwise. XLA still tries out algorithms by the clock;
# what it chose is read again from the folder of compiled programs. The cost at 8B on 8 GPUs: the
# embedding's gradient becomes a sort of tokens x columns (33 million elements) and a scan over
# them in every pass, 18 kernels more than the 269 of a step of two layers.
REPEATABLE = "--xla_gpu_exclude_nondeterministic_ops=true"
# The same, and no algorithm is tried out: where nothing keeps the choice for the next start.
UNTUNED = "--xla_gpu_deterministic_ops=true"


def add(*, deterministic: bool, kept: bool) -> list[str]:
    """Adds flags to XLA_FLAGS where JAX will use a GPU, and logs them; returns what it added.

    What the environment sets already stays as it is.

    Args:
      deterministic: whether the same program on the same GPU must give the same bits.
      kept: whether compiled programs, and with them the algorithms chosen, outlive the process.
    """
    given = os.environ.get("XLA_FLAGS", "")
    if not uses_gpu():
        return []
    say = log.warning if deterministic else log.info  # what was asked for must not go unsaid
    if not _FIRST <= jax.__version_info__ < _BEFORE:
        say("XLA flags: none added, those of jax %s are not known here", jax.__version__)
        return []
    if given and not given.lstrip().startswith("-"):  # XLA takes the name of a file as well
        say("XLA flags: none added, XLA_FLAGS names the file %s", given)
        return []
    wanted = of(gpu_count(), deterministic=deterministic, kept=kept)
    theirs = {_name(flag) for flag in given.split()}
    added = [flag for flag in wanted if _name(flag) not in theirs]
    os.environ["XLA_FLAGS"] = " ".join([*added, *given.split()])
    kept_text = f"; XLA_FLAGS had {given}" if given else ""
    log.info("XLA flags: added %s%s", " ".join(added) or "none", kept_text)
    return added


def of(count: int, *, deterministic: bool, kept: bool) -> list[str]:
    """Returns the flags for a process of so many GPUs; the other arguments are those of `add`."""
    # One GPU has no collectives to overlap, and a loop with two layers in its body takes longer to
    # compile and more memory.
    overlap = [*OVERLAP] if count > 1 else []
    return overlap + ([REPEATABLE if kept else UNTUNED] if deterministic else [])


def uses_gpu() -> bool:
    """Returns whether JAX will use an NVIDIA GPU, without starting its backend."""
    platforms = jax.config.jax_platforms  # pyright: ignore[reportAttributeAccessIssue]
    if platforms and not {"cuda", "gpu"} & {*platforms.split(",")}:
        return False
    plugin = any(importlib.util.find_spec(name) for name in _PLUGINS)
    return plugin and any(pathlib.Path(path).exists() for path in _DEVICES)


def gpu_count() -> int:
    """Returns how many NVIDIA GPUs this process may use, without starting JAX's backend."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return sum(1 for name in chosen.split(",") if name.strip() not in ("", "-1"))
    return sum(1 for path in _DEVICE_FOLDER.glob("nvidia*") if path.name[6:].isdigit())


def _name(flag: str) -> str:
    return flag.lstrip("-").split("=")[0]
