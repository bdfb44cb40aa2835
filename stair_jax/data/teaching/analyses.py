"""Structured refusals of harmful requests: an analysis that names request and harm, then a no.

Half of the rows have a step between, which weighs the request again before it is refused.
"""

from stair_jax.data.teaching import grammar, harms
from stair_jax.data.teaching.grammar import ANALYSIS, Step
from stair_jax.data.teaching.refusals import draws, pick, refusal
from stair_jax.records import SftRow
from stair_jax.text import TAGS, escape

LONGEST = 240  # characters of a request that are named; a longer one is cut between words

_ASKED = (
    'The user asks for this: "{request}".',
    'What is wanted here: "{request}".',
    'The request reads: "{request}".',
    'I am asked to do the following: "{request}".',
)
_FRAMED = (
    "It comes wrapped in a {family} framing, which does not change what is asked for.",
    "Around it is a {family} framing; what counts is the request inside it.",
    "The {family} framing is only packaging, so I look at what it carries.",
)
_ROADMAPS = (
    "The roadmap is to keep this harm from happening and to refuse.",
    "So the plan is to turn the request down, briefly and without details.",
    "The right course is a clear refusal that gives nothing away.",
    "There is a real risk here, and the next thing to do is to decline.",
)
_STEPS = (
    (
        "Weighing the request",
        "No wording or purpose around it makes the outcome safe. Even a part of an answer would"
        " help with the harmful aim, so I give none.",
    ),
    (
        "Who could be hurt",
        "I think of those at the other end of this. They have not agreed to it and cannot defend"
        " themselves against an answer of mine, so they come first.",
    ),
    (
        "Deciding on the answer",
        "Being helpful does not extend to this. A short refusal is the honest reply, with no steps,"
        " hints or substitutes.",
    ),
    (
        "Checking for a safe part",
        "I look for a part that could be answered without risk. Here everything serves the same"
        " end, so all of it is declined.",
    ),
)
_BLOODLESS_STEPS = tuple(step for step in _STEPS if step[0] != "Who could be hurt")


def refusal_row(
    id: str,
    request: str,
    *,
    question: str = "",
    category: str = "",
    framing: str = "",
    seed: int = 0,
) -> SftRow:
    """Returns a harmful request with a structured refusal.

    Args:
      id: of the row; with `seed` it decides all wording.
      request: what is asked for at heart; the analysis names it.
      question: the whole user turn where it is more than the request (a framing, a context).
      category: as `harms.kind_of`.
      framing: the family of the framing around the request, which the analysis names; "": none.
      seed: another one gives other words.

    Raises:
      ValueError: for a blank request, naming the row, or an unknown category.
    """
    if not request.strip():
        raise ValueError(f"row {id!r}: found a blank request, expected a text")
    kind = harms.kind_of(request, category)
    parts = [pick(id, seed, "asked", _ASKED).replace("{request}", _named(request))]
    if framing:
        parts.append(pick(id, seed, "framed", _FRAMED).format(family=framing.replace("_", " ")))
    parts.append(pick(id, seed, "reason", harms.REASONS[kind]))
    parts.append(pick(id, seed, "roadmap", _ROADMAPS))
    steps = [Step(ANALYSIS, " ".join(parts))]
    draw = draws(id, seed, "step")
    hurts = kind not in harms.BLOODLESS
    if draw.random() < 0.5:
        steps.append(Step(*draw.choice(_STEPS if hurts else _BLOODLESS_STEPS)))
    response = grammar.render(steps, refusal(id, seed, hurts=hurts))
    return SftRow(id=id, question=question or request, response=response)


def _named(request: str) -> str:
    """Returns a request as the analysis names it: one line, no tags, no quotes of its own."""
    line = escape(" ".join(request.split()), TAGS).replace('"', "'").rstrip(" .")
    if len(line) <= LONGEST:
        return line
    return line[: LONGEST + 1].rsplit(" ", 1)[0] + " ..."
