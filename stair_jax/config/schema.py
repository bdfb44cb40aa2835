"""Sections of the configuration, frozen and hashable: what the code below `run/` is given.

Units and sources of the values are in `config.default`. Nothing here imports ml-collections, so
that engine and trainers run where it is not installed.
"""

import dataclasses
from typing import Any, TypeVar

Frozen = TypeVar("Frozen", bound="Section")


def words(value: str) -> tuple[str, ...]:
    """Splits a comma-separated setting."""
    return tuple(word.strip() for word in value.split(",") if word.strip())


@dataclasses.dataclass(frozen=True, kw_only=True)
class Section:
    """Base of the frozen configurations that are used below `run/`."""

    @classmethod
    def of(cls: type[Frozen], c: Any, **more: Any) -> Frozen:
        """Builds from a section of the configuration; a missing or extra key is a TypeError.

        Args:
          c: a ConfigDict or any mapping; sections nested in it are left to their own classes.
          more: values that `c` does not have, or that replace its own.
        """
        values = {k: v for k, v in c.items() if not hasattr(v, "items")}
        return cls(**(values | more))


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig(Section):
    """One training run; units and sources are in `default`."""

    batch: int
    batching: str
    micro_tokens: int
    epochs: float
    max_steps: int
    lr: float
    new_rows_lr: float
    warmup_ratio: float
    final_lr_ratio: float
    beta1: float
    beta2: float
    eps: float
    weight_decay: float
    clip_norm: float
    param_dtype: str
    max_skipped: int
    remat: str
    head_chunk: int
    buckets: tuple[int, ...]
    save_every: int
    keep: int
    eval_rows: int
    result: str
    lora_rank: int
    lora_alpha: float
    lora_targets: str  # comma-separated
    compute_dtype: str  # from config.model, "auto" resolved


@dataclasses.dataclass(frozen=True, kw_only=True)
class DpoConfig(Section):
    """The preference loss."""

    loss: str
    beta: float
    sft_coef: float
    scope: str
    sft_scope: str
    sft_reduction: str
    label_smoothing: float
    reference: str
    anchors_per_pair: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class SearchConfig(Section):
    """What `search/` needs, frozen and hashable, so it can be a static argument of `jit`."""

    iterations: int
    num_children: int
    c: float
    max_depth: int
    score: str
    prior: str
    reward: str
    visit_all_nodes: bool
    reselect_terminal: bool
    ties: str
    max_step_tokens: int
    max_rollout_tokens: int
    temperature: float
    top_p: float
    top_k: int
    trees_in_flight: int
    export_official: bool
    min_p: float = 0.0
    value: str = "rollout"
    value_weight: float = 0.5
    value_model: str = ""
    first_answers: int = 0
    least_well_formed: float = 0.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class RewardConfig(Section):
    """Constants of the reward's forms; `SearchConfig.reward` chooses the form."""

    F: str
    c1: float
    c2: float
    k1: float
    k2: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class EngineConfig(Section):
    """Sizes of the engine."""

    slots: int
    page_size: int
    pool_bytes: int
    max_context: int
    chunk: int
    prefill_rows: int
    dtype: str  # "auto" resolved
    attention: str = "auto"
    share_prefix: str = "auto"


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairsConfig(Section):
    """Which nodes of a tree become training rows."""

    min_value_gap: float
    good_value_safety: float
    good_value_helpfulness: float
    min_visits: int
    terminal_only: bool
    max_good_bad_ratio: int
    max_tokens: int
    max_per_prompt: int
    max_responses_per_prompt: int
    export: str = ""  # comma-separated of EXPORTS


@dataclasses.dataclass(frozen=True, kw_only=True)
class JudgeConfig(Section):
    """Who says S and H of an answer."""

    safety: str
    helpfulness: str
    scope: str
    refusal_rule: bool
    samples: int
    temperature: float
    top_p: float
    max_tokens: int
    templates: str
    endpoint: str
    model: str
    concurrency: int
    timeout: float  # seconds
    retries: int
    cache: str
    reward_model: str
    leave_out: str = ""  # comma-separated


@dataclasses.dataclass(frozen=True, kw_only=True)
class PrmConfig(Section):
    """The process reward model's data and loss."""

    model: str
    loss: str
    readout: str
    beta: float
    reference: str
    sft_coef: float
    min_value_gap: float
    min_visits: int
    pairs_per_tree: int
    full_share: float
    centering: float
    visit_weights: bool
    more_layers: int
    prompts: int
    demonstrations: bool
    samples: int
    temperature: float
    eval_share: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class GuidedConfig(Section):
    """How answers are found at test time."""

    benchmarks: str  # comma-separated, like the next three
    models: str
    search: str
    searched: str
    judged: bool
    aggregation: str
    lookahead: int  # steps
    temperature: float
    top_p: float
    top_k: int
    split: str
    max_tokens: int  # of a response
