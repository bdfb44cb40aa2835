"""Framings of JailbreakBench's prompts that random search optimised, without their behaviours.

Source: Chao et al. 2024 (arXiv 2404.01318), JailbreakBench/artifacts, MIT; the attack is that of
Andriushchenko et al. 2024 (arXiv 2404.02151). A seed is a template with a place for a request, no
prompt. Whoever trains on it cannot report the attack that it is from.
"""

from stair_jax.data.corpus import Corpus, Split
from stair_jax.data.seeds import Fields, Seed, Unusable
from stair_jax.data.teaching import framings

FAMILY = "random_search"


def _seed(where: str, row: Fields) -> Seed:
    texts = {name: row.text(name) for name in ("goal", "prompt")}
    found = framings.templates_of([(where, texts)], FAMILY)
    for reason in found.dropped.counts:
        raise Unusable(reason)
    return Seed(
        id="", question=found.framings[0].template, type="safety", source="JailbreakBench templates"
    )


CORPUS = Corpus(
    name="jbb_templates",
    title="JailbreakBench, templates of random search",
    licence="MIT",
    train=Split(("jailbreakbench/attack_prompts_prompt_with_random_search.jsonl",)),
    benchmarks=("jbb_random_search",),
    convert=_seed,
    asked=False,
)
