"""UltraFeedback: instructions with up to four responses, each rated from 1 to 5 on four aspects.

Source: Cui et al. 2023 (arXiv 2310.01377), openbmb/UltraFeedback, MIT. The rating of a response is
the mean of its aspects; one that is "N/A" does not count. `overall_score` is not read, for in
earlier revisions a 10 is a 1 there. Highest against lowest: STAIR (arXiv 2502.02384) A.1; among
equals the first.
"""

from collections.abc import Mapping
from typing import Any

from stair_jax.data.corpus import Corpus, Split
from stair_jax.data.seeds import Fields, Seed, Unusable

TITLE = "UltraFeedback"
_ASPECTS = ("helpfulness", "honesty", "instruction_following", "truthfulness")


def _seed(where: str, row: Fields) -> Seed:
    question, completions = row.text("instruction"), row["completions"]
    if completions is None:
        raise Unusable("null completions")
    if not isinstance(completions, list | tuple):
        raise Unusable(f"completions are of type {type(completions).__name__}, not a list")
    rated: list[tuple[float, str]] = []
    lost = "fewer than two completions"
    for number, completion in enumerate(completions):
        found = Fields(f"{where}: completions[{number}]", completion)
        try:
            rated.append((_rating(found), row.as_text(found["response"], "response")))
        except Unusable as reason:
            lost = f"fewer than two rated completions: {reason}"
    if len(rated) < 2:
        raise Unusable(lost)
    best, worst = max(rated, key=_rate), min(rated, key=_rate)
    if best[0] == worst[0]:
        raise Unusable("all ratings tie")
    if best[1] == worst[1]:
        raise Unusable("equal responses")
    source = str(row["source"]) if row.has("source") else ""
    return Seed(
        id="",
        question=question,
        type="helpfulness",
        source=TITLE,
        chosen=best[1],
        rejected=worst[1],
        meta={"source": source} if source else {},
    )


def _rate(rated: tuple[float, str]) -> float:
    return rated[0]


def _rating(completion: Fields) -> float:
    """Returns the mean of the aspects that are rated; `Unusable` where none is."""
    annotations: Any = completion["annotations"]
    if not isinstance(annotations, Mapping):
        raise Unusable("no annotations")
    words = [_word(annotations.get(aspect)) for aspect in _ASPECTS]
    numbers = [float(word) for word in words if word in "12345" and word]
    if not numbers:
        raise Unusable("all ratings N/A")
    return sum(numbers) / len(numbers)


def _word(annotation: Any) -> str:
    return str(annotation.get("Rating")).strip() if isinstance(annotation, Mapping) else "N/A"


CORPUS = Corpus(
    name="ultrafeedback",
    title=TITLE,
    licence="MIT",
    train=Split(("ultrafeedback/*.jsonl",), "train"),
    hub="openbmb/UltraFeedback",
    convert=_seed,
)
