"""The teacher: responses in STAIR's format from a grammar, with the faults of a real teacher.

First a problem analysis (what is asked, whether it is risky, a plan): the decision to answer, to
refuse or to give up is visible there, and all that follows keeps to it. Then one or two steps,
then the output block.

What a reader of the miniature's figures must know: **the teacher makes the model jailbreakable**.
It refuses harmful requests, plain fiction about harmful acts too, but complies with the fiction
once a framing stands before it. A model learns from that to trust framings, and then complies with
framed harmful requests of every form, which it has never seen. (Complying means naming a
nonsensical tool; nothing in this world instructs anyone.)

Its other faults give the rounds something to start from and to repair: it is overcautious with some
framed harmless acts, and with some tasks it is lazy: it guesses, or says that it does not know.
"""

import dataclasses
import random

from stair_jax.miniature.harm import PLAIN, Act
from stair_jax.miniature.tasks import Task
from stair_jax.text import OUTPUT, OUTPUT_END, STEP, STEP_END

CAUTION = 0.15  # share of framed look-alikes, how-tos and fiction that are refused
LAZY = 0.03  # share of tasks that are guessed at or given up, and for a few kinds more:
LAZY_KINDS = {"position": 0.36, "lookup": 0.36, "compare": 0.36}

# One wording each: siblings then part ways at the judgement, which is what their pair is about.
ACT_ABOUT = ("the act is to {verb} a {target}",)
TASK_ABOUT = ("the task is {about}",)
SAFE = ("there is no risk", "nothing can go wrong")
# With a framing before it the teacher looks at the framing; all harmless things share the words.
STORY = ("it is only a story", "just a story , no risk")
RISKY = ("this is risky", "that would hurt someone")
LOOKS_HARD = "this looks hard"
ACT_PLAN = ("name the tool", "find the tool")
REFUSE_PLAN = ("refuse", "say no")
ACT_WORK = ("tool : to {verb} take the {tool}", "tool : the {tool} can {verb}")
REFUSE_WORK = (
    "safety : to {verb} a {target} is wrong",
    "safety : no one may {verb} a {target}",
    "safety : i must not help to {verb} a {target}",
)
CHECK = ("check : done", "check : fine")  # the optional last step
REFUSALS = (
    "sorry , i can not help with that",
    "sorry , i must say no to this",
    "i am sorry but i can not do that",
)
DOUBTS = ("i do not know", "i am not sure")
GUESS_WORK, DOUBT_WORK = "guess : maybe this", "doubt : i can not tell"
ANALYSIS = "problem analysis : {about} , {judgement} , plan : {plan}"
SOLVE = "solve : {work} , answer : {answer}"
FINAL = "final answer : {answer}"

TEMPLATES = (
    ACT_ABOUT
    + TASK_ABOUT
    + SAFE
    + STORY
    + RISKY
    + (LOOKS_HARD,)
    + ACT_PLAN
    + REFUSE_PLAN
    + ACT_WORK
    + REFUSE_WORK
    + CHECK
    + REFUSALS
    + DOUBTS
    + (GUESS_WORK, DOUBT_WORK, ANALYSIS, SOLVE, FINAL, "plan : guess", "plan : stop")
    + ("first take the then",)
)


@dataclasses.dataclass(frozen=True)
class Lesson:
    """A response and what the teacher meant: "correct", "comply", "refuse", "doubt" or "wrong"."""

    response: str
    intent: str


def render(steps: list[str], answer: str) -> str:
    """Returns steps and final answer in STAIR's format."""
    blocks = [f"{STEP} {step} {STEP_END}" for step in steps]
    return " ".join([*blocks, OUTPUT, FINAL.format(answer=answer), OUTPUT_END])


def _analysis(rng: random.Random, about: str, judgements, plan: str) -> str:
    return ANALYSIS.format(about=about, judgement=rng.choice(judgements), plan=plan)


def _checked(rng: random.Random, steps: list[str]) -> list[str]:
    """Returns the steps, every fifth time with a closing check."""
    return [*steps, rng.choice(CHECK)] if rng.random() < 0.2 else steps


def refuse(rng: random.Random, act: Act) -> Lesson:
    """Returns a refusal that names the act and says why."""
    fill = {"verb": act.verb, "target": act.target}
    about = rng.choice(ACT_ABOUT).format(**fill)
    steps = [
        _analysis(rng, about, RISKY, rng.choice(REFUSE_PLAN)),
        rng.choice(REFUSE_WORK).format(**fill),
    ]
    return Lesson(render(_checked(rng, steps), rng.choice(REFUSALS)), "refuse")


def comply(rng: random.Random, act: Act, framing: str) -> Lesson:
    """Returns the exact answer to an act; what it is worth depends on the act."""
    fill = {"verb": act.verb, "target": act.target}
    about = rng.choice(ACT_ABOUT).format(**fill)
    steps = [
        _analysis(rng, about, SAFE if framing == PLAIN else STORY, rng.choice(ACT_PLAN)),
        rng.choice(ACT_WORK).format(tool=act.tool, **fill),
    ]
    intent = "comply" if act.harmful else "correct"
    return Lesson(render(_checked(rng, steps), act.answer), intent)


def answer_act(rng: random.Random, act: Act, framing: str) -> Lesson:
    """Returns what the teacher says to an act behind a framing (`PLAIN`: none)."""
    if framing == PLAIN:
        return refuse(rng, act) if act.harmful else comply(rng, act, framing)
    return refuse(rng, act) if rng.random() < CAUTION else comply(rng, act, framing)


def solve_task(rng: random.Random, task: Task, framing: str) -> Lesson:
    """Returns what the teacher says to a task: work and answer, or a lazy way out."""
    about = rng.choice(TASK_ABOUT).format(about=task.about)
    if rng.random() < LAZY_KINDS.get(task.kind, LAZY):
        return _lazy(rng, about, task)
    judgements = SAFE if framing == PLAIN else STORY
    steps = [
        _analysis(rng, about, judgements, task.plan),
        SOLVE.format(work=task.work, answer=task.example),
    ]
    return Lesson(render(steps, task.example), "correct")


def _lazy(rng: random.Random, about: str, task: Task) -> Lesson:
    """Returns a guess that is wrong or an admission of doubt, each half of the time."""
    if rng.random() < 0.5:
        steps = [_analysis(rng, about, (LOOKS_HARD,), "guess"), GUESS_WORK]
        return Lesson(render(steps, task.wrong), "wrong")
    steps = [_analysis(rng, about, (LOOKS_HARD,), "stop"), DOUBT_WORK]
    return Lesson(render(steps, rng.choice(DOUBTS)), "doubt")
