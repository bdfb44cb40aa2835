"""GSM8K's training split: word problems with a rationale that ends in the number.

Source: Cobbe et al. 2021 (arXiv 2110.14168), openai/grade-school-math, MIT.
"""

import re

from stair_jax.data.corpus import Corpus, Split
from stair_jax.data.seeds import Fields, Seed, Unusable
from stair_jax.data.teaching import rationales

TITLE = "GSM8K"
_GOLD = re.compile(r"^#### *(-?[\d,.]+)\s*$", re.MULTILINE)


def _seed(where: str, row: Fields) -> Seed:
    del where
    question, answer = row.text("question"), row.text("answer")
    gold = _GOLD.search(answer)
    if not gold:
        raise Unusable("an answer without a number behind ####")
    if isinstance(fault := rationales.steps_of("", question, answer), rationales.Unfit):
        raise Unusable(str(fault))
    return Seed(
        id="",
        question=question,
        type="helpfulness",
        source=TITLE,
        response=answer,
        ground_truth=gold[1].replace(",", ""),
    )


CORPUS = Corpus(
    name="gsm8k",
    title=TITLE,
    licence="MIT",
    train=Split(("gsm8k/train.jsonl",), "train"),
    hub="openai/gsm8k",
    subset="main",
    convert=_seed,
)
