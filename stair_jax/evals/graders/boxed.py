r"""Answers to competition mathematics: where they are found, and whether they equal the gold ones.

An answer is what the last `\boxed{...}` holds, else what follows the last "Answer:" in its line. A
last box that is never closed was cut off: it holds no answer, and no earlier box takes its place.
Two answers are equal if their normalised texts are, or if both are the same number.

Normalisation follows the rules of MATH. These do not count: line breaks, spaces, `\!`, `\left`,
`\right`, degrees, `\$`, `\%`, units (`\text{ cm}`), a name of one or two characters before the only
"=". `\dfrac` and `\tfrac` are `\frac`; `\frac12`, `1/2` and 0.5 are `\frac{1}{2}`; `\sqrt3` is
`\sqrt{3}`; `.5` is 0.5. Ours beyond that: `$`, `\(`, `\)`, `%`, a full stop at the end and a
`\text{...}` around all of an answer do not count either; `\frac{7}2` is `\frac{7}{2}`; `\mbox` is
`\text`. Numbers are compared as fractions: 1,000 is 1000, 2.50 is 2.5, and 4/8 is 1/2.

Sources: Hendrycks et al. 2021 (arXiv 2103.03874), hendrycks/math modeling/math_equivalence.py
(MIT); the "Answer:" line of openai/simple-evals math_eval.py (MIT).
"""

import re
from fractions import Fraction
from typing import NamedTuple

_BOX = re.compile(r"\\(?:boxed|fbox)\s*")
_ANSWER_LINE = re.compile(r"(?i)answer\s*:\s*([^\n]+)")
_BARE_BOX = re.compile(r"[^$\n]+")  # what follows a box without braces

_DROPPED = re.compile(
    r"\\left(?![a-z])|\\right(?![a-z])|\^\{?\\circ\}?|\\?\$|\\[()!]|\\?%|\n", re.ASCII
)
_UNIT = re.compile(r"\\(?:text|mbox)\{ .*", re.DOTALL)
_ALL_TEXT = re.compile(r"\\(?:text|mbox)\{([^{}]*)\}")
_NAME = re.compile(r"[^=]{1,2}=([^=]+)")
_NO_ZERO = re.compile(r"(?<![^\s{])\.(?=\d)")  # a decimal point that begins a number
_BARE_ROOT = re.compile(r"\\sqrt([^{\s\\])")
_FIRST_BARE = re.compile(r"\\frac([^{}\\])")
_SECOND_BARE = re.compile(r"(\\frac\{[^{}]*\})([^{}\\])")
_SLASH = re.compile(r"(-?\d+)/(-?\d+)")

_DECIMAL = r"\d+(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d*)?|\.\d+"
_NUMBER = re.compile(rf"([-+]?)({_DECIMAL})")
_FRACTION = re.compile(rf"([-+]?)\\frac\{{([-+]?)({_DECIMAL})\}}\{{([-+]?)({_DECIMAL})\}}")


class Answer(NamedTuple):
    """An answer's text, and where it stood: "boxed", "answer line", or "none" for None."""

    text: str | None
    path: str


class Verdict(NamedTuple):
    """Whether a response is right.

    Attributes:
      right: None where the response has no answer.
      path: where its answer stood, as in `Answer`.
      match: "exact" or "number", how the answers are equal; "none" where they are not.
    """

    right: bool | None
    path: str
    match: str


def grade(response: str, gold: str) -> Verdict:
    """Returns whether a response's answer equals the gold one, and what says so."""
    answer = answer_of(response)
    if answer.text is None:
        return Verdict(None, answer.path, "none")
    match = match_of(answer.text, gold)
    return Verdict(match != "none", answer.path, match)


def answer_of(response: str) -> Answer:
    """Returns the answer of the last box, else of the last "Answer:" line."""
    if (boxed := last_boxed(response)) is not None:
        return Answer(boxed, "boxed")
    lines = _ANSWER_LINE.findall(response)
    return Answer(lines[-1].strip(), "answer line") if lines else Answer(None, "none")


def last_boxed(text: str) -> str | None:
    r"""Returns what the last `\boxed` or `\fbox` holds; None without one, or if it is not closed.

    A box without braces (`\boxed 5`) holds what follows, up to a dollar sign or a line's end.
    """
    boxes = list(_BOX.finditer(text))
    if not boxes:
        return None
    start = boxes[-1].end()
    if text[start : start + 1] != "{":
        bare = _BARE_BOX.match(text, start)
        return bare[0].strip() if bare else None
    depth = 0
    for end in range(start, len(text)):
        depth += (text[end] == "{") - (text[end] == "}")
        if depth == 0:
            return text[start + 1 : end]
    return None


def match_of(answer: str, gold: str) -> str:
    """Returns "exact" or "number", how an answer equals the gold one, or "none"."""
    mine, theirs = normalised(answer), normalised(gold)
    if mine == theirs:
        return "exact"
    number = number_of(mine)
    return "number" if number is not None and number == number_of(theirs) else "none"


def normalised(answer: str) -> str:
    """Returns an answer in the form that is compared; see the module."""
    text = _DROPPED.sub("", answer.replace("\\\\", "\\")).strip().rstrip(".")
    text = text.replace("dfrac", "frac").replace("tfrac", "frac")
    text = _UNIT.sub("", text).strip()
    if whole := _ALL_TEXT.fullmatch(text):
        text = whole[1]
    text = _NO_ZERO.sub("0.", text)
    if named := _NAME.fullmatch(text):
        text = named[1]
    text = _BARE_ROOT.sub(r"\\sqrt{\1}", text)
    text = re.sub(r"\s", "", text)
    text = _SECOND_BARE.sub(r"\1{\2}", _FIRST_BARE.sub(r"\\frac{\1}", text))
    if text == "0.5":
        return r"\frac{1}{2}"
    return _SLASH.sub(r"\\frac{\1}{\2}", text) if _SLASH.fullmatch(text) else text


def number_of(answer: str) -> Fraction | None:
    """Returns the number that a normalised answer is: whole, decimal or a fraction of such.

    None where it is something else, and for a fraction over zero.
    """
    if whole := _NUMBER.fullmatch(answer):
        return _signed(*whole.groups())
    if parts := _FRACTION.fullmatch(answer):
        sign, *above_and_below = parts.groups()
        above, below = _signed(*above_and_below[:2]), _signed(*above_and_below[2:])
        return (-above if sign == "-" else above) / below if below else None
    return None


def _signed(sign: str, digits: str) -> Fraction:
    value = Fraction(digits.replace(",", "").rstrip("."))
    return -value if sign == "-" else value
