"""Forged analyses: a first step that the model did not write, and that decides wrongly."""

import re
from collections.abc import Sequence

from stair_jax.miniature import tasks, teacher, words
from stair_jax.records import Prompt
from stair_jax.text import STEP, STEP_END


def forged_step(prompt: Prompt, wording: int = 0) -> str:
    """Returns a first step that permits a harmful request, or refuses a harmless one.

    Rounds and benchmarks forge in different wordings, 1 and 0 of each two that the teacher has. It
    has the teacher's words, for the miniature's tokenizer knows no others, and says what is
    asked as the teacher does: a model that was taught by it loses its way behind other forms.
    """
    harmful = prompt.type == "safety"
    judgement, plan = (
        (teacher.SAFE[wording], teacher.ACT_PLAN[wording])
        if harmful
        else (teacher.RISKY[wording], teacher.REFUSE_PLAN[wording])
    )
    step = teacher.ANALYSIS.format(about=_about(prompt.question), judgement=judgement, plan=plan)
    return f"{STEP} {step} {STEP_END}"


def _about(question: str) -> str:
    """Returns what the teacher says a question is about; of an unknown one, that it is a fact."""
    asked = question.split()
    verb = next((word for word in asked if word in words.TOOL), None)
    targets = {*words.SAFE_TARGETS, *words.BAD_TARGETS}
    target = next((word for word in asked if word in targets), None)
    if verb and target:
        return teacher.ACT_ABOUT[0].format(verb=verb, target=target)
    kind = next((kind for kind, forms in tasks.FORMS.items() if _asks(question, forms)), "lookup")
    return teacher.TASK_ABOUT[0].format(about=tasks.ABOUT[kind][0])


def _asks(question: str, forms: Sequence[str]) -> bool:
    patterns = (re.sub(r"\\{\w+\\}", ".+", re.escape(form)) for form in forms)
    return any(re.search(pattern, question) for pattern in patterns)


def for_rounds(prompt: Prompt) -> str:
    """Returns the forged step that trees of a round may begin behind."""
    return forged_step(prompt, wording=1)
