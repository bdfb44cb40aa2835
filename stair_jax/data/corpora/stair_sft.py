"""STAIR-SFT: the authors' structured chains of thought, about 20,000.

Source: Zhang et al. 2025 (arXiv 2502.02384), thu-ml/STAIR-SFT, CC-BY-NC-SA-4.0. Rows of
PKU-SafeRLHF are safety prompts, all others helpful ones, as loaders of this data set take them.
"""

from stair_jax.data.corpus import Corpus, Split
from stair_jax.data.seeds import Fields, Seed, Unusable
from stair_jax.text import OUTPUT_END, final_answer

TITLE = "STAIR-SFT"
_SAFETY = ("saferlhf", "jailbreak")  # the second is ours: attacks are no helpful prompts


def type_of(source: str) -> str:
    """Returns the type of a prompt by the data set that it is from."""
    return "safety" if any(word in source.lower() for word in _SAFETY) else "helpfulness"


def _seed(where: str, row: Fields) -> Seed:
    del where
    before, question = row.prompt("prompt")
    response, origin = row.answer("answer").rstrip(), row.text("source")
    if final_answer(response) is None or not response.endswith(OUTPUT_END):
        raise Unusable(f"an answer without a final block that ends in {OUTPUT_END}")
    return Seed(
        id="",
        question=question,
        before=before,
        type=type_of(origin),
        source=TITLE,
        response=response,
        meta={"source": origin},
    )


CORPUS = Corpus(
    name="stair_sft",
    title=TITLE,
    licence="CC-BY-NC-SA-4.0",
    train=Split(("stair/STAIR-SFT.json",), "train"),
    hub="thu-ml/STAIR-SFT",
    convert=_seed,
)
