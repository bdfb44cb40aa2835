"""Attacks side by side: batches, order, room, and what happens when one of them fails."""

import threading

import pytest

from stair_jax.evals.attacks import rounds
from stair_jax.evals.attacks.transcript import Sampling
from stair_jax.remote.open import OPEN

DRAWN = Sampling(temperature=0.0, top_p=1.0, max_tokens=3)


class Echo:
    """Answers in capitals; keeps its batches."""

    def __init__(self, away=()):
        self.batches, self.away = [], away

    def ask(self, conversations, *, seeds, sampling):
        said = [talk[-1][1] for talk in conversations]
        self.batches.append(list(zip(said, seeds, strict=True)))
        return [OPEN if one in self.away else one.upper() for one in said]


def asking(name, *counts, role="target", drawn=DRAWN):
    """An attack that asks so many things in turn, and returns all replies."""

    def job(chats):
        found = []
        for turn, count in enumerate(counts):
            talks = [(("user", f"{name}{turn}{i}"),) for i in range(count)]
            found += chats[role].ask(talks, seeds=range(count), sampling=drawn)
        return found

    return job


def play(jobs, model, at_once=10):
    done = []
    left = rounds.play(
        jobs, {"target": model}, at_once=at_once, on_done=lambda id, found: done.append((id, found))
    )
    return done, left


def test_what_all_attacks_ask_at_a_time_is_one_batch_in_their_order():
    model = Echo()
    done, left = play([("a", asking("a", 1, 2)), ("b", asking("b", 2))], model)
    assert model.batches == [[("a00", 0), ("b00", 0), ("b01", 1)], [("a10", 0), ("a11", 1)]]
    assert done == [("b", ["B00", "B01"]), ("a", ["A00", "A10", "A11"])]
    assert left == []


def test_an_attack_that_ends_makes_room_before_the_next_batch():
    model = Echo()
    play([("a", asking("a", 1)), ("b", asking("b", 1, 1)), ("c", asking("c", 1))], model, at_once=2)
    said = [[text for text, _ in batch] for batch in model.batches]
    assert said == [["a00", "b00"], ["b10", "c00"]]


def test_models_and_samplings_are_not_mixed():
    one, other, seen = Echo(), Echo(), []
    warm = Sampling(temperature=1.0, top_p=1.0, max_tokens=3)
    jobs = [
        ("a", asking("a", 1)),
        ("b", asking("b", 1, role="judge")),
        ("c", asking("c", 1, drawn=warm)),
    ]
    rounds.play(
        jobs, {"target": one, "judge": other}, at_once=3, on_done=lambda *found: seen.append(found)
    )
    assert one.batches == [[("a00", 0)], [("c00", 0)]]
    assert other.batches == [[("b00", 0)]]
    assert seen == [("a", ["A00"]), ("b", ["B00"]), ("c", ["C00"])]


def test_an_attack_whose_model_is_away_is_left_open_and_the_others_go_on():
    done, left = play([("a", asking("a", 1)), ("b", asking("b", 1))], Echo(away=["a00"]))
    assert left == ["a"]
    assert done == [("b", ["B00"])]


@pytest.mark.parametrize("who", ["model", "attack", "count"])
def test_a_failure_ends_all_of_it_and_leaves_no_thread(who):
    def fails(chats):
        raise KeyError("attack")

    class Broken:
        def ask(self, conversations, *, seeds, sampling):
            if who == "count":
                return ["one"]
            raise KeyError("model")

    before = threading.active_count()
    jobs = [("a", asking("a", 1)), ("b", asking("b", 2))]
    if who == "attack":
        jobs.append(("c", fails))
    expected = "target: found 1 replies, expected 3" if who == "count" else who
    with pytest.raises((KeyError, ValueError), match=expected):
        play(jobs, Broken())
    assert threading.active_count() == before
