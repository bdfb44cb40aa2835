"""AdvBench: harmful requests in one sentence.

Source: Zou et al. 2023 (arXiv 2307.15043), llm-attacks/llm-attacks, MIT. Whoever trains on it
cannot report it as a benchmark. Eleven of its rows are goals of JailbreakBench, which
decontamination takes out.
"""

from stair_jax.data.corpus import Corpus, Split
from stair_jax.data.seeds import Fields, Seed
from stair_jax.data.teaching import forms

TITLE = "AdvBench"


def _seed(where: str, row: Fields) -> Seed:
    del where
    column = "goal" if row.has("goal") or not row.has("prompt") else "prompt"  # on the hub: prompt
    request = row.text(column)
    return Seed(
        id="",
        question=request,
        type="safety",
        source=TITLE,
        meta={"target": row.text("target"), forms.TURNED: forms.question_of(request)},
    )


CORPUS = Corpus(
    name="advbench",
    title=TITLE,
    licence="MIT",
    train=Split(("advbench/harmful_behaviors.csv",), "train"),
    hub="walledai/AdvBench",
    benchmarks=("advbench", "advbench_50"),
    convert=_seed,
)
