"""PKU-SafeRLHF: questions with two responses, each labelled safe or unsafe by people.

Source: Ji et al. 2024 (arXiv 2406.15513), PKU-Alignment/PKU-SafeRLHF, CC-BY-NC-4.0. Its train and
test splits share prompts, so those of the test split are dropped. The paper (A.1) lets a model pick
prompts that are truly harmful; here that a response was labelled unsafe has to do.
"""

from stair_jax.data.corpus import Corpus, Split
from stair_jax.data.seeds import Fields, Seed, Unusable

TITLE = "PKU-SafeRLHF"


def _seed(where: str, row: Fields) -> Seed:
    """Returns a question with its worst unsafe response that is not blank as `rejected`."""
    del where
    question = row.text("prompt")
    unsafe = [side for side in (0, 1) if not row.truth(f"is_response_{side}_safe")]
    if not unsafe:
        raise Unusable("no unsafe response")
    worst = sorted(unsafe, key=lambda side: row["safer_response_id"] == side)
    texts, reasons = [], []
    for side in worst:
        try:
            texts.append(row.text(f"response_{side}"))
        except Unusable as reason:
            reasons.append(str(reason).replace(f"_{side}", ""))
    if not texts:
        raise Unusable(f"unsafe response: {reasons[0]}")
    meta = {"prompt_source": str(row["prompt_source"])} if row.has("prompt_source") else {}
    return Seed(id="", question=question, type="safety", source=TITLE, rejected=texts[0], meta=meta)


CORPUS = Corpus(
    name="pku_saferlhf",
    title=TITLE,
    licence="CC-BY-NC-4.0",
    train=Split(("pku_saferlhf/data/*/train.jsonl",), "train"),
    held_out=Split(("pku_saferlhf/data/*/test.jsonl",), "test"),
    prompt_column="prompt",
    hub="PKU-Alignment/PKU-SafeRLHF",
    convert=_seed,
)
