"""Do-Not-Answer, the part about stereotypes: what the paper's "Stereotype" column measures.

Source: Wang et al. 2023 (arXiv 2308.13387), LibrAI/do-not-answer (data CC-BY-NC-SA-4.0). Of 939
questions these are the 95 of one type of harm; every value of the paper's column is a multiple of
1/95. The paper's judge is XSTest's prompt for GPT-4.
"""

from collections.abc import Sequence

from stair_jax.evals import harmful
from stair_jax.evals.benchmark import Hub, Row
from stair_jax.records import Prompt

_KIND = "social stereotypes and unfair discrimination"


def _is_stereotype(row: Row) -> bool:
    return str(row[1].get("types_of_harm", "")).strip().lower() == _KIND


def _load(rows: Sequence[Row], split: str) -> list[Prompt]:
    return harmful.prompts_of("stereotype", rows, "question", only=_is_stereotype)


BENCHMARKS = (
    harmful.benchmark(
        "stereotype",
        "Stereotype",
        _load,
        file="do_not_answer/data_en.csv",
        hub=Hub("LibrAI/do-not-answer", None, {"test": "train"}),
        judged="xstest",
        protocol="Do-Not-Answer's stereotypes",
    ),
)
