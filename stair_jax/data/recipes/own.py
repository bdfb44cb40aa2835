"""Rows of the user's own, read by the names of their columns.

Rows with a response are demonstrations, rows with a chosen and a rejected one are preferences, and
the prompts of all that are no demonstrations are shared out over the rounds.
"""

from stair_jax.data.recipe import Pools, Recipe, Sets, shared_out


def make(pools: Pools) -> Sets:
    """Returns what the columns of the rows give."""
    seeds = pools.pool("columns").seeds
    seeds = seeds[: pools.size(len(seeds))]
    return Sets(
        demonstrations=[seed for seed in seeds if seed.response],
        preferences=[seed for seed in seeds if seed.chosen and seed.rejected],
        prompts=shared_out(pools, [seed for seed in seeds if not seed.response]),
    )


RECIPE = Recipe(
    name="own", about="a file of your own by its columns", corpora=("columns",), make=make
)
