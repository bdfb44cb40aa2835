"""The keys of training: the trainers, their losses, and the rows that trees give.

What "paper", "release" and "ours" stand for is said in `schema`.
"""

import dataclasses
from typing import Literal

from stair_jax.config import conditions
from stair_jax.config.knob import Section, knob, like
from stair_jax.config.ranges import ABOVE_0, FROM_0, FROM_1, FROM_2, MASS, MOST, PART, SHARE, Range
from stair_jax.config.words import BASELINES, EXPORTS


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig(Section):
    """One training run: what the stages sft, dpo and prm share."""

    batch: int = knob(
        128, "rows (pairs) an optimiser step, all devices together (paper C.1)", ABOVE_0
    )
    batching: Literal["bucket", "pack", "tree"] = knob(
        "bucket", 'rows padded to `buckets`; or many in one: "pack" (sft), "tree" (dpo, prm)'
    )
    micro_tokens: int = knob(
        65536,
        "tokens of one forward pass, all devices, padding included; more accumulates",
        ABOVE_0,
        free=True,
    )
    epochs: float = knob(1.0, "passes over the rows", ABOVE_0)
    max_steps: int = knob(0, "optimiser steps at most; 0: as many as `epochs` says", FROM_0)
    lr: float = knob(1e-06, "peak, after warm-up", ABOVE_0)
    new_rows_lr: float = knob(
        0.0,
        "peak rate of the rows of tags that the checkpoint did not know, as a part of the"
        " standard deviation of their table; 0: lr (ours)",
        PART,
        under=conditions.CHECKPOINT,
    )
    warmup_ratio: float = knob(0.1, "share of the steps (paper C.1)", SHARE)
    final_lr_ratio: float = knob(0.0, "rate at the end of the cosine, over the peak", SHARE)
    beta1: float = knob(
        0.9, "AdamW: decay of the first moment (HF card of the released models)", PART
    )
    beta2: float = knob(0.999, "decay of the second moment", PART)
    eps: float = knob(1e-08, "added to the root of the second moment", ABOVE_0)
    weight_decay: float = knob(0.0, "paper C.1", FROM_0)
    clip_norm: float = knob(
        1.0, "global gradient norm; 0: no clipping (LLaMA-Factory's default is 1)", FROM_0
    )
    param_dtype: Literal["float32", "bfloat16"] = knob(
        "float32", 'dtype of weights and moments; "bfloat16" loses small learning rates'
    )
    max_skipped: int = knob(
        3, "steps with a gradient that is not finite are skipped; one more stops", FROM_0, free=True
    )
    remat: Literal["none", "attention", "products", "full"] = knob(
        "full",
        'backwards layers are computed again; less: "products", "attention", "none"',
        free=True,
    )
    head_chunk: int = knob(
        1024, "positions whose logits a device holds at once", ABOVE_0, free=True
    )
    buckets: tuple[int, ...] = knob(
        (256, 512, 1024, 2048), "tokens; a batch is padded to the smallest that fits"
    )
    save_every: int = knob(100, "optimiser steps between checkpoints", ABOVE_0, free=True)
    keep: int = knob(2, "newest checkpoints kept", ABOVE_0, free=True)
    eval_rows: int = knob(
        0, "rows set aside, by seed; their loss is measured at every checkpoint", FROM_0
    )
    result: Literal["last", "best"] = knob(
        "last", 'the stage\'s model: of the last step, or "best" by the loss on eval_rows'
    )
    lora_rank: int = knob(
        0,
        "rank of the adapters trained in place of the weights; 0: all weights are trained",
        FROM_0,
    )
    lora_alpha: float = knob(
        16.0,
        "adapters are scaled by lora_alpha / lora_rank (Hu et al. 2021)",
        ABOVE_0,
        under=conditions.LORA,
    )
    lora_targets: str = knob(
        "q,k,v,o,gate,up,down", "projections that get an adapter", under=conditions.LORA
    )
    compute_dtype: str  # of `model.compute_dtype`, "auto" resolved: no key of its own


