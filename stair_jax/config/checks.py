"""What a configuration must be to be run: refused by key, value and expectation. Floor 0."""

from collections.abc import Iterator
from typing import Any

from stair_jax.config import Config, ranges, redaction, stages
from stair_jax.config.attack_checks import validate_attacks
from stair_jax.config.knob import Knob, knobs_of
from stair_jax.config.recipe_checks import validate_recipe
from stair_jax.config.reward_checks import validate_rewards
from stair_jax.config.schema import KNOBS, TrainConfig
from stair_jax.config.sources import is_world
from stair_jax.config.threshold_checks import validate_thresholds
from stair_jax.config.words import split_csv


def validate(c: Config) -> None:
    """Refuses settings that cannot work, naming key, value and what was expected.

    Raises:
      ValueError: for the first such setting.
    """
    redaction.check_settings(c.to_dict())  # first: other messages show values
    found = dict(_leaves(c))
    known = {key: found[key] for key in KNOBS}
    for key, value in known.items():
        _check_type(key, value)
    if not c.plan and (not c.workdir or c.workdir == "None"):
        raise ValueError("config.workdir: not set; pass --config.workdir=PATH")
    _validate_names(c)
    for check in (_check_choice, _check_range):
        for key, value in known.items():
            check(f"config.{key}", value, KNOBS[key])
    validate_rewards(c)  # the names of strategies before what counts under them
    for key, value in known.items():
        _refuse_ignored(c, key, value)
    _validate_sizes(c)
    _validate_rooms(c)
    _validate_data(c)
    validate_recipe(c)
    validate_attacks(c)
    _validate_baselines(c)
    for section in stages.TRAINERS:
        validate_training(f"config.{section}.train", c[section].train)
        _validate_targets(f"config.{section}.train", c[section].train)
    _validate_reference(c)
    _validate_trackers(c)
    validate_thresholds(c)
    for key in found.keys() - known.keys():  # that a file has added
        value = found[key]
        raise ValueError(f"config.{key}: {value!r}, expected no such setting: nothing reads it")


def _leaves(c: Config, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields every setting of a configuration by its dotted key."""
    for name, value in c.items():
        if hasattr(value, "items"):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


_KINDS = {bool: "True or False", int: "a whole number", float: "a number", tuple: "numbers"}


def _check_type(key: str, value: Any) -> None:
    """Refuses a value of another type than the default's: a truth value is no number."""
    kind = type(KNOBS[key].default)
    wanted = {float: (int, float), type(None): (str, type(None))}.get(kind, (kind,))
    if type(value) not in wanted:
        raise ValueError(f"config.{key}: {value!r}, expected {_KINDS.get(kind, 'text')}")
    if kind is tuple and not all(type(x) in (int, float) for x in value):
        raise ValueError(f"config.{key}: {value!r}, expected numbers")


def _check_choice(name: str, value: Any, knob: Knob) -> None:
    if knob.choices and value not in knob.choices:
        raise ValueError(f"{name}: {value!r} is not one of {list(knob.choices)}")


def _check_range(name: str, value: Any, knob: Knob) -> None:
    if knob.among is not None and value not in knob.among:
        raise ValueError(f"{name}: {value!r}, expected {knob.among}")


def _refuse_ignored(c: Config, key: str, value: Any) -> None:
    """Refuses a setting that would be ignored. A setting at its default is never refused."""
    knob, section = KNOBS[key], key.rpartition(".")[0]
    if value == knob.default:
        return
    own = _get(c, section) if section else c
    for under in knob.under:
        if (under.values is None or value in under.values) and not under.counts(c, own):
            address = isinstance(value, str) and ("://" in value or "@" in value)
            shown = redaction.shown_address(value) if address else value
            needs = under.needs.format(section=section)
            raise ValueError(f"config.{key}: {shown!r} would be ignored, it needs {needs}")


def _validate_names(c: Config) -> None:
    """Refuses words of a list that stand for nothing."""
    for key in (key for key, knob in KNOBS.items() if knob.words):
        known = KNOBS[key].words
        if unknown := [name for name in split_csv(_get(c, key)) if name not in known]:
            raise ValueError(f"config.{key}: {unknown} not in {list(known)}")
    if not split_csv(c.stages):
        raise ValueError(f"config.stages: empty, expected some of {list(stages.NAMES)}")
    if bool(split_csv(c.baselines.names)) != ("baselines" in split_csv(c.stages)):
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
    wanted, e, p = split_csv(c.stages), c.engine, c.pairs
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
    if {"wandb", "trackio"} & set(split_csv(c.trackers)) and not c.project:
        raise ValueError("config.project: empty, wandb and trackio want a name")


def _validate_data(c: Config) -> None:
    wanted, names = split_csv(c.stages), split_csv(c.baselines.names)
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
    if c.judge.helpfulness == "reference" and is_world(c.data.prompts):
        raise ValueError(
            "config.judge.helpfulness: 'reference' knows no truth of the miniature; expected"
            " 'verifier', or prompts of your own in config.data.prompts"
        )
    for key in ("safety", "helpfulness"):
        if c.judge[key] == "verifier" and not is_world(c.data.prompts):
            other = "'rule'" if key == "safety" else "'none'"
            raise ValueError(
                f"config.judge.{key}: 'verifier' knows the miniature's prompts only; expected"
                f" 'self', 'remote' or {other}, or another (stair-jax keys judge.{key})"
            )


def _validate_baselines(c: Config) -> None:
    b, names = c.baselines, split_csv(c.baselines.names)
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


LEAST_BF16_LR = 1e-5


def validate_training(name: str, t: Any) -> None:
    """Refuses a trainer's settings that cannot work.

    Args:
      name: of the section, for the message.
      t: the section of the configuration, or a `TrainConfig`.

    Raises:
      ValueError: naming the key, what was found and what was expected.
    """
    for key, knob in knobs_of(TrainConfig).items():
        _check_range(f"{name}.{key}", getattr(t, key), knob)
        _check_choice(f"{name}.{key}", getattr(t, key), knob)
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
    known = split_csv(knobs_of(TrainConfig)["lora_targets"].default)  # it is all
    found = split_csv(t.lora_targets)
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
