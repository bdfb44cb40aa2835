"""Where settings count that do not count everywhere; `knob.Under` says what one is made of.

`c` is the configuration of a run, `own` the section that the setting is in.
"""

from typing import Any

from stair_jax.config.knob import Under
from stair_jax.config.sources import PREPARED, is_world, prompts_among
from stair_jax.config.strategies import GREEDY, Strategy, parse_all
from stair_jax.config.words import FRAMINGS, ROW_FILES, name_and_address, split_csv


def searches(c: Any) -> list[Strategy]:
    """Returns the test-time strategies that are more than greedy."""
    return [s for s in parse_all(split_csv(c.evaluate.search)) if s != GREEDY]


def attack_endpoints(own: Any) -> list[str]:
    """Returns the settings of section evaluate that name a model of attacks behind an endpoint."""
    return [key for key in ("attacker", "attack_judge") if "://" in own[key]]


def teacher_endpoint(c: Any) -> str:
    """Returns the address of the teacher's endpoint; "" where it has none."""
    return name_and_address(c.recipe.teacher)[1]


def _attacks(own: Any) -> set[str]:
    return set(split_csv(own.attacks))


def _on_hub(c: Any) -> bool:
    sources = c.data.sft, c.data.prompts, c.data.preferences, *prompts_among(c.evaluate.benchmarks)
    return not all(is_world(x) or x == PREPARED or x.endswith(ROW_FILES) for x in sources)


def _sides(c: Any) -> set[str]:
    return {c.judge.safety, c.judge.helpfulness}


def _judged_by_truth(c: Any) -> bool:
    return _sides(c) == {"verifier"} and c.judge.scope == "all"


def _taken_of_teacher(name: str) -> Under:
    return Under(
        lambda c, own: name not in split_csv(c.judge.leave_out) or not teacher_endpoint(c),
        "config.recipe.teacher=self, for config.judge.leave_out names it",
    )


def _taken(name: str) -> Under:
    return Under(
        lambda c, own: name not in split_csv(own.leave_out) or "self" in _sides(c),
        "'self', for config.judge.leave_out names it",
    )


# The run, its model and its data.
WITH_SEARCH = Under(
    lambda c, own: "search" in split_csv(own.stages), "the stage search, which it traces"
)
TRACKED = Under(
    lambda c, own: {"wandb", "trackio"} & set(split_csv(own.trackers)),
    "wandb or trackio in config.trackers",
)
EXPORTED = Under(lambda c, own: "export" in split_csv(c.stages), "export in config.stages")
PUSHED = Under(lambda c, own: own.push, "a repository in config.export.push")
RANDOM_WEIGHTS = Under(
    lambda c, own: not c.model.checkpoint,
    "an empty config.model.checkpoint, whose sizes are its own",
)
RECIPE = Under(lambda c, own: c.data.recipe, "a recipe in config.data.recipe")
PAPER_RECIPE = Under(lambda c, own: c.data.recipe == "paper", "config.data.recipe=paper")
COT_RECIPE = Under(
    lambda c, own: c.data.recipe in ("paper", "own"),
    "config.data.recipe=paper or own, which have prompts for a teacher",
)
COT_PROMPTS = Under(
    lambda c, own: c.data.recipe == "paper" or (c.data.recipe == "own" and own.teacher),
    "config.data.recipe=paper, or own with a config.recipe.teacher",
)
TEACHER = Under(lambda c, own: own.teacher, "a config.recipe.teacher")
TEACHER_TEMPERATURE_TAKEN, TEACHER_TOP_P_TAKEN, TEACHER_MAX_TOKENS_TAKEN = map(
    _taken_of_teacher, ("temperature", "top_p", "max_tokens")
)
SMALL_RECIPE = Under(lambda c, own: c.data.recipe == "small", "config.data.recipe=small")
COLUMNS = Under(lambda c, own: own.recipe == "own", "config.data.recipe=own, which reads them")
SFT_FILE = Under(lambda c, own: not is_world(own.sft), "a file or hub name in config.data.sft")
PREFERENCE_FILE = Under(
    lambda c, own: not is_world(own.preferences), "a file or hub name in config.data.preferences"
)
BENCHMARK_FILES = Under(
    lambda c, own: c.model.checkpoint or c.data.recipe,
    "a config.model.checkpoint, the miniature's benchmarks have no files; or a config.data.recipe",
)
ON_HUB = Under(
    lambda c, own: _on_hub(c),
    "a hub name in config.data.sft, config.data.prompts, config.data.preferences or"
    " config.evaluate.benchmarks",
)

# Training.
LORA = Under(lambda c, own: own.lora_rank, "a config.{section}.lora_rank above 0")
CHECKPOINT = Under(
    lambda c, own: c.model.checkpoint,
    "a config.model.checkpoint, the miniature's model knows all tags",
)
SIGMOID = Under(lambda c, own: own.loss == "sigmoid", "config.dpo.loss=sigmoid")
SFT_TERM = Under(lambda c, own: own.sft_coef, "a config.dpo.sft_coef above 0")
STEPWISE = Under(
    lambda c, own: not own.terminal_only,
    "config.pairs.terminal_only=False: the reward of a whole response is exact",
)
TERMINAL = Under(lambda c, own: own.terminal_only, "config.pairs.terminal_only=True")
ON_PAIRS = Under(lambda c, own: own.loss in ("bt", "implicit"), "config.prm.loss=bt or implicit")
PAIRS_DRAWN = Under(
    lambda c, own: own.pairs_per_tree,
    "a config.prm.pairs_per_tree above 0: of all pairs none are drawn",
)
BRADLEY_TERRY = Under(lambda c, own: own.loss == "bt", "config.prm.loss=bt")
IMPLICIT = Under(lambda c, own: c.prm.loss == "implicit", "config.prm.loss=implicit")
ON_VALUES = Under(lambda c, own: own.loss in ("bce", "mse"), "config.prm.loss=bce or mse")
FURTHER_PROMPTS = Under(lambda c, own: own.prompts, "a config.prm.prompts above 0")
BASELINES_MADE = Under(lambda c, own: split_csv(own.names), "a name in config.baselines.names")
SACPO = Under(lambda c, own: "sacpo" in split_csv(own.names), "sacpo in config.baselines.names")
SELF_REWARDING = Under(
    lambda c, own: "self-rewarding" in split_csv(own.names),
    "self-rewarding in config.baselines.names",
)

