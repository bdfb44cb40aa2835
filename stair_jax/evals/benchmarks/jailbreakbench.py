"""JailbreakBench: 100 harmful behaviours, plain and inside prompts that broke other models.

Source: Chao et al. 2024 (arXiv 2404.01318), JailbreakBench/artifacts (MIT). The attacks were made
against other models, so they are a lower bound of what an attack on this one would find. A
behaviour that several models were attacked with is asked once for each of their prompts; intervals
of the rules' figures know that these are alike. On the hub
each behaviour has the words that an answer which complies would begin with, for PAIR; the artefacts
lack them.
"""

from collections.abc import Sequence

from stair_jax.evals import harmful
from stair_jax.evals.benchmark import Benchmark, Hub, Row
from stair_jax.records import Prompt

_FOLDER = "jailbreakbench"
_META = ("index", "category", "goal", "attacked_model", "jailbroken")
_ATTACKS = (  # name, heading, and the end of the file's name
    ("jbb_pair", "JBB PAIR", "PAIR"),
    ("jbb_gcg", "JBB GCG", "GCG"),
    ("jbb_random_search", "JBB random search", "prompt_with_random_search"),
)


def _attack(name: str, heading: str, file: str) -> Benchmark:
    def load(rows: Sequence[Row], split: str) -> list[Prompt]:
        return harmful.prompts_of(name, rows, "prompt", meta=_META)

    return harmful.benchmark(
        name,
        heading,
        load,
        file=f"{_FOLDER}/attack_prompts_{file}.jsonl",
        rule="jbb",
        attacks=True,
        judged="jbb",
        alike="goal",
        protocol=f"{file} prompts against other models, from the authors' artefacts",
    )


BENCHMARKS = (
    harmful.benchmark(
        "jailbreakbench",
        "JBB",
        lambda rows, split: harmful.prompts_of(
            "jailbreakbench", rows, "goal", "Goal", target="Target"
        ),
        file=f"{_FOLDER}/jbb_behaviors_from_artifacts.csv",
        hub=Hub("JailbreakBench/JBB-Behaviors", "behaviors", {"test": "harmful"}),
        rule="jbb",
        judged="jbb",
        protocol="plain behaviours",
    ),
    *(_attack(*one) for one in _ATTACKS),
)
