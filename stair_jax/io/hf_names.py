"""Hugging Face names and layouts of our parameters, both directions, from one table.

Letters in a layout are the fields of `Spec`: "NH D" is an array (N*H, D).
"""

import dataclasses
import functools
import math
from collections.abc import Iterable
from typing import Any

import flax.traverse_util
import jax
import numpy as np

from stair_jax.model import transformer
from stair_jax.model.spec import Spec


@dataclasses.dataclass(frozen=True)
class Rule:
    """One parameter: our path and axes, its Hugging Face name (`{l}` is the layer) and layout."""

    ours: str
    axes: str  # our letters in order, without the layer axis
    theirs: str
    layout: str  # the same letters in their order; a group of letters is one axis


HEAD = "lm_head.weight"
_ATTENTION, _MLP = "model.layers.{l}.self_attn.", "model.layers.{l}.mlp."
RULES = (
    Rule("embed", "VD", "model.embed_tokens.weight", "V D"),
    Rule("layers/attn_norm", "D", "model.layers.{l}.input_layernorm.weight", "D"),
    Rule("layers/wq", "DNH", _ATTENTION + "q_proj.weight", "NH D"),
    Rule("layers/wk", "DKH", _ATTENTION + "k_proj.weight", "KH D"),
    Rule("layers/wv", "DKH", _ATTENTION + "v_proj.weight", "KH D"),
    Rule("layers/bq", "NH", _ATTENTION + "q_proj.bias", "NH"),
    Rule("layers/bk", "KH", _ATTENTION + "k_proj.bias", "KH"),
    Rule("layers/bv", "KH", _ATTENTION + "v_proj.bias", "KH"),
    Rule("layers/q_norm", "H", _ATTENTION + "q_norm.weight", "H"),
    Rule("layers/k_norm", "H", _ATTENTION + "k_norm.weight", "H"),
    Rule("layers/wo", "NHD", _ATTENTION + "o_proj.weight", "D NH"),
    Rule("layers/mlp_norm", "D", "model.layers.{l}.post_attention_layernorm.weight", "D"),
    Rule("layers/w_gate", "DF", _MLP + "gate_proj.weight", "F D"),
    Rule("layers/w_up", "DF", _MLP + "up_proj.weight", "F D"),
    Rule("layers/w_down", "FD", _MLP + "down_proj.weight", "D F"),
    Rule("norm", "D", "model.norm.weight", "D"),
    Rule("head", "VD", HEAD, "V D"),
)


def their_shape(rule: Rule, spec: Spec) -> tuple[int, ...]:
    """Returns the shape of one tensor in a Hugging Face file."""
    return tuple(math.prod(getattr(spec, a) for a in group) for group in rule.layout.split())


def to_ours(rule: Rule, x: np.ndarray, spec: Spec) -> np.ndarray:
    """Returns one of their tensors with its axes split and reordered to ours."""
    letters = rule.layout.replace(" ", "")
    return np.einsum(f"{letters}->{rule.axes}", x.reshape([getattr(spec, a) for a in letters]))


def to_theirs(rule: Rule, x: np.ndarray, spec: Spec) -> np.ndarray:
    """Returns one of our tensors in their layout, contiguous; the inverse of `to_ours`."""
    moved = np.einsum(f"{rule.axes}->{rule.layout.replace(' ', '')}", x)
    return np.ascontiguousarray(moved).reshape(their_shape(rule, spec))


def rules_of(spec: Spec) -> list[Rule]:
    """Returns the rules of the parameters that this model has, in the order of the table."""
    return [rule for rule in RULES if rule.ours in shapes_of(spec)]


def tensors_of(spec: Spec) -> dict[str, tuple[Rule, int | None]]:
    """Returns each tensor name of a checkpoint with its rule and layer."""
    names: dict[str, tuple[Rule, int | None]] = {}
    for rule in rules_of(spec):
        layers: Iterable[int | None] = range(spec.L) if "{l}" in rule.theirs else (None,)
        names |= {rule.theirs.format(l=layer): (rule, layer) for layer in layers}
    return names


@functools.cache
def shapes_of(spec: Spec) -> dict[str, tuple[int, ...]]:
    """Returns the path and shape of each of our parameters."""
    tree = jax.eval_shape(functools.partial(transformer.init, spec), jax.random.key(0))
    return {path: x.shape for path, x in flat(tree).items()}


def flat(tree: Any) -> dict[str, Any]:
    """Returns the leaves of a parameter tree by path, such as "layers/wq"."""
    return flax.traverse_util.flatten_dict(tree, sep="/")
