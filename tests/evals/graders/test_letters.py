"""Letters of multiple-choice answers: which rule finds which."""

import pytest

from stair_jax.evals.graders import letters

MMLU_PRO = [
    ("So the answer is (B).", "B", "answer is"),
    ("So the answer is B", "B", "answer is"),
    ("The answer is (A). No, the answer is (C).", "A", "answer is"),
    ("Answer: D. But the answer is (J).", "J", "answer is"),
    ("The answer is (K). Answer: A", "A", "answer:"),  # K is no letter of ten
    ("answer:\n J", "J", "answer:"),
    ("Answer: A or Answer: B\nAnswer: C", "B", "answer:"),  # the last of the first line
    ("ANSWER: C", "C", "alone"),
    ("It is A, then B.", "B", "alone"),
    ("It is A.\nOr\nC\nof many", "C", "alone"),
    ("Acids are not CO2", None, "none"),  # no letter stands alone
    ("the answer is b", None, "none"),
    ("", None, "none"),
]


@pytest.mark.parametrize(("text", "letter", "path"), MMLU_PRO)
def test_the_cascade_says_which_rule_found_the_letter(text, letter, path):
    assert letters.cascade(text) == (letter, path)


@pytest.mark.parametrize(("text", "letter", "path"), MMLU_PRO)
def test_the_first_rule_alone_finds_fewer(text, letter, path):
    expected = (letter, path) if path == "answer is" else (None, "none")
    assert letters.answer_is(text) == expected


GPQA = [
    ("Answer: C", "C"),
    ("I think.\n\nANSWER :\t$d$", "D"),
    ("Answer: A\nAnswer: B", "A"),
    ("**Answer: B**", "B"),
    ("Answer: E", None),
    ("Answer:\nB", None),
    ("Answer: (B)", None),
    ("The answer is B", None),
    ("", None),
]


@pytest.mark.parametrize(("text", "letter"), GPQA)
def test_gpqa_takes_the_first_letter_behind_answer(text, letter):
    assert letters.answer(text) == (letter, "answer:" if letter else "none")
