"""What trainers are given beside their data: objectives, and weights or their shapes."""

import dataclasses
from typing import Any

import jax

from stair_jax.config import Config
from stair_jax.config.schema import DpoConfig, PrmConfig, TrainConfig
from stair_jax.model import lora, reward
from stair_jax.model.spec import Spec
from stair_jax.run import shapes
from stair_jax.train.logprobs import Scorer
from stair_jax.train.losses import Dpo, Loss, Sft
from stair_jax.train.reward_losses import Prm
from stair_jax.train.values import Values


def sft(spec: Spec, config: TrainConfig, new_rows: lora.Rows) -> Sft:
    """Returns the objective of stage sft."""
    return Sft(Scorer.of(spec, config, new_rows))


def dpo(spec: Spec, config: TrainConfig, new_rows: lora.Rows, loss: DpoConfig) -> Dpo:
    """Returns the objective of preferences."""
    return Dpo.of(Scorer.of(spec, config, new_rows), loss)


def reference(objective: Dpo) -> Scorer:
    """Returns what scores the reference before training: the model without adapters."""
    return dataclasses.replace(objective.scorer, lora_scale=0.0)


def prm(
    spec: Spec, config: TrainConfig, new_rows: lora.Rows, loss: PrmConfig, c: Config
) -> Prm | Dpo:
    """Returns the objective of a reward model, of these sizes its layers on top included.

    Args:
      spec: of the policy that it starts from, deepened.
      config: of its trainer.
      new_rows: tokens that the checkpoint did not have.
      loss: its settings.
      c: of the run; an implicit one reads its section dpo.
    """
    objective = implicit_loss(c, loss)
    if objective is None:
        return Prm.of(Values.of(reward.scalar(spec), config, new_rows), loss)
    return Dpo.of(Scorer.of(spec, config), objective)


def implicit_loss(c: Config, loss: PrmConfig) -> DpoConfig | None:
    """Returns the objective of an implicit reward model; None for one with a head."""
    if loss.loss != "implicit":
        return None
    return DpoConfig.of(
        c.dpo,
        loss="sigmoid",
        beta=loss.beta,
        sft_coef=loss.sft_coef,
        scope="step",
        sft_scope="response",
        sft_reduction="sequence",
        label_smoothing=0.0,
        reference="on_the_fly" if loss.reference == "start" else "none",
        anchors_per_pair=0.0,
    )


@dataclasses.dataclass(frozen=True)
class Weights:
    """What is trained, and what is only read, by name; None where nothing is."""

    trained: Any
    frozen: dict[str, Any] | None


def planned_weights(
    loss: Loss, spec: Spec, config: TrainConfig, rows: int, mesh: jax.sharding.Mesh
) -> Weights:
    """Returns the shapes of a trainer's weights, as `training` has them.

    Args:
      loss: the objective.
      spec: of the policy, or of the reward model that it becomes.
      config: of the trainer.
      rows: tokens that the checkpoint did not have.
      mesh: where they lie.
    """
    scalar = isinstance(loss, Prm)
    whole = (shapes.scalar_weights if scalar else shapes.weights)(spec, mesh)
    shown = shapes.cast(whole, config.compute_dtype)
    stored = shapes.cast(whole, config.param_dtype)
    if config.lora_rank:
        factors = shapes.adapters(spec, config, rows, mesh)
        trained = reward.adapted(whole, factors) if scalar else factors
        return Weights(shapes.cast(trained, config.param_dtype), {"base": shown})
    if isinstance(loss, Dpo) and loss.reference == "on_the_fly":
        return Weights(stored, {"reference": shown})
    return Weights(stored, None)
