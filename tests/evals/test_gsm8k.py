"""GSM8K: which number an answer comes to, against recorded labels, and how its rows are read."""

import json
import pathlib

import datasets
import pytest

from stair_jax import config as config_lib
from stair_jax import jsonl
from stair_jax.evals.benchmarks import gsm8k
from stair_jax.records import Prompt
from stair_jax.run import benchmarks
from stair_jax.text import OUTPUT, OUTPUT_END, STEP, STEP_END

DATA = pathlib.Path(__file__).parents[3] / "shared" / "data" / "gsm8k"
recorded = pytest.mark.skipif(not DATA.is_dir(), reason=f"{DATA} is not there")
ROWS = [
    {"question": "How much?", "answer": "It is 2 * 9 = <<2*9=18>>18.\n#### 1,018"},
    {"question": "How many?", "answer": "It is half.\n#### -2.50"},
]


def asked(source=None, split="test"):
    """Returns the benchmark with its prompts, as a run reads it."""
    c = config_lib.default()
    c.evaluate.update(benchmarks=f"gsm8k:{source}" if source else "gsm8k", split=split)
    (found,) = benchmarks.of(c)
    return found


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


ANSWERS = [
    ("#### 18", "correct"),
    ("#### 18, in 2 days", "correct"),  # what is marked, not what comes last
    ("so it is $18.", "correct"),
    ("18.00", "correct"),
    ("1,8", "correct"),  # commas do not count
    ("from 20-18", "correct"),  # a dash between numbers is no sign
    ("18 in 2 days", "wrong"),
    ("-18", "wrong"),
    ("$ or .", "no number"),
    ("eighteen", "no number"),
    ("", "malformed"),
]


@pytest.mark.parametrize(("answer", "outcome"), ANSWERS)
def test_an_answer_is_its_number(answer, outcome):
    prompt = Prompt(id="a", question="q", type="helpfulness", ground_truth="18")
    for response, direct in (
        (answer, True),
        (f"{STEP} 7 {STEP_END}{OUTPUT} Final Answer: {answer} {OUTPUT_END}", False),
    ):
        grade = gsm8k.grade(prompt, response, direct)
        assert grade.outcome == outcome
        assert grade.figures["accuracy"] == (outcome == "correct")
        assert sum(value == 1 for value in grade.figures.values()) == (outcome != "wrong")
    assert (
        gsm8k.grade(prompt, f"{STEP} 18 {STEP_END}", False).outcome == "malformed"
    )  # no final answer


@recorded
def test_every_recorded_label_agrees():
    found = []
    for row in jsonl.read_json_lines(DATA / "example_model_solutions.jsonl"):
        truth = str(gsm8k.number_of(row["ground_truth"]))
        prompt = Prompt(id="a", question="q", type="helpfulness", ground_truth=truth)
        for model in ("6b_finetuning", "6b_verification", "175b_finetuning", "175b_verification"):
            grade = gsm8k.grade(prompt, row[model]["solution"], True)
            found.append((row[model]["is_correct"], grade.outcome == "correct"))
    assert len(found) >= 2640
    assert {label for label, _ in found} == {True, False}
    assert [pair for pair in found if pair[0] != pair[1]] == []


@recorded
def test_the_gold_answers_are_right():
    benchmark = asked(DATA / "test.jsonl")
    rows = jsonl.read_json_lines(DATA / "test.jsonl")
    assert len(benchmark.prompts) == len({prompt.id for prompt in benchmark.prompts}) == 1319
    for prompt, row in zip(benchmark.prompts, rows, strict=True):
        assert prompt.question == row["question"]
        assert benchmark.grade(prompt, row["answer"], True).outcome == "correct"
        plain = row["answer"].replace("#### ", "")  # the last number stands where nothing is marked
        assert benchmark.grade(prompt, plain, True).outcome == "correct"


def test_rows_come_from_a_file(tmp_path):
    path = write(tmp_path / "mine.jsonl", ROWS)
    benchmark = asked(path)
    assert [p.ground_truth for p in benchmark.prompts] == ["1,018", "-2.50"]
    assert [p.question for p in benchmark.prompts] == ["How much?", "How many?"]
    assert benchmark.grade(benchmark.prompts[1], "-2.5", True).outcome == "correct"
    assert benchmark.protocol.startswith(f"{path}, ")


def test_rows_come_from_the_hub_by_their_split(monkeypatch):
    seen = []

    def load(name, subset, split):
        seen.append((name, subset, split))
        return datasets.Dataset.from_list(ROWS)

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert asked().protocol.startswith("openai/gsm8k test, ")
    assert asked(split="dev").protocol.startswith("openai/gsm8k train, ")
    assert seen == [("openai/gsm8k", "main", "test"), ("openai/gsm8k", "main", "train")]


BAD = [
    ({"question": "q", "answer": "18"}, r"x\.jsonl:2: answer has no number behind '#### '"),
    ({"question": "q"}, r"x\.jsonl:2: no text under 'answer', found \['question'\]"),
    ({"prompt": "q", "answer": "#### 1"}, r"x\.jsonl:2: no text under 'question'"),
    ([1], r"x\.jsonl:2: found list, expected an object"),
]


@pytest.mark.parametrize(("row", "message"), BAD)
def test_a_bad_row_is_named(tmp_path, row, message):
    with pytest.raises(ValueError, match=message) as error:
        asked(write(tmp_path / "x.jsonl", [ROWS[0], row]))
    assert "\n" not in str(error.value)
