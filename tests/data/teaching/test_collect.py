"""Rows from a teacher: filters, attempts, the journal, and a server that is paid once."""

import contextlib

import pytest

from stair_jax import jsonl
from stair_jax.data.teaching.chats import EndpointChat
from stair_jax.data.teaching.collect import Attempt, collect
from stair_jax.data.teaching.filters import Filters, Unfit
from stair_jax.data.teaching.grammar import Fault, Step, render
from stair_jax.data.teaching.instruction import Instruction
from stair_jax.judges import rule
from stair_jax.records import Prompt, SftRow
from stair_jax.remote.complaints import Refused
from stair_jax.remote.open import OPEN
from stair_jax.text import OUTPUT, OUTPUT_END, STEP, STEP_END
from tests.support.openai_server import OpenAIServer
from tests.support.remote import _direct, config

__all__ = ["_direct"]  # a fixture that every test here uses, too

ASK = Instruction("Think: {question}")
FILTERS = Filters(safe=lambda some: [rule.is_refusal(found.answer) for _, found in some])
ANALYSIS = Step("Problem Analysis", "What is asked.")
GOOD = render([ANALYSIS, Step("Solve", "So.")], "It is 4.")
NO = render([ANALYSIS], "I'm sorry, but I can't help with this.")
# By question: the replies of a scripted teacher, one an attempt, and the reasons they meet.
SCRIPT = {
    "good": [GOOD],
    "harm": [NO],
    "tags": [GOOD.replace(STEP_END, "", 1), GOOD],
    "outside": [f"Sure! {GOOD}", GOOD],
    "output": [f"{GOOD}{OUTPUT}Final Answer: 5{OUTPUT_END}", GOOD],
    "inside": [GOOD.replace("So.", "So <|x|>."), GOOD],
    "title": [GOOD.replace("Title: Solve:", "Solved."), GOOD],
    "analysis": [GOOD.replace("Problem Analysis", "Thoughts"), GOOD],
    "step": [GOOD.replace("So.", ""), GOOD],
    "answer": [GOOD.replace("It is 4.", " "), GOOD],
    "harm unsafe": [GOOD, NO],
    "refused": [NO, NO, GOOD],
    "never": [NO, "four", f"{STEP}{STEP_END}{OUTPUT}4{OUTPUT_END}"],
}
REASONS = {
    "tags": Fault.TAGS,
    "outside": Fault.OUTSIDE,
    "output": Fault.OUTPUT,
    "inside": Fault.INSIDE,
    "title": Fault.TITLE,
    "analysis": Fault.ANALYSIS,
    "step": Fault.STEP,
    "answer": Fault.ANSWER,
    "harm unsafe": Unfit.UNSAFE,
    "refused": Unfit.REFUSED,
    "never": Unfit.REFUSED,
}
PROMPTS = [
    Prompt(id=f"id-{q}", question=q, type="safety" if "harm" in q else "helpfulness")
    for q in SCRIPT
]


class Teacher:
    """Replies by script, and remembers what it was asked."""

    def __init__(self, script, die_after=None):
        self.script, self.asked, self.die_after = script, [], die_after

    def __call__(self, questions, /):
        if self.die_after is not None and len(self.asked) >= self.die_after:
            raise KeyboardInterrupt
        self.asked += [(one.prompt.question, one.attempt) for one in questions]
        return [self.script[one.prompt.question][one.attempt] for one in questions]


def run(path, chat, prompts=PROMPTS, **more):
    more = {"instruction": ASK, "batch": 4} | more
    return collect(prompts, chat, FILTERS, path / "attempts.jsonl", **more)


