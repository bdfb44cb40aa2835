"""The paper's seed data set D, the prompts of D_CoT, and those of the rounds.

Source: STAIR (arXiv 2502.02384) 2.1, 3.1 and A.1. D is 22,000 questions of PKU-SafeRLHF with an
unsafe response, 3,000 attacks of JailBreakV-28k, and 25,000 instructions of UltraFeedback. On
harmful questions the chosen response is a refusal; the rejected one is the unsafe one, and on
attacks a sample of the model itself. UltraFeedback gives its highest and its lowest rated response.

D_CoT takes 10,000 + 10,000 of the prompts and no attack. Rounds take 5,000 + 5,000 each, and 0,
1,000 and 2,000 attacks; none of these prompts is asked twice. As they add up to 25,000 harmful
questions, 3,000 of them lie beyond D. If attacks are among the 5,000 (`recipe.round_safety` of
5000,4000,3000), the prompts are exactly those of D; the paper does not say which.
"""

from stair_jax.data.recipe import COT, PRM, Pools, Recipe, Sets


def make(pools: Pools) -> Sets:
    """Returns D as preferences, and prompts for D_CoT, the rounds and the reward model."""
    c, size = pools.config, pools.size
    harmful, attacks = pools.pool("pku_saferlhf"), pools.pool("jailbreakv")
    helpful = pools.pool("ultrafeedback")
    preferences = pools.mixed(
        map(pools.refused, harmful.first(size(c.safety), "safety")),
        map(pools.refused, attacks.first(size(c.jailbreak), "jailbreak")),
        helpful.first(size(c.helpful), "helpful"),
    )
    prompts = {
        COT: pools.mixed(harmful.take(size(c.cot[0]), "cot"), helpful.take(size(c.cot[1]), "cot"))
    }
    of_rounds = zip(c.round_safety, c.round_helpful, c.round_jailbreak, strict=True)
    for number, (safety, others, jailbreak) in enumerate(of_rounds, start=1):
        prompts[str(number)] = pools.mixed(
            harmful.take(size(safety), "round_safety"),
            helpful.take(size(others), "round_helpful"),
            attacks.take(size(jailbreak), "round_jailbreak"),
        )
    prompts[PRM] = pools.mixed(
        harmful.take(size(c.prm[0]), "prm"), helpful.take(size(c.prm[1]), "prm")
    )
    return Sets(preferences=preferences, prompts={k: some for k, some in prompts.items() if some})


RECIPE = Recipe(
    name="paper",
    about="the paper's D, the prompts of D_CoT and of the rounds",
    corpora=("pku_saferlhf", "jailbreakv", "ultrafeedback"),
    make=make,
)
