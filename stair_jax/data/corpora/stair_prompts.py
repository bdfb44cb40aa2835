"""STAIR-Prompts: the authors' prompts of the rounds, 63,000 rows.

Source: Zhang et al. 2025 (arXiv 2502.02384), thu-ml/STAIR-Prompts, CC-BY-NC-SA-4.0. Its columns are
not those that the official code reads; the type follows from the source, as in STAIR-SFT, and a row
without one is dropped.
"""

from stair_jax.data.corpora.stair_sft import type_of
from stair_jax.data.corpus import Corpus, Split
from stair_jax.data.seeds import Fields, Seed, Unusable

TITLE = "STAIR-Prompts"


def _seed(where: str, row: Fields) -> Seed:
    del where
    before, question = row.prompt("prompt")
    if not row.has("source"):
        raise Unusable("no source that says whether it is a safety prompt")
    origin = row.text("source")
    return Seed(
        id="",
        question=question,
        before=before,
        type=type_of(origin),
        source=TITLE,
        meta={"source": origin},
    )


CORPUS = Corpus(
    name="stair_prompts",
    title=TITLE,
    licence="CC-BY-NC-SA-4.0",
    train=Split(("stair/STAIR-Prompts.json",), "train"),
    hub="thu-ml/STAIR-Prompts",
    convert=_seed,
)
