"""The optimiser, an optax chain made from the configuration, and the learning rate of a step."""

import functools
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from stair_jax.config.schema import TrainConfig
from stair_jax.model import lora

_NONE: Mapping[str, float] = {}
BIASES = ("bq", "bk", "bv")
RATE = "learning_rate"  # as `optax.inject_hyperparams` names it in a state


def of(
    config: TrainConfig, new_rows: lora.Rows = (), spreads: Mapping[str, float] = _NONE
) -> optax.GradientTransformation:
    """Returns the optimiser of a training configuration.

    Args:
      config: of the trainer.
      new_rows: tokens that the checkpoint did not have.
      spreads: of the tables of tokens, by name; see `spreads_of`.
    """
    ratios: dict[str, float] = {}
    if new_rows and config.new_rows_lr:
        ratio = config.new_rows_lr / config.lr
        ratios = {table: ratio * spread for table, spread in spreads.items()}
    return adamw(
        beta1=config.beta1,
        beta2=config.beta2,
        eps=config.eps,
        weight_decay=config.weight_decay,
        clip_norm=config.clip_norm,
        new_rows=new_rows if ratios else (),
        ratios=tuple(ratios.items()),
    )


@functools.cache  # the same chain for the same constants, so that stages share compiled programs
def adamw(
    *,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    clip_norm: float,
    new_rows: lora.Rows = (),
    ratios: tuple[tuple[str, float], ...] = (),
) -> optax.GradientTransformation:
    """Returns AdamW behind clipping; its learning rate is injected, a part of the state.

    Runs of other lengths and rounds with other peaks then share one compiled program.

    Args:
      beta1: decay of the first moment.
      beta2: decay of the second moment.
      eps: added to the root of the second moment.
      weight_decay: of all but norm gains and biases.
      clip_norm: global norm of the gradient; 0: no clipping.
      new_rows: tokens whose rows have a rate of their own.
      ratios: of that rate over all others', by table.
    """

    def chain(learning_rate: jax.Array) -> optax.GradientTransformation:
        return optax.chain(
            _clip_by_global_norm(clip_norm) if clip_norm else optax.identity(),
            optax.adamw(learning_rate, beta1, beta2, eps, weight_decay=weight_decay, mask=decayed),
            _scale_new_rows(new_rows, dict(ratios)) if ratios else optax.identity(),
        )

    return optax.inject_hyperparams(chain, hyperparam_dtype=jnp.dtype(jnp.float32))(
        learning_rate=0.0
    )


def _clip_by_global_norm(most: float) -> optax.GradientTransformation:
    """Scales updates down to a global norm of `most`.

    Not optax's of this name: it divides and selects, for which XLA holds up to .4 copies of the
    parameters more.
    """

    def clip(updates: Any, _: Any) -> Any:
        scale = jnp.minimum(1.0, most / jnp.maximum(optax.tree.norm(updates), 1e-12))
        return jax.tree.map(lambda x: x * scale, updates)

    return optax.stateless(clip)


def decayed(params: Any) -> Any:
    """Returns True for each parameter that weight decay reaches.

    Norm gains and biases are not decayed, as Hugging Face trainers do.
    """

    def decays(path: tuple, _: Any) -> bool:
        name = str(path[-1].key)
        return "norm" not in name and name not in BIASES

    return jax.tree_util.tree_map_with_path(decays, params)


def _scale_new_rows(
    new_rows: lora.Rows, ratios: Mapping[str, float]
) -> optax.GradientTransformation:
    """Scales the updates of some tokens' rows, in each table by its ratio."""

    def scale(path: tuple, update: jax.Array) -> jax.Array:
        ratio = ratios.get(str(path[-1].key))
        if ratio is None:
            return update
        if str(path[0].key) == lora.ROWS:  # beside adapters a table holds nothing but new rows
            return ratio * update
        return update * jnp.ones((len(update), 1)).at[jnp.array(new_rows)].set(ratio)

    return optax.stateless(lambda updates, _: jax.tree_util.tree_map_with_path(scale, updates))


def takes_rate(opt: Any) -> bool:
    """Returns whether a state holds an injected learning rate."""
    return bool(optax.tree.get_all_with_path(opt, RATE))


def with_rate(opt: Any, lr: jax.Array) -> Any:
    """Returns a state with another learning rate, if it holds one at all."""
    return optax.tree.set(opt, **{RATE: lr}) if takes_rate(opt) else opt


def spreads_of(params: Any) -> dict[str, float]:
    """Returns the standard deviation of each table of tokens, to two digits.

    So that what counts as the same run does not hang on the last bits of a sum over devices.
    """
    spread = jax.jit(lambda table: jnp.std(table, dtype=jnp.float32))
    return {name: float(f"{spread(params[name]):.2g}") for name in lora.TABLES if name in params}


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
