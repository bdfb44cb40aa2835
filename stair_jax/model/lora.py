"""Low-rank adapters of the projections: y = x W + scale (x A) B.

Source: Hu et al. 2021, LoRA, section 4.1. The factors are a tree of their own, which a `Decoder`
takes as the collection "lora" beside the frozen "params"; B starts at zero, so that training
starts at the model itself. `merge` makes them part of the weights.

Shape letters: L layers  R rank; a factor keeps the axes of its weight: A its inputs, B its outputs
"""

import dataclasses
import math
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp

from stair_jax import ops
from stair_jax.model.spec import Spec
from stair_jax.sections import TrainConfig, words

Factors = Any  # {"layers": {target: {"a": [L, inputs.., R], "b": [L, R, outputs..]}}}
Axes = tuple[tuple[str, str], ...]  # (letter of `Spec`, logical axis) of each dimension

_D, _F, _H = ("D", "embed"), ("F", "ffn"), ("H", "head")
_N, _K = ("N", "q_head"), ("K", "kv_head")


@dataclasses.dataclass(frozen=True)
class Target:
    """A projection that can carry an adapter."""

    weight: str  # its parameter, below "layers"
    inputs: Axes
    outputs: Axes


TARGETS = {
    "q": Target("wq", (_D,), (_N, _H)),
    "k": Target("wk", (_D,), (_K, _H)),
    "v": Target("wv", (_D,), (_K, _H)),
    "o": Target("wo", (_N, _H), (_D,)),
    "gate": Target("w_gate", (_D,), (_F,)),
    "up": Target("w_up", (_D,), (_F,)),
    "down": Target("w_down", (_F,), (_D,)),
}


def parse(targets: str) -> tuple[str, ...]:
    """Returns the targets of a comma-separated setting, in the order of `TARGETS`.

    Raises:
        ValueError: an unknown target, or none.
    """
    found = words(targets)
    if not found or not set(found) <= set(TARGETS):
        raise ValueError(f"lora_targets {targets!r}: expected some of {','.join(TARGETS)}")
    return tuple(name for name in TARGETS if name in found)


def init(spec: Spec, key: jax.Array, *, rank: int, targets: Iterable[str]) -> Factors:
    """Returns fresh float32 factors; `key` is consumed. May be jitted.

    A is uniform in ± 1 / sqrt(fan-in) and B zero, as PEFT starts them (Kaiming, a = sqrt 5).
    """
    layers = {}
    for name, key_of in zip(TARGETS, jax.random.split(key, len(TARGETS)), strict=True):
        if name in targets:
            inputs, outputs = (_sizes(spec, a) for a in _sides(name))
            bound = math.prod(inputs) ** -0.5
            shape = (spec.L, *inputs, rank)
            a = jax.random.uniform(key_of, shape, jnp.float32, -bound, bound)
            layers[name] = {"a": a, "b": jnp.zeros((spec.L, rank, *outputs), jnp.float32)}
    return {"layers": layers}


def scale_of(config: TrainConfig) -> float:
    """Returns alpha / rank, what the product of the factors is scaled by; 0 without adapters."""
    return config.lora_alpha / config.lora_rank if config.lora_rank else 0.0


def logical_axes(targets: Iterable[str]) -> Any:
    """Returns the tree of `init` with a tuple of logical axis names for each factor."""
    layers = {}
    for name in targets:
        inputs, outputs = (tuple(axis for _, axis in a) for a in _sides(name))
        layers[name] = {"a": ("layer", *inputs, None), "b": ("layer", None, *outputs)}
    return {"layers": layers}


def product(x: jax.Array, factor: Any, *, over: int = 1) -> jax.Array:
    """Returns (x A) B in float32 over the last `over` axes of x; the factors are of one layer."""
    return ops.matmul(ops.matmul(x, factor["a"], over=over, out=x.dtype), factor["b"])


def merge(params: Any, factors: Factors, scale: float) -> Any:
    """Returns the parameters W + scale A B in the place of W; all others are the same arrays."""
    layers = dict(params["layers"])
    for name, factor in factors["layers"].items():
        w, rank = layers[TARGETS[name].weight], factor["a"].shape[-1]
        a_LIR = factor["a"].reshape(len(w), -1, rank)
        b_LRO = factor["b"].reshape(len(w), rank, -1)
        delta = jnp.einsum("LIR,LRO->LIO", a_LIR, b_LRO, preferred_element_type=jnp.float32)
        grown = w.astype(jnp.float32) + scale * delta.reshape(w.shape)
        layers[TARGETS[name].weight] = grown.astype(w.dtype)
    return {**params, "layers": layers}


def _sides(name: str) -> tuple[Axes, Axes]:
    return TARGETS[name].inputs, TARGETS[name].outputs


def _sizes(spec: Spec, axes: Axes) -> tuple[int, ...]:
    return tuple(getattr(spec, letter) for letter, _ in axes)
