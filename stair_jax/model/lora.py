"""Low-rank adapters of the projections: y = x W + scale (x A) B.

Source: Hu et al. 2021, LoRA, section 4.1. The factors are a tree of their own, which a `Decoder`
takes as the collection "lora" beside the frozen "params"; B starts at zero, so that training
starts at the model itself. `merge` makes them part of the weights.

No adapter reaches the tables of tokens. Where a vocabulary has grown, the new tokens' rows are
trained beside the factors, as themselves: {"layers": factors, "rows": {"embed", "head"}}.

Shape letters: L layers  R rank; a factor keeps the axes of its weight: A its inputs, B its outputs
"""

import dataclasses
import math
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp

from stair_jax import ops
from stair_jax.config.schema import TrainConfig
from stair_jax.config.words import split_csv
from stair_jax.model.spec import Spec

# {"layers": {target: {"a": [L, inputs.., R], "b": [L, R, outputs..]}}}, "rows" maybe beside it
Factors = Any
Rows = tuple[int, ...]  # tokens whose rows are trained as well
Axes = tuple[tuple[str, str], ...]  # (letter of `Spec`, logical axis) of each dimension

TABLES = ("embed", "head")  # whose rows are tokens
ROWS = "rows"

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
    found = split_csv(targets)
    if not found or not set(found) <= set(TARGETS):
        raise ValueError(f"lora_targets {targets!r}: expected some of {','.join(TARGETS)}")
    return tuple(name for name in TARGETS if name in found)


def init(
    spec: Spec, key: jax.Array, *, rank: int, targets: Iterable[str], new_rows: int = 0
) -> Factors:
    """Returns fresh float32 factors; `key` is consumed. May be jitted.

    A is uniform in ± 1 / sqrt(fan-in) and B zero, as PEFT starts them (Kaiming, a = sqrt 5). There
    is room for so many new tokens' rows, which `rows_of` takes from the model.
    """
    layers = {}
    for name, key_of in zip(TARGETS, jax.random.split(key, len(TARGETS)), strict=True):
        if name in targets:
            inputs, outputs = (_sizes(spec, a) for a in _sides(name))
            bound = math.prod(inputs) ** -0.5
            shape = (spec.L, *inputs, rank)
            a = jax.random.uniform(key_of, shape, jnp.float32, -bound, bound)
            layers[name] = {"a": a, "b": jnp.zeros((spec.L, rank, *outputs), jnp.float32)}
    if not new_rows:
        return {"layers": layers}
    return {
        "layers": layers,
        ROWS: {name: jnp.zeros((new_rows, spec.D)) for name in tables_of(spec)},
    }


def tables_of(spec: Spec) -> tuple[str, ...]:
    """Returns the names of the tables that have a row a token; one where they are tied."""
    return TABLES[:1] if spec.tied else TABLES


def scale_of(config: TrainConfig) -> float:
    """Returns alpha / rank, what the product of the factors is scaled by; 0 without adapters."""
    return config.lora_alpha / config.lora_rank if config.lora_rank else 0.0


def logical_axes(targets: Iterable[str], grown: Spec | None = None) -> Any:
    """Returns the tree of `init` with a tuple of logical axis names for each factor.

    With rows of new tokens for a model of the sizes `grown`, where they are given.
    """
    layers = {}
    for name in targets:
        inputs, outputs = (tuple(axis for _, axis in a) for a in _sides(name))
        layers[name] = {"a": ("layer", *inputs, None), "b": ("layer", None, *outputs)}
    if grown is None:
        return {"layers": layers}
    return {"layers": layers, ROWS: dict.fromkeys(tables_of(grown), (None, "embed"))}


def product(x: jax.Array, factor: Any, *, over: int = 1) -> jax.Array:
    """Returns (x A) B in float32 over the last `over` axes of x; the factors are of one layer."""
    return ops.matmul(ops.matmul(x, factor["a"], over=over, out=x.dtype), factor["b"])


def rows_of(params: Any, new_rows: Rows) -> Any:
    """Returns the rows of some tokens, float32, of each table that the parameters have."""
    at = jnp.array(new_rows)
    return {name: params[name][at].astype(jnp.float32) for name in TABLES if name in params}


def with_rows(params: Any, factors: Factors, new_rows: Rows) -> Any:
    """Returns the parameters with the trained rows in their tables, if there are any."""
    if ROWS not in factors:
        return params
    trained = factors[ROWS].items()
    return params | {name: set_rows(params[name], rows, new_rows) for name, rows in trained}


def set_rows(table: jax.Array, rows: jax.Array, new_rows: Rows) -> jax.Array:
    """Returns a table of tokens with other rows for some of them."""
    return table.at[jnp.array(new_rows)].set(rows.astype(table.dtype))


def merge(params: Any, factors: Factors, scale: float, new_rows: Rows = ()) -> Any:
    """Returns the parameters W + scale A B in the place of W, and the trained rows in theirs.

    All others are the same arrays.
    """
    params = with_rows(params, factors, new_rows)
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
