"""Transcripts: the same seed and replies give the same one, replays, budgets, seeds."""

import dataclasses
import json
from typing import Any

import pytest

from stair_jax import records, text
from stair_jax.evals.attacks import pair
from stair_jax.evals.attacks.pair import Settings
from stair_jax.evals.attacks.transcript import Budget, Sampling, Transcript, replay
from tests.evals.attacks.scripted import BEGIN, GOAL, SMALL, play


def test_the_same_seed_gives_the_same_transcript_and_another_another():
    assert play()[0] == play()[0]
    other = play(seed=8)[0]
    assert other.seed == 8
    prompts = [{m.prompt for one in run.streams for m in one.moves} for run in (other, play()[0])]
    assert len(prompts[0]) == len(prompts[1]) == 12
    assert not prompts[0] & prompts[1]


def test_a_transcript_survives_json_and_replays_itself():
    def judge(talk, seed):
        return f"Rating: [[{seed % 9 + 1}]]"

    found, _ = play(judge=judge)
    assert len({move.rating for one in found.streams for move in one.moves}) > 2
    read = records.from_json(Transcript, json.loads(json.dumps(records.to_json(found))))
    assert read == found
    again = replay(read)
    chats: dict[str, Any] = {"attacker": again, "target": again, "judge": again}
    arguments: dict[str, Any] = {"final": text.final_answer, "settings": SMALL}
    assert pair.attack(GOAL, BEGIN, **chats, **arguments, seed=7) == found
    for goal, seed, settings in (
        ("Another goal", 7, SMALL),
        (GOAL, 8, SMALL),
        (GOAL, 7, dataclasses.replace(SMALL, n_iterations=4)),
        (GOAL, 7, dataclasses.replace(SMALL, judge=Sampling(0.5, 1.0, 10))),
    ):
        with pytest.raises(
            ValueError, match=r"^replay of pair-own-words: found .*, expected a call"
        ):
            pair.attack(goal, BEGIN, **chats, final=text.final_answer, seed=seed, settings=settings)


def test_a_budget_of_calls_is_kept_and_told():
    for calls, asked, moves in ((36, 36, 12), (35, 32, 8), (15, 12, 4), (11, 8, 0), (3, 0, 0)):
        found, chats = play(budget=Budget(calls=calls))
        assert sum(sum(chat.batches) for chat in chats.values()) == asked
        assert found.counts["calls"] == len(found.calls) == asked
        assert sum(len(one.moves) for one in found.streams) == moves
        assert found.ended == ("exhausted" if calls == 36 else "budget")
        assert found.settings["budget_calls"] == calls
        assert "tokens" not in found.counts


def test_a_budget_of_tokens_leaves_room_for_whole_replies():
    # At most 500 of the attacker, 1,024 of the target, 2,000 of the judge; replies have 100.
    one = Settings(n_streams=1, n_iterations=1, judge=Sampling(0.0, 1.0, 2000))
    for tokens, used in ((499, 0), (500, 100), (1123, 100), (1124, 200), (2199, 200), (2200, 300)):
        found, _ = play(one, budget=Budget(tokens=tokens, tokens_of=lambda reply: 100))
        assert found.counts["tokens"] == used
        assert found.ended == ("exhausted" if used == 300 else "budget")
        assert found.settings["budget_tokens"] == tokens
    counted, _ = play(one, budget=Budget(tokens_of=len))
    assert counted.counts["tokens"] == sum(len(call.reply) for call in counted.calls) > 0


@pytest.mark.parametrize("replies", [["one"], [None] * 4, ["x"] * 5])
def test_a_chat_must_give_a_text_for_each_conversation(replies):
    class Wrong:
        def ask(self, conversations, *, seeds, sampling):
            return replies

    with pytest.raises(ValueError, match=rf"attacker: found {len(replies)} replies, expected 4"):
        pair.attack(
            GOAL,
            BEGIN,
            attacker=Wrong(),
            target=Wrong(),
            judge=Wrong(),
            final=text.final_answer,
            settings=SMALL,
        )


def test_seeds_fit_into_31_bits_and_differ_by_stream():
    _, chats = play(Settings(n_streams=30))
    seeds = [seed for chat in chats.values() for _, seed in chat.asked]
    assert len(set(seeds)) == len(seeds) == 270
    assert min(seeds) >= 0
    assert 2**30 < max(seeds) < 2**31


BAD = [
    (lambda: Budget(calls=0), "budget: found calls 0, expected at least 1 or None"),
    (lambda: Budget(tokens=5), "budget: found tokens 5, expected tokens_of that counts"),
]


@pytest.mark.parametrize(("make", "message"), BAD)
def test_a_bad_budget_is_named(make, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        make()
