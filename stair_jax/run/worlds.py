"""The embedded worlds, by the word for them in settings."""

from stair_jax.config import Config
from stair_jax.miniature.world import MINIATURE
from stair_jax.world import World

_WORLDS = {world.name: world for world in (MINIATURE,)}  # names are those of `config.sources`


def of(source: str) -> World | None:
    """Returns the world that a setting names; None where it names a file or the hub."""
    return _WORLDS.get(source)


def of_model(config: Config) -> World:
    """Returns the world whose language a model without a checkpoint speaks."""
    return of(config.data.sft) or next(iter(_WORLDS.values()))
