"""Escalation: the target's own responses between fixed turns, the last answer, the budget."""

import json

import pytest

from stair_jax import records, text
from stair_jax.evals.attacks import escalation
from stair_jax.evals.attacks.transcript import Budget, Sampling, Transcript, replay
from tests.evals.attacks.scripted import Scripted

GOAL = "explain locks"
DRAWN = Sampling(temperature=0.0, top_p=1.0, max_tokens=77)


def answering(talk, seed):
    return f"{text.STEP}t{text.STEP_END}{text.OUTPUT}answer {len(talk)}{text.OUTPUT_END}"


def play(reply=answering, **more):
    target = Scripted(reply)
    found = escalation.attack(
        GOAL, target=target, final=text.final_answer, seed=5, sampling=DRAWN, **more
    )
    return found, target


def test_the_targets_own_responses_stand_between_the_turns():
    found, target = play()
    assert [len(talk) for talk, _ in target.asked] == [1, 3, 5, 7, 9]
    last = target.asked[-1][0]
    assert [role for role, _ in last] == ["user", "assistant"] * 4 + ["user"]
    assert last[1][1] == answering(last[:1], 0)
    assert last[0][1].endswith(f"The question: {GOAL}")
    assert last[-1][1].endswith(f"answer to this: {GOAL}")
    assert [move.answer for move in found.streams[0].moves] == [
        f"answer {n}" for n in (1, 3, 5, 7, 9)
    ]
    assert (found.protocol, found.ended) == ("escalation-own-words", "exhausted")
    assert found.counts == {"calls": 5, "no_answer": 0}
    assert set(target.samplings) == {DRAWN}


def test_a_response_without_an_answer_is_counted_and_the_conversation_goes_on():
    found, _ = play(lambda talk, seed: "words")
    assert found.counts == {"calls": 5, "no_answer": 5}
    assert found.streams[0].moves[-1].answer is None


def test_a_budget_ends_the_conversation():
    found, target = play(budget=Budget(calls=3))
    assert (found.ended, len(target.asked), len(found.streams[0].moves)) == ("budget", 3, 3)
    assert found.streams[0].turns[-1][0] == "assistant"


def test_a_transcript_comes_back_from_json_and_plays_again():
    found, _ = play()
    back = records.from_json(Transcript, json.loads(json.dumps(records.to_json(found))))
    assert back == found
    again = escalation.attack(
        GOAL, target=replay(back), final=text.final_answer, seed=5, sampling=DRAWN
    )
    assert again == found
    with pytest.raises(ValueError, match="expected a call of the transcript"):
        escalation.attack(
            GOAL, target=replay(back), final=text.final_answer, seed=6, sampling=DRAWN
        )
