"""Adapters in PEFT's format: adapter_config.json and adapter_model.safetensors."""

import pathlib
from collections.abc import Sequence
from typing import Any

import ml_dtypes
import numpy as np
import safetensors.numpy

from stair_jax.hf import exporter, metadata, names
from stair_jax.model import lora
from stair_jax.model.spec import Spec

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
TOKENS = "token_adapter.trainable_tokens_delta"  # rows themselves, whatever the name says
PREFIX = "base_model.model."  # PEFT wraps the model twice
_DTYPES = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(ml_dtypes.bfloat16)}


def save(
    path: metadata.Path,
    spec: Spec,
    factors: lora.Factors,
    *,
    alpha: float,
    rank: int,
    targets: Sequence[str],
    base_name: str,
    dtype: str,
    new_rows: lora.Rows = (),
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
        new_rows: tokens whose rows were trained as well; PEFT calls them trainable tokens.

    Raises:
        ValueError: an unknown dtype, or factors that do not fit sizes, rank, targets and tokens.
    """
    if dtype not in _DTYPES:
        raise ValueError(f"export dtype {dtype!r} is unknown, expected one of {[*_DTYPES]}")
    if set(factors["layers"]) != set(targets):
        raise ValueError(f"adapters of {sorted(factors['layers'])}, expected {sorted(targets)}")
    rules = {rule.ours: rule for rule in names.RULES}
    tensors, modules = {}, []
    for target in targets:
        rule = rules[f"layers/{lora.TARGETS[target].weight}"]
        outer, inner = names.their_shape(rule, spec)
        name = rule.theirs.removesuffix(".weight")
        modules.append(name.rpartition(".")[2])
        parts = _theirs(factors["layers"][target], rank, (spec.L, inner, outer), target)
        for part, x in parts.items():
            for layer in range(spec.L):
                key = f"{PREFIX}{name.format(l=layer)}.lora_{part}.weight"
                tensors[key] = np.ascontiguousarray(x[layer].astype(_DTYPES[dtype]))
    for table, rows in _rows(spec, factors, new_rows).items():
        key = f"{PREFIX}{rules[table].theirs.removesuffix('.weight')}.{TOKENS}"
        tensors[key] = np.ascontiguousarray(rows.astype(_DTYPES[dtype]))
    tokens = {rules[table].theirs.split(".")[-2]: list(new_rows) for table in lora.tables_of(spec)}
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_name,
        "r": rank,
        "lora_alpha": alpha,
        "target_modules": sorted(modules),
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "use_rslora": False,
        "use_dora": False,
        "init_lora_weights": True,
        "inference_mode": True,
        "modules_to_save": None,
        "trainable_token_indices": tokens if new_rows else None,
    }
    with exporter.whole(pathlib.Path(path)) as folder:
        safetensors.numpy.save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
        exporter.write_json(folder / CONFIG, config)


def _rows(spec: Spec, factors: lora.Factors, new_rows: lora.Rows) -> dict[str, np.ndarray]:
    """Returns the trained rows of each table, [tokens, D]; PEFT puts them in the place of its own.

    A tied head is the embedding there, too.
    """
    found = {name: np.asarray(x) for name, x in factors.get(lora.ROWS, {}).items()}
    expected = dict.fromkeys(lora.tables_of(spec), (len(new_rows), spec.D)) if new_rows else {}
    if (shapes := {name: x.shape for name, x in found.items()}) != expected:
        raise ValueError(f"adapters with rows {shapes} of new tokens, expected {expected}")
    return found


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
        "A": a.reshape(L, inner, rank).swapaxes(1, 2),
        "B": b.reshape(L, rank, outer).swapaxes(1, 2),
    }
