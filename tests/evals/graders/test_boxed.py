r"""Answers to competition mathematics: found in a response, normalised, compared."""

import pathlib
from fractions import Fraction

import pytest

from stair_jax import jsonl
from stair_jax.evals.graders import boxed

MATH = pathlib.Path(__file__).parents[4] / "shared" / "data" / "math500" / "test.jsonl"

RESPONSES = [
    (r"So $\boxed{5}$.", "5", "boxed"),
    (r"First \boxed{4}, then \boxed{\frac{1}{2}}.", r"\frac{1}{2}", "boxed"),
    (r"\fbox{7} of a kind", "7", "boxed"),
    (r"It is $\boxed 5$ then", "5", "boxed"),
    (r"\boxed{\{1, \{2\}\}} and }", r"\{1, \{2\}\}", "boxed"),
    (r"\boxed{4} but wait \boxed{\frac{1}{2}", None, "none"),  # cut off
    ("\\boxed{\\frac{1}\nAnswer: 6", "6", "answer line"),
    ("Answer: 3\nANSWER : $x^2$ \nGood.", "$x^2$", "answer line"),
    (r"Answer: 3, so \boxed{4}", "4", "boxed"),
    ("It is 5.", None, "none"),
    (r"\boxed{}", "", "boxed"),
    ("", None, "none"),
]


@pytest.mark.parametrize(("response", "text", "path"), RESPONSES)
def test_an_answer_is_found_and_where_is_said(response, text, path):
    assert boxed.answer_of(response) == (text, path)


EQUAL = [  # each line breaks if one rule goes
    ("a\nb", "ab"),
    (r"1\!0", "10"),
    (r"\\frac{1}{2}", r"\frac{1}{2}"),
    (r"\dfrac{1}{2}", r"\frac{1}{2}"),
    (r"\tfrac{1}{2}", r"\frac{1}{2}"),
    (r"\left(1, 2\right]", "(1,2]"),
    (r"90^\circ", "90"),
    (r"90^{\circ}", "90"),
    (r"\$18", "18"),
    (r"5\text{ cm}^2", "5"),
    (r"5\mbox{ cm}^2", "5"),
    (r"50\%", "50"),
    ("50%", "50"),
    (".5x", "0.5x"),
    (r"\frac{.5}{x}", r"\frac{0.5}{x}"),
    ("x = y", "y"),
    (r"\sqrt3x", r"\sqrt{3}x"),
    (r"\frac12", r"\frac{1}{2}"),
    (r"\frac1{72}", r"\frac{1}{72}"),
    (r"\frac{72}1x", r"\frac{72}{1}x"),
    ("0.5", r"\frac{1}{2}"),
    ("-3/4", r"\frac{-3}{4}"),
    ("$x$", "x"),
    (r"\(x\)", "x"),
    ("east.", "east"),
    (r"\text{east}", "east"),
]


@pytest.mark.parametrize(("one", "other"), EQUAL)
def test_answers_that_mean_the_same_are_equal(one, other):
    assert one != other
    assert boxed.normalised(one) == boxed.normalised(other) == other
    assert boxed.match_of(one, other) == "exact"


DIFFERENT = [
    ("x", "X"),
    ("1,2", "12"),
    ("(1,2)", "(1,2]"),
    ("abc=5", "5"),
    ("a=b=5", "5"),
    ("x/y", r"\frac{x}{y}"),
    (r"x\leftarrow", "xarrow"),
    ("5x", "5"),
    ("0.333", r"\frac{1}{3}"),
    (r"\frac{1}{0}", r"\frac{2}{0}"),
    ("", "0"),
]


@pytest.mark.parametrize(("one", "other"), DIFFERENT)
def test_other_answers_are_not_equal(one, other):
    assert boxed.match_of(one, other) == boxed.match_of(other, one) == "none"


NUMBERS = [
    ("1,000", Fraction(1000)),
    ("11,111,100.50", Fraction("11111100.5")),
    ("2.50", Fraction(5, 2)),
    ("+7.", Fraction(7)),
    ("-7", Fraction(-7)),
    (r"\frac{4}{8}", Fraction(1, 2)),
    (r"-\frac{4}{-8}", Fraction(1, 2)),
    (r"\frac{0.5}{2}", Fraction(1, 4)),
    (r"\frac{1}{0}", None),
    (r"3\frac{1}{2}", None),  # a mixed number or a product
    ("1,00", None),
    ("1,2", None),
    ("7i", None),
    ("", None),
]


@pytest.mark.parametrize(("text", "number"), NUMBERS)
def test_an_answer_is_its_number(text, number):
    assert boxed.number_of(text) == number


VERDICTS = [
    (r"\boxed{\dfrac{1}{2}}", r"\frac{1}{2}", (True, "boxed", "exact")),
    (r"\boxed{4/8}", "0.5", (True, "boxed", "number")),
    ("Answer: 10,080", r"10,\!080", (True, "answer line", "exact")),
    ("Answer: $10080$", r"10,\!080", (True, "answer line", "number")),
    (r"\boxed{3}", "4", (False, "boxed", "none")),
    (r"\boxed{3", "3", (None, "none", "none")),
]


@pytest.mark.parametrize(("response", "gold", "verdict"), VERDICTS)
def test_a_verdict_says_what_matched(response, gold, verdict):
    assert boxed.grade(response, gold) == verdict


@pytest.mark.skipif(not MATH.is_file(), reason=f"{MATH} is not there")
def test_the_gold_solutions_are_right():
    rows = jsonl.read_json_lines(MATH)
    assert len(rows) == 500
    assert [boxed.last_boxed(row["solution"]) for row in rows] == [row["answer"] for row in rows]
    for row in rows:
        assert boxed.grade(row["solution"], row["answer"]) == (True, "boxed", "exact")
        line = f"Answer: ${row['answer']}$"
        assert boxed.grade(line, row["answer"]) == (True, "answer line", "exact")
    wrong = [boxed.match_of(row["answer"], rows[i - 1]["answer"]) for i, row in enumerate(rows)]
    assert wrong.count("none") > 480  # neighbours seldom share an answer
