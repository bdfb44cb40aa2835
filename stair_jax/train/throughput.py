"""What a training step computes, and how much of the device's speed that is.

Counted is what the mathematics needs: padding, recomputation under `remat` and the masked half of
causal attention are not. Operations are multiplications and additions apart, two a weight.

Shape letters: see `stair_jax.model.spec.Spec`.
"""

import dataclasses
import math
from collections.abc import Iterable
from typing import Any

import jax

from stair_jax.data.batches import TrainingBatch
from stair_jax.model import lora
from stair_jax.model.spec import Spec

# Dense bfloat16 operations a second, by a part of JAX's device kind (NVIDIA's data sheets).
PEAKS = {
    "A100": 312e12,
    "A800": 312e12,
    "H100": 989e12,
    "H800": 989e12,
    "H200": 989e12,
}


@dataclasses.dataclass(frozen=True)
class Work:
    """What a batch holds, absent rows and padding apart."""

    tokens: int
    keys: int  # that all tokens see together, each itself included
    scored: int  # tokens whose log-probability is wanted: these go through the vocabulary's head


def work_of(batch: TrainingBatch) -> Work:
    """Returns the work of a batch."""
    # A score is a product with one vector, next to nothing beside the vocabulary's head.
    return Work(batch.real_tokens(), batch.visible_keys(), batch.scored())


def adapter_parameters(spec: Spec, rank: int, targets: Iterable[str]) -> int:
    """Returns the parameters of LoRA factors of `rank` on `targets`."""
    count = 0
    for name in targets if rank else ():
        target = lora.TARGETS[name]
        sides = (
            math.prod(getattr(spec, letter) for letter, _ in side)
            for side in (target.inputs, target.outputs)
        )
        count += spec.L * rank * sum(sides)
    return count


def step_flops(spec: Spec, work: Work, *, adapters: int = 0, reference: bool = False) -> float:
    """Returns the floating-point operations of one optimiser step, the optimiser's own apart.

    A weight costs two in the forward pass and twice that in the backward pass, half of it for its
    own gradient, which a frozen weight has not; attention costs 4 N H a key and layer forward, and
    twice that backward.

    Args:
      spec: of the model.
      work: of the batch.
      adapters: parameters of LoRA; above 0, all other weights are frozen.
      reference: whether the reference's forward pass is a part of the step.
    """
    weights = spec.matrix_parameters(head=False) * work.tokens + spec.V * spec.D * work.scored
    attention = 4 * spec.L * spec.N * spec.H * work.keys
    step = (4 if adapters else 6) * weights + 6 * adapters * work.tokens + 3 * attention
    return float(step + reference * (2 * weights + attention))


def peak_flops(device_kind: str) -> float | None:
    """Returns what a device can do in a second in bfloat16; None where that is not known."""
    return next((peak for name, peak in PEAKS.items() if name in device_kind), None)


def mfu(flops: float, seconds: float, devices: Iterable[Any]) -> float | None:
    """Returns the share of the devices' peak that a step used; None where that is not known.

    Source: model FLOPs utilisation of Chowdhery et al. 2022 (PaLM), appendix B, with the keys that
    a causal query sees in place of the whole row.
    """
    peaks = [peak_flops(device.device_kind) for device in devices]
    total = sum(peak for peak in peaks if peak)
    return flops / seconds / total if peaks and all(peaks) else None


def peak_bytes(devices: Iterable[Any] | None = None) -> int | None:
    """Returns the most memory that any of the devices has held; None where they do not say."""
    devices = jax.local_devices() if devices is None else devices
    stats = [device.memory_stats() or {} for device in devices]
    found = [x["peak_bytes_in_use"] for x in stats if "peak_bytes_in_use" in x]
    return max(found, default=None)
