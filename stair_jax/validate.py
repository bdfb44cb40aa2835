"""What a configuration must be to be run: refused by key, value and expectation. Floor 0."""

from collections.abc import Callable
from typing import Any

from stair_jax import config, redaction
from stair_jax.config import Config, default
from stair_jax.sections import words
from stair_jax.validate_rewards import validate_rewards

_CHOICES = {
    "search.score": ("ucb", "pucb"),
    "search.prior": ("arithmetic", "geometric", "uniform"),
    "search.reward": ("paper", "safe-constraint", "outcome"),
    "search.ties": ("random", "first"),
    "search.value": ("rollout", "prm", "mix"),
    "judge.safety": ("self", "rule", "remote", "verifier"),
    "judge.helpfulness": ("self", "none", "remote", "reward_model", "verifier"),
    "judge.scope": ("all", "by_type"),
    "prm.loss": ("bt", "bce", "mse", "implicit"),
    "prm.readout": ("eos", "step_end"),
    "prm.reference": ("start", "none"),
    "evaluate.aggregation": ("last", "min", "mean", "product"),
    "reward.F": ("identity", "power", "quadratic"),
    "model.compute_dtype": ("auto", "float32", "bfloat16"),
    "model.template": ("", "llama3", "chatml"),
    "engine.dtype": ("auto", "float32", "bfloat16"),
    "engine.attention": ("auto", "views", "xla", "pallas"),
    "engine.share_prefix": ("auto", "on", "off"),
    "export.dtype": ("auto", "float32", "bfloat16"),
    "evaluate.split": ("test", "dev"),
    "data.format": ("auto", "ours", "alpaca", "sharegpt", "openai"),
    "data.preferences_format": ("auto", "pairs", "explicit", "implicit", "sharegpt", "alpaca"),
    "dpo.loss": ("sigmoid", "ipo", "hinge"),
    "dpo.scope": ("step", "response"),
    "dpo.sft_scope": ("step", "response"),
    "dpo.sft_reduction": ("sequence", "token"),
    "dpo.reference": ("precomputed", "on_the_fly", "lora_base"),
    "sft.train.batching": ("bucket", "pack"),
    "dpo.train.batching": ("bucket", "tree"),
    "prm.train.batching": ("bucket", "tree"),
}
_POSITIVE = (
    "rounds", "search.iterations", "search.num_children", "search.max_depth",
    "search.max_step_tokens", "search.max_rollout_tokens",
    "engine.slots", "engine.page_size", "engine.max_context", "engine.chunk",
    "engine.prefill_rows", "pairs.max_tokens", "pairs.max_good_bad_ratio", "evaluate.max_tokens",
    "dpo.beta", "judge.samples", "judge.max_tokens",
)  # fmt: skip


# Keys that only count under another setting: changed without it, they would be ignored.
_ONLY_UNDER = {
    "reward.F": ("search.reward", "paper"), "reward.c1": ("search.reward", "paper"),
    "reward.c2": ("search.reward", "paper"), "reward.k1": ("search.reward", "safe-constraint"),
    "reward.k2": ("search.reward", "safe-constraint"), "search.prior": ("search.score", "pucb"),
    "pairs.max_good_bad_ratio": ("pairs.terminal_only", True),
}  # fmt: skip


def validate(c: Config) -> None:
    """Refuses settings that cannot work, naming key, value and what was expected.

    Raises:
      ValueError: for the first such setting.
    """
    redaction.check_settings(c.to_dict())  # first: other messages show values
    if not c.workdir or c.workdir == "None":
        raise ValueError("config.workdir: not set; pass --config.workdir=PATH")
    if unknown := [s for s in words(c.stages) if s not in config.STAGES]:
        raise ValueError(f"config.stages: {unknown} not in {list(config.STAGES)}")
    if not words(c.stages):
        raise ValueError(f"config.stages: empty, expected some of {list(config.STAGES)}")
    _validate_values(c)
    _validate_search(c)
    _validate_data(c)
    _validate_baselines(c)
    if unknown := [name for name in words(c.pairs.export) if name not in config.EXPORTS]:
        raise ValueError(f"config.pairs.export: {unknown} not in {list(config.EXPORTS)}")
    if len(c.mesh.shape) != 3:
        raise ValueError(f"config.mesh.shape: {c.mesh.shape}, expected 3: data, fsdp, tensor")
    for stage in ("sft", "dpo", "prm"):
        validate_training(f"config.{stage}.train", c[stage].train)
        _validate_adapters(f"{stage}.train", c[stage].train)
    _validate_reference(c)
    _validate_trackers(c)
    validate_rewards(c)


def _validate_values(c: Config) -> None:
    for key, allowed in _CHOICES.items():
        if _get(c, key) not in allowed:
            raise ValueError(f"config.{key}: {_get(c, key)!r} is not one of {list(allowed)}")
    for key in _POSITIVE:
        if not _get(c, key) > 0:
            raise ValueError(f"config.{key}: {_get(c, key)!r}, expected a number above 0")
    usual = default()
    for key, (other, value) in _ONLY_UNDER.items():
        if _get(c, key) != _get(usual, key) and _get(c, other) != value:
            raise ValueError(
                f"config.{key}: {_get(c, key)!r} would be ignored, it needs config.{other}={value}"
            )


