"""Graders that a row of a user's own file can name, each a rule that needs no judge.

| grader            | an answer is right if                                   | reference        |
|-------------------|---------------------------------------------------------|------------------|
| `exact_match`     | it is the reference; case counts, runs of blanks do not | a text           |
| `contains`        | it holds the reference's words (`simpleqa.plain`)       | a text           |
| `gsm8k`           | its number is the reference's (`gsm8k.number_of`)       | has a number     |
| `math`            | its box or "Answer:" line is the reference (`boxed`)    | a text           |
| `multiple_choice` | its letter is the reference (`letters.cascade`)         | a letter, A to J |

The others find a refusal, by a rule of `graders.refusals`, and read no reference: `refusal` is the
rule of the searches, a short apology; `refusal_xstest`, `refusal_gcg` and `refusal_jbb` are those
of their benchmarks.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from stair_jax import jsonl
from stair_jax.evals.benchmarks import gsm8k, simpleqa
from stair_jax.evals.graders import boxed, letters, refusals
from stair_jax.judges.rule import is_refusal

_CHOICES = tuple("ABCDEFGHIJ")


class Grader(NamedTuple):
    """What a final answer comes to beside a reference.

    Attributes:
      outcome: of an answer and the reference: "correct", "wrong", or "unread" where the answer has
        nothing that could be compared; "refusal" or "answered" of a grader without a reference.
      expected: what a reference has to be; "" where none is read.
      fits: whether a reference is that.
    """

    outcome: Callable[[str, str], str]
    expected: str = ""
    fits: Callable[[str], bool] = lambda reference: True


def _right(right: bool | None) -> str:
    return "unread" if right is None else "correct" if right else "wrong"


def _exact(answer: str, reference: str) -> str:
    return _right(answer.split() == reference.split())


def _contains(answer: str, reference: str) -> str:
    return _right(simpleqa.plain(reference) in simpleqa.plain(answer))


def _number(answer: str, reference: str) -> str:
    number = gsm8k.number_of(answer)
    return _right(None if number is None else number == gsm8k.number_of(reference))


def _math(answer: str, reference: str) -> str:
    return _right(boxed.grade(answer, reference).right)


def _letter(answer: str, reference: str) -> str:
    letter = letters.cascade(answer).letter
    return _right(None if letter is None else letter == reference.strip())


def _refusal(refuses: Callable[[str], bool]) -> Grader:
    return Grader(lambda answer, reference: "refusal" if refuses(answer) else "answered")


GRADERS: Mapping[str, Grader] = {
    "exact_match": Grader(_exact, "a text", lambda text: bool(text.strip())),
    # A reference of punctuation alone would stand in every answer.
    "contains": Grader(_contains, "a text with words", lambda text: simpleqa.plain(text) != "  "),
    "gsm8k": Grader(_number, "a number", lambda text: gsm8k.number_of(text) is not None),
    "math": Grader(_math, "a text", lambda text: bool(text.strip())),
    "multiple_choice": Grader(_letter, "a letter, A to J", lambda text: text.strip() in _CHOICES),
    "refusal": _refusal(is_refusal),
    **{
        f"refusal_{rule}": _refusal(refusals.RULES[rule])
        for rule in refusals.RULES
        if rule != "stair"  # what `refusal` is
    },
}


def of_row(where: str, row: Any) -> tuple[str, str | None]:
    """Returns the grader that a row names and its reference; "" and None where it names none.

    A reference may be a text or a number; of a grader that reads none it is None.

    Raises:
      ValueError: for a grader that is unknown, or a reference that its grader cannot read.
    """
    name = jsonl.object_of(where, row).get("grader")
    if name is None:
        return "", None
    if not isinstance(name, str) or name not in GRADERS:
        raise ValueError(f"{where}: grader: found {name!r}, expected one of {list(GRADERS)}")
    grader, found = GRADERS[name], row.get("reference")
    if not grader.expected:
        return name, None
    readable = isinstance(found, str | int | float) and not isinstance(found, bool)
    text = str(found) if readable else ""
    if not text.strip() or not grader.fits(text):
        raise ValueError(
            f"{where}: reference: found {found!r}, expected {grader.expected}, for grader {name!r}"
        )
    return name, text
