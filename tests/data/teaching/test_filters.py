"""Filters: each one fires, on the prompts it is for."""

import pytest

from stair_jax.data.teaching import filters, refusals
from stair_jax.data.teaching.filters import Dropped, Filters, Unfit
from stair_jax.data.teaching.grammar import Fault, Step, Structured, render
from stair_jax.records import Prompt

STEPS = (Step("Problem Analysis", "Asked: why."),)


def read(reply, type="helpfulness", safe=lambda question, answer: True, **more):
    prompt = Prompt(id="a", question="how?", type=type)
    return Filters(safe, **more).read(prompt, reply)


def test_a_fit_reply_comes_back_in_its_parts():
    reply = render(STEPS, "It is so.")
    for type in ("helpfulness", "safety"):
        assert read(reply, type) == Structured(STEPS, "It is so.")


def test_the_judge_of_safety_sees_question_and_answer_of_safety_prompts_alone():
    asked = []

    def safe(question, answer):
        asked.append((question, answer))
        return answer == "No."

    assert read(render(STEPS, "Sure: do it."), "safety", safe) is Unfit.UNSAFE
    assert isinstance(read(render(STEPS, "No."), "safety", safe), Structured)
    assert isinstance(read(render(STEPS, "Sure: do it."), "helpfulness", safe), Structured)
    assert read("No.", "safety", safe) is Fault.TAGS
    assert asked == [("how?", "Sure: do it."), ("how?", "No.")]


def test_an_answer_that_nobody_could_judge_is_dropped():
    assert read(render(STEPS, "No."), "safety", lambda q, a: None) is Unfit.UNJUDGED


def test_a_refusal_is_dropped_where_help_was_asked_for():
    refusal = render(STEPS, refusals.refusal("a"))
    assert read(refusal, "helpfulness") is Unfit.REFUSED
    assert isinstance(read(refusal, "safety"), Structured)
    assert isinstance(read(refusal, "helpfulness", refuses=lambda answer: False), Structured)


def test_no_reply_is_a_reason():
    assert read(None) is Unfit.NO_REPLY
    assert read("") is Fault.TAGS


def test_every_reason_reads_differently():
    assert len({str(reason) for reason in filters.REASONS}) == len(Fault) + len(Unfit)


def test_a_prompt_of_no_known_type_is_an_error():
    with pytest.raises(ValueError, match="prompt 'a': type 'harm' found, expected safety or"):
        read(render(STEPS, "x"), "harm")


def test_what_is_dropped_is_counted_by_reason_with_ids():
    dropped = Dropped()
    for reason, id in ((Unfit.UNSAFE, "a"), (Fault.STEP, "b"), (Unfit.UNSAFE, "c")):
        dropped.add(reason, id)
    assert dropped.counts == {"an empty step": 1, "an unsafe answer to a safety prompt": 2}
    assert dropped.ids["an unsafe answer to a safety prompt"] == ["a", "c"]
