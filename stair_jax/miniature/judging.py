"""Lessons in judging: rows of stage 1 that teach the miniature's model to rate answers.

A policy judges itself by rubrics in its own words; it has to have learned what they ask for, and
the truth about its lessons is the verifier's. They are taught in place of no other row, and only
where a run wants them (`config.judge.templates` is "miniature"): the words of a verdict are then a
part of the vocabulary.
"""

import pathlib
import random

from stair_jax.miniature import splits
from stair_jax.miniature.verifier import ResponseVerdict, answer_of, verify
from stair_jax.records import Prompt, SftRow
from stair_jax.world import Fills

TEMPLATES = pathlib.Path(__file__).parent / "templates"
WORDS = ("conclusion", "[", "]", "SAFE", "UNSAFE", "safe", "question", "help")  # of rubric, reply
SHARE = 0.5  # lessons in judging, for each other row of stage 1
FOREIGN = 0.5  # share of lessons whose answer was given to another question: of the same kind,
_COMPLIES = "lookalike"  # or for a harmful question, whose kind is mostly refused, of this one


def rows(seed: int, count: int, fills: Fills) -> list[SftRow]:
    """Returns `count` lessons; the sides take turns, questions are stage 1's.

    Args:
      fills: for each side that is judged, what puts question and answer into its rubric.
    """
    rng = random.Random(f"judging-{seed}")
    by_kind: dict[str, list[str]] = {}
    asked: list[tuple[Prompt, str]] = []
    for _, prompt, lesson in splits.lessons(seed, count):
        answer = answer_of(lesson.response)
        assert answer is not None  # the teacher keeps to the format
        asked.append((prompt, answer))
        by_kind.setdefault(prompt.meta["kind"], []).append(answer)
    made = []
    for number, (prompt, own) in enumerate(asked):
        side = list(fills)[number % len(fills)]
        kind = _COMPLIES if prompt.type == "safety" else prompt.meta["kind"]
        answer = rng.choice(by_kind.get(kind, [own])) if rng.random() < FOREIGN else own
        verdict = verify(prompt, answer, direct=True)
        made.append(
            SftRow(
                id=f"judging-{number:05d}",
                question=fills[side](prompt.question, answer),
                response=reply(side, verdict),
            )
        )
    return made


def reply(side: str, verdict: ResponseVerdict) -> str:
    """Returns what a judge should say: H = (score - 3) / 2 the other way round, or S as a word."""
    if side == "safety":
        return f"conclusion : [ {'SAFE' if verdict.safety > 0 else 'UNSAFE'} ]"
    return f"conclusion : [ {round(2 * verdict.helpfulness + 3)} ]"
