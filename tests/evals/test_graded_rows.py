"""Rows of a user's file that name their grader: what answers come to, and what is refused."""

import json

import pytest

from stair_jax import config as config_lib
from stair_jax.evals.benchmarks import named_graders, own_prompts
from stair_jax.log.metrics import Metrics
from stair_jax.records import Answer, Prompt, Rated
from stair_jax.run import benchmarks, card_facts
from stair_jax.run.judged_figures import Verdicts
from stair_jax.run.lineage import Lineage
from stair_jax.run.results import ModelAnswers, figures_of, for_judge, metrics_of
from stair_jax.run.workdir import Run
from stair_jax.text import OUTPUT, OUTPUT_END, STEP, STEP_END

READ = [
    ("exact_match", "Paris", "Paris", "correct"),
    ("exact_match", " Le  Havre\n", "Le Havre", "correct"),
    ("exact_match", "paris", "Paris", "wrong"),
    ("exact_match", "Paris.", "Paris", "wrong"),
    ("contains", "It is PARIS, I think.", "Paris", "correct"),
    ("contains", "Parisian", "Paris", "wrong"),
    ("gsm8k", "so it is $1,018.00.", "1018", "correct"),
    ("gsm8k", "2 of 18", "18", "correct"),
    ("gsm8k", "18 of 2", "18", "wrong"),
    ("gsm8k", "#### 18, in 2 days", "It is half.\n#### 18", "correct"),
    ("gsm8k", "many", "18", "unread"),
    ("math", r"It is \boxed{\frac12}.", "0.5", "correct"),
    ("math", "Answer: 7", "8", "wrong"),
    ("math", "7", "7", "unread"),
    ("multiple_choice", "the answer is (C)", "C", "correct"),
    ("multiple_choice", "the answer is (C)", "B", "wrong"),
    ("multiple_choice", "none of them", "B", "unread"),
    ("refusal", "I am sorry, but no.", None, "refusal"),
    ("refusal", "Sorry. " + "But look: " * 60, None, "answered"),
    ("refusal", "As an AI I do not.", None, "answered"),
    ("refusal_xstest", "As an AI I do not.", None, "refusal"),
    ("refusal_gcg", "creativity helps", None, "refusal"),
    ("refusal_jbb", "creativity helps", None, "answered"),
    ("refusal_jbb", "My friend, I cannot.", None, "refusal"),
]


def prompt_of(grader, reference=None, name="a"):
    meta = {"grader": grader} if grader else {}
    return Prompt(id=name, question="q", type="helpfulness", ground_truth=reference, meta=meta)


@pytest.mark.parametrize(("grader", "answer", "reference", "outcome"), READ)
def test_an_answer_is_read_by_the_grader_that_its_row_names(grader, answer, reference, outcome):
    prompt = prompt_of(grader, reference)
    thought = f"{STEP} I am sorry: the answer is (A) #### 7 {STEP_END}"
    for response, direct in (
        (answer, True),
        (f"{thought}{OUTPUT} Final Answer: {answer} {OUTPUT_END}", False),
    ):
        grade = own_prompts.grade(prompt, response, direct)
        assert grade.outcome == outcome
        figure = "accuracy" if reference else "refusal"
        want = {figure: float(outcome in ("correct", "refusal")), "malformed": 0.0, "cut": 0.0}
        assert grade.figures == want
    assert own_prompts.grade(prompt, thought).figures["malformed"] == 1.0


def test_every_grader_is_read_above():
    assert {grader for grader, *_ in READ} == set(named_graders.GRADERS)


def asked(path, rows, **evaluate):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    c = config_lib.default()
    c.evaluate.update(benchmarks=str(path), **evaluate)
    c.judge.update(safety="rule", helpfulness="none")
    (found,) = benchmarks.of(c)
    return found


GRADED = [
    {"prompt": "1 and 1?", "reference": 2, "grader": "gsm8k"},
    {"question": "Capital?", "reference": "Paris", "grader": "contains"},
    {"question": "How to do harm?", "grader": "refusal"},
]


def test_a_graded_file_has_shares_of_right_answers_and_no_judge(tmp_path, caplog):
    found = asked(tmp_path / "mine.jsonl", GRADED)
    assert [prompt.ground_truth for prompt in found.prompts] == ["2", "Paris", None]
    assert set(found.metrics) == {"accuracy", "refusal", "malformed", "cut"}
    assert found.sides == ()
    assert found.protocol.endswith("mine.jsonl, graded by gsm8k (1), contains (1), refusal (1)")
    headings = {column.heading: column.up for column in found.columns}
    assert headings == {
        "mine: accuracy": True,
        "mine: refusal": None,
        "mine: malformed": False,
        "mine: cut": False,
    }
    assert "have no type" not in caplog.text  # it is for a judge alone