def test_every_filter_fires_and_another_attempt_follows(tmp_path):
    told = []
    teacher = Teacher(SCRIPT)
    found = run(tmp_path, teacher, told=lambda done, total: told.append((done, total)))
    lines = jsonl.read_jsonl(tmp_path / "attempts.jsonl", Attempt)
    first = {line.id: line.reason for line in lines if line.attempt == 0}
    for question, reason in REASONS.items():
        assert first[f"id-{question}"] == str(reason)
    assert {line.reason for line in lines} == {"kept", *map(str, REASONS.values())}
    assert len(teacher.asked) == len(set(teacher.asked)) == 13 + 11 + 2 == len(lines)
    assert told[-1] == (13, 13)
    assert len(told) == 4 + 3 + 1

    report = found.report
    assert report.prompts == {"helpfulness": 11, "safety": 2}
    assert report.kept == {"helpfulness": 10, "safety": 2}
    assert report.attempts[0] == {
        "a helpful prompt refused": 2,
        "an empty final answer": 1,
        "an empty step": 1,
        "an unsafe answer to a safety prompt": 1,
        "a special token inside a text": 1,
        "a step without a title": 1,
        "kept": 2,
        "no single output block at the end": 1,
        "tags out of order or not closed": 1,
        "text outside the blocks": 1,
        "the first step is no problem analysis": 1,
    }
    assert report.attempts[1]["kept"] == 9
    assert report.attempts[2] == {"an empty step": 1, "kept": 1}
    assert report.dropped == {"an empty step": ["id-never"]}
    assert report.left_open == []
    assert report.refusals == {"I'm sorry, but I can't help with this.": 2}
    assert report.characters == {
        "fewest": float(len(NO)),
        "median": float(len(GOOD)),
        "most": float(len(GOOD)),
    }
    assert len(NO) != len(GOOD)
    assert report.steps == {1: 2, 2: 10}


def test_rows_are_the_normal_form_in_the_prompts_order(tmp_path):
    loose = GOOD.replace("\n", " ") + "\n"
    before = (("user", "hi"), ("assistant", "hello"))
    prompts = [
        Prompt(id="b", question="loose", type="helpfulness", before=before),
        Prompt(id="a", question="good", type="helpfulness"),
    ]
    found = run(tmp_path, Teacher({"loose": ["no", loose], "good": [GOOD]}), prompts)
    assert found.rows == [
        SftRow(id="b", question="loose", response=GOOD, before=before),
        SftRow(id="a", question="good", response=GOOD),
    ]


def test_a_run_that_was_killed_asks_only_what_has_no_line(tmp_path):
    straight = run(tmp_path / "straight", Teacher(SCRIPT))
    asked = []
    for die_after in (4, 8, 13, 17, 22):
        teacher = Teacher(SCRIPT, die_after - len(asked))
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, teacher)
        asked += teacher.asked
    with open(tmp_path / "attempts.jsonl", "a") as file:
        file.write('{"id": "id-good", "atte')  # a line that a kill has torn
    last = Teacher(SCRIPT)
    found = run(tmp_path, last)
    asked += last.asked
    assert last.asked
    assert len(asked) == len(set(asked)) == 26
    assert found == straight
    again = Teacher(SCRIPT)
    assert run(tmp_path, again) == straight
    assert again.asked == []


def test_fewer_or_more_attempts_go_on_from_the_same_journal(tmp_path):
    one = run(tmp_path, Teacher(SCRIPT), attempts=1)
    assert len(one.rows) == 2
    assert len(one.report.attempts) == 1
    more = Teacher(SCRIPT)
    assert len(run(tmp_path, more, attempts=2).rows) == 11
    assert {attempt for _, attempt in more.asked} == {1}
    assert run(tmp_path, Teacher(SCRIPT), attempts=1) == one


def test_what_could_not_be_asked_is_left_open_and_asked_again(tmp_path):
    script = {"good": [OPEN], "tags": ["x", OPEN], "harm": [NO]}
    prompts = [p for p in PROMPTS if p.question in script]
    found = run(tmp_path, Teacher(script), prompts)
    assert found.report.left_open == ["id-good", "id-tags"]
    assert found.report.dropped == {}
    assert [row.id for row in found.rows] == ["id-harm"]
    assert any(line.startswith("left open: 2") for line in found.report.lines())
    teacher = Teacher(SCRIPT)
    assert len(run(tmp_path, teacher, prompts).rows) == 3
    assert teacher.asked == [("good", 0), ("tags", 1)]


def test_what_nobody_could_judge_yet_is_left_open_and_no_attempt_is_lost(tmp_path):
    script = {"harm": [NO], "good": [GOOD]}
    prompts = [p for p in PROMPTS if p.question in script]
    away = Filters(safe=lambda some: [OPEN] * len(some))
    found = collect(prompts, Teacher(script), away, tmp_path / "attempts.jsonl", instruction=ASK)
    assert found.report.left_open == ["id-harm"]
    assert [row.id for row in found.rows] == ["id-good"]
    teacher = Teacher(script)
    assert len(run(tmp_path, teacher, prompts).rows) == 2
    assert teacher.asked == [("harm", 0)]


