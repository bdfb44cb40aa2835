"""What a configuration must be to be run: refused by key, value and expectation. Floor 0."""

from typing import Any

from stair_jax.config import BENCHMARKS, STAGES, Config, default, words

_CHOICES = {
    "search.score": ("ucb", "pucb"),
    "search.prior": ("arithmetic", "geometric", "uniform"),
    "search.reward": ("paper", "safe-constraint", "outcome"),
    "search.ties": ("random", "first"),
    "search.judge": ("rule", "verifier"),
    "reward.F": ("identity", "power", "quadratic"),
    "model.compute_dtype": ("auto", "float32", "bfloat16"),
    "model.template": ("", "llama3", "chatml"),
    "engine.dtype": ("auto", "float32", "bfloat16"),
    "engine.attention": ("auto", "views", "xla", "pallas"),
    "engine.share_prefix": ("auto", "on", "off"),
    "export.dtype": ("auto", "float32", "bfloat16"),
    "evaluate.search": ("greedy",),
    "evaluate.split": ("test", "dev"),
    "dpo.loss": ("sigmoid", "ipo", "hinge"),
    "dpo.scope": ("step", "response"),
    "dpo.sft_scope": ("step", "response"),
    "dpo.sft_reduction": ("sequence", "token"),
    "dpo.reference": ("precomputed", "on_the_fly", "lora_base"),
    "sft.train.batching": ("bucket", "pack"),
    "dpo.train.batching": ("bucket", "tree"),
    **{f"{stage}.train.{key}": values for stage in ("sft", "dpo") for key, values in (
        ("remat", ("none", "attention", "full")), ("param_dtype", ("float32", "bfloat16")),
        ("result", ("last", "best")),
    )},
}
_POSITIVE = (
    "rounds", "search.iterations", "search.num_children", "search.max_depth",
    "search.max_step_tokens", "search.max_rollout_tokens",
    "engine.slots", "engine.page_size", "engine.max_context", "engine.chunk",
    "engine.prefill_rows", "pairs.max_tokens", "pairs.max_good_bad_ratio", "evaluate.max_tokens",
    "dpo.beta", *(f"{stage}.train.{key}" for stage in ("sft", "dpo")
                  for key in ("batch", "micro_tokens", "head_chunk", "epochs", "lr", "save_every", "keep")),
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
    if not c.workdir or c.workdir == "None":
        raise ValueError("config.workdir: not set; pass --config.workdir=PATH")
    if unknown := [s for s in words(c.stages) if s not in STAGES]:
        raise ValueError(f"config.stages: {unknown} not in {list(STAGES)}")
    if not words(c.stages):
        raise ValueError(f"config.stages: empty, expected some of {list(STAGES)}")
    _validate_values(c)
    _validate_search(c)
    _validate_data(c)
    if len(c.mesh.shape) != 3:
        raise ValueError(f"config.mesh.shape: {c.mesh.shape}, expected 3: data, fsdp, tensor")
    for stage in ("sft", "dpo"):
        _validate_training(f"{stage}.train", c[stage].train)


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
    wanted = words(c.stages)
    for stage, key, number in (("sft", "sft", "sft_rows"), ("search", "prompts", "round_prompts")):
        if stage not in wanted:
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
    if c.search.judge == "verifier" and c.data.prompts != "miniature":
        raise ValueError("config.search.judge: 'verifier' knows the miniature's prompts only")
    benchmarks = words(c.evaluate.benchmarks)
    if unknown := [b for b in benchmarks if b not in BENCHMARKS] or not benchmarks:
        raise ValueError(f"config.evaluate.benchmarks: {unknown} not in {list(BENCHMARKS)}")
    if "evaluate" in wanted and c.model.checkpoint:
        raise ValueError(
            "config.stages: evaluate knows the miniature's benchmarks only, which mean nothing to"
            f" {c.model.checkpoint!r}; leave it out"
        )


def _validate_training(name: str, t: Config) -> None:
    if not t.buckets or list(t.buckets) != sorted(set(t.buckets)):
        raise ValueError(f"config.{name}.buckets: {t.buckets}, expected rising lengths")
    if not 0 <= t.warmup_ratio <= 1 or not 0 <= t.final_lr_ratio <= 1:
        raise ValueError(f"config.{name}: warmup_ratio and final_lr_ratio must lie in [0, 1]")


def _get(c: Config, key: str) -> Any:
    for name in key.split("."):
        c = c[name]
    return c
