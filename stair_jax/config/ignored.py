"""Which settings count only under another one: changed without it they would be ignored. Floor 0.

One table, a rule a row. A setting at its default is never refused: nobody asked for it.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

from stair_jax.config import ROW_FILES, Config, default, redaction
from stair_jax.config.ranges import leaves
from stair_jax.config.schema import words
from stair_jax.config.sources import is_world, prompts_among
from stair_jax.config.strategies import GREEDY, Strategy, parse_all

REQUEST = ("temperature", "top_p", "max_tokens")  # what `judge.leave_out` can name


@dataclasses.dataclass(frozen=True)
class Rule:
    """Settings that count where `counts` holds; `needs` says what that is.

    `values`: those of the settings that are ignored otherwise; None for all but the default.
    """

    keys: tuple[str, ...]
    counts: Callable[[Config], Any]
    needs: str
    values: tuple[Any, ...] | None = None


def check(c: Config) -> None:
    """Refuses the first setting that would be ignored.

    Raises:
      ValueError: naming it, its value and what it needs.
    """
    usual, now = dict(leaves(default())), dict(leaves(c))
    for rule in RULES:
        for key in rule.keys:
            value = now[key]
            asked = value != usual[key] and (rule.values is None or value in rule.values)
            if asked and not rule.counts(c):
                raise ValueError(
                    f"config.{key}: {_shown(key, value)!r} would be ignored, it needs {rule.needs}"
                )


def _shown(key: str, value: Any) -> Any:
    return redaction.shown_address(value) if key == "judge.endpoint" else value


def _searches(c: Config) -> list[Strategy]:
    return [s for s in parse_all(words(c.evaluate.search)) if s != GREEDY]


def _sides(c: Config) -> set[str]:
    return {c.judge.safety, c.judge.helpfulness}


def _on_hub(c: Config) -> bool:
    sources = c.data.sft, c.data.prompts, c.data.preferences, *prompts_among(c.evaluate.benchmarks)
    return not all(is_world(x) or x.endswith(ROW_FILES) for x in sources)


def _judged_by_truth(c: Config) -> bool:
    return _sides(c) == {"verifier"} and c.judge.scope == "all"


def _under(section: str, *names: str) -> tuple[str, ...]:
    return tuple(f"{section}.{name}" for name in names)


def _lora(stage: str) -> Rule:
    return Rule(
        _under(f"{stage}.train", "lora_alpha", "lora_targets"),
        lambda c: c[stage].train.lora_rank,
        f"a config.{stage}.train.lora_rank above 0",
    )


def _asked(name: str) -> Rule:
    return Rule(
        (f"judge.{name}",),
        lambda c: name not in words(c.judge.leave_out) or "self" in _sides(c),
        "'self', for config.judge.leave_out names it",
    )


_JUDGES = "config.judge.safety or config.judge.helpfulness"
_IN_WORDS = {"self", "remote"}
RULES: tuple[Rule, ...] = (
    Rule(("profile",), lambda c: "search" in words(c.stages), "the stage search, which it traces"),
    Rule(
        ("project",),
        lambda c: {"wandb", "trackio"} & set(words(c.trackers)),
        "wandb or trackio in config.trackers",
    ),
    Rule(
        _under("model.size", *"LDNKHF", "eps", "theta"),
        lambda c: not c.model.checkpoint,
        "an empty config.model.checkpoint, whose sizes are its own",
    ),
    Rule(
        ("data.format",),
        lambda c: not is_world(c.data.sft),
        "a file or hub name in config.data.sft",
    ),
    Rule(
        ("data.preferences_format",),
        lambda c: not is_world(c.data.preferences),
        "a file or hub name in config.data.preferences",
    ),
    Rule(
        ("data.split",),
        _on_hub,
        "a hub name in config.data.sft, config.data.prompts, config.data.preferences or"
        " config.evaluate.benchmarks",
    ),
    *map(_lora, ("sft", "dpo", "prm")),
    Rule(
        tuple(f"{stage}.train.new_rows_lr" for stage in ("sft", "dpo", "prm")),
        lambda c: c.model.checkpoint,
        "a config.model.checkpoint, the miniature's model knows all tags",
    ),
    Rule(
        ("search.least_well_formed",),
        lambda c: c.search.first_answers,
        "a config.search.first_answers above 0",
    ),
    Rule(("dpo.label_smoothing",), lambda c: c.dpo.loss == "sigmoid", "config.dpo.loss=sigmoid"),
    Rule(
        _under("dpo", "sft_scope", "sft_reduction", "anchors_per_pair"),
        lambda c: c.dpo.sft_coef,
        "a config.dpo.sft_coef above 0",
    ),
    Rule(("search.prior",), lambda c: c.search.score == "pucb", "config.search.score=pucb"),
    Rule(
        ("search.value_model",),
        lambda c: c.search.value != "rollout",
        "config.search.value=prm or mix",
    ),
    Rule(("search.value_weight",), lambda c: c.search.value == "mix", "config.search.value=mix"),
    Rule(
        _under("reward", "F", "c1", "c2"),
        lambda c: c.search.reward == "paper",
        "config.search.reward=paper",
    ),
    Rule(
        _under("reward", "k1", "k2"),
        lambda c: c.search.reward == "safe-constraint",
        "config.search.reward=safe-constraint",
    ),
    Rule(
        ("judge.templates",),
        lambda c: _IN_WORDS & _sides(c),
        f"one of ['remote', 'self'] in {_JUDGES}",
    ),
    Rule(
        ("judge.reward_model",),
        lambda c: "reward_model" in _sides(c),
        f"one of ['reward_model'] in {_JUDGES}",
    ),
    Rule(
        _under("judge", "samples", *REQUEST),
        lambda c: _IN_WORDS & _sides(c),
        f"'self' or 'remote' in {_JUDGES}",
    ),
    Rule(
        ("judge.refusal_rule",),
        lambda c: not (c.judge.safety == "rule" or _judged_by_truth(c)),
        "a config.judge.safety that asks somebody",
    ),
    Rule(
        ("judge.scope",),
        lambda c: (c.judge.safety, c.judge.helpfulness) != ("rule", "none"),
        "a judge beside 'rule' and 'none'",
    ),
    Rule(
        _under(
            "judge", "endpoint", "model", "concurrency", "timeout", "retries", "cache", "leave_out"
        ),
        lambda c: "remote" in _sides(c),
        f"'remote' in {_JUDGES}",
    ),
    *map(_asked, REQUEST),
    Rule(
        ("engine.share_prefix",),
        lambda c: c.engine.attention != "views",
        "config.engine.attention=xla or pallas: 'views' keeps every slot's keys apart",
        values=("on",),
    ),
    Rule(
        ("pairs.min_visits",),
        lambda c: not c.pairs.terminal_only,
        "config.pairs.terminal_only=False: the reward of a whole response is exact",
    ),
    Rule(
        ("pairs.max_good_bad_ratio",),
        lambda c: c.pairs.terminal_only,
        "config.pairs.terminal_only=True",
    ),
    Rule(
        _under("prm", "min_value_gap", "pairs_per_tree", "full_share"),
        lambda c: c.prm.loss in ("bt", "implicit"),
        "config.prm.loss=bt or implicit",
    ),
    Rule(
        ("prm.full_share",),
        lambda c: c.prm.pairs_per_tree,
        "a config.prm.pairs_per_tree above 0: of all pairs none are drawn",
    ),
    Rule(("prm.centering",), lambda c: c.prm.loss == "bt", "config.prm.loss=bt"),
    Rule(
        _under("prm", "beta", "reference", "sft_coef", "train.head_chunk"),
        lambda c: c.prm.loss == "implicit",
        "config.prm.loss=implicit",
    ),
    Rule(
        ("prm.visit_weights",),
        lambda c: c.prm.loss in ("bce", "mse"),
        "config.prm.loss=bce or mse",
    ),
    Rule(
        _under("prm", "samples", "temperature", "demonstrations"),
        lambda c: c.prm.prompts,
        "a config.prm.prompts above 0",
    ),
    Rule(
        _under("baselines", "buckets", "sft_lr"),
        lambda c: words(c.baselines.names),
        "a name in config.baselines.names",
    ),
    Rule(
        ("baselines.sacpo_betas",),
        lambda c: "sacpo" in words(c.baselines.names),
        "sacpo in config.baselines.names",
    ),
    Rule(
        _under("baselines", "candidates", "temperature", "top_p"),
        lambda c: "self-rewarding" in words(c.baselines.names),
        "self-rewarding in config.baselines.names",
    ),
    Rule(
        _under("evaluate", "temperature", "top_p", "top_k", "searched"),
        _searches,
        "a search beside greedy in config.evaluate.search",
    ),
    Rule(
        ("evaluate.aggregation",),
        lambda c: any(s.reads for s in _searches(c)),
        "a search under the reward model in config.evaluate.search",
    ),
    Rule(
        ("evaluate.lookahead",),
        lambda c: any(s.kind == "lookahead" for s in _searches(c)),
        "lookahead_WxM in config.evaluate.search",
    ),
    Rule(
        ("evaluate.judged",),
        lambda c: prompts_among(c.evaluate.benchmarks),
        "files of prompts in config.evaluate.benchmarks",
    ),
)
