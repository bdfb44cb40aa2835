"""Worked solutions in steps: their titles, their analysis, and every row of GSM8K's train split."""

import json
import pathlib
import re

import pytest

from stair_jax.data.teaching import grammar, rationales, titles
from stair_jax.data.teaching.grammar import Structured
from stair_jax.data.teaching.rationales import Unfit
from stair_jax.evals.benchmarks import gsm8k
from stair_jax.records import Prompt, SftRow

TRAIN = pathlib.Path(__file__).parents[4] / "shared" / "data" / "gsm8k" / "train.jsonl"
recorded = pytest.mark.skipif(not TRAIN.is_file(), reason=f"{TRAIN} is not there")

TITLES = [
    ("Natalia sold 48/2 = 24 clips in May.", "How many clips Natalia sold in May"),
    ("Weng earns 12/60 = $0.2 per minute.", "How much Weng earns per minute"),
    ("In total, he paid $2 + $3 = $5.", "How much he paid"),
    (
        "There are 22 pieces of pizza because 14 plus 8 equals 22.",
        "How many pieces of pizza there are",
    ),
    (
        "The truck tank has 10 gallons in it because 20 x .5 = 10",
        "How many gallons the truck tank has in it",
    ),
    (
        "If each page has 20 stickers on it, you have 11 x 20 = 220 stickers.",
        "How many stickers you have",
    ),
    ("The total number of dots is 13 * 6 = 78", "The total number of dots"),
    ("First find the total: 20 years * 12 months/year = 240 months", "Find the total"),
    ("Then multiply it by 5 to find the price: 2 * 5 = 10", "Find the price"),
    (
        "The school band needs $150 - $105 = $45 more to win.",
        "How much more the school band needs to win",
    ),
    ("Let x be the price of the pants.", "Let x be the price of the pants"),
    ("80 = 4*W", "An equation for W"),
    ("3x - 3 = 63", "An equation for x"),
    ("x=8", "The value of x"),
    ("12 x 6 = 72", "Multiplying"),
    ("11 + 11 = 22.", "Adding up"),
    ("60 - 22 = 38", "Taking away"),
    ("60 / 4 = 15", "Dividing"),
    (
        "There are 2 sisters and 1 aunt with them, for 2+1= 3 women in the car.",
        "How many women in the car",
    ),
    # A step that only says a number.
    ("There are 52 weeks in a year.", "How many weeks there are in a year"),
    ("So he needs to buy 8 cans.", "How many cans he needs to buy"),
    ("Her next turn is the 11th turn.", "Her next turn is the 11th turn"),
    ("She owns H + 2 hats.", ""),
    ("Her ink cost $4 per pen * 2 pens = $8.", "How much her ink cost"),
    ("The 2 cats eat 2 * 1 = 2 mice", "How many mice"),
]


@pytest.mark.parametrize(("sentence", "title"), TITLES)
def test_a_title_says_what_a_step_is_after(sentence, title):
    assert titles.title_of(sentence) == title


def test_titles_of_a_row_differ():
    assert titles.distinct(["A", "a", "", "A", ""]) == [
        "A",
        "a, part 2",
        "Calculation 3",
        "A, part 3",
        "The result",
    ]


def test_a_long_sentence_is_cut_between_words():
    title = titles.title_of(f"Let {'word ' * 40}")
    assert len(title) <= titles.LONGEST
    assert title == f"Let {'word ' * 13}".strip()


def test_a_solution_becomes_steps():
    solution = "Ann ate 2*3=<<2*3=6>>6 figs.\nSo 10-6=<<10-6=4>>4 figs are left.\n#### 1,004"
    row = rationales.steps_of("a", "Ann has 10 figs. How many are left?", solution)
    assert isinstance(row, SftRow)
    parts = grammar.parse(row.response)
    assert isinstance(parts, Structured)
    assert [step.title for step in parts.steps] == [
        "Problem Analysis",
        "How many figs Ann ate",
        "How many figs are left",
    ]
    assert [step.text for step in parts.steps[1:]] == [
        "Ann ate 2*3=6 figs.",
        "So 10-6=4 figs are left.",
    ]
    assert "How many are left?" in parts.steps[0].text
    assert "(1) how many figs Ann ate; (2) how many figs are left" in parts.steps[0].text
    assert gsm8k.number_of(parts.answer) == 1004.0


BAD = [
    ("x", "2+2=4", Unfit.NO_GOLD),
    ("x", "2+2=4\n#### four", Unfit.NO_GOLD),
    ("x", "#### 4", Unfit.NO_STEPS),
    ("x", " \n#### 4", Unfit.NO_STEPS),
    ("<|Output|>", "2+2=4\n#### 4", Unfit.TAGS),
    ("x", "<|Output|>\n#### 4", Unfit.TAGS),
]


def test_what_has_no_steps_is_counted_by_reason():
    found = rationales.convert([(str(n), q, s) for n, (q, s, _) in enumerate(BAD)])
    assert found.rows == []
    assert found.dropped.counts == {str(r): 2 for r in Unfit}
    for question, solution, reason in BAD:
        assert rationales.steps_of("a", question, solution) is reason


def test_words_vary_by_id_and_seed():
    def said(id, seed):
        row = rationales.steps_of(id, "How many?", "It is 2+2=4 figs.\n#### 4", seed)
        assert isinstance(row, SftRow)
        return row.response

    assert len({said(str(id), 0) for id in range(60)}) > 15
    assert len({said("a", seed) for seed in range(60)}) > 15
    assert said("a", 1) == said("a", 1)


# All rows take a quarter of a minute, so that the default run sees every eighth.
@recorded
def result_of(line):
    """The number behind the last "=" of a line, without its commas; None without one."""
    found = re.findall(r"=\s*\$?(-?[\d,]*\.?\d+)", line)
    return found[-1].replace(",", "") if found else None


@pytest.mark.parametrize(
    ("every", "count", "steps"),
    [(8, 935, 3357), pytest.param(1, 7473, 26720, marks=pytest.mark.slow)],
)
def test_every_row_of_the_train_split_has_steps_and_its_gold_answer(every, count, steps):
    lines = TRAIN.read_text(encoding="utf-8").splitlines()[::every]
    rows = [json.loads(line) for line in lines]
    given = [(f"gsm8k/{n}", row["question"], row["answer"]) for n, row in enumerate(rows)]
    found = rationales.convert(given)
    assert len(found.rows) == len(rows) == count
    assert found.dropped.counts == {}
    told = nameless = found_steps = 0
    for row, source in zip(found.rows, rows, strict=True):
        gold = source["answer"].rsplit("#### ", 1)[1]
        prompt = Prompt(id="a", question="q", type="helpfulness", ground_truth=gold)
        assert gsm8k.grade(prompt, row.response, False).outcome == "correct"
        parts = grammar.parse(row.response)
        assert isinstance(parts, Structured)
        assert parts.text == row.response
        names = [step.title.lower() for step in parts.steps]
        assert len(set(names)) == len(names)
        assert "<<" not in row.response
        for step in parts.steps[1:]:
            found_steps += 1
            nameless += bool(re.match(r"Calculation \d|The result", step.title))
            result = result_of(step.text)
            told += bool(result) and bool(
                re.search(
                    rf"(?<![\d.]){re.escape(str(result))}(?![\d.])", step.title.replace(",", "")
                )
            )
    assert found_steps == steps
    assert nameless / steps < 0.08
    assert told / steps < 0.005  # a title does not say what the step comes to
