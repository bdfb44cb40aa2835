"""The grammar of structured reasoning: steps with titles, then one block with the final answer.

A response reads, with a blank line between blocks:

    <|Reasoning_step|>
    Title: Problem Analysis:
    (text)
    <|/Reasoning_step|>

    <|Output|>
    Final Answer:
    (text)
    <|/Output|>

Source: STAIR (arXiv 2502.02384) appendix A.2, and the example in the README of thu-ml/STAIR (MIT).
`parse` takes other white space as well: published responses put tag and title on one line.
"""

import dataclasses
import enum
import re
from collections.abc import Sequence

from stair_jax.text import OUTPUT, OUTPUT_END, STEP, STEP_END, TAGS

ANALYSIS = "Problem Analysis"
LONGEST_TITLE = 100  # characters; what is longer is a title and a text on one line

_TAG = re.compile("(" + "|".join(map(re.escape, TAGS)) + ")")
_CLOSES = {STEP: STEP_END, OUTPUT: OUTPUT_END}
_ENDS = re.compile(r"(?:\s*<\|(?:eot_id|end_of_text|im_end|endoftext)\|>)+\s*\Z")
_CONTROL = re.compile(r"<\|[^\s|<>]{1,40}\|>")
_TITLE = re.compile(r"[\s*#]*title\s*:[\s*]*", re.IGNORECASE)
_FINAL = re.compile(r"[\s*#]*final answer\s*:[\s*]*", re.IGNORECASE)
_ANALYSIS = re.compile(rf"({ANALYSIS})(?:\s*[:*]+|\s*\Z)", re.IGNORECASE)


class Fault(enum.StrEnum):
    """What keeps a reply from being a structured response."""

    TAGS = "tags out of order or not closed"
    OUTSIDE = "text outside the blocks"
    OUTPUT = "no single output block at the end"
    INSIDE = "a special token inside a text"
    TITLE = "a step without a title"
    ANALYSIS = "the first step is no problem analysis"
    STEP = "an empty step"
    ANSWER = "an empty final answer"


@dataclasses.dataclass(frozen=True)
class Step:
    """One step of reasoning; neither part has a tag, and the title has no colon at its end."""

    title: str
    text: str


@dataclasses.dataclass(frozen=True)
class Structured:
    """A response in its parts."""

    steps: tuple[Step, ...]
    answer: str

    @property
    def text(self) -> str:
        """The response as it is trained: the form of the module's docstring."""
        return render(self.steps, self.answer)


def render(steps: Sequence[Step], answer: str) -> str:
    """Returns steps and a final answer as a response."""
    blocks = [f"{STEP}\nTitle: {step.title}:\n{step.text}\n{STEP_END}" for step in steps]
    return "\n\n".join([*blocks, f"{OUTPUT}\nFinal Answer:\n{answer}\n{OUTPUT_END}"])


def parse(reply: str) -> Structured | Fault:
    """Returns a reply's parts, or the first thing that is wrong with it.

    White space around tags, titles and texts does not count, nor do ends of sequence behind the
    last block, nor asterisks and number signs around "Title:" and "Final Answer:".
    """
    blocks = _blocks(_ENDS.sub("", reply).strip())
    if isinstance(blocks, Fault):
        return blocks
    *before, (last, answer) = blocks
    if last != OUTPUT or any(tag == OUTPUT for tag, _ in before):
        return Fault.OUTPUT
    if any(_CONTROL.search(text) for _, text in blocks):
        return Fault.INSIDE
    steps = [_step(text) for _, text in before]
    for step in steps:
        if isinstance(step, Fault):
            return step
    found = tuple(step for step in steps if isinstance(step, Step))
    if not found or found[0].title.lower() != ANALYSIS.lower():
        return Fault.ANALYSIS
    answer = _without(_FINAL, answer)
    if not answer:
        return Fault.ANSWER
    return Structured((Step(ANALYSIS, found[0].text), *found[1:]), answer)


def _blocks(reply: str) -> list[tuple[str, str]] | Fault:
    """Returns (opening tag, text) of each block; at least one."""
    blocks, pieces = [], _TAG.split(reply)
    outside = pieces[0].strip()
    for at in range(1, len(pieces), 4):
        group = pieces[at : at + 4]
        if len(group) < 4 or _CLOSES.get(group[0]) != group[2]:
            return Fault.TAGS
        blocks.append((group[0], group[1].strip()))
        outside += group[3].strip()
    if not blocks:
        return Fault.TAGS
    return Fault.OUTSIDE if outside else blocks


def _step(block: str) -> Step | Fault:
    if not block:
        return Fault.STEP
    titled = _TITLE.match(block)
    if not titled:
        return Fault.TITLE
    title, text = _parted(block[titled.end() :])
    title = title.strip().strip("*#").strip().rstrip(":").strip().strip("*").strip()
    if not title:
        return Fault.TITLE
    return Step(title, text) if (text := text.strip()) else Fault.STEP


def _parted(block: str) -> tuple[str, str]:
    """Returns title and text, which may share a line."""
    first, _, rest = block.partition("\n")
    analysis = _ANALYSIS.match(first)
    if analysis:
        return analysis[1], first[analysis.end() :] + "\n" + rest
    if rest.strip() and len(first) <= LONGEST_TITLE:
        return first, rest
    title, _, text = first.partition(":")
    return title, text + "\n" + rest


def _without(label: re.Pattern[str], text: str) -> str:
    found = label.match(text)
    return text[found.end() :].strip() if found else text.strip()
