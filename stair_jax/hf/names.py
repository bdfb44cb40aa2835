"""Hugging Face names and layouts of our parameters, both directions, from one table.

Letters in a layout are the fields of `Spec`: "NH D" is an array (N*H, D). V is the exception: their
files have `Spec.vocab` rows, our arrays may be padded to more. A group "1" is an axis of theirs
that ours lack.
"""

import dataclasses
import functools
import math
from collections.abc import Iterable
from typing import Any

import flax.traverse_util
import jax
import numpy as np

from stair_jax.model import reward, transformer
from stair_jax.model.spec import Spec


@dataclasses.dataclass(frozen=True)
class Rule:
    """One parameter: our path and axes, its Hugging Face name (`{l}` is the layer) and layout."""

    ours: str
    axes: str  # our letters in order, without the layer axis
    theirs: str
    layout: str  # the same letters in their order; a group of letters is one axis


HEAD = "lm_head.weight"
# What follows "LlamaFor" and the like: a policy, and reward models read once or at every step.
POLICY, ONCE, STEPS = "CausalLM", "SequenceClassification", "TokenClassification"
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
    Rule("score", "D", "score.weight", "1 D"),
)
# Of reward models that are read at every step. Ours have none, so they write a zero.
BIAS = Rule("score_bias", "", "score.bias", "1")


def form(rule: Rule) -> Rule:
    """Returns a rule without its names: parameters of one form move by one program."""
    return dataclasses.replace(rule, ours="", theirs="")


def letters_of(rule: Rule) -> str:
    """Returns our letters in the order of a file."""
    return rule.layout.replace(" ", "").replace("1", "")


def their_shape(rule: Rule, spec: Spec) -> tuple[int, ...]:
    """Returns the shape of one tensor in a Hugging Face file."""
    return tuple(math.prod(_size(a, spec) for a in group) for group in rule.layout.split())


def _size(letter: str, spec: Spec) -> int:
    """Returns the length of an axis in their files."""
    if letter == "1":
        return 1
    return spec.vocab if letter == "V" else getattr(spec, letter)


def to_ours(rule: Rule, x: Any, spec: Spec) -> Any:
    """Returns one of their tensors, of numpy or JAX, with its axes split and reordered to ours."""
    letters = letters_of(rule)
    split = x.reshape([_size(a, spec) for a in letters])
    moved = split.transpose([letters.index(a) for a in rule.axes])
    if "V" not in letters or spec.vocab == spec.V:
        return moved
    padding = [(0, spec.V - spec.vocab if a == "V" else 0) for a in rule.axes]
    return np.pad(moved, padding)


def to_theirs(rule: Rule, x: Any, spec: Spec) -> Any:
    """Returns one of our tensors, of numpy or JAX, in their layout; the inverse of `to_ours`."""
    x = x[tuple(slice(_size(a, spec) if a == "V" else None) for a in rule.axes)]
    moved = x.transpose([rule.axes.index(a) for a in letters_of(rule)])
    return moved.reshape(their_shape(rule, spec))


def rules_of(spec: Spec, kind: str = POLICY) -> list[Rule]:
    """Returns the rules of the parameters that this model has, in the order of the table."""
    return [rule for rule in RULES if rule.ours in shapes_of(spec, kind)]


def tensors_of(spec: Spec, kind: str = POLICY) -> dict[str, tuple[Rule, int | None]]:
    """Returns each tensor name of a checkpoint with its rule and layer."""
    names: dict[str, tuple[Rule, int | None]] = {}
    for rule in rules_of(spec, kind):
        layers: Iterable[int | None] = range(spec.L) if "{l}" in rule.theirs else (None,)
        names |= {rule.theirs.format(l=layer): (rule, layer) for layer in layers}
    return names


@functools.cache
def shapes_of(spec: Spec, kind: str = POLICY) -> dict[str, tuple[int, ...]]:
    """Returns the path and shape of each of our parameters."""
    init = transformer.init if kind == POLICY else reward.init
    tree = jax.eval_shape(functools.partial(init, spec), jax.random.key(0))
    return {path: x.shape for path, x in flat(tree).items()}


def flat(tree: Any) -> dict[str, Any]:
    """Returns the leaves of a parameter tree by path, such as "layers/wq"."""
    return flax.traverse_util.flatten_dict(tree, sep="/")
