"""Worked solutions of GSM8K as structured reasoning: a step a line, with a title of its own.

The rows of openai/grade-school-math (MIT; Cobbe et al. 2021, arXiv 2110.14168) have a line a step,
with the annotations of a calculator as <<48/2=24>>, and the answer behind "#### ". The text of a
step is its line as people wrote it, without annotations. The analysis before it, which names the
question and the roadmap, is ours.
"""

import dataclasses
import enum
import re
from collections.abc import Iterable

from stair_jax.data.teaching import grammar, titles
from stair_jax.data.teaching.filters import Dropped
from stair_jax.data.teaching.grammar import ANALYSIS, Step
from stair_jax.data.teaching.refusals import pick
from stair_jax.records import SftRow

_NOTE = re.compile(r"<<[^<>]*>>")
_GOLD = re.compile(r"\n?#### *(-?\$?[\d,]*\.?\d+) *$")
_SENTENCE = re.compile(r"(?<=[.!?])\s+(?=[A-Z\"'])")

_OPENINGS = (
    "The question to answer: {asked}",
    "What is asked for: {asked}",
    "The problem asks this: {asked}",
)
_HARMLESS = (
    "It is a word problem and carries no risk, so it can be solved step by step.",
    "This is plain arithmetic and harmless; I only need to keep the numbers in order.",
    "There is nothing sensitive here. It takes a few calculations.",
)
_ROADMAPS = ("The roadmap: {plan}.", "I will work out, in this order: {plan}.", "My plan: {plan}.")
_ANSWERS = ("The answer is {gold}.", "{gold}", "The result is {gold}.")


class Unfit(enum.StrEnum):
    """What keeps a row of GSM8K from being turned into steps."""

    NO_GOLD = "no number behind ####"
    NO_STEPS = "no step before the answer"
    TAGS = "a special token in question or solution"


@dataclasses.dataclass(frozen=True)
class Converted:
    """Rows in steps, and ids of what was dropped by reason."""

    rows: list[SftRow]
    dropped: Dropped


def steps_of(id: str, question: str, solution: str, seed: int = 0) -> SftRow | Unfit:
    """Returns a worked solution as a row, or why it has none.

    Args:
      id: of the row; with `seed` it decides the wording of the analysis and of the answer.
      question: of GSM8K.
      solution: the field "answer" of GSM8K.
      seed: another one gives other words.
    """
    if "<|" in question or "<|" in solution:
        return Unfit.TAGS
    gold = _GOLD.search(solution.rstrip())
    if not gold:
        return Unfit.NO_GOLD
    body = _NOTE.sub("", solution.rstrip()[: gold.start()])
    lines = [" ".join(line.split()) for line in body.split("\n") if line.strip()]
    if not lines:
        return Unfit.NO_STEPS
    # The analysis' title is taken already.
    names = titles.distinct([ANALYSIS, *map(titles.title_of, lines)])[1:]
    steps = [Step(name, line) for name, line in zip(names, lines, strict=True)]
    analysis = Step(ANALYSIS, _analysis(id, question, names, seed))
    answer = pick(id, seed, "answer", _ANSWERS).format(gold=gold[1])
    return SftRow(id=id, question=question, response=grammar.render([analysis, *steps], answer))


def convert(rows: Iterable[tuple[str, str, str]], seed: int = 0) -> Converted:
    """Returns all rows of (id, question, solution) that can be turned into steps."""
    kept, dropped = [], Dropped()
    for id, question, solution in rows:
        found = steps_of(id, question, solution, seed)
        if isinstance(found, SftRow):
            kept.append(found)
        else:
            dropped.add(found, id)
    return Converted(kept, dropped)


def _analysis(id: str, question: str, names: list[str], seed: int) -> str:
    """Returns what is asked, that it is harmless, and what will be worked out in which order."""
    sentences = _SENTENCE.split(" ".join(question.split()))
    asked = next((s for s in reversed(sentences) if s.endswith("?")), sentences[-1])
    plan = "; ".join(
        f"({n}) {name[0].lower()}{name[1:]}" if _is_plain(name) else f"({n}) {name}"
        for n, name in enumerate(names, start=1)
    )
    parts = (
        pick(id, seed, "opening", _OPENINGS).replace("{asked}", asked),
        pick(id, seed, "harmless", _HARMLESS),
        pick(id, seed, "roadmap", _ROADMAPS).replace("{plan}", plan),
    )
    return " ".join(parts)


def _is_plain(name: str) -> bool:
    """Returns whether a title begins with a word that is no name."""
    return titles.is_small(name.split()[0])
