"""Training objectives as sums and counts: parts of a batch add up to the whole batch's mean.

A loss object is hashable (a static argument of `jit`) and answers two questions. `counts` says,
from the batch alone, what the means are over; `sums` runs the model. The optimiser step divides
by the counts of the *global* batch, so neither accumulation nor sharding changes a mean.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from stair_jax.config.schema import DpoConfig
from stair_jax.data.batches import PairBatch, SftBatch
from stair_jax.train.logprobs import Scorer, Scores
from stair_jax.train.values import Values

Sums = dict[str, jax.Array]
Frozen = Mapping[str, Any] | None
DEPTHS = 7  # the deepest step whose accuracy is counted by itself


@runtime_checkable
class Loss(Protocol):
    """What `step` needs to know of an objective."""

    @property
    def scorer(self) -> Scorer | Values:
        """The model."""
        ...

    @property
    def units(self) -> Mapping[str, str]:
        """Metric -> name of the count that its sum is divided by."""
        ...

    @property
    def reads_reference(self) -> bool:
        """Whether the reference's forward pass is a part of `sums`."""
        ...

    @property
    def terms(self) -> Mapping[str, float]:
        """Metrics that make up the loss, with their coefficients."""
        ...

    def counts(self, batch: Any) -> Sums:
        """Counts of a batch with any number of leading axes; no model is run.

        Each objective has its own kind of batch, see `data.batches`.
        """
        ...

    def sums(self, params: Any, frozen: Frozen, batch: Any) -> Sums:
        """Sums of every metric over the rows of one micro-batch.

        `frozen` holds weights that are read and not trained: "base" under adapters, "reference".
        """
        ...


def sequence_nll(
    logp: Float[Array, "*B T"], mask: Bool[Array, "*B T"], weight: Float[Array, "*B"]
) -> Float[Array, ""]:
    """Sum over rows of each row's *mean* negative log-likelihood.

    Source: the `pref_ftx` term of LLaMA-Factory, which the method's 0.2 L_SFT most likely was.
    """
    sum_B = jnp.sum(logp * mask, axis=-1)
    return -jnp.sum(weight * sum_B / jnp.maximum(mask.sum(axis=-1), 1))


def pair_loss(
    margin: Float[Array, "*B"], *, loss: str, beta: float, label_smoothing: float
) -> Float[Array, "*B"]:
    """Cost of pairs whose log-ratios differ by `margin` (chosen less rejected), in nats.

    With m = beta * margin and e the label smoothing:
      sigmoid  -(1 - e) log sigmoid(m) - e log sigmoid(-m)   (Rafailov et al. 2023, eq. 7, which is
               STAIR's eq. 2 for a step; e: cDPO, Mitchell 2023)
      hinge    max(0, 1 - m)                                 (Liu et al. 2023, SLiC as DPO's rival)
      ipo      (margin - 1 / (2 beta))^2, margin of *mean* log-ratios a token (Azar et al. 2023,
               eq. 17; the mean is TRL's reading)
    """
    if loss == "ipo":
        return jnp.square(margin - 1 / (2 * beta))
    if loss == "hinge":
        return jax.nn.relu(1 - beta * margin)
    right, flipped = jax.nn.log_sigmoid(beta * margin), jax.nn.log_sigmoid(-beta * margin)
    return -(1 - label_smoothing) * right - label_smoothing * flipped


