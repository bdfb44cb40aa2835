"""SimpleQA: grades in a judge's replies, and what a model's grades come to.

A is correct, B is incorrect, C is not attempted. The judge is asked for a letter alone; one of
those words in capitals is as good, and a letter may have its word beside it. A reply that says
something else is missing. The official code takes the first A, B or C anywhere, and C where there
is none. So "CORRECT" and "INCORRECT" are C to it, "As asked: B" is A, and a judge's apology is not
attempted. `official_grade` reads so, for who wants to compare with published numbers.

Source: Wei et al. 2024 (arXiv 2411.04368), openai/simple-evals simpleqa_eval.py (MIT).
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

GRADES = {"A": "CORRECT", "B": "INCORRECT", "C": "NOT_ATTEMPTED"}
_LETTER_OF = {word: letter for letter, word in GRADES.items()}

_EDGES = " \t\r\n.,:;!*_`\"'()[]"
_LETTER = re.compile(r"([ABC])(?:[\s.:,;)*_\-\]]+(NOT[ _]ATTEMPTED|INCORRECT|CORRECT))?")
_WORD = re.compile(r"\b(NOT[ _]ATTEMPTED|INCORRECT|CORRECT)\b")
_OFFICIAL = re.compile("A|B|C")


class Summary(NamedTuple):
    """Shares of the replies that could be read; None where nothing can be shared out.

    Attributes:
      graded: count of replies that could be read.
      missing: count of replies that could not.
      correct: share of grade A.
      incorrect: share of grade B.
      not_attempted: share of grade C.
      accuracy_given_attempted: A / (A + B).
      f1: harmonic mean of `correct` and `accuracy_given_attempted`; 0 where nothing is correct.
    """

    graded: int
    missing: int
    correct: float | None
    incorrect: float | None
    not_attempted: float | None
    accuracy_given_attempted: float | None
    f1: float | None


def grade(reply: str) -> str | None:
    """Returns the "A", "B" or "C" that a reply says; None where it says none, or several.

    The reply is a letter alone, with its word beside it or not; or it names one of the words in
    `GRADES` and none of the others.
    """
    if alone := _LETTER.fullmatch(reply.strip(_EDGES)):
        letter, word = alone.groups()
        return letter if word is None or _letter_of(word) == letter else None
    found = {_letter_of(word) for word in _WORD.findall(reply)}
    return found.pop() if len(found) == 1 else None


def _letter_of(word: str) -> str:
    return _LETTER_OF[word.replace(" ", "_")]


def official_grade(reply: str) -> str:
    """Returns the first "A", "B" or "C" anywhere in a reply, else "C": the official reading."""
    found = _OFFICIAL.search(reply)
    return found[0] if found else "C"


def summary(grades: Sequence[str | None]) -> Summary:
    """Returns what the grades of all answers come to; the missing ones are only counted."""
    correct, incorrect, skipped = (grades.count(letter) for letter in GRADES)
    attempted, count = correct + incorrect, correct + incorrect + skipped
    missing = len(grades) - count
    if not count:
        return Summary(0, missing, None, None, None, None, None)
    return Summary(
        graded=count,
        missing=missing,
        correct=correct / count,
        incorrect=incorrect / count,
        not_attempted=skipped / count,
        accuracy_given_attempted=correct / attempted if attempted else None,
        f1=2 * correct / (count + attempted),  # the harmonic mean of A / count and A / attempted
    )
