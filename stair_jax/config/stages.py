"""The stages of a run: one table that pipeline, lineage, messages and estimates read. Floor 0.

A stage runs what `stair_jax/stages/<name>.py` has: `run`, and `look` if it reads rows or templates
from outside. In a round both get the round's number as well.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

from stair_jax.config.words import SELF, split_csv


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Result:
    """A kind of result.

    Attributes:
      name: in lineage.json, as the stage of an entry: the stage's own, or one that begins with it.
      settings: sections and keys of the configuration that its content depends on.
      trainer: the section whose `train` holds its trainer's settings; "" if nothing is trained.
      models: how many models are trained one after another, by the configuration.
    """

    name: str
    settings: tuple[str, ...]
    trainer: str = ""
    models: Callable[[Any], int] = lambda c: 0


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Stage:
    """A stage.

    Attributes:
      name: in `config.stages`, in messages, and of its module.
      results: the kinds of its results.
      output: the last part of its artefact's name; "" if it has one artefact a model.
      rows: keys of the settings that name the rows it reads.
      in_rounds: whether it runs once a round, with the model that the round before has made.
      after: the stage whose artefact it reads: of its own round, or of any round.
      start: the key of the setting that names the model to start from, if there is one.
      decodes: whether it samples from a model, by the configuration.
    """

    name: str
    results: tuple[Result, ...]
    output: str = ""
    rows: tuple[str, ...] = ()
    in_rounds: bool = False
    after: "Stage | None" = None
    start: str = ""
    decodes: Callable[[Any], bool] = lambda c: False

    def artefact(self, number: int | None = None) -> str:
        """Returns the lineage's name for what it makes, in a round if it belongs to one."""
        return self.output if number is None else f"round-{number}/{self.output}"

    @property
    def trainers(self) -> tuple[str, ...]:
        """The sections whose trainers it runs."""
        return tuple(dict.fromkeys(one.trainer for one in self.results if one.trainer))


def stage_of(result: str) -> str:
    """Returns the name of the stage that makes a kind of result."""
    return result.partition(".")[0]


def _baseline(c: Any, name: str) -> bool:
    return name in split_csv(c.baselines.names)


_TEACHER = ("data.sft", "data.sft_rows", "data.format", "data.split", "judge.templates")
_PROMPTS = ("data.prompts", "data.round_prompts", "data.split")
_PREFERENCES = (
    "data.preferences",
    "data.preference_rows",
    "data.preferences_format",
    "data.split",
    "baselines.buckets",
)
_MCTS = (
    "num_children",
    "c",
    "max_depth",
    "score",
    "prior",
    "reselect_terminal",
    "ties",
    "max_step_tokens",
)
_SAFETY = tuple(  # what decides who says that an answer is safe
    f"judge.{key}"
    for key in (
        "safety",
        "refusal_rule",
        "samples",
        "temperature",
        "top_p",
        "max_tokens",
        "templates",
        "model",
        "leave_out",
    )
)
_FOUND = tuple(  # at test time, by more than greedy decoding
    f"evaluate.{key}"
    for key in (
        "aggregation",
        "lookahead",
        "temperature",
        "top_p",
        "top_k",
        "split",
        "max_tokens",
    )
)
_ATTACKED = (
    "seed",
    "model",
    "evaluate.split",
    "evaluate.max_tokens",
    "evaluate.attack_calls",
    "engine",
)

