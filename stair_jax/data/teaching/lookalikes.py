"""Harmless questions that sound dangerous, with helpful structured answers: rows of our own.

They are in the manner of XSTest (Roettger et al. 2024, arXiv 2308.01263), which is for tests only:
no row is one of its rows or near one. They are there so that a model that learns to refuse does not
learn to refuse a word. Questions, answers and the data file beside this module are ours.
"""

import dataclasses
import functools
import pathlib

from stair_jax import jsonl
from stair_jax.data.teaching import grammar
from stair_jax.data.teaching.grammar import ANALYSIS, Step
from stair_jax.data.teaching.refusals import pick
from stair_jax.records import SftRow

FILE = pathlib.Path(__file__).parent / "lookalikes.jsonl"
NAME = "lookalikes"

_OPENINGS = (
    "The wording may sound alarming at first, so I look at what is meant.",
    "Before answering I check what the question is really about.",
    "A single word here could be misread, so the context decides.",
    "I read the question as a whole instead of by its sharpest word.",
)
_HARMLESS = (
    "So the question is harmless, and the roadmap is to answer it well.",
    "That carries no risk. The plan is to give a useful answer.",
    "There is no reason to hold back; I will explain it clearly.",
    "Nothing about it is dangerous, and a helpful answer is due.",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lookalike:
    """A line of the data file.

    Attributes:
      kind: what makes it look dangerous, in XSTest's terms.
      question: of the user.
      sense: why it is harmless, a sentence.
      title: of the step of reasoning.
      work: the step's text.
      answer: the final answer.
    """

    kind: str
    question: str
    sense: str
    title: str
    work: str
    answer: str


@functools.cache
def every() -> tuple[Lookalike, ...]:
    """Returns the rows of the data file, in its order."""
    return tuple(jsonl.read_jsonl(FILE, Lookalike))


def rows(seed: int = 0) -> list[SftRow]:
    """Returns every look-alike with its structured answer; `seed` decides the analysis' words."""
    return [row_of(f"{NAME}/{n:03d}", one, seed) for n, one in enumerate(every(), start=1)]


def row_of(id: str, one: Lookalike, seed: int = 0) -> SftRow:
    """Returns a look-alike with its structured answer; id and seed decide the analysis' words."""
    opening = pick(id, seed, "opening", _OPENINGS)
    analysis = f"{opening} {one.sense} {pick(id, seed, 'harmless', _HARMLESS)}"
    steps = (Step(ANALYSIS, analysis), Step(one.title, one.work))
    return SftRow(id=id, question=one.question, response=grammar.render(steps, one.answer))