@dataclasses.dataclass(frozen=True)
class Sft:
    """Supervised fine-tuning: mean over all response tokens of the global batch."""

    scorer: Scorer

    @property
    def units(self) -> Mapping[str, str]:
        """All means are over trained tokens."""
        return {"nll_loss": "tokens", "mean_token_accuracy": "tokens"}

    @property
    def reads_reference(self) -> bool:
        """False: this loss has no reference model."""
        return False

    @property
    def terms(self) -> Mapping[str, float]:
        """The token mean is the loss."""
        return {"nll_loss": 1.0}

    def counts(self, batch: SftBatch) -> Sums:
        """Returns the number of trained tokens."""
        return {"tokens": jnp.sum(batch.loss_mask * batch.weight[..., None])}

    def sums(self, params: Any, frozen: Frozen, batch: SftBatch) -> Sums:
        """Returns the summed negative log-likelihood, and the tokens that were likeliest."""
        wanted = batch.loss_mask & batch.present[..., None]
        scores = _scores(self.scorer, params, frozen, batch, wanted)
        return {"nll_loss": -scores.logp.sum(), "mean_token_accuracy": scores.hit.sum()}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dpo:
    """Preferences between steps or responses, plus `sft_coef` times the SFT term on the chosen.

    A batch has the reference's log-probs, but where its weights are at hand, or for "none", which
    finds everything equally likely.
    """

    scorer: Scorer
    loss: str
    beta: float
    sft_coef: float
    sft_reduction: str
    label_smoothing: float
    reference: str

    @classmethod
    def of(cls, scorer: Scorer, config: DpoConfig) -> "Dpo":
        """Takes its constants from the configuration; masks and anchors are the data's business."""
        names = {f.name for f in dataclasses.fields(cls)} - {"scorer"}
        return cls(scorer=scorer, **{name: getattr(config, name) for name in names})

    @property
    def units(self) -> Mapping[str, str]:
        """What each metric is a mean over."""
        of_pairs = (
            "dpo_loss",
            "rewards/chosen",
            "rewards/rejected",
            "rewards/margins",
            "rewards/accuracies",
            "logps/chosen",
            "logps/rejected",
        )
        by_depth = {f"rewards/accuracies/depth-{d}": f"depth-{d}" for d in range(1, DEPTHS + 1)}
        rows = "rows" if self.sft_reduction == "sequence" else "sft_tokens"
        found = dict.fromkeys(of_pairs, "pairs") | by_depth | {"nll_loss": rows}
        return found | ({} if self.reference == "none" else {"kl_per_token": "chosen_tokens"})

    @property
    def reads_reference(self) -> bool:
        """Whether the reference's weights are at hand, not its log-probs."""
        return self.reference not in ("precomputed", "none")

    @property
    def terms(self) -> Mapping[str, float]:
        """The mean over pairs, and the mean over rows or tokens of the SFT term."""
        return {"dpo_loss": 1.0, "nll_loss": self.sft_coef}

    def counts(self, batch: PairBatch) -> Sums:
        """Returns the numbers of pairs, of pairs by depth, of rows and tokens in the SFT term."""
        weight, sft_weight, depth = batch.weight, batch.sft_weight, batch.depth
        chosen = batch.step_mask[..., 0, :]
        return {
            "pairs": jnp.sum(weight),
            "rows": jnp.sum(sft_weight),
            "sft_tokens": jnp.sum(sft_weight * batch.sft_mask.sum(axis=-1)),
            "chosen_tokens": jnp.sum(weight * chosen.sum(axis=-1)),
            **{f"depth-{d}": jnp.sum(weight * (depth == d)) for d in range(1, DEPTHS + 1)},
        }

    def sums(self, params: Any, frozen: Frozen, batch: PairBatch) -> Sums:
        """Returns the sums of the preference metrics and of the SFT term."""
        logp, policy = self._compared(params, frozen, batch, with_sft=True)
        if self.reference == "none":
            reference = jnp.zeros_like(policy)
        elif not self.reads_reference:
            reference = batch.ref_logp
        else:
            assert frozen is not None
            other = frozen["base" if self.reference == "lora_base" else "reference"]
            plain = dataclasses.replace(
                self, scorer=dataclasses.replace(self.scorer, lora_scale=0.0)
            )
            reference = jax.lax.stop_gradient(plain._compared(other, None, batch)[1])
        sums = self.preference(policy, reference, batch)
        weight, mask = batch.sft_weight, batch.sft_mask
        pairs = batch.layout is None  # else siblings are in one row
        chosen = logp[:, 0] if pairs else jnp.broadcast_to(logp[:, None], mask.shape)
        if self.sft_reduction == "sequence":
            return sums | {"nll_loss": sequence_nll(chosen, mask, weight)}
        return sums | {"nll_loss": -jnp.sum(chosen * mask * weight[..., None])}

    def preference(
        self, policy: Float[Array, "*B 2"], reference: Float[Array, "*B 2"], batch: PairBatch
    ) -> Sums:
        """Sums over pairs of the loss and its metrics, from summed log-probs of both sides."""
        weight, length = batch.weight, batch.step_mask.sum(axis=-1)
        ratio = policy - reference
        per_token = jnp.sum(weight * ratio[..., 0])
        if self.loss == "ipo":
            policy, ratio = (x / jnp.maximum(length, 1) for x in (policy, ratio))
        margin = ratio[..., 0] - ratio[..., 1]
        cost = pair_loss(
            margin, loss=self.loss, beta=self.beta, label_smoothing=self.label_smoothing
        )
        right = (margin > 0).astype(jnp.float32)
        per_pair = {
            "dpo_loss": cost,
            "rewards/accuracies": right,
            "rewards/margins": self.beta * margin,
            "rewards/chosen": self.beta * ratio[..., 0],
            "rewards/rejected": self.beta * ratio[..., 1],
            "logps/chosen": policy[..., 0],
            "logps/rejected": policy[..., 1],
        }
        depths = {
            f"rewards/accuracies/depth-{d}": jnp.sum(weight * right * (batch.depth == d))
            for d in range(1, DEPTHS + 1)
        }
        sums = {name: jnp.sum(weight * value) for name, value in per_pair.items()}
        return sums | depths | ({} if self.reference == "none" else {"kl_per_token": per_token})

    def _compared(
        self, params: Any, frozen: Frozen, batch: PairBatch, *, with_sft: bool = False
    ) -> tuple[Array, Array]:
        """Returns the tokens' log-probs, and their sums [..., 2] over what is compared."""
        scores = _scores(self.scorer, params, frozen, batch, batch.wanted(sft=with_sft))
        logp, steps = scores.logp.reshape(batch.tokens.shape), batch.step_mask
        if batch.layout is None:
            return logp, jnp.sum(logp * steps, axis=-1)
        return logp, jnp.einsum("BT,BPXT->BPX", logp, steps.astype(logp.dtype))


def _scores(
    scorer: Scorer, params: Any, frozen: Frozen, batch: SftBatch | PairBatch, wanted: Array
) -> Scores:
    """Runs the model on the rows of a batch; `wanted` has the shape of its tokens."""
    base = (frozen or {}).get("base")
    rows = batch.rows
    return scorer(params, rows, wanted.reshape(rows.shape), layout=batch.layout, base=base)
