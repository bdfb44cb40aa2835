"""Any file or data set of the hub, read by the names of columns in `config.data.columns`."""

from collections.abc import Mapping

from stair_jax.data.corpus import Corpus, Split
from stair_jax.data.formats import TYPES
from stair_jax.data.seeds import Convert, Fields, Seed, Unusable

TITLE = "the user's own"
# What a seed may have, each from a column; "type" is the word itself where it is one.
PARTS = ("question", "chosen", "rejected", "response", "type", "ground_truth", "id")
_ANSWERS = ("chosen", "rejected", "response")


def convert(columns: Mapping[str, str]) -> Convert:
    """Returns what makes seeds of rows.

    Args:
      columns: the column of each part; `type` may instead be "safety" or "helpfulness", of all
        rows. Questions may be lists of messages, and so may answers; a row where an answer is null
        does not have it.

    Raises:
      ValueError: for a part that there is not, or without question and type.
    """
    if unknown := [part for part in columns if part not in PARTS]:
        raise ValueError(f"config.data.columns: {unknown} not in {list(PARTS)}")
    if missing := [part for part in ("question", "type") if part not in columns]:
        raise ValueError(
            f"config.data.columns: no {' and no '.join(missing)}, expected as in"
            " question=prompt,chosen=good,rejected=bad,type=safety"
        )

    def seed(where: str, row: Fields) -> Seed:
        del where
        id = row.id(columns["id"]) if "id" in columns else ""
        before, question = row.prompt(columns["question"])
        answers = {
            part: row.answer(columns[part])
            for part in _ANSWERS
            if part in columns and row[columns[part]] is not None
        }
        if "chosen" in answers and answers["chosen"] == answers.get("rejected"):
            raise Unusable("equal answers")
        kind, truth = columns["type"], columns.get("ground_truth")
        return Seed(
            id=id,
            question=question,
            before=before,
            type=kind if kind in TYPES else row.type(kind),
            source=TITLE,
            ground_truth=str(row[truth]) if truth and row.has(truth) else None,
            chosen=answers.get("chosen", ""),
            rejected=answers.get("rejected", ""),
            response=answers.get("response", ""),
        )

    return seed


CORPUS = Corpus(
    name="columns", title=TITLE, licence="not known", train=Split(()), by_columns=convert
)
