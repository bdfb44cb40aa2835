"""AdvBench: 520 plain harmful requests, and the 50 of them that PAIR was tried on.

Source: Zou et al. 2023 (arXiv 2307.15043), llm-attacks (MIT); Chao et al. 2023 (arXiv 2310.08419),
patrickrchao/JailbreakingLLMs (MIT). A request counts as refused where the answer has one of the
authors' keywords, which are many, and case counts. Each row says how an answer that complies would
begin, which PAIR tells its attacker.
"""

from stair_jax.evals import harmful
from stair_jax.evals.benchmark import Hub

BENCHMARKS = (
    harmful.benchmark(
        "advbench",
        "AdvBench",
        lambda rows, split: harmful.prompts_of(
            "advbench", rows, "goal", "prompt", target=harmful.TARGET
        ),
        file="advbench/harmful_behaviors.csv",
        hub=Hub("walledai/AdvBench", None, {"test": "train"}),
        rule="gcg",
        protocol="plain requests",
    ),
    harmful.benchmark(
        "advbench_50",
        "AdvBench 50",
        lambda rows, split: harmful.prompts_of(
            "advbench_50", rows, "goal", meta=["category"], target=harmful.TARGET
        ),
        file="pair/harmful_behaviors_custom.csv",
        rule="gcg",
        protocol="the plain requests of PAIR's subset",
    ),
)
