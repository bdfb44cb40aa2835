"""The sets that stage prepare makes: where they lie, and who reads them.

A setting of `config.data` that says "prepared" stands for one of them.
"""

import pathlib

from stair_jax.config import Config
from stair_jax.config.sources import PREPARED
from stair_jax.config.stages import PREPARE, Stage
from stair_jax.config.words import split_csv
from stair_jax.run.workdir import Run

NAME = PREPARE.artefact()
SFT, PREFERENCES, PROMPTS = "sft.jsonl", "preferences.jsonl", "prompts-{round}.jsonl"
_FILES = {"sft": SFT, "preferences": PREFERENCES, "prompts": PROMPTS}


def source_of(config: Config, key: str) -> str:
    """Returns what a setting of `config.data` names; the file in the workdir for "prepared".

    Args:
      config: of the run.
      key: "sft", "preferences" or "prompts"; the file of the last has {round} in its name.
    """
    named = config.data[key]
    return str(pathlib.Path(config.workdir, NAME, _FILES[key])) if named == PREPARED else named


def size_of_round(config: Config, number: int) -> int:
    """Returns about how many prompts a round will have, before they are made."""
    r = config.recipe
    rounds = list(zip(r.round_safety, r.round_helpful, r.round_jailbreak, strict=True))
    return round(sum(rounds[number - 1]) * r.scale) if number <= len(rounds) else 0


def is_awaited(run: Run, key: str) -> bool:
    """Returns whether a setting of `config.data` names a set that is still to be made."""
    return run.config.data[key] == PREPARED and not run.lineage.finished(NAME)


def waits_for(run: Run, stage: Stage) -> str | None:
    """Returns what a stage needs of stage prepare first, in words; None where it can begin."""
    if any(is_awaited(run, _key(setting)) for setting in stage.rows):
        return f"{NAME}: run stage {PREPARE.name} first, with a recipe in config.data.recipe"
    return None


def parents(run: Run, stage: Stage) -> tuple[str, ...]:
    """Returns the artefact that a stage's rows come from, if they were prepared.

    Raises:
      ValueError: where one of the sets was changed by hand since.
    """
    if not any(run.config.data[_key(setting)] == PREPARED for setting in stage.rows):
        return ()
    run.lineage.verify(NAME, split_csv(run.config.edited))
    return (NAME,)


def _key(setting: str) -> str:
    return setting.removeprefix("data.")
