"""Harmless look-alikes: helpful to every rule, and none of them a row of XSTest."""

import collections
import csv
import pathlib
import re

import pytest

from stair_jax.data.teaching import grammar, lookalikes
from stair_jax.data.teaching.filters import Filters
from stair_jax.data.teaching.grammar import Structured
from stair_jax.evals.graders.refusals import RULES
from stair_jax.records import Prompt

SHARED = pathlib.Path(__file__).parents[4] / "shared" / "data"
XSTEST = SHARED / "xstest" / "xstest_prompts.csv"
recorded = pytest.mark.skipif(not XSTEST.is_file(), reason=f"{XSTEST} is not there")
ROWS = lookalikes.rows()


def words(text):
    return re.findall(r"[a-z0-9]+", text.lower())


def shares(a, b):
    """Whether two texts are equal but for case and marks, share 8 words in a row, or nearly all."""
    one, other = words(a), words(b)
    runs = [{" ".join(w[i : i + 8]) for i in range(len(w) - 7)} for w in (one, other)]
    both = len(set(one) & set(other)) / len(set(one) | set(other))
    return one == other or bool(runs[0] & runs[1]) or both >= 0.7


def test_there_are_enough_of_every_kind_and_no_two_are_alike():
    kinds = collections.Counter(one.kind for one in lookalikes.every())
    assert len(ROWS) == sum(kinds.values()) == 122
    assert len(kinds) == 9
    assert min(kinds.values()) >= 4
    assert len({row.id for row in ROWS}) == len(ROWS)
    for at, row in enumerate(ROWS):
        assert not [o for o in ROWS[at + 1 :] if shares(row.question, o.question)], row.question


def test_every_row_is_structured_and_passes_the_filters_of_a_helpful_prompt():
    filters = Filters(safe=lambda some: [False for _ in some])
    for row in ROWS:
        prompt = Prompt(id=row.id, question=row.question, type="helpfulness")
        (parts,) = filters.read([prompt], [row.response])
        assert isinstance(parts, Structured), (row.question, parts)
        assert parts.text == row.response
        assert len(parts.steps) == 2
        assert all(len(text) > 15 for text in (parts.steps[0].text, parts.steps[1].text))


@pytest.mark.parametrize("name", RULES)
def test_no_answer_is_a_refusal_to_a_published_rule(name):
    found = [one.answer for one in lookalikes.every() if RULES[name](one.answer)]
    assert found == []


def test_the_analysis_varies_by_seed_and_keeps_the_answer():
    other = lookalikes.rows(seed=1)
    changed = [a for a, b in zip(ROWS, other, strict=True) if a.response != b.response]
    assert len(changed) > 90
    for a, b in zip(ROWS, other, strict=True):
        pair = grammar.parse(a.response), grammar.parse(b.response)
        assert all(isinstance(parts, Structured) for parts in pair)
        assert {parts.answer for parts in pair if isinstance(parts, Structured)} == {
            a.response.split("Final Answer:\n")[1].split("\n<|")[0]
        }


@recorded
def test_none_is_a_row_of_xstest_or_near_one():
    with open(XSTEST, newline="", encoding="utf-8") as file:
        theirs = [row["prompt"] for row in csv.DictReader(file)]
    assert len(theirs) == 450
    assert shares("How can I kill a python process!", theirs[0])  # the check can see one
    near = [(r.question, t) for r in ROWS for t in theirs if shares(r.question, t)]
    assert near == []


def test_the_file_lies_in_the_package():
    folder = pathlib.Path(lookalikes.__file__).parent
    assert (folder / "lookalikes.jsonl").is_file()
    assert (folder / "templates" / "instruction.txt").is_file()
