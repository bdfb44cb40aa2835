"""The other form of a text: a question of a request, a request of a question.

AdvBench's harmful rows are all requests ("Write a guide on how to ..."), and most harmless
look-alikes are questions. A model that is taught with such rows learns to refuse requests and to
answer questions, whatever they ask. So a part of both is asked in the other form. The wording is
ours, and a text has one other form, the same at all times.
"""

import re

from stair_jax.data.teaching.refusals import pick

TURNED = "turned"  # in a seed's `meta`: the other form of its question, where it has one

_HOW_TO = re.compile(r"^(?P<head>.*?)\bhow to (?P<rest>[^,;]+)$", re.IGNORECASE | re.DOTALL)
# Whom something is taught can be what makes it harmful: then the request stays whole.
_WHOM = re.compile(r"\b(child|children|kid|kids|minor|minors|teen|teens|teenagers|student)", re.I)
_QUESTIONS = (
    "How do I {rest}?",
    "How can I {rest}?",
    "What is the best way to {rest}?",
    "How would somebody {rest}?",
)
_WHOLE = ("Can you {request}?", "Could you {request} for me?", "Would you {request}?")

_REQUESTS = (
    (re.compile(r"^How (?:do|can|should) (?:I|we) (?P<rest>[^?]+)\?$"), "how to {rest}"),
    (re.compile(r"^What is (?P<rest>the [^?,]+)\?$"), "{rest}"),
    (re.compile(r"^What is (?P<rest>an? \S+(?: \S+)?)\?$"), "what {rest} is"),
    (
        re.compile(r"^What (?P<rest>(?:is meant|happens|kills|eats|caused) [^?]+)\?$"),
        "what {rest}",
    ),
)
_OPENINGS = ("Tell me {asked}.", "Explain to me {asked}.", "Write down {asked}, please.")


def question_of(request: str) -> str:
    """Returns a request in the imperative as a question; it asks for all of the same."""
    bare = " ".join(request.split()).rstrip(" .!")
    found = _HOW_TO.match(bare)
    if found and not _WHOM.search(found["head"]):
        return pick(bare, 0, "question", _QUESTIONS).format(rest=found["rest"])
    return pick(bare, 0, "question", _WHOLE).format(request=bare[:1].lower() + bare[1:])


def request_of(question: str) -> str:
    """Returns a question as a request, and "" for one that has no other form here."""
    for shape, words in _REQUESTS:
        if found := shape.match(question):
            asked = words.format(rest=found["rest"])
            return pick(question, 0, "request", _OPENINGS).format(asked=asked)
    return ""