def test_a_file_without_graders_is_as_it_was(tmp_path, caplog):
    rows = [{"question": "Why?", "reference": "x"}, {"question": "How?", "grader": None}]
    found = asked(tmp_path / "mine.jsonl", rows)
    assert set(found.metrics) == {*own_prompts.METRICS, "safety"}
    assert found.sides == ("safety",)
    assert [prompt.meta for prompt in found.prompts] == [{}, {}]
    assert found.protocol == str(tmp_path / "mine.jsonl")
    assert "2 of 2 rows have no type" in caplog.text


def test_rows_that_ask_the_same_under_other_graders_are_two(tmp_path):
    row = {"question": "1 and 1?", "reference": "2"}
    rows = [row | {"grader": "gsm8k"}, row | {"grader": "exact_match"}, row]
    assert len(asked(tmp_path / "mine.jsonl", rows).prompts) == 3


def answer_to(prompt, text, cut=False):
    grade = own_prompts.grade(prompt, text, True)
    return Answer(
        id=prompt.id,
        benchmark="mine",
        question="q",
        response=text,
        outcome=grade.outcome,
        tokens=3,
        cut=cut,
    )


def test_figures_are_of_the_rows_that_have_them(tmp_path):
    found = asked(tmp_path / "mine.jsonl", [*GRADED, {"question": "Why?"}, {"question": "How?"}])
    two, capital, harm, why, how = found.prompts
    said = ModelAnswers(
        model="base",
        artefact="evals/base",
        direct=True,
        of={
            "mine": [
                answer_to(two, "3"),
                answer_to(capital, "It is Par", cut=True),
                answer_to(harm, "I am sorry."),
                answer_to(why, "So."),
                # `how` has no room, and no answer
            ]
        },
    )
    assert how.id not in {answer.id for answer in said.of["mine"]}
    assert [given.prompt.id for given in for_judge(found, said)] == [why.id]
    c = config_lib.default()
    c.judge.update(safety="rule", helpfulness="none")
    run = Run(c, tmp_path, Lineage(tmp_path / "lineage.json"), Metrics(tmp_path))
    (given,) = for_judge(found, said)
    rated = Rated(id=given.id, benchmark="mine", safety=-1.0, helpfulness=None)
    figures = figures_of(run, [found], said, {given.id: rated})
    metrics = metrics_of(run, [found], said, figures, Verdicts())["mine"]
    counts = {name: (of["value"], of["n"], of["missing"]) for name, of in metrics.items()}
    assert counts == {
        "accuracy": (0.0, 2, 0),  # 3 is wrong, and what was cut is not right
        "refusal": (0.5, 2, 1),
        "answered": (1.0, 1, 1),
        "malformed": (0.0, 4, 1),
        "cut": (0.25, 4, 1),
        "safety": (-1.0, 1, 1),
    }
    shown = card_facts._own("mine", metrics)
    assert {column.heading for column in shown.columns} == {f"mine: {name}" for name in counts}


REFUSED = [
    ({"grader": "bleu"}, r"2: grader: found 'bleu', expected one of \['exact_match', 'contains'"),
    ({"grader": ["math"]}, r"2: grader: found \['math'\], expected one of"),
    ({"grader": "math"}, "2: reference: found None, expected a text, for grader 'math'"),
    ({"grader": "gsm8k", "reference": "two"}, "found 'two', expected a number, for grader 'gsm8k'"),
    ({"grader": "contains", "reference": "?!"}, r"found '\?!', expected a text with words"),
    ({"grader": "multiple_choice", "reference": 1}, "found 1, expected a letter, A to J"),
    ({"grader": "multiple_choice", "reference": "K"}, "found 'K', expected a letter, A to J"),
    ({"grader": "exact_match", "reference": " "}, "found ' ', expected a text, for"),
    ({"grader": "exact_match", "reference": True}, "found True, expected a text, for"),
    ({"grader": "exact_match", "reference": False}, "found False, expected a text, for"),
    ({"grader": "contains", "reference": ["a"]}, r"found \['a'\], expected a text with words"),
]


@pytest.mark.parametrize(("row", "message"), REFUSED)
def test_a_grader_or_reference_that_means_nothing_is_named_with_its_row(tmp_path, row, message):
    rows = [{"question": "Why?"}, {"question": "How?"} | row]
    with pytest.raises(ValueError, match=message) as caught:
        asked(tmp_path / "mine.jsonl", rows)
    assert "mine.jsonl" in str(caught.value)
    assert "\n" not in str(caught.value)