def _validate_trackers(c: Config) -> None:
    found = words(c.trackers)
    if unknown := [name for name in found if name not in config.TRACKERS]:
        raise ValueError(f"config.trackers: {unknown} not in {list(config.TRACKERS)}")
    if {"wandb", "trackio"} & set(found):
        if not c.project:
            raise ValueError("config.project: empty, wandb and trackio want a name")
    elif c.project != default().project:
        raise ValueError(
            f"config.project: {c.project!r} would be ignored, it needs wandb or trackio in"
            " config.trackers"
        )


def _validate_search(c: Config) -> None:
    s = c.search
    if not (0 < s.top_p <= 1 and 0 <= s.min_p <= 1 and s.top_k >= 0 and s.temperature >= 0):
        raise ValueError(
            f"config.search: temperature={s.temperature} top_k={s.top_k} top_p={s.top_p}"
            f" min_p={s.min_p}; expected temperature >= 0, top_k >= 0, 0 < top_p <= 1,"
            " 0 <= min_p <= 1"
        )
    if s.trees_in_flight < 0:
        raise ValueError(f"config.search.trees_in_flight: {s.trees_in_flight}, expected 0 or more")
    if c.profile and "search" not in words(c.stages):
        raise ValueError("config.profile: True would be ignored, it traces the stage search")
    if c.engine.share_prefix == "on" and c.engine.attention == "views":
        raise ValueError(
            "config.engine.share_prefix: 'on' would be ignored, engine.attention='views' keeps"
            " every slot's keys apart (expected xla or pallas)"
        )


def _validate_data(c: Config) -> None:
    wanted, names = words(c.stages), words(c.baselines.names)
    own_start = bool(names) and not c.model.checkpoint  # of the baselines, from rows of stage 1
    for used, key, number in (
        ("sft" in wanted or own_start, "sft", "sft_rows"),
        ("search" in wanted or "self-rewarding" in names, "prompts", "round_prompts"),
        (bool({"sft", "dpo", "sacpo"} & set(names)), "preferences", "preference_rows"),
    ):
        if not used:
            continue
        embedded = c.data[key] == "miniature"
        if embedded and c.data[number] <= 0:
            raise ValueError(
                f"config.data.{number}: {c.data[number]}, the miniature needs a number above 0"
            )
        if not embedded and not c.model.checkpoint:
            raise ValueError(
                f"config.data.{key}: {c.data[key]!r} needs a model that speaks its language; set"
                " config.model.checkpoint (empty stands for the miniature's own model)"
            )
    _validate_sources(c)
    for key in ("safety", "helpfulness"):
        if c.judge[key] == "verifier" and c.data.prompts != "miniature":
            raise ValueError(f"config.judge.{key}: 'verifier' knows the miniature's prompts only")


def _validate_sources(c: Config) -> None:
    for key, other in (("format", "sft"), ("preferences_format", "preferences")):
        if c.data[key] != "auto" and c.data[other] == "miniature":
            raise ValueError(
                f"config.data.{key}: {c.data[key]!r} would be ignored, config.data.{other} is the"
                " miniature's"
            )
    own = [x for x in words(c.evaluate.benchmarks) if x not in config.BENCHMARKS]
    sources = (c.data.sft, c.data.prompts, c.data.preferences, *own)
    if c.data.split != "train" and all(
        x == "miniature" or x.endswith(config.ROW_FILES) for x in sources
    ):
        raise ValueError(
            f"config.data.split: {c.data.split!r} would be ignored, it needs a hub name in"
            " config.data.sft, config.data.prompts, config.data.preferences or"
            " config.evaluate.benchmarks"
        )


