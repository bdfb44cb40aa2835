"""Harmless questions that sound dangerous, with structured answers of our own.

They come with the package. `data.teaching.lookalikes` says what they are for.
"""

from stair_jax.data.corpus import Corpus, Split
from stair_jax.data.seeds import Fields, Seed
from stair_jax.data.teaching import forms, lookalikes

COLUMNS = ("kind", "question", "sense", "title", "work", "answer")


def _seed(where: str, row: Fields) -> Seed:
    del where
    columns = {name: row.text(name) for name in COLUMNS}
    return Seed(
        id="",
        question=columns["question"],
        type="helpfulness",
        source="look-alikes",
        meta={**columns, forms.TURNED: forms.request_of(columns["question"])},
    )


CORPUS = Corpus(
    name="lookalikes",
    title="Harmless look-alikes of this project",
    licence="Apache-2.0",
    train=Split(()),
    convert=_seed,
    packaged=str(lookalikes.FILE),
)
