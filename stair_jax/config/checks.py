"""What a configuration must be to be run: refused by key, value and expectation. Floor 0."""

from typing import Any

from stair_jax import config
from stair_jax.config import Config, default, ignored, ranges, redaction
from stair_jax.config.reward_checks import validate_rewards
from stair_jax.config.schema import words
from stair_jax.config.sources import is_world
from stair_jax.config.threshold_checks import validate_thresholds

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


def validate(c: Config) -> None:
    """Refuses settings that cannot work, naming key, value and what was expected.

    Raises:
      ValueError: for the first such setting.
    """
    redaction.check_settings(c.to_dict())  # first: other messages show values
    ranges.check_types(c, default())
    if not c.workdir or c.workdir == "None":
        raise ValueError("config.workdir: not set; pass --config.workdir=PATH")
    _validate_names(c)
    for key, allowed in _CHOICES.items():
        if _get(c, key) not in allowed:
            raise ValueError(f"config.{key}: {_get(c, key)!r} is not one of {list(allowed)}")
    ranges.check(c)
    validate_rewards(c)  # the names of strategies before what counts under them
    ignored.check(c)
    _validate_sizes(c)
    _validate_rooms(c)
    _validate_data(c)
    _validate_baselines(c)
    for stage in ("sft", "dpo", "prm"):
        validate_training(f"config.{stage}.train", c[stage].train)
        _validate_targets(f"config.{stage}.train", c[stage].train)
    _validate_reference(c)
    _validate_trackers(c)
    validate_thresholds(c)
    ranges.check_keys(c, default())


def _validate_names(c: Config) -> None:
    """Refuses words of a list that stand for nothing."""
    for key, known in (
        ("stages", config.STAGES),
        ("baselines.names", config.BASELINES),
        ("pairs.export", config.EXPORTS),
        ("trackers", config.TRACKERS),
    ):
        if unknown := [name for name in words(_get(c, key)) if name not in known]:
            raise ValueError(f"config.{key}: {unknown} not in {list(known)}")
    if not words(c.stages):
        raise ValueError(f"config.stages: empty, expected some of {list(config.STAGES)}")
    if bool(words(c.baselines.names)) != ("baselines" in words(c.stages)):
        raise ValueError(
            f"config.baselines.names: {c.baselines.names!r} with config.stages={c.stages!r},"
            " expected names if and only if baselines is among the stages"
        )


def _validate_sizes(c: Config) -> None:
    """Refuses a mesh and sizes of a model that no device and no model can have."""
    shape, size = c.mesh.shape, c.model.size
    whole = all(type(x) is int and (x == -1 or x > 0) for x in shape)
    if len(shape) != 3 or not whole or shape.count(-1) > 1:
        raise ValueError(
            f"config.mesh.shape: {shape}, expected 3 whole numbers above 0: data, fsdp, tensor;"
            " one of them may be -1"
        )
    if size.N % size.K:
        raise ValueError(
            f"config.model.size.N: {size.N} query heads, expected a multiple of the"
            f" {size.K} of config.model.size.K"
        )
    if size.H % 2:
        raise ValueError(
            f"config.model.size.H: {size.H}, expected an even number, for positions turn pairs"
        )


def _validate_rooms(c: Config) -> None:
    """Refuses lengths that cannot hold what other settings would put there."""
    wanted, e, p = words(c.stages), c.engine, c.pairs
    if "search" in wanted and c.search.max_step_tokens >= e.max_context:
        raise ValueError(
            f"config.engine.max_context: {e.max_context} tokens of prompt and response have no room"
            f" for a step of config.search.max_step_tokens={c.search.max_step_tokens}"
        )
    if e.page_size > e.max_context:
        raise ValueError(
            f"config.engine.page_size: {e.page_size}, expected at most the {e.max_context} tokens"
            " of config.engine.max_context"
        )
    longest = max(c.dpo.train.buckets, default=0)
    if {"pairs", "dpo"} & set(wanted) and longest < p.max_tokens:
        raise ValueError(
            f"config.dpo.train.buckets: {longest} tokens at most, and pairs have up to"
            f" {p.max_tokens}: training would drop the longer ones. Expected a bucket of that many,"
            " or a lower config.pairs.max_tokens"
        )


def _validate_trackers(c: Config) -> None:
    if {"wandb", "trackio"} & set(words(c.trackers)) and not c.project:
        raise ValueError("config.project: empty, wandb and trackio want a name")


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
        embedded = is_world(c.data[key])
        if embedded and c.data[number] <= 0:
            raise ValueError(
                f"config.data.{number}: {c.data[number]}, the miniature needs a number above 0"
            )
        if not embedded and not c.model.checkpoint:
            raise ValueError(
                f"config.data.{key}: {c.data[key]!r} needs a model that speaks its language; set"
                " config.model.checkpoint (empty stands for the miniature's own model)"
            )
    for key in ("safety", "helpfulness"):
        if c.judge[key] == "verifier" and not is_world(c.data.prompts):
            raise ValueError(f"config.judge.{key}: 'verifier' knows the miniature's prompts only")


def _validate_baselines(c: Config) -> None:
    b, names = c.baselines, words(c.baselines.names)
    if len(b.sacpo_betas) != 2 or not all(beta in ranges.ABOVE_0 for beta in b.sacpo_betas):
        raise ValueError(
            f"config.baselines.sacpo_betas: {b.sacpo_betas}, expected two numbers above 0"
        )
    if b.buckets:
        _validate_buckets("config.baselines.buckets", b.buckets)
    reads = {"sft", "dpo", "sacpo"} & set(names)
    if reads and is_world(c.data.preferences) and c.model.checkpoint:
        raise ValueError(
            f"config.data.preferences: {c.data.preferences!r} means nothing to"
            f" {c.model.checkpoint!r}; the baselines sft, dpo and sacpo need a file of preferences"
        )


_TRAINING_CHOICES = {
    "batching": ("bucket", "pack", "tree"),
    "remat": ("none", "attention", "products", "full"),
    "param_dtype": ("float32", "bfloat16"),
    "result": ("last", "best"),
}
LEAST_BF16_LR = 1e-5


def validate_training(name: str, t: Any) -> None:
    """Refuses a trainer's settings that cannot work.

    Args:
      name: of the section, for the message.
      t: the section of the configuration, or a `TrainConfig`.

    Raises:
      ValueError: naming the key, what was found and what was expected.
    """
    for key, among in ranges.TRAINING.items():
        if (value := getattr(t, key)) not in among:
            raise ValueError(f"{name}.{key}: {value!r}, expected {among}")
    for key, allowed in _TRAINING_CHOICES.items():
        if (value := getattr(t, key)) not in allowed:
            *others, last = allowed
            raise ValueError(f"{name}.{key}: {value!r}, expected {', '.join(others)} or {last}")
    _validate_buckets(f"{name}.buckets", t.buckets)
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


def _validate_buckets(name: str, buckets: tuple[float | int, ...]) -> None:
    whole = all(type(x) is int and x in ranges.FROM_1 for x in buckets)
    if not buckets or not whole or list(buckets) != sorted(set(buckets)):
        raise ValueError(f"{name}: {buckets}, expected rising lengths, whole numbers above 0")


def _validate_targets(name: str, t: Config) -> None:
    known, found = words(default().sft.train.lora_targets), words(t.lora_targets)  # it is all
    if not found or not set(found) <= set(known):
        raise ValueError(
            f"{name}.lora_targets: {t.lora_targets!r}, expected some of {','.join(known)}"
        )


def _validate_reference(c: Config) -> None:
    kind, rank = c.dpo.reference, c.dpo.train.lora_rank
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
