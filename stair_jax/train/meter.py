"""Speed and memory of training steps, from what the batch holds and the clock says."""

import jax

from stair_jax.config.schema import TrainConfig
from stair_jax.data.batches import TrainingBatch
from stair_jax.model import lora
from stair_jax.model.spec import Spec
from stair_jax.train import throughput


class Meter:
    """Figures of one step at a time.

    Args:
      spec: of the model.
      config: of the trainer; adapters cost less than weights.
      reference: whether the reference's forward pass is a part of the step.
      mesh: whose devices do the work.
    """

    def __init__(
        self, spec: Spec, config: TrainConfig, *, reference: bool, mesh: jax.sharding.Mesh
    ):
        self._spec, self._reference, self._devices = spec, reference, list(mesh.devices.flat)
        targets = lora.parse(config.lora_targets) if config.lora_rank else ()
        self._adapters = throughput.adapter_parameters(spec, config.lora_rank, targets)
        self.tokens = 0  # of all steps so far

    def figures(self, batch: TrainingBatch, *, seconds: float) -> dict[str, float]:
        """Returns the speed of a step that took `seconds`, padding apart, and what it held.

        `mfu` is there on devices whose peak is known, `peak_memory_gb` where they tell.
        """
        work = throughput.work_of(batch)
        self.tokens += work.tokens
        found = {
            "tokens_per_s": work.tokens / seconds,
            "padding_share": batch.padding_share(),
            "num_tokens": self.tokens,
        }
        flops = throughput.step_flops(
            self._spec, work, adapters=self._adapters, reference=self._reference
        )
        share = throughput.mfu(flops, seconds, self._devices)
        peak = throughput.peak_bytes(self._devices)
        found |= {} if share is None else {"mfu": share}
        return found | ({} if peak is None else {"peak_memory_gb": peak / 1e9})
