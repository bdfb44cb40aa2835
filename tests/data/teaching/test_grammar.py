"""The grammar of structured responses: what is taken, what is written, and every fault."""

import json
import pathlib

import pytest

from stair_jax.data.teaching import grammar
from stair_jax.data.teaching.grammar import Fault, Step, Structured
from stair_jax.text import OUTPUT, OUTPUT_END, STEP, STEP_END, final_answer, tags_close

DATA = pathlib.Path(__file__).parents[4] / "shared" / "data" / "stair"
recorded = pytest.mark.skipif(not DATA.is_dir(), reason=f"{DATA} is not there")

A = f"{STEP}\nTitle: Problem Analysis:\nAsked: why.\n{STEP_END}"
B = f"{STEP}\nTitle: Look up:\nIt is known.\n{STEP_END}"
O = f"{OUTPUT}\nFinal Answer:\nBecause.\n{OUTPUT_END}"
PARTS = Structured(
    (Step("Problem Analysis", "Asked: why."), Step("Look up", "It is known.")), "Because."
)

SAME = {
    "as written": f"{A}\n\n{B}\n\n{O}",
    "no blank lines": f"{A}{B}{O}",
    "white space": f"  \n{A} \n\n\n {B}\t{O}\n\n",
    "ends of sequence": f"{A}{B}{O}<|eot_id|> <|end_of_text|>\n",
    "tag and title on a line": f"{STEP} Title: Problem Analysis: Asked: why. {STEP_END}"
    f" {STEP} Title: Look up: It is known. {STEP_END} {OUTPUT}Final Answer: Because.{OUTPUT_END}",
    "no colon behind a title": f"{STEP}\nTitle: Problem Analysis\nAsked: why.{STEP_END}"
    f"{STEP}Title: Look up\n\nIt is known.\n{STEP_END}{O}",
    "bold": f"{STEP}\n**Title: Problem Analysis:**\nAsked: why.\n{STEP_END}"
    f"{STEP}\n## Title: **Look up**:\nIt is known.{STEP_END}"
    f"{OUTPUT}**Final Answer:**\nBecause.{OUTPUT_END}",
    "lower case": f"{STEP}title: problem analysis:\nAsked: why.{STEP_END}{B}{OUTPUT}final answer:"
    f" Because.{OUTPUT_END}",
    "no label before the answer": f"{A}{B}{OUTPUT} Because. {OUTPUT_END}",
}


def parsed(reply):
    """The parts of a reply that has no fault."""
    found = grammar.parse(reply)
    assert isinstance(found, Structured)
    return found


@pytest.mark.parametrize("how", SAME)
def test_white_space_and_marks_do_not_count(how):
    assert grammar.parse(SAME[how]) == PARTS


def test_a_response_is_written_in_one_form():
    assert PARTS.text == SAME["as written"]
    assert len(set(SAME.values())) == len(SAME)
    assert {parsed(text).text for text in SAME.values()} == {SAME["as written"]}
    assert final_answer(PARTS.text) == "Because."
    assert tags_close(PARTS.text)


def test_a_title_may_hold_a_colon_and_a_text_many_lines():
    step = Step("Step 2: weigh it", "one:\n\ntwo\nTitle: no title")
    parts = Structured((PARTS.steps[0], step), "a\n\nb: c")
    assert grammar.parse(parts.text) == parts


BAD = {
    "no tags": ("Because.", Fault.TAGS),
    "empty": ("", Fault.TAGS),
    "a step that is not closed": (f"{A}{STEP}Title: x:\ny{O}", Fault.TAGS),
    "an output that is not closed": (f"{A}{OUTPUT}Final Answer: x", Fault.TAGS),
    "a tag closed by another": (f"{A}{OUTPUT}Final Answer: x{STEP_END}", Fault.TAGS),
    "an end first": (f"{STEP_END}{A}{O}", Fault.TAGS),
    "a tag inside a step": (
        f"{STEP}Title: Problem Analysis:\nuse {STEP} here{STEP_END}{O}",
        Fault.TAGS,
    ),
    "a text before": (f"Sure:\n{A}{O}", Fault.OUTSIDE),
    "a text between": (f"{A}and now{O}", Fault.OUTSIDE),
    "a text behind": (f"{A}{O}Hope this helps!", Fault.OUTSIDE),
    "no output": (f"{A}{B}", Fault.OUTPUT),
    "two outputs": (f"{A}{O}{O}", Fault.OUTPUT),
    "an output before a step": (f"{A}{O}{B}", Fault.OUTPUT),
    "a control token in a text": (f"{A}{OUTPUT}a <|im_start|> b{OUTPUT_END}", Fault.INSIDE),
    "a control token in a title": (f"{A}{STEP}Title: <|x|>:\na{STEP_END}{O}", Fault.INSIDE),
    "no title": (f"{A}{STEP}It is known.{STEP_END}{O}", Fault.TITLE),
    "a blank title": (f"{A}{STEP}Title: :\nIt is known.{STEP_END}{O}", Fault.TITLE),
    "another step first": (f"{B}{A}{O}", Fault.ANALYSIS),
    "no step": (O, Fault.ANALYSIS),
    "nearly the analysis": (
        f"{STEP}Title: Problem Analysis of it:\nx{STEP_END}{O}",
        Fault.ANALYSIS,
    ),
    "an empty step": (f"{A}{STEP} {STEP_END}{O}", Fault.STEP),
    "a step that is a title": (f"{A}{STEP}Title: Look up:\n{STEP_END}{O}", Fault.STEP),
    "an empty analysis": (f"{STEP}Title: Problem Analysis:{STEP_END}{O}", Fault.STEP),
    "an empty answer": (f"{A}{OUTPUT}Final Answer:\n{OUTPUT_END}", Fault.ANSWER),
    "a blank answer": (f"{A}{OUTPUT}\n{OUTPUT_END}", Fault.ANSWER),
}


@pytest.mark.parametrize("what", BAD)
def test_a_fault_is_named(what):
    reply, fault = BAD[what]
    assert grammar.parse(reply) is fault


def test_every_fault_has_a_reply_that_shows_it():
    assert {fault for _, fault in BAD.values()} == set(Fault)


def test_a_long_first_line_is_a_title_and_a_text():
    long = "x" * 100
    found = parsed(f"{A}{STEP}Title: Look: {long}\nmore{STEP_END}{O}")
    assert found.steps[1] == Step("Look", f"{long}\nmore")
    short = "x" * 20
    found = parsed(f"{A}{STEP}Title: Look: {short}\nmore{STEP_END}{O}")
    assert found.steps[1] == Step(f"Look: {short}", "more")


@recorded
def test_the_published_example_comes_out_as_it_went_in():
    [row] = json.loads((DATA / "stair_sft_readme_example.json").read_text())
    found = parsed(row["answer"])
    assert [step.title for step in found.steps] == [
        "Problem Analysis",
        "Ethical and Legal Implications Analysis",
    ]
    assert found.text == row["answer"]
