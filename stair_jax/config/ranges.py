"""What type each setting has, and between which numbers it must lie. Floor 0.

Each number of `config.default` is in `RANGES`, or under its name in a trainer's section in
`TRAINING`. Tuples, choices among words, and what one setting means to another are in `checks`.
"""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

from stair_jax.config import Config

MOST = 2**31 - 1  # what an int32 holds; no sensible number of anything is larger


@dataclasses.dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`; `above` and `below` leave these out."""

    low: float | int
    high: float | int = MOST
    above: bool = False
    below: bool = False

    def __contains__(self, x: float | int) -> bool:
        if not math.isfinite(x):
            return False
        low = x > self.low if self.above else x >= self.low
        return low and (x < self.high if self.below else x <= self.high)

    def __str__(self) -> str:
        if self.high != MOST:
            return (
                f"a number in {'(['[not self.above]}{self.low}, {self.high}{')]'[not self.below]}"
            )
        least = f"a number above {self.low}" if self.above else f"{self.low} or more"
        return f"{least}, at most {MOST}"


ABOVE_0, FROM_0, FROM_1, FROM_2 = Range(0, above=True), Range(0), Range(1), Range(2)
SHARE, PART = Range(0, 1), Range(0, 1, below=True)  # the whole, or less than that
MASS = Range(0, 1, above=True)  # of a nucleus
RANGES: dict[str, Range] = {
    "seed": Range(0, 2_000_000_000),  # leaves room below 2^31 for what rounds add to it
    "rounds": Range(1, 100),
    "mesh.replicas": FROM_0,
    **{f"model.size.{name}": FROM_1 for name in "LDNKHF"},
    "model.size.eps": MASS,
    "model.size.theta": ABOVE_0,
    **{f"data.{name}": FROM_0 for name in ("sft_rows", "round_prompts", "preference_rows")},
    "dpo.beta": ABOVE_0,
    "dpo.sft_coef": FROM_0,
    "dpo.label_smoothing": Range(0, 0.5, below=True),  # at a half there is nothing to learn
    "dpo.anchors_per_pair": FROM_0,
    "search.iterations": ABOVE_0,
    "search.num_children": ABOVE_0,
    "search.c": FROM_0,
    "search.max_depth": ABOVE_0,
    "search.max_step_tokens": ABOVE_0,
    "search.max_rollout_tokens": ABOVE_0,
    "search.temperature": FROM_0,
    "search.top_p": MASS,
    "search.top_k": FROM_0,
    "search.min_p": SHARE,
    "search.trees_in_flight": FROM_0,
    "search.first_answers": FROM_0,
    "search.least_well_formed": SHARE,
    "search.value_weight": SHARE,
    "reward.c1": Range(-1, 1),
    "reward.c2": Range(-1, 1),
    "reward.k1": ABOVE_0,
    "reward.k2": ABOVE_0,
    "judge.samples": ABOVE_0,
    "judge.temperature": FROM_0,
    "judge.top_p": MASS,
    "judge.max_tokens": ABOVE_0,
    "judge.concurrency": FROM_1,
    "judge.timeout": ABOVE_0,
    "judge.retries": FROM_0,
    "engine.slots": ABOVE_0,
    "engine.page_size": ABOVE_0,
    "engine.pool_bytes": Range(0, 2**50),
    "engine.max_context": ABOVE_0,
    "engine.chunk": ABOVE_0,
    "engine.prefill_rows": ABOVE_0,
    "pairs.min_value_gap": FROM_0,
    "pairs.good_value_safety": Range(-MOST),  # a reward: too high a one is refused by its bounds
    "pairs.good_value_helpfulness": Range(-MOST),
    "pairs.min_visits": FROM_0,
    "pairs.max_good_bad_ratio": ABOVE_0,
    "pairs.max_tokens": ABOVE_0,
    "pairs.max_per_prompt": FROM_0,
    "pairs.max_responses_per_prompt": FROM_0,
    "prm.beta": ABOVE_0,
    "prm.sft_coef": FROM_0,
    "prm.min_value_gap": FROM_0,
    "prm.min_visits": FROM_0,
    "prm.pairs_per_tree": FROM_0,
    "prm.full_share": SHARE,
    "prm.centering": FROM_0,
    "prm.more_layers": FROM_0,
    "prm.prompts": FROM_0,
    "prm.samples": FROM_1,
    "prm.temperature": ABOVE_0,
    "prm.eval_share": PART,
    "baselines.sft_lr": FROM_0,
    "baselines.candidates": FROM_2,
    "baselines.temperature": ABOVE_0,
    "baselines.top_p": MASS,
    "evaluate.lookahead": FROM_1,
    "evaluate.temperature": FROM_0,
    "evaluate.top_p": MASS,
    "evaluate.top_k": FROM_0,
    "evaluate.max_tokens": ABOVE_0,
}
TRAINING: dict[str, Range] = {  # of sft.train, dpo.train and prm.train
    "batch": ABOVE_0,
    "micro_tokens": ABOVE_0,
    "epochs": ABOVE_0,
    "max_steps": FROM_0,
    "lr": ABOVE_0,
    "new_rows_lr": PART,
    "warmup_ratio": SHARE,
    "final_lr_ratio": SHARE,
    "beta1": PART,
    "beta2": PART,
    "eps": ABOVE_0,
    "weight_decay": FROM_0,
    "clip_norm": FROM_0,
    "max_skipped": FROM_0,
    "head_chunk": ABOVE_0,
    "save_every": ABOVE_0,
    "keep": ABOVE_0,
    "eval_rows": FROM_0,
    "lora_rank": FROM_0,
    "lora_alpha": ABOVE_0,
}


def leaves(c: Config, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields every setting of a configuration by its dotted key."""
    for name, value in c.items():
        if hasattr(value, "items"):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def range_of(key: str) -> Range | None:
    """Returns the range of a setting; None where it is no number."""
    section, _, name = key.rpartition(".")
    return TRAINING.get(name) if section.endswith(".train") else RANGES.get(key)


def check_types(c: Config, usual: Config) -> None:
    """Refuses values of another type than the default's: a truth value is no number.

    Raises:
      ValueError: for the first such setting.
    """
    defaults = dict(leaves(usual))
    for key, value in leaves(c):
        if key not in defaults:
            continue
        kind = type(defaults[key])
        wanted = {float: (int, float), type(None): (str, type(None))}.get(kind, (kind,))
        if type(value) not in wanted:
            raise ValueError(f"config.{key}: {value!r}, expected {_NAMES.get(kind, 'text')}")
        if kind is tuple and not all(type(x) in (int, float) for x in value):
            raise ValueError(f"config.{key}: {value!r}, expected numbers")


def check_keys(c: Config, usual: Config) -> None:
    """Refuses settings that a file has added: nothing reads them.

    Raises:
      ValueError: for the first such setting.
    """
    known = dict(leaves(usual))
    for key, value in leaves(c):
        if key not in known:
            raise ValueError(f"config.{key}: {value!r}, expected no such setting: nothing reads it")


_NAMES = {bool: "True or False", int: "a whole number", float: "a number", tuple: "numbers"}


def check(c: Config) -> None:
    """Refuses numbers out of their range.

    Raises:
      ValueError: for the first such setting, with what was expected.
    """
    for key, value in leaves(c):
        among = range_of(key)
        if among is not None and value not in among:
            raise ValueError(f"config.{key}: {value!r}, expected {among}")
