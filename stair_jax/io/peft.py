"""Adapters in PEFT's format: adapter_config.json and adapter_model.safetensors."""

import pathlib
from collections.abc import Sequence
from typing import Any

import ml_dtypes
import numpy as np
import safetensors.numpy

from stair_jax.io import hf, hf_export, hf_names
from stair_jax.model import lora
from stair_jax.model.spec import Spec

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."  # PEFT wraps the model twice
_DTYPES = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(ml_dtypes.bfloat16)}


def save(
    path: hf.Path,
    spec: Spec,
    factors: lora.Factors,
    *,
    alpha: float,
    rank: int,
    targets: Sequence[str],
    base_name: str,
    dtype: str,
) -> None:
    """Writes a folder that `peft.PeftModel.from_pretrained` loads; it appears whole or not at all.

    Args:
        path: the folder, replaced where it exists.
        spec: sizes of the base.
        factors: the tree of `lora.init`, anywhere.
        alpha: the adapters count alpha / rank times.
        rank: of the factors.
        targets: names of `lora.TARGETS`, those of the factors.
        base_name: folder or hub name of the base model.
        dtype: of the written factors, "float32" or "bfloat16".

    Raises:
        ValueError: an unknown dtype, or factors that do not fit sizes, rank and targets.
    """
    if dtype not in _DTYPES:
        raise ValueError(f"export dtype {dtype!r} is unknown, expected one of {[*_DTYPES]}")
    if set(factors["layers"]) != set(targets):
        raise ValueError(f"adapters of {sorted(factors['layers'])}, expected {sorted(targets)}")
    rules = {rule.ours: rule for rule in hf_names.RULES}
    tensors, modules = {}, []
    for target in targets:
        rule = rules[f"layers/{lora.TARGETS[target].weight}"]
        outer, inner = hf_names.their_shape(rule, spec)
        name = rule.theirs.removesuffix(".weight")
        modules.append(name.rpartition(".")[2])
        parts = _theirs(factors["layers"][target], rank, (spec.L, inner, outer), target)
        for part, x in parts.items():
            for layer in range(spec.L):
                key = f"{PREFIX}{name.format(l=layer)}.lora_{part}.weight"
                tensors[key] = np.ascontiguousarray(x[layer].astype(_DTYPES[dtype]))
    config = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base_name,
        "r": rank, "lora_alpha": alpha, "target_modules": sorted(modules), "lora_dropout": 0.0,
        "bias": "none", "fan_in_fan_out": False, "use_rslora": False, "use_dora": False,
        "init_lora_weights": True, "inference_mode": True, "modules_to_save": None,
    }  # fmt: skip
    with hf_export.whole(pathlib.Path(path)) as folder:
        safetensors.numpy.save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
        hf_export.write_json(folder / CONFIG, config)


def _theirs(factor: Any, rank: int, sizes: tuple[int, int, int], target: str) -> dict[str, Any]:
    """Returns A [L, R, inputs] and B [L, outputs, R], as PyTorch's linear layers keep them."""
    L, inner, outer = sizes
    a, b = np.asarray(factor["a"]), np.asarray(factor["b"])
    shapes = (a.size, a.shape[-1], b.size, b.shape[1])
    expected = (L * inner * rank, rank, L * rank * outer, rank)
    if shapes != expected:
        raise ValueError(
            f"adapter {target!r}: a {a.shape} and b {b.shape}, expected {L} layers of"
            f" {inner} to {outer} with rank {rank}"
        )
    return {
        "A": a.reshape(L, inner, rank).swapaxes(1, 2), "B": b.reshape(L, rank, outer).swapaxes(1, 2)
    }  # fmt: skip