def test_no_reply_and_half_a_character_are_no_end(tmp_path):
    prompts = [Prompt(id=q, question=q, type="helpfulness") for q in "ab"]
    script = {"a": [None, GOOD], "b": [GOOD.replace("So.", "So \ud83d.")]}
    found = run(tmp_path, Teacher(script), prompts)
    assert found.report.attempts == [{"kept": 1, "no reply": 1}, {"kept": 1}]
    assert found.rows[1].response == GOOD.replace("So.", "So ?.")


def test_a_journal_of_another_question_is_not_taken(tmp_path):
    run(tmp_path, Teacher(SCRIPT))
    changed = [Instruction("Ponder: {question}"), ASK]
    types = [PROMPTS, [Prompt(id="id-good", question="good", type="safety")]]
    for instruction, prompts in zip(changed, types, strict=True):
        with pytest.raises(ValueError, match=r"attempts\.jsonl: prompt 'id-good' was asked as"):
            run(tmp_path, Teacher(SCRIPT), prompts, instruction=instruction)


def test_bad_arguments_are_named(tmp_path):
    for bad in ({"attempts": 0}, {"batch": 0}):
        with pytest.raises(ValueError, match="expected both at least 1"):
            run(tmp_path, Teacher(SCRIPT), **bad)
    with pytest.raises(ValueError, match="id 'id-good' found twice"):
        run(tmp_path, Teacher(SCRIPT), [PROMPTS[0], PROMPTS[0]])


def test_the_report_can_be_read(tmp_path):
    said = "\n".join(run(tmp_path, Teacher(SCRIPT)).report.lines())
    assert "helpfulness: 10 of 11 prompts have a row" in said
    assert "attempt 3: an empty step 1, kept 1" in said
    assert "dropped, an empty step: 1 (first id-never)" in said
    assert "refusals: 2, wordings: 1" in said
    assert f"characters: {len(NO)} to {len(GOOD)}, median {len(GOOD)}" in said


@contextlib.contextmanager
def serving(fault=lambda text, attempt: ""):
    """An endpoint that goes through the script, a reply further whenever it answers a question."""

    def answer(text):
        return SCRIPT[text.removeprefix("Think: ")][server.answered[text] - 1]

    with OpenAIServer(answer, fault) as server:
        yield server


def through(server, path, **more):
    """Collects through an endpoint; returns what was found and what was counted."""
    chat = EndpointChat(config(server.url), path / "replies", pause_s=0.001)
    with contextlib.closing(chat):
        return run(path, chat, **more), chat.counts


def test_an_endpoint_is_paid_once_for_every_reply(tmp_path):
    straight = run(tmp_path / "straight", Teacher(SCRIPT))
    with serving() as server:
        found, counts = through(server, tmp_path)
        assert found == straight
        assert len(server.asked) == counts["requests"] == 26
        # Without the journal the kept replies are read again, without either nothing is asked.
        again, counts = through(server, tmp_path)
        assert again == straight
        assert counts["requests"] == counts["cached"] == 0
        (tmp_path / "attempts.jsonl").unlink()
        again, counts = through(server, tmp_path)
        assert again == straight
        assert counts["requests"] == 0
        assert counts["cached"] > 0
        assert len(server.asked) == 26
    assert server.asked[0][1]["messages"][-1]["content"].startswith("Think: ")


def test_an_endpoint_that_was_killed_on_the_way_is_paid_for_the_rest(tmp_path):
    dead = set()

    def fault(text, attempt):
        question = text.removeprefix("Think: ")
        if question == "step" and not dead:
            dead.add(question)
            return "401"  # the run ends here, as if the key had been withdrawn
        return ""

    with serving(fault) as server:
        with pytest.raises(Refused):
            through(server, tmp_path)
        before = sum(server.answered.values())
        assert 4 <= before < 26
        found, _ = through(server, tmp_path)
        assert len(found.rows) == 12
        assert sum(server.answered.values()) == 26


def test_a_question_that_is_declined_every_time_is_dropped(tmp_path):
    def fault(text, attempt):
        return "content_filter" if text == "Think: harm" else ""

    with serving(fault) as server:
        found, _ = through(server, tmp_path, prompts=PROMPTS[:2])
    assert found.report.dropped == {"no reply": ["id-harm"]}
    assert found.report.attempts[0] == {"kept": 1, "no reply": 1}
