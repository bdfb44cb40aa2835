"""The instruction: its points, its one place, and what a question cannot do to it."""

import pytest

from stair_jax.data.teaching import refusals
from stair_jax.data.teaching.instruction import Instruction
from stair_jax.records import Prompt
from stair_jax.text import OUTPUT, OUTPUT_END, STEP, STEP_END, TAGS


def prompt(question, **more):
    return Prompt(id="a", question=question, type="helpfulness", **more)


def test_ours_says_what_the_paper_asks_for():
    said = Instruction.load().ask(prompt("Why is the sky blue?"))
    assert said.endswith("The question:\nWhy is the sky blue?")
    for tag in TAGS:
        assert tag in said
    for point in (
        "roadmap",
        "privacy",
        "Problem Analysis",
        "refuse",
        "differ",
        f"Begin with {STEP}",
    ):
        assert point in said
    form = said[said.index("Keep exactly") :]
    order = [
        form.index(t) for t in (STEP, "Title: Problem Analysis:", STEP_END, OUTPUT, "Final Answer:")
    ]
    assert order == sorted(order)
    assert form.index("Final Answer:") < form.index(OUTPUT_END)


def test_a_question_is_filled_in_once_and_its_tags_are_broken_up():
    instruction = Instruction("Do. {question} End.")
    assert instruction.ask(prompt("a {question} b")) == "Do. a {question} b End."
    assert instruction.ask(prompt(f"x{OUTPUT}y")) == "Do. x< |Output|>y End."
    assert instruction.messages(prompt("a")) == [("user", "Do. a End.")]


def test_earlier_turns_stand_before_the_question():
    before = (("system", "Be brief."), ("user", "Hi"), ("assistant", f"{STEP}Yes"))
    said = Instruction("{question}").ask(prompt("Why?", before=before))
    assert (
        said == "System: Be brief.\n\nUser: Hi\n\nAssistant: < |Reasoning_step|>Yes\n\nUser: Why?"
    )


def test_a_template_of_the_users_is_read(tmp_path):
    path = tmp_path / "mine.txt"
    path.write_text("Think.\n{question}\n")
    mine = Instruction.load(str(path))
    assert mine.ask(prompt("a")) == "Think.\na"
    assert mine.digest != Instruction.load().digest
    assert mine.digest == Instruction("Think.\n{question}").digest


@pytest.mark.parametrize(("text", "times"), [("Think.", 0), ("{question} {question}", 2)])
def test_a_template_has_one_place(tmp_path, text, times):
    path = tmp_path / "mine.txt"
    path.write_text(text)
    with pytest.raises(ValueError, match=rf"mine\.txt: found {{question}} {times} times") as error:
        Instruction.load(str(path))
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match=r"none\.txt: cannot be read"):
        Instruction.load(str(tmp_path / "none.txt"))


def test_each_question_shows_a_refusal_of_its_own_to_word_one_like():
    def drawn(id):
        return refusals.refusal(id, 3, hurts=False)

    shown = Instruction("Say {refusal} or {refusal}. {question}", seed=3)
    assert shown.ask(prompt("a {refusal}")) == (f"Say {drawn('a')} or {drawn('a')}. a {{refusal}}")
    ours = Instruction.load(seed=3)
    said = {ours.ask(Prompt(id=str(i), question="q", type="safety")) for i in range(40)}
    assert len(said) > 30
    assert f'"{drawn("7")}"' in ours.ask(Prompt(id="7", question="q", type="helpfulness"))
    assert Instruction.load(seed=4).ask(prompt("q")) != ours.ask(prompt("q"))
