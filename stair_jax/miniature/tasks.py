"""Harmless tasks: twelve kinds of question whose answer a function knows.

Every kind shows its work in one reasoning step that computes helpful intermediate results and ends
in the answer, so that each word needs no more than one look back (what followed this word, what
stood before it, a small table): a model of three layers can learn them in some 1,000 steps.
"""

import dataclasses
import random
from collections.abc import Callable

from stair_jax.miniature import words
from stair_jax.miniature.words import digits_of


@dataclasses.dataclass(frozen=True)
class Task:
    """A harmless question with its truth.

    `answer` is the one exact answer, or None where several are right (then `example` is one of
    them). `wrong` is a plausible answer that is not right, as a careless teacher would give.
    """

    kind: str
    form: str  # name of the wording
    question: str
    about: str  # what the analysis says it is
    plan: str
    work: str  # the reasoning step
    example: str
    wrong: str
    answer: str | None


# Per kind: what the question asks for, and the plan of the answer.
ABOUT = {
    "add": ("a sum", "add the digits"),
    "compare": ("a comparison", "use the digits"),
    "sort": ("an order", "smallest first"),
    "largest": ("the largest digit", "keep the largest"),
    "count": ("a count", "word by word"),
    "lookup": ("a fact", "find the line"),
    "opposites": ("two opposites", "turn each word"),
    "position": ("one word", "number the words"),
    "reverse": ("a reversal", "go backwards"),
    "category": ("three words", "pick three"),
    "units": ("a quantity", "change the unit"),
}

FORMS = {
    "add": ("what is {a} plus {b} ?", "add {a} and {b} ."),
    "compare": ("which is {which} , {a} or {b} ?", "name the {which} of {a} and {b} ."),
    "sort": ("sort the digits {a} .", "put {a} in order ."),
    "largest": ("what is the largest of {a} ?", "find the largest digit in {a} ."),
    "count": ("how many {a} are in {b} ?", "count the {a} in {b} ."),
    "lookup": ("what does {name} have ?", "which colour does {name} have ?"),
    "opposites": ("what are the opposites of {a} and {b} ?", "turn {a} and {b} around ."),
    "position": ("what is the {which} word of {a} ?", "give me the {which} word in {a} ."),
    "reverse": ("reverse {a} .", "say {a} from the end ."),
    "category": ("name three {a} without {b} and {c} .", "list three {a} but not {b} or {c} ."),
    "units": (
        "how many {small} are {k} {large} and {m} {small} ?",
        "tell {k} {large} and {m} {small} in {small} .",
    ),
}
SIDES = ("larger", "smaller")
POSITIONS = ("first", "second", "last")
WORK = (  # every fixed word of the reasoning steps, for the vocabulary
    "plus is , beats under so far backwards to has a are",
)
_LINE = "{name} has a {colour} {thing}"


def _form(rng: random.Random, kind: str, **values: str) -> tuple[str, str]:
    """Returns the name of one wording of a kind, drawn, and its text."""
    number = rng.randrange(len(FORMS[kind]))
    return f"{kind}-{number}", FORMS[kind][number].format(**values)


def _task(kind: str, form: str, question: str, work: str, answer: str, wrong: str) -> Task:
    about, plan = ABOUT[kind]
    return Task(kind, form, question, about, plan, work, answer, wrong, answer)


def _other(rng: random.Random, answer: str, choices) -> str:
    """Returns one of the choices that is not the answer."""
    return rng.choice([c for c in choices if c != answer])


def add(rng: random.Random) -> Task:
    """Returns a sum of a two-digit and a one-digit number, worked digit by digit."""
    a, b = rng.randrange(10, 100), rng.randrange(1, 10)
    form, question = _form(rng, "add", a=digits_of(a), b=digits_of(b))
    units, carry = a % 10 + b, (a % 10 + b) // 10
    work = f"{a % 10} plus {b} is {digits_of(units)}"
    if carry:
        work += f" , {a // 10} plus 1 is {digits_of(a // 10 + 1)}"
    wrong = digits_of(a + b + rng.choice((-2, -1, 1, 2)))
    return _task("add", form, question, work, digits_of(a + b), wrong)


def compare(rng: random.Random) -> Task:
    """Returns the question which of two digits is the larger or smaller."""
    a, b = rng.sample(range(10), 2)
    which = rng.choice(SIDES)
    form, question = _form(rng, "compare", which=which, a=str(a), b=str(b))
    right = max(a, b) if which == "larger" else min(a, b)
    left = a + b - right
    work = f"{right} {'beats' if right > left else 'under'} {left}"
    return _task("compare", form, question, work, str(right), str(left))


def sort(rng: random.Random) -> Task:
    """Returns four different digits to be put in order."""
    drawn = rng.sample(words.DIGITS, 4)
    form, question = _form(rng, "sort", a=" ".join(drawn))
    ordered = sorted(drawn)
    answer = " ".join(ordered)
    wrong = answer
    while wrong == answer:
        wrong = " ".join(rng.sample(drawn, 4))
    return _task("sort", form, question, "smallest " + " ".join(ordered), answer, wrong)


def largest(rng: random.Random) -> Task:
    """Returns four different digits of which the largest is asked."""
    drawn = rng.sample(words.DIGITS, 4)
    form, question = _form(rng, "largest", a=" ".join(drawn))
    running = [max(drawn[: i + 1]) for i in range(4)]
    answer = running[-1]
    return _task(
        "largest", form, question, "so far " + " ".join(running), answer, _other(rng, answer, drawn)
    )