PREPARE = Stage(
    name="prepare",
    output="data",
    # The rejected answers to the paper's attacks, a teacher's replies, verdicts on these.
    decodes=lambda c: (
        c.data.recipe == "paper" or SELF in (c.recipe.teacher, c.recipe.teacher and c.judge.safety)
    ),
    results=(
        Result(
            name="prepare",
            settings=(
                "seed",
                "model",
                "data.recipe",
                "data.columns",
                "data.decontaminate",
                "recipe",
                "engine",
            ),
        ),
        Result(
            name="prepare.taught",
            settings=(
                "seed",
                "model",
                "recipe.teacher",
                "recipe.teacher_temperature",
                "recipe.teacher_top_p",
                "recipe.teacher_max_tokens",
                "recipe.instruction",
                *_SAFETY,
                "engine",
            ),
        ),
    ),
)
SFT = Stage(
    name="sft",
    output="sft",
    rows=("data.sft",),
    results=(
        Result(
            name="sft",
            settings=("seed", "model", *_TEACHER, "sft"),
            trainer="sft",
            models=lambda c: 1,
        ),
    ),
)
SEARCH = Stage(
    name="search",
    output="trees",
    rows=("data.prompts",),
    in_rounds=True,
    decodes=lambda c: True,
    results=(
        Result(
            name="search",
            settings=("seed", "model", *_PROMPTS, "search", "reward", "judge", "engine"),
        ),
        Result(
            name="search.attacks",
            settings=(
                "seed",
                "model",
                *_PROMPTS,
                "recipe.held_out",
                "search.attacks",
                "search.attack_families",
                "search.attack_share",
                "search.attack_pool",
                "search.max_rollout_tokens",
                "judge",
                "engine",
            ),
        ),
    ),
)
PAIRS = Stage(
    name="pairs",
    output="pairs",
    in_rounds=True,
    after=SEARCH,
    results=(Result(name="pairs", settings=("seed", "pairs")),),
)
DPO = Stage(
    name="dpo",
    output="dpo",
    in_rounds=True,
    after=PAIRS,
    results=(
        Result(
            name="dpo",
            settings=("seed", "model", "dpo"),
            trainer="dpo",
            models=lambda c: c.rounds,
        ),
    ),
)
BASELINES = Stage(
    name="baselines",
    rows=("data.preferences", "data.prompts"),
    decodes=lambda c: _baseline(c, "self-rewarding"),
    results=(
        Result(
            name="baselines.start",
            settings=("seed", "model", *_TEACHER, "sft", "baselines.buckets"),
            trainer="sft",
            models=lambda c: 0 if c.model.checkpoint else 1,
        ),
        Result(
            name="baselines.sft",
            settings=("seed", "model", *_PREFERENCES, "sft", "baselines.sft_lr"),
            trainer="sft",
            models=lambda c: _baseline(c, "sft"),
        ),
        Result(
            name="baselines.dpo",
            settings=("seed", "model", *_PREFERENCES, "dpo"),
            trainer="dpo",
            models=lambda c: _baseline(c, "dpo"),
        ),
        Result(
            name="baselines.sacpo",
            settings=("seed", "model", *_PREFERENCES, "dpo", "baselines.sacpo_betas"),
            trainer="dpo",
            models=lambda c: 2 * _baseline(c, "sacpo"),
        ),
        Result(
            name="baselines.candidates",
            settings=(
                "seed",
                "model",
                *_PROMPTS,
                "judge",
                "search.reward",
                "search.max_rollout_tokens",
                "reward",
                "engine",
                "baselines.candidates",
                "baselines.temperature",
                "baselines.top_p",
            ),
        ),
        Result(
            name="baselines.self-rewarding",
            settings=("seed", "model", "dpo", "baselines.buckets"),
            trainer="dpo",
            models=lambda c: c.rounds * _baseline(c, "self-rewarding"),
        ),
    ),
)
PRM = Stage(
    name="prm",
    output="prm",
    rows=("data.prompts",),
    after=SEARCH,
    start="prm.model",
    decodes=lambda c: c.prm.prompts > 0,
    results=(
        Result(
            name="prm",
            settings=(
                "seed",
                "model",
                "prm",
                "data.prompts",
                "data.split",
                "search",
                "reward",
                "judge",
                "engine",
            ),
            trainer="prm",
            models=lambda c: 1,
        ),
    ),
)
EVALUATE = Stage(
    name="evaluate",
    decodes=lambda c: True,
    results=(
        Result(
            name="evaluate",
            settings=("model", "evaluate.split", "evaluate.max_tokens", "engine"),
        ),
        Result(
            name="evaluate.interventions",
            settings=("seed", "model", "evaluate.split", "evaluate.max_tokens", "engine"),
        ),
        Result(
            name="evaluate.pair",
            settings=(
                *_ATTACKED,
                "evaluate.attacker_tokens",
                "evaluate.attack_judge_tokens",
                "evaluate.pair_streams",
                "evaluate.pair_iterations",
                "judge.leave_out",
            ),
        ),
        Result(
            name="evaluate.pap",
            settings=(
                *_ATTACKED,
                "evaluate.attacker_tokens",
                "evaluate.pap_techniques",
                "judge.leave_out",
            ),
        ),
        Result(name="evaluate.escalation", settings=_ATTACKED),
        Result(
            name="evaluate.guided",
            settings=("seed", "model", *_FOUND, "engine", "search.max_depth"),
        ),
        Result(
            name="evaluate.mcts",
            settings=("seed", "model", *_FOUND, "engine", *(f"search.{x}" for x in _MCTS)),
        ),
        Result(name="evaluate.rated", settings=("seed", "model", "judge", "engine")),
        Result(name="evaluate.verdicts", settings=("judge.leave_out",)),
    ),
)
EXPORT = Stage(name="export", results=(Result(name="export", settings=("model",)),))

STAGES = (
    PREPARE,
    SFT,
    SEARCH,
    PAIRS,
    DPO,
    BASELINES,
    PRM,
    EVALUATE,
    EXPORT,
)  # in the order they run
NAMES = tuple(stage.name for stage in STAGES)
RESULTS = {result.name: result for stage in STAGES for result in stage.results}
TRAINERS = tuple(dict.fromkeys(trainer for stage in STAGES for trainer in stage.trainers))
