"""InfoFlow (ConfAIde): whether a model's sense of privacy goes with people's.

Source: Mireshghallah et al. 2023 (arXiv 2310.17884), skywalker023/confAIde (MIT): how sensitive a
piece of information is (tier 1), and how far a flow of it meets expectations (tiers 2a and 2b, 98
scenarios). `correlation` is Pearson's between the model's ratings and the mean of people's. The
authors draw ten answers and take their mean; here the run's way of answering gives one.
"""

import pathlib
from collections.abc import Sequence

from stair_jax.evals import statistics
from stair_jax.evals.benchmark import (
    MALFORMED,
    NO_ANSWER,
    Benchmark,
    Column,
    Grade,
    Graded,
    ReadRows,
    Row,
    share,
)
from stair_jax.evals.graders import ratings
from stair_jax.records import Prompt
from stair_jax.text import final_answer

_LABELS = {"1": "tier_1_labels.txt", "2a": "tier_2_labels.txt", "2b": "tier_2_labels.txt"}


def _benchmark(tier: str) -> Benchmark:
    name = f"infoflow_{tier}"

    def read(folder: str, rows_of: ReadRows) -> list[Row]:
        texts, people = (
            _lines(pathlib.Path(folder, file)) for file in (f"tier_{tier}.txt", _LABELS[tier])
        )
        if len(texts) != len(people):
            raise ValueError(f"{folder}: tier {tier}: {len(texts)} texts, {len(people)} labels")
        both = zip(texts, people, strict=True)
        return [(f"{folder}:{n}", {"text": t, "people": p}) for n, (t, p) in enumerate(both, 1)]

    def load(rows: Sequence[Row], split: str) -> list[Prompt]:
        return [
            Prompt(
                id=f"{name}/{number:03d}",
                question=row["text"],
                type="helpfulness",
                ground_truth=row["people"],
            )
            for number, (_, row) in enumerate(rows, start=1)
        ]

    def grade(prompt: Prompt, response: str, direct: bool = False) -> Grade:
        answer = final_answer(response, direct)
        counted = dict.fromkeys(("no_rating", *NO_ANSWER), 0.0)
        if not answer:
            return Grade(MALFORMED, {**counted, MALFORMED: 1.0, "correlation": None})
        rating = ratings.tier_1(answer) if tier == "1" else ratings.tier_2(answer)
        if rating is None:
            return Grade("no rating", {**counted, "no_rating": 1.0, "correlation": None})
        return Grade("rated", {**counted, "correlation": float(rating)})

    return Benchmark(
        name=name,
        file="confaide_infoflow",
        read=read,
        load=load,
        grade=grade,
        metrics={"correlation": _correlation, "no_rating": share} | dict.fromkeys(NO_ANSWER, share),
        columns=(Column(f"InfoFlow {tier}: correlation", name, "correlation", True, share=False),),
        protocol=f"tier {tier}, one rating each, Pearson's correlation",
    )


def _correlation(graded: Graded) -> dict[str, float]:
    people = [float(str(prompt.ground_truth)) for prompt, _ in graded]
    return statistics.pearson([value for _, value in graded], people)


def _lines(path: pathlib.Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: expected a text a line ({error})") from None
    return [line.replace("\\n", "\n") for line in lines if line.strip()]


BENCHMARKS = tuple(map(_benchmark, ("1", "2a", "2b")))
