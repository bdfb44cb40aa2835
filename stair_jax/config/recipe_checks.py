"""What the settings of stage prepare must be: refused by key, value and expectation. Floor 0."""

from typing import Any

from stair_jax.config import redaction
from stair_jax.config.sources import PREPARED
from stair_jax.config.words import SELF, name_and_address, split_csv

_ROUNDS = ("round_safety", "round_helpful", "round_jailbreak")
_KINDS = ("cot", "prm")  # of safety and of helpful prompts


def validate_recipe(c: Any) -> None:
    """Refuses a stage prepare without a recipe, and sizes that no set can have.

    Raises:
      ValueError: for the first such setting.
    """
    wanted, r = split_csv(c.stages), c.recipe
    if r.teacher:
        _validate_teacher(c)
    if "prepare" in wanted and not c.data.recipe:
        raise ValueError("config.data.recipe: empty, stage prepare needs one, such as paper")
    _validate_sizes(r)
    lengths = {key: len(r[key]) for key in _ROUNDS}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"config.recipe: {lengths}, expected as many numbers of each, one a round")
    rounds = lengths[_ROUNDS[0]]
    if "search" in wanted and c.data.prompts == PREPARED and c.rounds > rounds:
        raise ValueError(
            f"config.rounds: {c.rounds}, but config.recipe.round_safety has prompts for {rounds};"
            " give it, round_helpful and round_jailbreak a number for each round"
        )


def _validate_sizes(r: Any) -> None:
    """Refuses numbers of rows, and shares of them, that are too many, too few or no such number."""
    for key in (*_ROUNDS, *_KINDS, "taught"):
        if not all(type(x) is int and x >= 0 for x in r[key]):
            raise ValueError(f"config.recipe.{key}: {r[key]}, expected whole numbers, 0 or more")
    for key in _KINDS:
        if len(r[key]) != 2:
            raise ValueError(f"config.recipe.{key}: {r[key]}, expected two: safety, helpful")
    if len(r.taught) != 3:
        raise ValueError(
            f"config.recipe.taught: {r.taught}, expected three: refusals, solutions, look-alikes"
        )
    if len(r.turned) != 2 or not all(0 <= share <= 1 for share in r.turned):
        raise ValueError(
            f"config.recipe.turned: {r.turned}, expected two shares from 0 to 1: of demonstrations,"
            " of prompts"
        )


def _validate_teacher(c: Any) -> None:
    """Refuses a teacher that cannot be asked, or whose answers nobody could judge."""
    r = c.recipe
    name, address = name_and_address(r.teacher)
    if r.teacher != SELF and not (name and address):
        raise ValueError(
            f"config.recipe.teacher: {redaction.shown_address(r.teacher)!r}, expected NAME@URL with"
            f" http:// or https://, or {SELF}"
        )
    if address:
        redaction.check_address("recipe.teacher", address)
        redaction.key()  # refuses one that cannot be sent
    if "prepare" not in split_csv(c.stages):
        return
    if not any(r.cot):
        raise ValueError(f"config.recipe.teacher: would be ignored, config.recipe.cot is {r.cot}")
    if r.teacher_attempts > 1 and not r.teacher_temperature:
        raise ValueError(
            "config.recipe.teacher_temperature: 0 draws the same reply each time, expected a number"
            " above 0, or config.recipe.teacher_attempts=1"
        )
    if c.judge.safety == "verifier":
        raise ValueError(
            "config.judge.safety: 'verifier' knows the miniature's prompts only, and not what"
            " config.recipe.teacher answers; expected 'self', 'remote' or 'rule'"
        )
    for key, asked in (("recipe.teacher", r.teacher), ("judge.safety", c.judge.safety)):
        if asked == SELF and not c.model.checkpoint:
            raise ValueError(
                f"config.{key}: {SELF!r} is config.model.checkpoint, which is empty; expected a"
                " checkpoint, or somebody else"
            )
