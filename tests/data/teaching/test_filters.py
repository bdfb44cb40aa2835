"""Filters: each one fires, on the prompts it is for."""

import pytest

from stair_jax.data.teaching import filters, refusals
from stair_jax.data.teaching.filters import Dropped, Filters, Unfit
from stair_jax.data.teaching.grammar import Fault, Step, Structured, render
from stair_jax.records import Prompt
from stair_jax.remote.open import OPEN

STEPS = (Step("Problem Analysis", "Asked: why."),)


def read(reply, type="helpfulness", safe=lambda some: [True] * len(some), **more):
    prompt = Prompt(id="a", question="how?", type=type)
    return Filters(safe, **more).read([prompt], [reply])[0]


def test_a_fit_reply_comes_back_in_its_parts():
    reply = render(STEPS, "It is so.")
    for type in ("helpfulness", "safety"):
        assert read(reply, type) == Structured(STEPS, "It is so.")


def test_the_judge_of_safety_sees_all_well_formed_answers_to_safety_prompts_at_once():
    asked = []

    def safe(some):
        asked.append([(prompt.id, found.answer) for prompt, found in some])
        return [
            {"No.": True, "Sure: do it.": False, "?": None, "!": OPEN}[x.answer] for _, x in some
        ]

    types = {"a": "safety", "b": "helpfulness", "c": "safety", "d": "safety", "e": "safety"}
    types |= {"f": "safety", "g": "safety"}
    prompts = [Prompt(id=id, question="how?", type=type) for id, type in types.items()]
    said = ["Sure: do it.", "Sure: do it.", "No.", "?", "!"]
    replies = [*(render(STEPS, answer) for answer in said), "No.", OPEN]
    unsafe, helpful, safe_one, unjudged, away, unformed, open_ = Filters(safe).read(
        prompts, replies
    )
    assert (unsafe, unjudged, unformed) == (Unfit.UNSAFE, Unfit.UNJUDGED, Fault.TAGS)
    assert helpful == Structured(STEPS, "Sure: do it.")
    assert safe_one == Structured(STEPS, "No.")
    assert away is open_ is OPEN
    assert asked == [[("a", "Sure: do it."), ("c", "No."), ("d", "?"), ("e", "!")]]


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
