"""Refusals in words of our own, and how a refusal of an ordinary question is told.

A refusal is one sentence: an apology, a no, and nothing that guides anybody anywhere, as the
chosen responses of the paper's data are (arXiv 2502.02384, appendix A.1). Parts are drawn by seed
and id, so that the same row always gets the same words and a data set has many.

Every sentence is a refusal to each published rule: it holds "sorry", begins as XSTest's list has
it, and holds a keyword of GCG's and a phrase of JailbreakBench's list. A test goes through all.
"""

import hashlib
import itertools
import random
import re
from collections.abc import Iterator, Sequence
from typing import TypeVar

Part = TypeVar("Part")

# Openings that carry the apology, and what may follow them.
_APOLOGIES = (
    "I'm sorry, but",
    "Sorry, but",
    "I'm sorry:",
    "Sorry,",
    "I'm sorry, no:",
    "No, I'm sorry,",
)
_NOES = (
    "I can't help with {this}",
    "I cannot help with {this}",
    "I won't take part in {this}",
    "I have to decline {this}",
    "{this} is not something I will do",
    "I am not going to help with {this}",
    "I must leave {this} alone",
    "my answer to {this} is no",
)
_ENDINGS = (
    "",
    " because it could hurt people",
    " since the harm would be real",
    ", as people could come to harm",
)
# Sentences that say no first.
_LATE = (
    "I cannot assist with {this}, and I'm sorry",
    "I can't assist with {this}, I'm sorry",
    "I cannot provide help with {this}, and I'm sorry for the short answer",
    "I'm not able to provide this, and I'm sorry: {this} is where I stop",
)
_THIS = ("this", "that", "this request", "what you ask", "a request like this")

# How answers begin that turn a question down, in the words of many models. Ours.
_APOLOGY = (
    r"(?:i(?:['\u2019]m| am)(?: very| so| truly| really)? sorry|sorry|my apologies|i apologi[sz]e)"
)
_SYMPATHY = r"(?! to hear| for (?:your|the)| (?:that|about|you)\b)"  # which turns nothing down
_NOT = r"(?:can ?not|can['\u2019]t|won['\u2019]t|will not"
_NOT += r"|(?:am|['\u2019]m) (?:not able|unable|not going) to)"
_DO = r"(?:assist|provide|comply|fulfill?|answer|do that|support|create|write|share|engage|generate"
_DO += r"|produce|respond|take part|help(?! but))"
_DECLINE = r"(?:must|have to|will) (?:decline|refuse)"
_REFUSES = re.compile(
    rf"\W*(?:(?:no\W+)?{_APOLOGY}{_SYMPATHY}\W"
    rf"|(?:(?:no|unfortunately|i regret that|as an ai[^,.]*)\W+)?"
    rf"I ?(?:{_NOT}(?: \w+)? {_DO}|{_DECLINE})\b)",
    re.IGNORECASE,
)


def every() -> Iterator[str]:
    """Yields every refusal that can be drawn."""
    for this in _THIS:
        for apology, no, ending in itertools.product(_APOLOGIES, _NOES, _ENDINGS):
            yield _sentence(f"{apology} {no}{ending}", this)
        for late in _LATE:
            yield _sentence(late, this)


def refusal(id: str, seed: int = 0, *, hurts: bool = True) -> str:
    """Returns the refusal of a row: one sentence.

    Args:
      id: of the row.
      seed: another one gives other words.
      hurts: whether it may say that people could come to harm.
    """
    draw = draws(id, seed, "refusal")
    this = draw.choice(_THIS)
    if draw.random() < 0.2:
        return _sentence(draw.choice(_LATE), this)
    apology, no, ending = map(draw.choice, (_APOLOGIES, _NOES, _ENDINGS))
    return _sentence(f"{apology} {no}{ending if hurts else ''}", this)


def _sentence(words: str, this: str) -> str:
    return words.replace("{this}", this) + "."


def is_refusal(answer: str) -> bool:
    """Returns whether an answer to an ordinary question turns it down instead.

    It does if it begins with an apology, or says within its first words that it cannot or will not
    do what was asked. A rule of ours, for filters; benchmarks have those of `evals`.
    """
    return bool(_REFUSES.match(answer))


def draws(id: str, seed: int, what: str) -> random.Random:
    """Returns the random draws of one part of a row, the same on every machine."""
    text = f"{seed}\x1f{id}\x1f{what}"
    return random.Random(hashlib.blake2b(text.encode(), digest_size=8).hexdigest())


def pick(id: str, seed: int, what: str, of: Sequence[Part]) -> Part:
    """Returns one of several parts, drawn by the row's id and the seed."""
    return draws(id, seed, what).choice(of)
