"""How large a search is: trees in flight, and what a tree takes on disk."""

from stair_jax.config import Config
from stair_jax.run import models
from stair_jax.run.workdir import Run

BYTES_A_TOKEN = 8  # of a tree on disk: its text, and its id; a node an iteration at most
TREES_A_SLOT = 2  # in flight at most: more would only hold keys


def tree_bytes(config: Config) -> int:
    """Returns about how many bytes a tree takes on disk, by the settings."""
    s = config.search
    return s.iterations * s.max_step_tokens * BYTES_A_TOKEN


def trees_in_flight(run: Run, count: int) -> int:
    """Returns how many trees to grow at once, of `count` at most where the run leaves it open."""
    places = len(models.engine_places(run))
    open_to_us = min(TREES_A_SLOT * run.config.engine.slots * places, count)
    return run.config.search.trees_in_flight or open_to_us
