"""Judges of conversations: earlier turns are shown, and the last answer is judged."""

import contextlib
import dataclasses

import pytest

from stair_jax.judges.remote import RemoteRater
from stair_jax.judges.rubrics import asked_of
from stair_jax.remote.client import EndpointClient
from stair_jax.text import OUTPUT, OUTPUT_END, STEP, STEP_END
from tests.support.openai_server import OpenAIServer
from tests.support.remote import HELP, PROMPT, _direct, collected, config, four

__all__ = ["_direct"]

TAGGED = f"{STEP}secret{STEP_END}{OUTPUT}Final Answer: Paris.{OUTPUT_END}"
TURNS = (("system", "Be brief."), ("user", "Capital?"), ("assistant", TAGGED))
CONVERSATION = dataclasses.replace(PROMPT, before=TURNS)
SHOWN = "[system]\nBe brief.\n\n[user]\nCapital?\n\n[assistant]\nParis.\n\n[user]\nwhy"


def test_a_prompt_of_one_turn_is_its_question():
    assert asked_of(PROMPT) == "why"
    assert HELP.ask(PROMPT, "because") == "How helpful? why / because"


def test_earlier_turns_stand_above_the_question_without_their_reasoning():
    assert asked_of(CONVERSATION) == SHOWN
    assert HELP.ask(CONVERSATION, "because") == f"How helpful? {SHOWN} / because"


@pytest.mark.parametrize("said", ["Lyon", f"{STEP}no answer came"])
def test_an_earlier_answer_without_an_output_block_is_shown_as_it_is(said):
    prompt = dataclasses.replace(PROMPT, before=(("assistant", said),))
    assert asked_of(prompt) == f"[assistant]\n{said}\n\n[user]\nwhy"


def test_fields_within_a_turn_are_not_filled_in():
    prompt = dataclasses.replace(PROMPT, before=(("user", "{answer}"),))
    assert HELP.ask(prompt, "because").count("because") == 1


def test_an_endpoint_is_shown_the_conversation_and_asked_once_for_each(tmp_path):
    with OpenAIServer(four) as server:
        line = EndpointClient(config(server.url), tmp_path, pause_s=0.001)
        with contextlib.closing(line):
            rater = RemoteRater(HELP, line)
            for number, prompt in enumerate([CONVERSATION, PROMPT, CONVERSATION]):
                rater.submit(number, prompt, "because")
            assert collected(rater, 3) == {0: 0.5, 1: 0.5, 2: 0.5}
        texts = [asked for asked, *_ in server.asked]
    assert sorted(texts) == sorted(
        [f"How helpful? {SHOWN} / because", "How helpful? why / because"]
    )
