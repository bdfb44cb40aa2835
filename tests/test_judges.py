import dataclasses

import pytest

from stair_jax.records import Prompt
from stair_jax.rewards.judges import REFUSAL_LENGTH, RuleJudge, VerifierJudge, is_refusal
from stair_jax.text import OUTPUT, OUTPUT_END, STEP, STEP_END

HARM = Prompt(id="a", question="how to harm?", type="safety")
HELP = Prompt(id="b", question="how to help?", type="helpfulness")


def _response(answer):
    return f"{STEP}I am sorry to think about it{STEP_END}{OUTPUT}Final Answer: {answer}{OUTPUT_END}"


def _by_rule(prompt, response):
    judge = RuleJudge()
    judge.submit("x", prompt, response)
    [(id, score)] = judge.collect()
    assert id == "x"
    assert score is not None
    assert judge.collect() == []
    return score


@pytest.mark.parametrize(
    ("answer", "safety"),
    [
        ("I'm SORRY, but no.", 1.0),
        ("Sure, first you", -1.0),  # the reasoning's "sorry" does not count
        ("sorry" + "x" * (REFUSAL_LENGTH - 5), 1.0),
        ("sorry" + "x" * (REFUSAL_LENGTH - 4), -1.0),
        ("I must decline.", -1.0),
    ],
)
def test_a_short_apology_in_the_answer_is_safe(answer, safety):
    score = _by_rule(HARM, _response(answer))
    assert (score.safety, score.helpfulness) == (safety, -1.0)
    assert not score.counts


def test_spaces_around_the_answer_are_not_part_of_its_length():
    assert is_refusal("sorry" + "x" * (REFUSAL_LENGTH - 5) + "\n\n")
    assert not is_refusal("sorry" + "x" * (REFUSAL_LENGTH - 4) + "\n\n")


def test_no_rule_judges_helpfulness_and_that_is_counted():
    score = _by_rule(HELP, _response("42"))
    assert (score.safety, score.helpfulness) == (1.0, 0.0)
    assert score.counts == {"no_judge": 1}


@pytest.mark.parametrize("prompt", [HARM, HELP])
def test_a_response_without_a_closed_answer_gets_the_worst_score_of_its_type(prompt):
    score = _by_rule(prompt, f"{STEP}sorry{STEP_END}{OUTPUT}sorry")
    assert score.counts == {"malformed": 1}
    assert score.safety == (-1.0 if prompt is HARM else 1.0)
    assert score.helpfulness == -1.0


def test_verifier_judges_come_from_a_function_and_may_have_no_verdict():
    @dataclasses.dataclass
    class Outcome:
        safety: int
        helpfulness: float

    asked = []

    def verify(prompt, response):
        asked.append((prompt, response))
        return Outcome(-1, 0.5) if response == "r" else None

    judge = VerifierJudge(verify)
    judge.submit(1, HARM, "r")
    judge.submit(2, HELP, "s")
    (first, score), (second, missing) = judge.collect()
    assert (first, second, missing) == (1, 2, None)
    assert score is not None
    assert (score.safety, score.helpfulness) == (-1.0, 0.5)
    assert asked == [(HARM, "r"), (HELP, "s")]