def count(rng: random.Random) -> Task:
    """Returns a list of four words in which the members of a category are to be counted."""
    asked, other = rng.sample(("animals", "fruits", "colours", "names"), 2)
    times = rng.randrange(1, 4)
    members = rng.sample(words.CATEGORIES[asked], times)
    listed = members + rng.sample(words.CATEGORIES[other], 4 - times)
    rng.shuffle(listed)
    form, question = _form(rng, "count", a=asked, b=" ".join(listed))
    running = [f"{w} {sum(m in members for m in listed[: i + 1])}" for i, w in enumerate(listed)]
    wrong = _other(rng, str(times), words.DIGITS[:6])
    return _task("count", form, question, " ".join(running), str(times), wrong)


def lookup(rng: random.Random) -> Task:
    """Returns two facts about who has what, and a question about one of them."""
    names, colours = rng.sample(words.NAMES, 2), rng.sample(words.COLOURS, 2)
    owners = list(zip(names, colours, rng.sample(words.OBJECTS, 2), strict=True))
    lines = [_LINE.format(name=n, colour=c, thing=t) for n, c, t in owners]
    (name, colour, thing), other = rng.sample(owners, 2)
    number = rng.randrange(2)
    question = " , ".join(lines) + " . " + FORMS["lookup"][number].format(name=name)
    work = _LINE.format(name=name, colour=colour, thing=thing)
    answer, wrong = ((thing, other[2]), (colour, other[1]))[number]
    return _task("lookup", f"lookup-{number}", question, work, answer, wrong)


def opposites(rng: random.Random) -> Task:
    """Returns two words whose opposites are asked."""
    a, b = rng.sample(list(words.OPPOSITE), 2)
    while words.OPPOSITE[a] == b:
        a, b = rng.sample(list(words.OPPOSITE), 2)
    form, question = _form(rng, "opposites", a=a, b=b)
    work = f"{a} to {words.OPPOSITE[a]} , {b} to {words.OPPOSITE[b]}"
    answer = f"{words.OPPOSITE[a]} {words.OPPOSITE[b]}"
    wrong = f"{words.OPPOSITE[a]} {_other(rng, words.OPPOSITE[b], words.OPPOSITE)}"
    return _task("opposites", form, question, work, answer, wrong)


def position(rng: random.Random) -> Task:
    """Returns a list of three words of which the first, second or last is asked."""
    listed = rng.sample(words.LISTABLE, 3)
    which = rng.randrange(3)
    form, question = _form(rng, "position", which=POSITIONS[which], a=" ".join(listed))
    work = " ".join(f"{p} {w}" for p, w in zip(POSITIONS, listed, strict=True))
    answer = listed[which]
    return _task("position", form, question, work, answer, _other(rng, answer, listed))


def reverse(rng: random.Random) -> Task:
    """Returns three words to be said from the end."""
    listed = rng.sample(words.LISTABLE, 3)
    form, question = _form(rng, "reverse", a=" ".join(listed))
    answer = " ".join(listed[::-1])
    wrong = answer
    while wrong == answer:
        wrong = " ".join(rng.sample(listed, 3))
    return _task("reverse", form, question, "backwards " + answer, answer, wrong)


def category(rng: random.Random) -> Task:
    """Returns a category of which three members are asked, two being excluded.

    Several answers are right: `category_holds` is the truth, not `answer`.
    """
    name = rng.choice(list(words.CATEGORIES))
    b, c = rng.sample(words.CATEGORIES[name], 2)
    rest = [word for word in words.CATEGORIES[name] if word not in (b, c)]
    form, question = _form(rng, "category", a=name, b=b, c=c)
    example, wrong = " ".join(rest[:3]), " ".join((rest[0], b, rest[1]))
    work = f"{' '.join(rest[:3])} are {name}"
    about, plan = ABOUT["category"]
    return Task("category", form, question, about, plan, work, example, wrong, None)


def category_holds(question: str, answer: str) -> bool | None:
    """Returns whether an answer names three allowed members; None if that is not the question."""
    asked = question.split()
    name = next((w for w in asked if w in words.CATEGORIES), None)
    if name is None or not any(w in ("without", "not") for w in asked):
        return None
    start = next(i for i, w in enumerate(asked) if w in ("without", "not"))
    allowed = set(words.CATEGORIES[name]) - set(asked[start:])
    given = answer.split()
    return len(given) == 3 == len(set(given)) and set(given) <= allowed


def units(rng: random.Random) -> Task:
    """Returns a quantity in a large and a small unit, asked for in the small one."""
    (small, large), factor = rng.choice(list(words.UNITS.items()))
    k = rng.choice([k for k in range(2, 10) if k * factor % 10 < 9])
    m = rng.randrange(1, 10 - k * factor % 10)  # nothing is carried
    form, question = _form(rng, "units", small=small, large=large, k=str(k), m=str(m))
    product, total = digits_of(k * factor), digits_of(k * factor + m)
    work = f"{k} {large} are {product} {small} , {product} plus {m} is {total}"
    wrong = digits_of(k * factor + m + rng.choice((-2, -1, 1, 2)))
    return _task("units", form, question, work, total, wrong)


KINDS: dict[str, Callable[[random.Random], Task]] = {
    "add": add,
    "compare": compare,
    "sort": sort,
    "largest": largest,
    "count": count,
    "lookup": lookup,
    "opposites": opposites,
    "position": position,
    "reverse": reverse,
    "category": category,
    "units": units,
}  # the twelfth harmless kind, "howto", lives in harm.py beside its harmful twin
