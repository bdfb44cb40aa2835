"""When a setting counts: for each rule a configuration under which it does, and one where not."""

import functools

import pytest

from stair_jax.config import default, with_values
from stair_jax.config.schema import KNOBS

# The settings of a rule: what changes of the default make them count, and what makes them ignored.
HUB, FILES = {"data.prompts": "org/name"}, {"data.prompts": "a.jsonl", "data.sft": "prepared"}
FROM_HF = {"model.checkpoint": "x"}
VERIFIER = {"judge.safety": "verifier", "judge.helpfulness": "verifier"}
RULE_NONE = {"judge.safety": "rule", "judge.helpfulness": "none"}
REMOTE = {"judge.safety": "remote", "judge.helpfulness": "remote"}
SELF = {"judge.safety": "self", "judge.helpfulness": "self"}
BASELINES = {"baselines.names": "dpo"}
GREEDY, BEST = {"evaluate.search": "greedy"}, {"evaluate.search": "greedy,best_of_4"}
LORA = [
    (
        f"{stage}.train.lora_alpha {stage}.train.lora_targets",
        {f"{stage}.train.lora_rank": 2},
        {f"{stage}.train.lora_rank": 0},
    )
    for stage in ("sft", "dpo", "prm")
]
LEFT_OUT = [
    (f"judge.{name}", REMOTE | {"judge.leave_out": ""}, REMOTE | {"judge.leave_out": name})
    for name in ("temperature", "top_p", "max_tokens")
]
WHEN = [
    ("profile", {"stages": "search"}, {"stages": "sft"}),
    ("project", {"trackers": "wandb"}, {"trackers": ""}),
    (
        "model.size.L model.size.D model.size.N model.size.K model.size.H model.size.F"
        " model.size.eps model.size.theta",
        {"model.checkpoint": ""},
        FROM_HF,
    ),
    ("data.format", {"data.sft": "b.jsonl"}, {"data.sft": "miniature"}),
    ("data.preferences_format", {"data.preferences": "b.jsonl"}, {"data.preferences": "miniature"}),
    ("data.split", HUB, FILES),
    *LORA,
    (
        "sft.train.new_rows_lr dpo.train.new_rows_lr prm.train.new_rows_lr",
        FROM_HF,
        {"model.checkpoint": ""},
    ),
    ("search.least_well_formed", {"search.first_answers": 8}, {"search.first_answers": 0}),
    ("dpo.label_smoothing", {"dpo.loss": "sigmoid"}, {"dpo.loss": "ipo"}),
    (
        "dpo.sft_scope dpo.sft_reduction dpo.anchors_per_pair",
        {"dpo.sft_coef": 0.1},
        {"dpo.sft_coef": 0.0},
    ),
    ("search.prior", {"search.score": "pucb"}, {"search.score": "ucb"}),
    ("search.value_model", {"search.value": "prm"}, {"search.value": "rollout"}),
    ("search.value_weight", {"search.value": "mix"}, {"search.value": "prm"}),
    (
        "search.roots_share search.roots_gap search.roots_turn_back",
        {"search.roots": "rejected"},
        {"search.roots": ""},
    ),
    ("search.attacks", {"rounds": 2}, {"rounds": 1}),
    (
        "search.attack_share search.attack_pool",
        {"search.attacks": "framings"},
        {"search.attacks": ""},
    ),
    (
        "search.attack_families",
        FILES | {"search.attacks": "framings"},
        FILES | {"search.attacks": "transforms"},
    ),
    (
        "search.attack_families",
        FILES | {"search.attacks": "framings"},
        {"search.attacks": "framings", "data.prompts": "miniature"},
    ),
    ("reward.F reward.c1 reward.c2", {"search.reward": "paper"}, {"search.reward": "outcome"}),
    ("reward.k1 reward.k2", {"search.reward": "safe-constraint"}, {"search.reward": "paper"}),
    ("judge.templates", SELF, VERIFIER),
    ("judge.reward_model", {"judge.helpfulness": "reward_model"}, SELF),
    ("judge.samples judge.temperature judge.top_p judge.max_tokens", REMOTE, VERIFIER),
    ("judge.refusal_rule", SELF, RULE_NONE),
    ("judge.scope", SELF, RULE_NONE),
    (
        "judge.endpoint judge.model judge.concurrency judge.timeout judge.retries judge.cache"
        " judge.leave_out",
        REMOTE,
        SELF,
    ),
    *LEFT_OUT,
    ("engine.share_prefix", {"engine.attention": "xla"}, {"engine.attention": "views"}),
    ("pairs.min_visits", {"pairs.terminal_only": False}, {"pairs.terminal_only": True}),
    ("pairs.max_good_bad_ratio", {"pairs.terminal_only": True}, {"pairs.terminal_only": False}),
    (
        "prm.min_value_gap prm.pairs_per_tree prm.full_share",
        {"prm.loss": "implicit"},
        {"prm.loss": "bce"},
    ),
    ("prm.full_share", {"prm.pairs_per_tree": 1}, {"prm.pairs_per_tree": 0}),
    ("prm.centering", {"prm.loss": "bt"}, {"prm.loss": "implicit"}),
    (
        "prm.beta prm.reference prm.sft_coef prm.train.head_chunk",
        {"prm.loss": "implicit"},
        {"prm.loss": "bt"},
    ),
    ("prm.visit_weights", {"prm.loss": "mse"}, {"prm.loss": "bt"}),
    ("prm.samples prm.temperature prm.demonstrations", {"prm.prompts": 1}, {"prm.prompts": 0}),
    ("baselines.buckets baselines.sft_lr", BASELINES, {"baselines.names": ""}),
    ("baselines.sacpo_betas", {"baselines.names": "sft,sacpo"}, BASELINES),
    (
        "baselines.candidates baselines.temperature baselines.top_p",
        {"baselines.names": "dpo,self-rewarding"},
        BASELINES,
    ),
    ("evaluate.temperature evaluate.top_p evaluate.top_k evaluate.searched", BEST, GREEDY),
    ("evaluate.interventions", GREEDY, {"evaluate.search": "best_of_4"}),
    ("evaluate.attacks", GREEDY, {"evaluate.search": "best_of_4"}),
    ("evaluate.attack_calls", {"evaluate.attacks": "escalation"}, {"evaluate.attacks": ""}),
    (
        "evaluate.attacker evaluate.attacker_tokens",
        {"evaluate.attacks": "escalation,pap"},
        {"evaluate.attacks": "escalation"},
    ),
    (
        "evaluate.attack_judge evaluate.attack_judge_tokens evaluate.pair_streams"
        " evaluate.pair_iterations evaluate.pair_prompts",
        {"evaluate.attacks": "pair"},
        {"evaluate.attacks": "pap,escalation"},
    ),
    ("evaluate.pap_techniques", {"evaluate.attacks": "pap"}, {"evaluate.attacks": "pair"}),
    (
        "judge.concurrency judge.timeout judge.retries judge.cache judge.leave_out",
        {"evaluate.attacker": "m@http://h/v1"},
        {"evaluate.attacker": "sft"},
    ),
    (
        "judge.endpoint",
        {"evaluate.judges": "m"},
        {"evaluate.attacker": "m@http://h/v1", "evaluate.attack_judge": "m@http://h/v1"},
    ),
    ("evaluate.aggregation", BEST, {"evaluate.search": "greedy,random_of_4"}),
    ("evaluate.lookahead", {"evaluate.search": "lookahead_2x2"}, BEST),
    ("export.push", {"stages": "export"}, {"stages": "evaluate"}),
    ("export.push_private", {"export.push": "a/b"}, {"export.push": ""}),
    ("data.root", {"model.checkpoint": "x"}, {"model.checkpoint": ""}),
    (
        "data.corpora data.decontaminate recipe.scale recipe.prm recipe.round_safety"
        " recipe.round_helpful recipe.round_jailbreak",
        {"data.recipe": "own"},
        {"data.recipe": ""},
    ),
    ("data.root", {"data.recipe": "own"}, {"data.recipe": ""}),
    ("data.columns", {"data.recipe": "own"}, {"data.recipe": "paper"}),
    (
        "recipe.safety recipe.jailbreak recipe.helpful recipe.cot recipe.temperature"
        " recipe.max_tokens",
        {"data.recipe": "paper"},
        {"data.recipe": "own"},
    ),
    ("recipe.cot", {"data.recipe": "own", "recipe.teacher": "self"}, {"data.recipe": "small"}),
    ("recipe.teacher", {"data.recipe": "own"}, {"data.recipe": "published"}),
    (
        "recipe.instruction recipe.teacher_attempts recipe.teacher_temperature recipe.teacher_top_p"
        " recipe.teacher_max_tokens",
        {"recipe.teacher": "self", "judge.leave_out": "temperature,top_p,max_tokens"},
        {"recipe.teacher": ""},
    ),
    *(
        (
            f"recipe.teacher_{name}",
            {"recipe.teacher": "m@http://h/v1"},
            {"recipe.teacher": "m@http://h/v1", "judge.leave_out": name},
        )
        for name in ("temperature", "top_p", "max_tokens")
    ),
    (
        "judge.concurrency judge.timeout judge.retries judge.cache judge.leave_out",
        {"recipe.teacher": "m@http://h/v1"},
        {"recipe.teacher": "self"},
    ),
    (
        "recipe.taught recipe.lookalikes recipe.turned recipe.twins recipe.held_out",
        {"data.recipe": "small"},
        {"data.recipe": "paper"},
    ),
    ("evaluate.judged", {"evaluate.benchmarks": "a.jsonl"}, {"evaluate.benchmarks": "harmless"}),
    (
        "judge.endpoint judge.concurrency judge.timeout judge.retries judge.cache judge.leave_out",
        {"evaluate.judges": "m"},
        {"evaluate.judges": ""},
    ),
    ("evaluate.prompts", {"evaluate.judges": "m"}, {"evaluate.judges": " , "}),
    (
        "evaluate.annotations",
        {"evaluate.benchmarks": "alpaca_eval:a.json"},
        {"evaluate.benchmarks": "gsm8k"},
    ),
    (
        "evaluate.gamed",
        {"evaluate.benchmarks": "alpaca_eval:a.json", "evaluate.annotations": "b.json"},
        {"evaluate.benchmarks": "alpaca_eval:a.json"},
    ),
]


CASES = [(key, on, off) for keys, on, off in WHEN for key in keys.split()]


def counts(key, changes):
    """Whether each condition of a setting holds."""
    c = with_values(default(), changes)
    own = functools.reduce(lambda section, name: section[name], key.split(".")[:-1], c)
    return [bool(under.counts(c, own)) for under in KNOBS[key].under]


@pytest.mark.parametrize(("key", "on", "off"), CASES, ids=[key for key, _, _ in CASES])
def test_a_setting_counts_here_and_is_ignored_there(key, on, off):
    assert all(counts(key, on))
    assert not all(counts(key, off))


def test_every_condition_has_a_case_where_it_alone_does_not_hold():
    for key, knob in KNOBS.items():
        found = [counts(key, off) for each, _, off in CASES if each == key]
        for number in range(len(knob.under)):
            assert any(held.index(False) == number for held in found), (key, number)
