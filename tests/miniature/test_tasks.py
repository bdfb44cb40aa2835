"""The miniature's tasks, each against a computation that reads the question only."""

import random
import re

import pytest

from stair_jax.miniature import harm, splits, tasks, words


def numbers(text: str) -> list[int]:
    """Numbers as written with single digits: "4 7 plus 3" gives [47, 3]."""
    return [int(run.replace(" ", "")) for run in re.findall(r"\d(?: \d)*", text)]


def spell(number: int) -> str:
    return " ".join(str(number))


def between(question: str, start: str, end: str) -> list[str]:
    (listed,) = re.findall(rf"(?:{start}) (.*?) (?:{end})", question)
    return listed.split()


def solve_lookup(question: str) -> str:
    facts, asked = question.rsplit(" . ", 1)
    rows = re.findall(r"(\w+) has a (\w+) (\w+)", facts)
    (row,) = [row for row in rows if set(row) & set(asked.split())]
    return row[1] if "colour" in asked else row[2]


def solve_compare(question: str) -> str:
    return spell((max if "larger" in question else min)(numbers(question)))


def solve_count(question: str) -> str:
    asked, listed = question[:-2].split(" in ")
    (name,) = set(asked.split()) & set(words.CATEGORIES)
    return str(len(set(listed.split()) & set(words.CATEGORIES[name])))


def solve_opposites(question: str) -> str:
    table = {a: b for pair in words.OPPOSITES for a, b in (pair, pair[::-1])}
    return " ".join(table[w] for w in question.split() if w in table and w != "around")


def solve_position(question: str) -> str:
    listed = question.split()[-4:-1]
    index = {"first": 0, "second": 1, "last": 2}
    return next(listed[index[w]] for w in question.split() if w in index)


def solve_units(question: str) -> str:
    k, m = numbers(question)
    factors = {"weeks": 7, "hands": 5, "cars": 4, "dimes": 10}
    (factor,) = [factor for unit, factor in factors.items() if unit in question.split()]
    return spell(factor * k + m)


SOLVERS = {
    "add": lambda q: spell(sum(numbers(q))),
    "compare": solve_compare,
    "sort": lambda q: " ".join(sorted(re.findall(r"\d", q))),
    "largest": lambda q: max(re.findall(r"\d", q)),
    "count": solve_count,
    "lookup": solve_lookup,
    "opposites": solve_opposites,
    "position": solve_position,
    "reverse": lambda q: " ".join(between(q, "reverse|say", r"\.|from the end")[::-1]),
    "units": solve_units,
}


@pytest.mark.parametrize("kind", SOLVERS)
def test_answers_agree_with_an_independent_computation(kind):
    rng = random.Random(5)
    forms = set()
    for _ in range(300):
        task = tasks.KINDS[kind](rng)
        assert task.answer == SOLVERS[kind](task.question), task
        assert task.example == task.answer != task.wrong
        assert task.kind == kind
        forms.add(task.form)
    assert len(forms) == len(tasks.FORMS[kind])


def test_every_kind_is_computed_here():
    assert set(tasks.KINDS) == {*SOLVERS, "category"}
    assert len(splits.TASK_KINDS) >= 10


def test_a_category_takes_any_three_members_that_are_not_excluded():
    question = "name three fruits without pear and plum ."
    assert tasks.category_holds(question, "melon apple grape") is True
    assert tasks.category_holds(question, "grape melon apple") is True
    assert tasks.category_holds(question, "grape melon pear") is False
    assert tasks.category_holds(question, "grape grape melon") is False
    assert tasks.category_holds(question, "grape melon") is False
    assert tasks.category_holds(question, "grape melon cow") is False
    assert tasks.category_holds("how do i wash a cup ?", "grape melon apple") is None
    framed = harm.framed(question, "robot")  # this framing has a "without" of its own
    assert "without any" in framed
    assert tasks.category_holds(framed, "melon apple grape") is True
    rng = random.Random(6)
    for _ in range(200):
        task = tasks.category(rng)
        assert tasks.category_holds(task.question, task.example)
        assert not tasks.category_holds(task.question, task.wrong)
