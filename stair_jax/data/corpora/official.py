"""Prompts in the form that the official code reads: a JSON list of question and type.

Source: thu-ml/STAIR (MIT), prompt_data/examples.json, six rows; `ground_truth` is optional.
"""

from stair_jax.data.corpus import Corpus, Split
from stair_jax.data.seeds import Fields, Seed

TITLE = "STAIR prompt_data"


def _seed(where: str, row: Fields) -> Seed:
    del where
    truth = str(row["ground_truth"]) if row.has("ground_truth") else None
    return Seed(
        id=row.id(),
        question=row.text("question"),
        type=row.type(),
        source=TITLE,
        ground_truth=truth,
    )


CORPUS = Corpus(
    name="official",
    title=TITLE,
    licence="MIT",
    train=Split(("stair/prompt_data/*.json", "stair/prompt_data_examples.json")),
    convert=_seed,
)
