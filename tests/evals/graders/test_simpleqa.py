"""Replies of SimpleQA's judge, the official reading of them, and the sums."""

import pytest

from stair_jax.evals.graders import simpleqa

REPLIES = [  # reply, grade, the official reading
    ("A", "A", "A"),
    (" B\n", "B", "B"),
    ("**C**", "C", "C"),
    ("(A)", "A", "A"),
    ("B.", "B", "B"),
    ("A: CORRECT", "A", "A"),
    ("C: NOT_ATTEMPTED", "C", "C"),
    ("B - INCORRECT", "B", "B"),
    ("CORRECT", "A", "C"),  # the fault
    ("INCORRECT", "B", "C"),
    ("NOT ATTEMPTED", "C", "A"),
    ("The answer is CORRECT.", "A", "C"),
    ("As asked: INCORRECT", "B", "A"),
    ("A: INCORRECT", None, "A"),  # letter and word disagree
    ("CORRECT or INCORRECT", None, "C"),
    ("A or B", None, "A"),
    ("A correct answer names the year.", None, "A"),
    ("AB", None, "A"),
    ("INCORR", None, "C"),  # cut
    ("It is INCORRECTLY put.", None, "C"),
    ("I'm sorry, but I can't grade that.", None, "C"),
    ("", None, "C"),
]


@pytest.mark.parametrize(("reply", "grade", "official"), REPLIES)
def test_a_reply_is_a_letter_or_missing(reply, grade, official):
    assert simpleqa.grade(reply) == grade
    assert simpleqa.official_grade(reply) == official


def test_the_missing_are_counted_and_share_in_nothing():
    found = simpleqa.summary(["A", "A", "B", "C", "C", "C", "C", "C", None, None])
    assert found[:5] == (8, 2, 0.25, 0.125, 0.625)
    assert found.accuracy_given_attempted == pytest.approx(2 / 3)
    assert found.f1 == pytest.approx(2 * (2 / 3) * 0.25 / (2 / 3 + 0.25))


def test_nothing_attempted_and_nothing_read_have_no_accuracy():
    assert simpleqa.summary(["C", "C"]) == (2, 0, 0.0, 0.0, 1.0, None, 0.0)
    assert simpleqa.summary([None]) == (0, 1, None, None, None, None, None)
    assert simpleqa.summary([]) == (0, 0, None, None, None, None, None)


def test_all_wrong_has_an_f1_of_nothing():
    assert simpleqa.summary(["B"]) == (1, 0, 0.0, 1.0, 0.0, 0.0, 0.0)
