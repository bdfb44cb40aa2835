"""AdamW with float32 master weights, clipping, and the learning rate of a step."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding, PartitionSpec

from stair_jax.config.schema import TrainConfig
from stair_jax.model import lora

_NONE: Mapping[str, float] = {}
BIASES = ("bq", "bk", "bv")


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdamW:
    """The optimiser's constants; hashable, so it can be a static argument of `jit`.

    The learning rate is an argument of `update`, not a part of it: runs of other lengths and
    rounds with other peaks then share one compiled program.
    """

    beta1: float
    beta2: float
    eps: float
    weight_decay: float
    clip_norm: float  # global norm; 0: no clipping
    new_rows: lora.Rows = ()  # tokens whose rows have a rate of their own
    ratios: tuple[tuple[str, float], ...] = ()  # of that rate over all others', by table

    @classmethod
    def of(
        cls, config: TrainConfig, new_rows: lora.Rows = (), spreads: Mapping[str, float] = _NONE
    ) -> "AdamW":
        """Takes its constants from the training configuration.

        Args:
          config: of the trainer.
          new_rows: tokens that the checkpoint did not have.
          spreads: of the tables of tokens, by name; see `spreads_of`.
        """
        names = {f.name for f in dataclasses.fields(cls)} - {"new_rows", "ratios"}
        own = {name: getattr(config, name) for name in names}
        if not (new_rows and config.new_rows_lr):
            return cls(**own)
        ratio = config.new_rows_lr / config.lr
        ratios = tuple((table, ratio * spread) for table, spread in spreads.items())
        return cls(**own, new_rows=new_rows, ratios=ratios)

    def _adam(self) -> optax.GradientTransformation:
        return optax.scale_by_adam(self.beta1, self.beta2, self.eps)

    def init(self, params: Any) -> Any:
        """Returns moments of zero, float32 whatever the parameters are."""
        return self._adam().init(_float32(params))

    def shardings(self, params: Any, mesh: jax.sharding.Mesh) -> Any:
        """Returns where the moments lie: each beside its parameter, the counter everywhere."""
        adam, everywhere = self._adam(), NamedSharding(mesh, PartitionSpec())
        return optax.tree.map_params(
            adam,
            lambda _, p: p.sharding,
            jax.eval_shape(adam.init, params),
            params,
            transform_non_params=lambda _: everywhere,
        )

    def update(
        self, grads: Any, opt: Any, params: Any, lr: jax.Array
    ) -> tuple[Any, Any, dict[str, jax.Array]]:
        """Returns the next parameters and moments, and two figures of this step.

        `grad_norm` is the gradient's global norm before clipping, `update_ratio` the norm of the
        change over that of the parameters.
        """
        norm = optax.tree.norm(grads)
        if self.clip_norm:
            scale = jnp.minimum(1.0, self.clip_norm / jnp.maximum(norm, 1e-12))
            grads = jax.tree.map(lambda g: g * scale, grads)
        updates, opt = self._adam().update(_float32(grads), opt)

        def change(path, p, u):
            decay = 0.0 if _is_gain_or_bias(path) else self.weight_decay
            return -lr * self._ratio(path, p) * (u + decay * p.astype(jnp.float32))

        changes = jax.tree_util.tree_map_with_path(change, params, updates)
        new = jax.tree.map(
            lambda p, c: (p.astype(jnp.float32) + c).astype(p.dtype), params, changes
        )
        ratio = optax.tree.norm(changes) / jnp.maximum(optax.tree.norm(_float32(params)), 1e-12)
        return new, opt, {"grad_norm": norm, "update_ratio": ratio}

    def _ratio(self, path: tuple, p: jax.Array) -> jax.Array | float:
        """Returns the rates of a parameter over that of the step, one a row of a table."""
        ratio = dict(self.ratios).get(str(path[-1].key))
        if ratio is None:
            return 1.0
        if str(path[0].key) == lora.ROWS:  # beside adapters: none but the new ones
            return ratio
        return jnp.ones((len(p), 1)).at[jnp.array(self.new_rows)].set(ratio)


def spreads_of(params: Any) -> dict[str, float]:
    """Returns the standard deviation of each table of tokens, to two digits.

    So that what counts as the same run does not hang on the last bits of a sum over devices.
    """
    spread = jax.jit(lambda table: jnp.std(table, dtype=jnp.float32))
    return {name: float(f"{spread(params[name]):.2g}") for name in lora.TABLES if name in params}


def _float32(tree: Any) -> Any:
    return jax.tree.map(lambda x: x.astype(jnp.float32), tree)


def _is_gain_or_bias(path: tuple) -> bool:
    """Norm gains and biases are not decayed (the usual rule of Hugging Face trainers)."""
    name = str(path[-1].key)
    return "norm" in name or name in BIASES


def total_steps(config: TrainConfig, steps_per_epoch: int) -> int:
    """Returns the optimiser steps of a run: `epochs` over the rows, at most `max_steps`."""
    steps = math.ceil(config.epochs * steps_per_epoch)
    return min(steps, config.max_steps) if config.max_steps else steps


def learning_rate(config: TrainConfig, step: int, steps: int) -> float:
    """Returns the rate of 0-based `step` of `steps`: linear warm-up, then a cosine.

    The first step after the warm-up has the peak rate; no step of the run is wasted on rate 0.
    """
    warmup = math.ceil(config.warmup_ratio * steps)
    if step < warmup:
        return config.lr * (step + 1) / (warmup + 1)
    progress = min((step - warmup) / max(steps - warmup, 1), 1.0)
    cosine = 0.5 * (1 + math.cos(math.pi * progress))
    return config.lr * (config.final_lr_ratio + (1 - config.final_lr_ratio) * cosine)
