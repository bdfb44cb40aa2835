"""MMLU-Pro behind five examples: which they are, whose words are around them, what is read."""

import json
import pathlib
import shutil

import pytest

from stair_jax.data import sources
from stair_jax.evals.benchmark import registered
from stair_jax.run import benchmarks
from stair_jax.text import OUTPUT, OUTPUT_END
from tests.support.configs import tiny

NAME = "mmlu_pro_5_shot"
DATA = pathlib.Path(__file__).parents[2] / "../shared/data/mmlu_pro"
SAMPLE = "mmlu_pro_sample_1400.jsonl"
REAL = {"model__checkpoint": "x", "evaluate__search": "greedy"}


def solved(number, category="law", **more):
    said = f"A: Let's think step by step. It is {number}. The answer is (B)."
    row = {"question": f"solved {category} {number}", "options": ["no", "yes"], "answer": "B"}
    return row | {"category": category, "cot_content": said} | more


def asked(number, category="law", **more):
    row = {"question": f"asked {number}", "options": ["one", "two", "N/A"], "answer": "A"}
    return row | {"category": category, "cot_content": ""} | more


def folder_of(tmp_path, validation, test):
    for name, rows in (("validation", validation), ("test", test)):
        if rows:
            text = "".join(json.dumps(row) + "\n" for row in rows)
            (tmp_path / f"{name}.jsonl").write_text(text)
    return tmp_path


def loaded(place):
    (found,) = benchmarks.of(tiny(**REAL, evaluate__benchmarks=f"{NAME}:{place}"))
    return found


FIVE = [solved(n) for n in range(1, 7)]  # the last is one too many
PHYSICS = [solved(n, "physics") for n in range(5)]


def test_a_question_stands_behind_the_first_five_examples_of_its_category(tmp_path):
    mixed = [row for pair in zip(PHYSICS, FIVE, strict=False) for row in pair] + FIVE[5:]
    found = loaded(folder_of(tmp_path, mixed, [asked(1), asked(2, "physics")]))
    law, physics = found.prompts
    sentence, *blocks = law.question.split("Question:\n")
    assert "questions about law, each" in sentence
    assert blocks[0] == (
        "solved law 1\nOptions:\nA. no\nB. yes\n"
        "Answer: Let's think step by step. It is 1. The answer is (B).\n\n"
    )
    assert [block.partition("\n")[0] for block in blocks] == [
        *(f"solved law {n}" for n in range(1, 6)),
        "asked 1",
    ]
    # Without the option "N/A", and as far as the answer goes on from.
    assert blocks[-1] == "asked 1\nOptions:\nA. one\nB. two\nAnswer: Let's think step by step."
    assert "about physics" in physics.question
    assert "solved law" not in physics.question
    assert (law.id, law.ground_truth) == (f"{NAME}/00001", "A")
    assert found.protocol.endswith("cascade without a guess, own words before them")


def test_a_file_or_the_hub_may_hold_both_splits(tmp_path, monkeypatch):
    path = tmp_path / "all.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in [*FIVE, asked(1)]))
    (from_file,) = loaded(path).prompts
    calls = []

    def hub(name, split, subset):
        calls.append((name, split))
        return [*FIVE, asked(1)]

    monkeypatch.setattr(sources, "_hub", hub)
    (found,) = benchmarks.of(tiny(**REAL, evaluate__benchmarks=NAME))
    assert calls == [("TIGER-Lab/MMLU-Pro", "validation+test")]
    assert found.prompts == (from_file,)


@pytest.mark.skipif(not DATA.is_dir(), reason=f"{DATA} is not there")
def test_the_authors_sentence_is_taken_by_its_hash(tmp_path):
    folder = folder_of(tmp_path, FIVE, [asked(1)])
    own = loaded(folder).prompts[0].question
    shutil.copy(DATA / "initial_prompt.txt", folder)
    found = loaded(folder)
    text = (DATA / "initial_prompt.txt").read_text().replace("{$}", "law")
    assert found.prompts[0].question.startswith(text + "\nQuestion:\n")
    assert found.prompts[0].question.partition("Question:")[2] == own.partition("Question:")[2]
    assert found.protocol.endswith("official prompt initial_prompt d7337806")
    (folder / "initial_prompt.txt").write_text(text)
    with pytest.raises(ValueError, match=r"initial_prompt\.txt: found sha256 .* expected d7337806"):
        loaded(folder)


@pytest.mark.skipif(not DATA.is_dir(), reason=f"{DATA} is not there")
def test_the_sample_of_the_test_split_is_asked_behind_examples(tmp_path):
    shutil.copy(DATA / SAMPLE, tmp_path)
    rows = map(json.loads, (DATA / SAMPLE).read_text().splitlines())
    categories = {row["category"] for row in rows}
    examples = [solved(n, one) for one in sorted(categories) for n in range(5)]
    found = loaded(folder_of(tmp_path, examples, []))
    assert len(found.prompts) == 1400
    plain = registered()["mmlu_pro"].load(sources.read(str(tmp_path / SAMPLE)), "test")
    assert [one.ground_truth for one in found.prompts] == [one.ground_truth for one in plain]


REFUSED = [
    (FIVE[:4], [asked(1)], r"test\.jsonl:1: category: found 'law' with 4 solved examples, expect"),
    (FIVE, [asked(1, "art")], r"test\.jsonl:1: category: found 'art' with 0 solved examples"),
    (FIVE, [asked(1, options="x")], r"test\.jsonl:1: options: found 'x', expected a list of 2 to"),
    (FIVE, [asked(1, answer="C")], r"test\.jsonl:1: answer: found 'C', expected a letter of an"),
    ([], [asked(1)], r"found no split 'validation', expected validation with \.json"),
    (FIVE, [], r"found no split 'test', expected test with \.json"),
]


@pytest.mark.parametrize(("validation", "test", "message"), REFUSED)
def test_rows_that_cannot_be_asked_are_named(tmp_path, validation, test, message):
    with pytest.raises(ValueError, match=message) as error:
        loaded(folder_of(tmp_path, validation, test))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("answer", "outcome"),
    [
        ("so the answer is (A).", "correct"),
        ("so the answer is (B).", "wrong"),
        ("so it is A.\n\nQuestion:\nnext one? the answer is (B)", "correct"),
        ("no idea", "no letter"),
    ],
)
def test_the_letter_is_found_before_the_next_question(tmp_path, answer, outcome):
    found = loaded(folder_of(tmp_path, FIVE, [asked(1)]))
    response = f"{OUTPUT} {answer} {OUTPUT_END}"
    grade = found.grade_of(found.prompts[0], response, direct=False, cut=False)
    assert grade.outcome == outcome
    assert grade.figures["accuracy"] == (outcome == "correct")
