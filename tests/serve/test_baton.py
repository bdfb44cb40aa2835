"""A function that runs in turns, and never beside whoever waits for it."""

import threading

import pytest

from stair_jax.serve.baton import Baton, Dropped


def test_a_function_runs_up_to_its_pauses_and_no_further():
    seen = []

    def work(pause):
        seen.append("one")
        pause()
        seen.append("two")
        return 7

    baton = Baton(work)
    assert seen == []
    assert not baton.advance()
    assert seen == ["one"]
    assert baton.advance()
    assert (seen, baton.result) == (["one", "two"], 7)
    assert baton.advance()  # there is nothing left


def test_two_functions_take_turns_in_the_order_in_which_they_are_let():
    seen = []

    def work(name):
        def run(pause):
            for number in range(3):
                seen.append((name, number))
                pause()

        return run

    batons = [Baton(work(name)) for name in "ab"]
    ended = [False]
    while not all(ended):
        ended = [baton.advance() for baton in batons]
    assert seen == [(name, number) for number in range(3) for name in "ab"]


def test_an_error_comes_out_as_the_result():
    def work(pause):
        pause()
        raise KeyError("x")

    baton = Baton(work)
    while not baton.advance():
        pass
    with pytest.raises(KeyError):
        _ = baton.result


def test_what_is_dropped_tidies_up_and_its_thread_ends():
    seen, before = [], threading.active_count()

    def work(pause):
        try:
            while True:
                pause()
        except Exception:
            seen.append("taken up")  # it is no error that a search may answer for
        finally:
            seen.append("tidied")

    baton = Baton(work)
    baton.advance()
    assert threading.active_count() == before + 1
    baton.drop()
    assert seen == ["tidied"]
    assert threading.active_count() == before
    with pytest.raises(Dropped):
        _ = baton.result


def test_what_never_began_is_dropped_without_a_step():
    seen = []
    baton = Baton(lambda pause: seen.append("ran"))
    baton.drop()
    assert seen == []
