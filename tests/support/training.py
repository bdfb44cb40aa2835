"""Configurations of the trainers for tests, one setting changed at a time."""

from stair_jax.config.schema import DpoConfig, TrainConfig

_TRAIN = {
    "batch": 4,
    "batching": "bucket",
    "micro_tokens": 4096,
    "epochs": 1.0,
    "max_steps": 0,
    "lr": 1e-2,
    "new_rows_lr": 0.0,
    "warmup_ratio": 0.1,
    "final_lr_ratio": 0.0,
    "beta1": 0.9,
    "beta2": 0.999,
    "eps": 1e-8,
    "weight_decay": 0.0,
    "clip_norm": 1.0,
    "param_dtype": "float32",
    "max_skipped": 3,
    "remat": "none",
    "head_chunk": 8,
    "buckets": (7, 11),
    "save_every": 5,
    "keep": 2,
    "eval_rows": 0,
    "result": "last",
    "lora_rank": 0,
    "lora_alpha": 16.0,
    "lora_targets": "q,k,v,o,gate,up,down",
    "compute_dtype": "float32",
}
_DPO = {
    "loss": "sigmoid",
    "beta": 0.3,
    "sft_coef": 0.2,
    "scope": "step",
    "sft_scope": "response",
    "sft_reduction": "sequence",
    "label_smoothing": 0.0,
    "reference": "precomputed",
    "anchors_per_pair": 0.0,
}


def train_config(**change):
    """Returns a trainer's configuration for rows of at most 11 tokens."""
    return TrainConfig(**(_TRAIN | change))


def dpo_config(**change):
    """Returns the configuration of a preference loss."""
    return DpoConfig(**(_DPO | change))
