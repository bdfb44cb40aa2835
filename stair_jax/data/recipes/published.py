"""What the authors published: STAIR-SFT for stage 1, STAIR-Prompts shared out over the rounds.

Source: thu-ml/STAIR-SFT and thu-ml/STAIR-Prompts. Which prompt was of which round is not published.
"""

from stair_jax.data.recipe import Pools, Recipe, Sets, shared_out


def make(pools: Pools) -> Sets:
    """Returns the demonstrations, and the prompts that none of them answers."""
    answered = pools.pool("stair_sft").seeds
    answered = answered[: pools.size(len(answered))]
    known = {seed.prompt for seed in answered}
    left = [seed for seed in pools.corpora["stair_prompts"] if seed.prompt not in known]
    left = pools.mixed(left)[: pools.size(len(left))]
    return Sets(demonstrations=answered, prompts=shared_out(pools, left))


RECIPE = Recipe(
    name="published",
    about="the authors' STAIR-SFT and STAIR-Prompts",
    corpora=("stair_sft", "stair_prompts"),
    make=make,
)