# The search, its judges and its engine.
FIRST_ANSWERS = Under(lambda c, own: own.first_answers, "a config.search.first_answers above 0")
PUCB = Under(lambda c, own: own.score == "pucb", "config.search.score=pucb")
VALUED = Under(lambda c, own: own.value != "rollout", "config.search.value=prm or mix")
MIXED = Under(lambda c, own: own.value == "mix", "config.search.value=mix")
ROOTED = Under(lambda c, own: bool(own.roots), "config.search.roots")
LATER_ROUNDS = Under(lambda c, own: c.rounds > 1, "a config.rounds above 1")
REWRITTEN = Under(lambda c, own: split_csv(own.attacks), "config.search.attacks")
FRAMED = Under(
    lambda c, own: FRAMINGS in split_csv(own.attacks) and not is_world(c.data.prompts),
    "framings in config.search.attacks, and config.data.prompts other than the miniature, which has"
    " its own",
)
PAPER_REWARD = Under(lambda c, own: c.search.reward == "paper", "config.search.reward=paper")
SAFE_CONSTRAINT = Under(
    lambda c, own: c.search.reward == "safe-constraint", "config.search.reward=safe-constraint"
)
_JUDGES = "config.judge.safety or config.judge.helpfulness"
_IN_WORDS = {"self", "remote"}
JUDGED_IN_WORDS = Under(
    lambda c, own: _IN_WORDS & _sides(c), f"one of ['remote', 'self'] in {_JUDGES}"
)
REWARD_MODEL = Under(
    lambda c, own: "reward_model" in _sides(c), f"one of ['reward_model'] in {_JUDGES}"
)
SAMPLED_VERDICTS = Under(lambda c, own: _IN_WORDS & _sides(c), f"'self' or 'remote' in {_JUDGES}")
SOMEBODY_ASKED = Under(
    lambda c, own: not (own.safety == "rule" or _judged_by_truth(c)),
    "a config.judge.safety that asks somebody",
)
BESIDE_RULES = Under(
    lambda c, own: (own.safety, own.helpfulness) != ("rule", "none"),
    "a judge beside 'rule' and 'none'",
)
REMOTE = Under(lambda c, own: "remote" in _sides(c), f"'remote' in {_JUDGES}")
ENDPOINT = Under(
    lambda c, own: "remote" in _sides(c) or split_csv(c.evaluate.judges),
    f"'remote' in {_JUDGES}, or a model in config.evaluate.judges",
)
ASKED_BY_WIRE = Under(
    lambda c, own: (
        "remote" in _sides(c)
        or split_csv(c.evaluate.judges)
        or attack_endpoints(c.evaluate)
        or teacher_endpoint(c)
    ),
    f"'remote' in {_JUDGES}, or a model behind an endpoint in config.evaluate.judges,"
    " config.evaluate.attacker, config.evaluate.attack_judge or config.recipe.teacher",
)
TEMPERATURE_TAKEN, TOP_P_TAKEN, MAX_TOKENS_TAKEN = map(
    _taken, ("temperature", "top_p", "max_tokens")
)
PAGED = Under(
    lambda c, own: own.attention != "views",
    "config.engine.attention=xla or pallas: 'views' keeps every slot's keys apart",
    values=("on",),
)

# Test time.
SEARCHED = Under(lambda c, own: searches(c), "a search beside greedy in config.evaluate.search")
WITH_GREEDY = Under(
    lambda c, own: GREEDY in parse_all(split_csv(own.search)), "greedy in config.evaluate.search"
)
ATTACKED = Under(lambda c, own: _attacks(own), "an attack in config.evaluate.attacks")
BY_ATTACKER = Under(
    lambda c, own: _attacks(own) & {"pair", "pap"}, "pair or pap in config.evaluate.attacks"
)
BY_PAIR = Under(lambda c, own: "pair" in _attacks(own), "pair in config.evaluate.attacks")
BY_PAP = Under(lambda c, own: "pap" in _attacks(own), "pap in config.evaluate.attacks")
UNDER_REWARD_MODEL = Under(
    lambda c, own: any(s.of.reads for s in searches(c)),
    "a search under the reward model in config.evaluate.search",
)
LOOKAHEAD = Under(
    lambda c, own: any(s.kind == "lookahead" for s in searches(c)),
    "lookahead_WxM in config.evaluate.search",
)
JUDGED_BY_MODELS = Under(lambda c, own: split_csv(own.judges), "a model in config.evaluate.judges")
ANNOTATED = Under(lambda c, own: own.annotations, "config.evaluate.annotations")
ALPACA_EVAL = Under(
    lambda c, own: "alpaca_eval" in [w.partition(":")[0] for w in split_csv(own.benchmarks)],
    "alpaca_eval in config.evaluate.benchmarks",
)
OWN_PROMPTS = Under(
    lambda c, own: prompts_among(own.benchmarks), "files of prompts in config.evaluate.benchmarks"
)
