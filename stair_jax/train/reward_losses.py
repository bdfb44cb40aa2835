"""Objectives of a reward model, as sums and counts like those of `train.losses`."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from stair_jax.config.schema import PrmConfig
from stair_jax.data.batches import ComparisonBatch, ValuedBatch
from stair_jax.train.losses import DEPTHS, Frozen, Sums
from stair_jax.train.values import Values

_DEPTHS = tuple(range(1, DEPTHS + 1))


def value_loss(
    raw: Float[Array, "*B"], target: Float[Array, "*B"], *, loss: str
) -> Float[Array, "*B"]:
    """Cost of raw scores r of nodes whose values, scaled to 0 to 1, are q = `target`.

    bce  -q log sigmoid(r) - (1 - q) log sigmoid(-r), in nats; at best the entropy of q, not 0
    mse  (r - (2 q - 1))^2
    """
    if loss == "mse":
        return jnp.square(raw - (2 * target - 1))
    return -target * jax.nn.log_sigmoid(raw) - (1 - target) * jax.nn.log_sigmoid(-raw)


def unit(raw: Float[Array, "*B"], *, loss: str) -> Float[Array, "*B"]:
    """Returns what `reward.Readout.unit` does, inside a program."""
    return jnp.clip((raw + 1) / 2, 0, 1) if loss == "mse" else jax.nn.sigmoid(raw)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prm:
    """A process reward model's objective: of pairs ("bt") or of the values of nodes.

    "bt" is the mean over pairs of -log sigmoid(r_w - r_l) (Bradley and Terry 1952; STAIR's paper,
    section 2.3), and `centering` times that of (r_w + r_l)^2, which keeps scores about 0
    (Eisenstein et al. 2023, eq. 2; TRL's `center_rewards_coefficient`).
    "bce" and "mse" are the means of `value_loss` over nodes, each as often as its weight says.
    """

    scorer: Values
    loss: str
    centering: float

    @classmethod
    def of(cls, scorer: Values, config: PrmConfig) -> "Prm":
        """Takes loss and centering; what the rest of `config` says is in the batches."""
        return cls(scorer=scorer, loss=config.loss, centering=config.centering)

    @property
    def pairs(self) -> bool:
        """Whether batches are `ComparisonBatch`, not `ValuedBatch`."""
        return self.loss == "bt"

    @property
    def units(self) -> Mapping[str, str]:
        """Means are over pairs, or over weighted nodes; by depth over those of that depth."""
        if self.pairs:
            whole, by_depth = _PAIR_METRICS, "rewards/accuracies"
        else:
            whole, by_depth = (f"{self.loss}_loss", *_NODE_METRICS), "values/absolute_error"
        depths = {f"{by_depth}/depth-{d}": f"depth-{d}" for d in _DEPTHS}
        depths |= {"rewards/accuracies/whole": "whole"} if self.pairs else {}
        return dict.fromkeys(whole, "pairs" if self.pairs else "nodes") | depths

    @property
    def reads_reference(self) -> bool:
        """False: this loss has no reference model."""
        return False

    @property
    def terms(self) -> Mapping[str, float]:
        """The loss, and for pairs the squared sum of both scores."""
        return {f"{self.loss}_loss": 1.0} | ({"centering": self.centering} if self.pairs else {})

    def counts(self, batch: ComparisonBatch | ValuedBatch) -> Sums:
        """Returns the weights of pairs or nodes: of all, and by depth."""
        weight, depth = batch.weight, batch.depth
        found = {f"depth-{d}": jnp.sum(weight * (depth == d)) for d in _DEPTHS}
        if self.pairs:
            return found | {"pairs": jnp.sum(weight), "whole": jnp.sum(weight * (depth == 0))}
        return found | {"nodes": jnp.sum(weight)}

    def sums(self, params: Any, frozen: Frozen, batch: ComparisonBatch | ValuedBatch) -> Sums:
        """Returns the sums of the loss and its metrics."""
        raw = self.scorer.of_batch(params, batch, base=(frozen or {}).get("base"))
        if isinstance(batch, ValuedBatch):
            return self.of_nodes(raw, batch)
        return self.of_pairs(raw, batch)

    def of_pairs(self, raw: Float[Array, "*B 2"], batch: ComparisonBatch) -> Sums:
        """Sums over pairs, from the scores of better and worse."""
        better, worse = raw[..., 0], raw[..., 1]
        weight, depth, margin = batch.weight, batch.depth, better - worse
        right = (margin > 0).astype(jnp.float32)
        values = {
            "bt_loss": -jax.nn.log_sigmoid(margin),
            "centering": jnp.square(better + worse),
            "rewards/accuracies": right,
            "rewards/margins": margin,
            "rewards/chosen": better,
            "rewards/rejected": worse,
            "scores/mean": raw.mean(axis=-1),
            "scores/mean_square": jnp.square(raw).mean(axis=-1),
        }
        depths = _by_depth("rewards/accuracies", right, weight, depth)
        whole = {"rewards/accuracies/whole": jnp.sum(weight * right * (depth == 0))}
        return {name: jnp.sum(weight * x) for name, x in values.items()} | depths | whole

    def of_nodes(self, raw: Float[Array, "*B R"], batch: ValuedBatch) -> Sums:
        """Sums over nodes, each times its weight, from their scores."""
        weight, target = batch.weight, batch.target
        found = unit(raw, loss=self.loss)
        error = jnp.abs(found - target)
        values = {
            f"{self.loss}_loss": value_loss(raw, target, loss=self.loss),
            "values/absolute_error": error,
            "values/mean": found,
            "values/target": target,
            "scores/mean": raw,
            "scores/mean_square": jnp.square(raw),
        }
        depths = _by_depth("values/absolute_error", error, weight, batch.depth)
        return {name: jnp.sum(weight * x) for name, x in values.items()} | depths


_PAIR_METRICS = (
    "bt_loss",
    "centering",
    "rewards/accuracies",
    "rewards/margins",
    "rewards/chosen",
    "rewards/rejected",
    "scores/mean",
    "scores/mean_square",
)
_NODE_METRICS = (
    "values/absolute_error",
    "values/mean",
    "values/target",
    "scores/mean",
    "scores/mean_square",
)


def _by_depth(name: str, x: Array, weight: Array, depth: Array) -> Sums:
    return {f"{name}/depth-{d}": jnp.sum(weight * x * (depth == d)) for d in _DEPTHS}
