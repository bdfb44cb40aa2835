"""What the settings of attacks in the loop must be. Floor 0."""

from typing import Any

from stair_jax.config.sources import PREPARED, is_world
from stair_jax.config.words import FAMILIES, FRAMINGS, TRANSFORMS, split_csv


def families_of(c: Any) -> list[str]:
    """Returns the families of framings that attacks in the loop may have, in the setting's order.

    Those that a recipe holds out for evaluation are none of them.
    """
    small = c.data.prompts == PREPARED and c.data.recipe == "small"  # no other holds families out
    held_out = split_csv(c.recipe.held_out) if small else ()
    return [one for one in split_csv(c.search.attack_families) or FAMILIES if one not in held_out]


def validate_attacks(c: Any) -> None:
    """Refuses rewrites that the prompts of the rounds cannot have.

    Raises:
      ValueError: naming the setting.
    """
    attacks = split_csv(c.search.attacks)
    if is_world(c.data.prompts):
        if TRANSFORMS in attacks:
            raise ValueError(
                f"config.search.attacks: {c.search.attacks!r} with prompts of the miniature,"
                f" expected {FRAMINGS!r} alone: its model cannot read what {TRANSFORMS} write"
            )
    elif FRAMINGS in attacks and not families_of(c):
        raise ValueError(
            f"config.search.attack_families: {c.search.attack_families!r} are all held out by"
            f" config.recipe.held_out={c.recipe.held_out!r}, expected others too"
        )
