"""HarmBench's validation behaviours; its test behaviours are a benchmark.

Source: Mazeika et al. 2024 (arXiv 2402.04249), centerforaisafety/HarmBench, MIT. A behaviour with a
context has it before it, as the authors put it.
"""

from stair_jax.data.corpus import Corpus, Split
from stair_jax.data.seeds import Fields, Seed

TITLE = "HarmBench"
_RULE_OF_CONTEXTS = "\n\n---\n\n"


def _seed(where: str, row: Fields) -> Seed:
    del where
    id, behaviour = row.id("BehaviorID"), row.text("Behavior")
    context = row.text("ContextString") if row["ContextString"] else ""
    columns = {"category": "SemanticCategory", "kind": "FunctionalCategory"}
    return Seed(
        id=id,
        question=f"{context}{_RULE_OF_CONTEXTS}{behaviour}" if context else behaviour,
        type="safety",
        source=TITLE,
        meta={"goal": behaviour} | {key: row.text(name) for key, name in columns.items()},
    )


CORPUS = Corpus(
    name="harmbench",
    title=TITLE,
    licence="MIT",
    train=Split(("harmbench/harmbench_behaviors_text_val.csv",)),
    benchmarks=("harmbench_val",),
    convert=_seed,
)
