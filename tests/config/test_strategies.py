import math

import pytest

from stair_jax.config import strategies
from stair_jax.config.strategies import Strategy
from stair_jax.engine.request import key_of
from stair_jax.guided import beams, selection
from stair_jax.model.reward import Readout
from stair_jax.text import OUTPUT, OUTPUT_END

BT, MSE = (Readout(position="eos", loss=loss, low=-3.0, high=3.0) for loss in ("bt", "mse"))


@pytest.mark.parametrize(
    ("name", "want", "reads"),
    [
        ("greedy", Strategy("greedy"), False),
        ("best_of_16", Strategy("best_of", 16), True),
        ("vote_of_3", Strategy("vote_of", 3), True),
        ("random_of_8", Strategy("random_of", 8), False),
        ("oracle_of_8", Strategy("oracle_of", 8), False),
        ("beam_2x4", Strategy("beam", 2, 4), True),
        ("diverse_4x2", Strategy("diverse", 4, 2), True),
        ("lookahead_1x3", Strategy("lookahead", 1, 3), True),
        ("mcts_24", Strategy("mcts", 24), True),
    ],
)
def test_a_name_is_parsed_and_given_back(name, want, reads):
    assert strategies.parse(name) == want
    assert want.name == name
    assert want.of.reads == reads


def test_aliases_stand_for_the_papers_sizes():
    assert strategies.parse("best_of_n").name == "best_of_8"
    assert strategies.parse("beam").name == "beam_2x4"
    assert strategies.parse_all(("beam", "greedy", "beam_2x4")) == (
        Strategy("beam", 2, 4),
        Strategy("greedy"),
    )


@pytest.mark.parametrize(
    "name",
    [
        "",
        "foo",
        "best_of",
        "best_of_0",
        "best_of_2x4",
        "beam_8",
        "beam_0x4",
        "beam_2x0",
        "mcts",
        "mcts_1",
        "mcts_2x2",
        "greedy_2",
        "best_of_08",
        "best_of_-1",
        "Beam_2x4",
        "beam_2x4x1",
        "best_of_8 ",
    ],
)
def test_a_bad_name_is_refused_with_what_there_is(name):
    with pytest.raises(ValueError, match=r"is none of greedy, best_of_N, .*beam_WxM.*, beam$") as e:
        strategies.parse(name)
    assert "\n" not in str(e.value)


def test_best_is_the_first_of_the_highest():
    assert selection.best([0.1, 0.7, 0.3, 0.7]) == 1
    assert selection.best([0.0]) == 0


@pytest.mark.parametrize("scores", [(-60.0, -39.0, -45.0), (40.0, 60.0, 45.0), (-1e3, -8e2, -9e2)])
def test_scores_far_out_do_not_tie(scores):
    assert selection.best(scores) == 1
    assert selection.vote(scores, ["a", "b", "c"], BT) == 1
    assert selection.vote([*scores, scores[1]], ["b", "a", "b", "a"], BT) == 1


def test_scores_that_are_missing_are_never_chosen():
    odd = [math.nan, math.inf, None, -5.0, -math.inf]
    assert selection.best(odd) == 3
    assert selection.vote(odd, ["a", "a", "a", "b", "a"], BT) == 3
    assert selection.vote(odd, [None] * 5, BT) == 3
    for lost in ([math.nan], [None, math.inf]):
        assert selection.best(lost) is None
        assert selection.vote(lost, ["a", "a"][: len(lost)], BT) is None


def test_a_vote_adds_up_equal_answers():
    def vote(units, answers):
        return selection.vote([2 * unit - 1 for unit in units], answers, MSE)

    scores, answers = [0.9, 0.4, 0.6, 0.2], ["a", "b", "b", "c"]
    assert selection.best(scores) == 0
    assert vote(scores, answers) == 2  # b has 1.0 against 0.9
    assert vote(scores, [None, None, None, None]) == 0
    assert vote([0.5, 0.25, 0.25], ["a", "b", "b"]) == 0  # a tie: what lacks less to 1
    assert vote([0.5, 0.5], ["a", "b"]) == 0  # a tie: the first group
    assert vote([0.2, 0.5, 0.5], ["x", "y", "y"]) == 1  # a tie: the first member
    logits = [math.log(unit / (1 - unit)) for unit in scores]
    assert selection.vote(logits, answers, BT) == 2


def test_answers_are_compared_by_what_they_say():
    def say(answer):
        return f"thought {OUTPUT} Final Answer: {answer} {OUTPUT_END}"

    assert selection.comparable(say("The  Cat.")) == selection.comparable(say("the cat"))
    assert selection.comparable(say("4")) != selection.comparable(say("5"))
    assert selection.comparable("4") is None
    assert selection.comparable(" 4 .", direct=True) == "4"


def test_a_random_choice_depends_on_its_key_alone_and_reaches_all():
    drawn = [selection.at_random(5, (0, f"p{i}", "random_of_5")) for i in range(200)]
    assert drawn == [selection.at_random(5, (0, f"p{i}", "random_of_5")) for i in range(200)]
    assert set(drawn) == set(range(5))
    assert min(drawn.count(i) for i in range(5)) > 20
    assert drawn != [selection.at_random(5, (1, f"p{i}", "random_of_5")) for i in range(200)]
    assert drawn[0] == int(key_of((0, "p0", "random_of_5"))[0]) % 5


@pytest.mark.parametrize(
    ("ids", "want"),
    [
        ((), []),
        ((1, 2, 9), [(1, 2, 9)]),
        ((1, 9, 2, 9, 8), [(1, 9), (2, 9), (8,)]),
        ((1, 9, 2), [(1, 9), (2,)]),
    ],
)
def test_a_response_is_cut_behind_each_stop_token(ids, want):
    assert beams.steps_of(ids, {8, 9}) == want


def test_every_kind_is_run_by_one_function_of_its_name():
    """A kind without one would be found out in the middle of a run, after hours."""
    asked = {
        "samples": {name for name, kind in strategies.KINDS.items() if kind.samples},
        "plans": {name for name, kind in strategies.KINDS.items() if not kind.samples},
    }
    assert set(selection.CHOICES) == asked["samples"]
    assert set(beams.PLANS) == asked["plans"] - {strategies.MCTS}
