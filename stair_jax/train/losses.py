"""Training objectives as sums and counts: parts of a batch add up to the whole batch's mean.

A loss object is hashable (a static argument of `jit`) and answers two questions. `counts` says,
from the batch alone, what the means are over; `sums` runs the model. The optimiser step divides
by the counts of the *global* batch, so neither accumulation nor sharding changes a mean.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from stair_jax.config import DpoConfig
from stair_jax.train.logprobs import Scorer, step_logps

Batch = Mapping[str, jax.Array]
Sums = dict[str, jax.Array]


@runtime_checkable
class Loss(Protocol):
    """What `step` needs to know of an objective."""

    units: ClassVar[Mapping[str, str]]  # metric -> name of the count that its sum is divided by

    @property
    def terms(self) -> Mapping[str, float]:
        """Metrics that make up the loss, with their coefficients."""
        ...

    def counts(self, batch: Batch) -> Sums:
        """Counts of a batch with any number of leading axes; no model is run."""
        ...

    def sums(self, params: Any, batch: Batch) -> Sums:
        """Sums of every metric over the rows of one micro-batch."""
        ...


def token_nll(
    logp: Float[Array, "B T"], mask: Bool[Array, "B T"], weight: Float[Array, " B"]
) -> Float[Array, ""]:
    """Summed negative log-likelihood of the tokens in `mask`."""
    return -jnp.einsum("BT,BT,B->", logp, mask.astype(jnp.float32), weight)


def sequence_nll(
    logp: Float[Array, "B T"], mask: Bool[Array, "B T"], weight: Float[Array, " B"]
) -> Float[Array, ""]:
    """Sum over rows of each row's *mean* negative log-likelihood.

    Source: the `pref_ftx` term of LLaMA-Factory, which the method's 0.2 L_SFT most likely was.
    """
    sum_B = jnp.einsum("BT,BT->B", logp, mask.astype(jnp.float32))
    return -jnp.sum(weight * sum_B / jnp.maximum(mask.sum(axis=-1), 1))


def preference(
    policy: Float[Array, "B 2"],
    reference: Float[Array, "B 2"],
    weight: Float[Array, " B"],
    *,
    beta: float,
    label_smoothing: float,
) -> Sums:
    """Sums over pairs of the DPO loss and its metrics; column 0 is chosen, column 1 rejected.

    With m = beta * (chosen's log-ratio - rejected's) a pair costs
    -(1 - e) log sigmoid(m) - e log sigmoid(-m), e the label smoothing. Summed nats.
    Source: Rafailov et al. 2023, eq. 7; STAIR eq. 2 (a pair is one step); Mitchell 2023 (cDPO).
    """
    reward_B2 = beta * (policy - reference)
    margin_B = reward_B2[:, 0] - reward_B2[:, 1]
    right_B, flipped_B = jax.nn.log_sigmoid(margin_B), jax.nn.log_sigmoid(-margin_B)
    per_pair = {
        "dpo_loss": -(1 - label_smoothing) * right_B - label_smoothing * flipped_B,
        "rewards/chosen": reward_B2[:, 0],
        "rewards/rejected": reward_B2[:, 1],
        "rewards/margins": margin_B,
        "rewards/accuracies": (margin_B > 0).astype(jnp.float32),
        "logps/chosen": policy[:, 0],
        "logps/rejected": policy[:, 1],
    }
    return {name: jnp.sum(weight * value_B) for name, value_B in per_pair.items()}


@dataclasses.dataclass(frozen=True)
class Sft:
    """Supervised fine-tuning: mean over all response tokens of the global batch.

    Batch: tokens [B, T] int32, loss_mask [B, T] bool (the token is a trained target), weight [B].
    """

    scorer: Scorer

    units: ClassVar[Mapping[str, str]] = {"nll_loss": "tokens"}

    @property
    def terms(self) -> Mapping[str, float]:
        """The token mean is the loss."""
        return {"nll_loss": 1.0}

    def counts(self, batch: Batch) -> Sums:
        """Returns the number of trained tokens."""
        return {"tokens": jnp.sum(batch["loss_mask"] * batch["weight"][..., None])}

    def sums(self, params: Any, batch: Batch) -> Sums:
        """Returns the summed negative log-likelihood."""
        logp_BT = self.scorer(params, batch["tokens"])
        return {"nll_loss": token_nll(logp_BT, batch["loss_mask"], batch["weight"])}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dpo:
    """Step-level DPO plus `sft_coef` times the SFT term on the whole chosen response.

    Batch: tokens [B, 2, T] int32 (chosen, rejected), step_mask [B, 2, T] bool (the compared step),
    sft_mask [B, T] bool (the chosen response), weight [B] of the pair, sft_weight [B] of the SFT
    term, ref_logp [B, 2] summed over the step. An anchor row has weight 0 and sft_weight 1.
    """

    scorer: Scorer
    beta: float
    sft_coef: float
    label_smoothing: float

    units: ClassVar[Mapping[str, str]] = {
        "dpo_loss": "pairs", "rewards/chosen": "pairs", "rewards/rejected": "pairs",
        "rewards/margins": "pairs", "rewards/accuracies": "pairs", "logps/chosen": "pairs",
        "logps/rejected": "pairs", "nll_loss": "rows",
    }  # fmt: skip

    @classmethod
    def of(cls, scorer: Scorer, config: DpoConfig) -> "Dpo":
        """Takes its constants from the configuration; anchors are the data's business."""
        return cls(
            scorer=scorer, beta=config.beta, sft_coef=config.sft_coef,
            label_smoothing=config.label_smoothing,
        )  # fmt: skip

    @property
    def terms(self) -> Mapping[str, float]:
        """The mean over pairs, and the mean over rows of the SFT term."""
        return {"dpo_loss": 1.0, "nll_loss": self.sft_coef}

    def counts(self, batch: Batch) -> Sums:
        """Returns the numbers of pairs and of rows in the SFT term."""
        return {"pairs": jnp.sum(batch["weight"]), "rows": jnp.sum(batch["sft_weight"])}

    def sums(self, params: Any, batch: Batch) -> Sums:
        """Returns the sums of the preference metrics and of the SFT term."""
        step_B2, logp_B2T = step_logps(self.scorer, params, batch["tokens"], batch["step_mask"])
        sums = preference(
            step_B2, batch["ref_logp"], batch["weight"],
            beta=self.beta, label_smoothing=self.label_smoothing,
        )  # fmt: skip
        nll = sequence_nll(logp_B2T[:, 0], batch["sft_mask"], batch["sft_weight"])
        return sums | {"nll_loss": nll}