def _validate_baselines(c: Config) -> None:
    b, names, usual = c.baselines, words(c.baselines.names), default()
    if unknown := [name for name in names if name not in config.BASELINES]:
        raise ValueError(f"config.baselines.names: {unknown} not in {list(config.BASELINES)}")
    if bool(names) != ("baselines" in words(c.stages)):
        raise ValueError(
            f"config.baselines.names: {b.names!r} with config.stages={c.stages!r}, expected names"
            " if and only if baselines is among the stages"
        )
    needs = {"baselines.sacpo_betas": "sacpo", "baselines.buckets": "", "baselines.sft_lr": ""} | {
        f"baselines.{key}": "self-rewarding" for key in ("candidates", "temperature", "top_p")
    }
    for key, name in needs.items():
        if _get(c, key) != _get(usual, key) and (name not in names if name else not names):
            raise ValueError(
                f"config.{key}: {_get(c, key)!r} would be ignored, it needs"
                f" {name or 'a name'} in config.baselines.names"
            )
    if len(b.sacpo_betas) != 2 or not all(beta > 0 for beta in b.sacpo_betas):
        raise ValueError(
            f"config.baselines.sacpo_betas: {b.sacpo_betas}, expected two numbers above 0"
        )
    if b.candidates < 2 or not b.temperature > 0 or not 0 < b.top_p <= 1:
        raise ValueError(
            f"config.baselines: candidates={b.candidates} temperature={b.temperature}"
            f" top_p={b.top_p}, expected 2 or more that can differ"
        )
    if b.sft_lr < 0:
        raise ValueError(f"config.baselines.sft_lr: {b.sft_lr}, expected 0 or more")
    if list(b.buckets) != sorted(set(b.buckets)):
        raise ValueError(f"config.baselines.buckets: {b.buckets}, expected rising lengths")
    reads = {"sft", "dpo", "sacpo"} & set(names)
    if reads and c.data.preferences == "miniature" and c.model.checkpoint:
        raise ValueError(
            f"config.data.preferences: 'miniature' means nothing to {c.model.checkpoint!r}; the"
            " baselines sft, dpo and sacpo need a file of preferences"
        )


_TRAINING: tuple[tuple[tuple[str, ...], Callable[[Any], bool], str], ...] = (
    (("batch", "micro_tokens", "head_chunk", "epochs", "lr", "eps", "save_every", "keep",
      "lora_alpha"), lambda x: x > 0, "a number above 0"),
    (("warmup_ratio", "final_lr_ratio"), lambda x: 0 <= x <= 1, "a number in [0, 1]"),
    (("beta1", "beta2"), lambda x: 0 <= x < 1, "a number in [0, 1)"),
    (("max_steps", "weight_decay", "clip_norm", "max_skipped", "eval_rows", "lora_rank"),
     lambda x: x >= 0, "0 or more"),
    (("buckets",), lambda x: bool(x) and list(x) == sorted(set(x)), "rising lengths"),
    (("batching",), lambda x: x in ("bucket", "pack", "tree"), "bucket, pack or tree"),
    (("remat",), lambda x: x in ("none", "attention", "products", "full"),
     "none, attention, products or full"),
    (("param_dtype",), lambda x: x in ("float32", "bfloat16"), "float32 or bfloat16"),
    (("result",), lambda x: x in ("last", "best"), "last or best"),
)  # fmt: skip
LEAST_BF16_LR = 1e-5


def validate_training(name: str, t: Any) -> None:
    """Refuses a trainer's settings that cannot work.

    Args:
      name: of the section, for the message.
      t: the section of the configuration, or a `TrainConfig`.

    Raises:
      ValueError: naming the key, what was found and what was expected.
    """
    for keys, holds, expected in _TRAINING:
        for key in keys:
            if not holds(value := getattr(t, key)):
                raise ValueError(f"{name}.{key}: {value!r}, expected {expected}")
    if t.param_dtype == "bfloat16" and t.lr < LEAST_BF16_LR:
        raise ValueError(
            f"{name}.param_dtype: 'bfloat16' with lr={t.lr:g}; at 5e-7 Adam's steps move 0.4 % of"
            " bfloat16 weights, the others round back. Expected 'float32', or a rate of"
            f" {LEAST_BF16_LR:g} or more"
        )
    if t.result == "best" and not t.eval_rows:
        raise ValueError(
            f"{name}.result: 'best' is chosen by the loss on held-out rows, expected eval_rows"
            " above 0"
        )


def _validate_adapters(name: str, t: Config) -> None:
    usual = _get(default(), name)
    for key in ("lora_alpha", "lora_targets"):
        if t[key] != usual[key] and not t.lora_rank:
            raise ValueError(
                f"config.{name}.{key}: {t[key]!r} would be ignored, it needs a"
                f" config.{name}.lora_rank above 0"
            )
    known, found = words(usual.lora_targets), words(t.lora_targets)  # the default is all
    if not found or not set(found) <= set(known):
        raise ValueError(
            f"config.{name}.lora_targets: {t.lora_targets!r}, expected some of {','.join(known)}"
        )


def _validate_reference(c: Config) -> None:
    kind, rank = c.dpo.reference, c.dpo.train.lora_rank
    if c.dpo.label_smoothing and c.dpo.loss != "sigmoid":
        raise ValueError(
            f"config.dpo.label_smoothing: {c.dpo.label_smoothing} would be ignored, it needs"
            " config.dpo.loss=sigmoid"
        )
    if kind == "lora_base" and not rank:
        raise ValueError(
            "config.dpo.reference: 'lora_base' is the model without its adapters, it needs a"
            " config.dpo.train.lora_rank above 0"
        )
    if kind == "on_the_fly" and rank:
        raise ValueError(
            f"config.dpo.reference: 'on_the_fly' with lora_rank={rank} would keep the base's"
            " weights twice; expected 'lora_base', which takes them as the reference"
        )


def _get(c: Config, key: str) -> Any:
    for name in key.split("."):
        c = c[name]
    return c