@dataclasses.dataclass(frozen=True, kw_only=True)
class SftTrainConfig(TrainConfig):
    """The trainer of stage sft. Paper C.1; lr from the HF card of the same authors."""

    batching: Literal["bucket", "pack"] = like(TrainConfig, "batching")
    epochs: float = like(TrainConfig, "epochs", 3.0)
    lr: float = like(TrainConfig, "lr", 5e-6)
    new_rows_lr: float = like(TrainConfig, "new_rows_lr", 0.02)  # as measured (ours)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DpoTrainConfig(TrainConfig):
    """The trainer of stage dpo (paper C.1)."""

    batching: Literal["bucket", "tree"] = like(TrainConfig, "batching")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PrmTrainConfig(TrainConfig):
    """The trainer of stage prm (paper C.1)."""

    batching: Literal["bucket", "tree"] = like(TrainConfig, "batching")
    batch: int = like(TrainConfig, "batch", 256)
    lr: float = like(TrainConfig, "lr", 5e-6)
    head_chunk: int = like(TrainConfig, "head_chunk", under=conditions.IMPLICIT)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DpoConfig(Section):
    """The preference loss."""

    loss: Literal["sigmoid", "ipo", "hinge"] = knob(
        "sigmoid", 'loss of a pair: "sigmoid" (DPO), "ipo" (length-normalised), "hinge"'
    )
    beta: float = knob(
        0.1, "one of {0.1, 0.2, 0.4} (paper C.1); the chosen value is unpublished", ABOVE_0
    )
    sft_coef: float = knob(0.2, "weight of the SFT term on the chosen response (paper 3.1)", FROM_0)
    scope: Literal["step", "response"] = knob(
        "step", 'tokens compared: the step (paper eq. 2) or the whole "response"'
    )
    sft_scope: Literal["step", "response"] = knob(
        "response",
        'tokens of the SFT term: the chosen response with its prefix, or its "step"',
        under=conditions.SFT_TERM,
    )
    sft_reduction: Literal["sequence", "token"] = knob(
        "sequence",
        'SFT term: mean over rows of their means, or over all "token"s',
        under=conditions.SFT_TERM,
    )
    label_smoothing: float = knob(
        0.0,
        "probability that a preference is flipped (cDPO)",
        Range(0, 0.5, below=True),
        under=conditions.SIGMOID,
    )
    reference: Literal["precomputed", "on_the_fly", "lora_base", "none"] = knob(
        "precomputed", 'log-probs of the reference: once, on disk; or "on_the_fly", "lora_base"'
    )
    anchors_per_pair: float = knob(
        0.0,
        "good tree responses that join the SFT term, a pair (ours)",
        FROM_0,
        under=conditions.SFT_TERM,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class DpoStageConfig(DpoConfig):
    """The preference loss of stage dpo: only an implicit reward model may have no reference."""

    reference: Literal["precomputed", "on_the_fly", "lora_base"] = like(DpoConfig, "reference")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairsConfig(Section):
    """Which nodes of a tree become training rows."""

    min_value_gap: float = knob(
        0.5, "v0: value(chosen) - value(rejected) must exceed it (release)", FROM_0
    )
    good_value_safety: float = knob(0.8, "v1: least value of a chosen step (release)", Range(-MOST))
    good_value_helpfulness: float = knob(
        2.5, "the release's 0.8 always holds under R in [1, 3] (ours)", Range(-MOST)
    )
    min_visits: int = knob(
        4,
        "least visits of a step that ends nothing (release generate_data.sh)",
        FROM_0,
        under=conditions.STEPWISE,
    )
    terminal_only: bool = knob(False, "pairs of whole responses instead of steps (paper table 2)")
    max_good_bad_ratio: int = knob(
        4,
        "terminal pairs: repeats of the shorter list (release)",
        ABOVE_0,
        under=conditions.TERMINAL,
    )
    max_tokens: int = knob(
        2048, "prompt and trajectory; longer ones are dropped (release)", ABOVE_0
    )
    max_per_prompt: int = knob(
        0, "pairs a tree gives at most, widest gap first; 0: all (ours)", FROM_0
    )
    max_responses_per_prompt: int = knob(8, "good responses for the SFT rows (release)", FROM_0)
    export: str = knob(
        "", "the pairs also for other trainers: of llamafactory, openrlhf, trl", words=EXPORTS
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class PrmConfig(Section):
    """The process reward model, trained on the trees of all rounds."""

    model: str = knob("", "model to start from; empty: that of the last round (paper 2.3)")
    loss: Literal["bt", "bce", "mse", "implicit"] = knob(
        "bt",
        'Bradley-Terry on pairs (paper 2.3); "bce", "mse" on the values of nodes; "implicit": on'
        " pairs, and the score is the log-likelihood of the steps, not a head's",
    )
    readout: Literal["eos", "step_end"] = knob(
        "eos", 'behind the last step (OpenRLHF, the paper\'s trainer), or at "step_end"'
    )
    beta: float = knob(
        0.1, '"implicit": score of a nat (arXiv 2412.01981)', ABOVE_0, under=conditions.IMPLICIT
    )
    reference: Literal["start", "none"] = knob(
        "start",
        '"implicit": model with the log-likelihood that is taken off: that of the "start",'
        ' or "none"',
        under=conditions.IMPLICIT,
    )
    sft_coef: float = knob(
        0.0,
        '"implicit": weight of the SFT term on the better trajectory (ours)',
        FROM_0,
        under=conditions.IMPLICIT,
    )
    min_value_gap: float = knob(
        0.5,
        "gap that the two values of a pair must exceed (ours)",
        FROM_0,
        under=conditions.ON_PAIRS,
    )
    min_visits: int = knob(1, "least visits of a node that ends nothing", FROM_0)
    pairs_per_tree: int = knob(
        3,
        "drawn at most, 0 all; the paper has 70k of 33k trees (C.1): 2.2 of each that"
        " eval_share leaves, and not every tree has as many",
        FROM_0,
        under=conditions.ON_PAIRS,
    )
    full_share: float = knob(
        0.5,
        "share of pairs_per_tree that are of whole responses, of any depths (ours)",
        SHARE,
        under=(conditions.ON_PAIRS, conditions.PAIRS_DRAWN),
    )
    centering: float = knob(
        0.0,
        '"bt": weight of the squared sum of both scores (TRL\'s centre_rewards)',
        FROM_0,
        under=conditions.BRADLEY_TERRY,
    )
    visit_weights: bool = knob(
        False, '"bce", "mse": a node counts by its visits', under=conditions.ON_VALUES
    )
    more_layers: int = knob(
        0, "on top of the policy's, which they leave as they are at the start (ours)", FROM_0
    )
    prompts: int = knob(
        0, "further prompts; their sampled and judged responses join the trees (ours)", FROM_0
    )
    samples: int = knob(
        4,
        "responses to each of prm.prompts, drawn like a rollout but for the temperature",
        FROM_1,
        under=conditions.FURTHER_PROMPTS,
    )
    temperature: float = knob(
        1.0,
        "temperature of these samples: wilder ones are wrong in ways that teach little (ours)",
        ABOVE_0,
        under=conditions.FURTHER_PROMPTS,
    )
    demonstrations: bool = knob(
        False,
        "a teacher's response to each, judged like the samples beside it: a row's"
        ' "response", in the miniature the teacher\'s own (ours)',
        under=conditions.FURTHER_PROMPTS,
    )
    eval_share: float = knob(
        0.05, "share of the trees that is set aside to measure the model on (ours)", PART
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class BaselinesConfig(Section):
    """What the paper's other methods do not share with the stages sft and dpo."""

    names: str = knob(
        "",
        "what stage baselines makes: comma-separated of sft, dpo, sacpo, self-rewarding",
        words=BASELINES,
        free=True,
    )
    buckets: tuple[int, ...] = knob(
        (),
        "tokens, in place of train.buckets: responses without reasoning are short",
        under=conditions.BASELINES_MADE,
    )
    sft_lr: float = knob(
        0.0,
        "learning rate of sft, which starts from a model that can answer already; 0: sft.train.lr",
        FROM_0,
        under=conditions.BASELINES_MADE,
    )
    sacpo_betas: tuple[float, ...] = knob(
        (0.1, 0.025), "beta of helpfulness, then of safety (paper 4.1)", under=conditions.SACPO
    )
    candidates: int = knob(
        4,
        "responses a prompt, in Self-Rewarding (arXiv 2401.10020, with the next two), of"
        " search.max_rollout_tokens at most",
        FROM_2,
        under=conditions.SELF_REWARDING,
    )
    temperature: float = knob(
        0.7, "temperature of these candidates, with top_p", ABOVE_0, under=conditions.SELF_REWARDING
    )
    top_p: float = knob(
        0.9,
        "the least set of tokens of this probability is drawn from",
        MASS,
        under=conditions.SELF_REWARDING,
    )
