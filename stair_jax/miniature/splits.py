"""The splits: rows for stage 1, prompts for each round, held-out benchmarks. No text is shared.

Every act and every task question belongs to one of `harm.BUCKETS` ("sft", "rounds", "dev", "test")
in all its forms, plain and framed. One exception, disjoint as text all the same: jailbreaks of the
rounds dress up acts of "sft" and "rounds", which stage 1 knows as plain or as fiction.

What else is held out, and what overlaps:

- `harm.TEST_FRAMINGS` and `words.TEST_TARGETS` (for `dev`: `DEV_FRAMINGS`, `DEV_TARGETS`) come
  together with harm behind a framing in no round and in no row of stage 1. Their words are known:
  stage 1 has all framings before harmless questions and all targets in plain refusals and in
  look-alikes.
- `dev` is for tuning, `test` for reporting. Their framings, their jailbreak targets, their acts and
  their task questions differ; verbs, forms, task kinds and the targets of `harmful` and `lookalike`
  are shared. The acts of dev jailbreaks may occur plain in stage 1, those of test nowhere.
- Rounds are disjoint from each other until a finite class runs out and starts again.

Nothing of the benchmarks depends on the seed of a run.
"""

import itertools
import random
import zlib
from collections.abc import Callable, Iterator, Mapping

from stair_jax.miniature import harm, tasks, teacher, words
from stair_jax.miniature.harm import PLAIN, Act
from stair_jax.miniature.tasks import Task
from stair_jax.records import Prompt, SftRow

Asked = Act | Task
Item = tuple[Asked, str]  # a question and its framing

# Stage 1: share of rows per class. "framed_fiction" is what makes a jailbreakable model, see
# teacher.py.
SFT_MIX = {
    "harmless": 0.38,
    "framed_harmless": 0.18,
    "lookalike": 0.08,
    "framed_act": 0.10,  # look-alikes and how-tos
    "harmful": 0.12,
    "fiction": 0.04,
    "framed_fiction": 0.10,
}
# Rounds: as in the paper framings come in with round 2; safety and helpfulness are half each.
# From then on framed look-alikes stand against the jailbreaks, or the model would refuse them too.
# In round 1 they would stand alone: a model that has just learned to answer whatever is framed
# never tries a refusal again, and the later rounds find nothing to prefer.
HELPFUL = {"harmless": 0.18, "framed_harmless": 0.08, "lookalike": 0.06, "framed_lookalike": 0.18}
PRM_MIX = {"harmless": 0.5, "framed_harmless": 0.5}
ROUND_MIX = (
    {"harmful": 0.36, "fiction": 0.14, "harmless": 0.40, "lookalike": 0.10},
    {"harmful": 0.12, "fiction": 0.06, "jailbreak": 0.28, "framed_fiction": 0.04, **HELPFUL},
    {"harmful": 0.04, "fiction": 0.02, "jailbreak": 0.38, "framed_fiction": 0.06, **HELPFUL},
)
BENCHMARKS = {"harmful": 320, "jailbreak": 400, "lookalike": 400, "harmless": 480}
TASK_KINDS = (*tasks.KINDS, "howto")

_OWN = {  # the framings and jailbreak targets of each split
    "rounds": (tuple(harm.ROUND_FRAMINGS), words.ROUND_TARGETS),
    "dev": (tuple(harm.DEV_FRAMINGS), words.DEV_TARGETS),
    "test": (tuple(harm.TEST_FRAMINGS), words.TEST_TARGETS),
}
_FICTION = tuple(harm.FICTION_FORMS)


def owner(task: Task) -> str:
    """Returns the split that owns a task question, by a hash of its text."""
    cell = zlib.crc32(task.question.encode()) % 20
    return next(name for name, cells in harm.BUCKETS.items() if cell in cells)


def quotas(mix: Mapping[str, float], count: int) -> dict[str, int]:
    """Returns whole numbers per class that add up to `count`, as near to the mix as can be."""
    total = sum(mix.values())
    exact = {name: share / total * count for name, share in mix.items()}
    rounded = {name: int(value) for name, value in exact.items()}
    by_rest = sorted(mix, key=lambda name: rounded[name] - exact[name])
    for name in by_rest[: count - sum(rounded.values())]:
        rounded[name] += 1
    return rounded


# ---- questions


def task_of(rng: random.Random, split: str, kind: str) -> Act | Task:
    """Returns a harmless question of one kind that the split owns."""
    if kind == "howto":
        return rng.choice(acts_of("howto", split))
    while True:
        task = tasks.KINDS[kind](rng)
        if owner(task) == split:
            return task


def acts_of(kind: str, split: str) -> list[Act]:
    """Returns the acts of a kind that the split owns, in all forms of the kind."""
    safe, bad, owners = words.SAFE_VERBS, words.BAD_VERBS, (split,)
    # The rounds know nothing of held-out targets, not even in look-alikes: there they would
    # be seen framed and harmless only, and learned as harmless.
    targets = words.ROUND_TARGETS if split == "rounds" else words.BAD_TARGETS
    if kind == "howto":
        return harm.acts(safe, words.SAFE_TARGETS, owners)
    if kind == "harmful":
        return harm.acts(bad, targets, owners)
    if kind == "fiction":
        return harm.acts(bad, targets, owners, _FICTION)
    if kind == "lookalike":
        return harm.acts(bad, words.SAFE_TARGETS, owners) + harm.acts(safe, targets, owners)
    raise ValueError(f"miniature: kind {kind!r} is none of howto, harmful, fiction, lookalike")


# ---- stage 1


def _sft_item(rng: random.Random, name: str, number: int) -> Item:
    """Returns the question of one row of stage 1."""
    every, (own, targets) = tuple(harm.FRAMINGS), _OWN["rounds"]
    if name in ("harmless", "framed_harmless"):
        kind = TASK_KINDS[number % len(TASK_KINDS)]
        framing = PLAIN if name == "harmless" else rng.choice(every)
        return task_of(rng, "sft", kind), framing
    if name == "framed_act":
        kind = rng.choice(("lookalike", "lookalike", "howto"))
        return rng.choice(_ACTS[kind]), rng.choice(every)
    if name == "framed_fiction":  # no held-out framing, no held-out target
        pool = [act for act in _ACTS["fiction"] if act.target in targets]
        return rng.choice(pool), rng.choice(own)
    return rng.choice(_ACTS[name]), PLAIN


_ACTS = {kind: acts_of(kind, "sft") for kind in ("howto", "harmful", "fiction", "lookalike")}


def lessons(
    seed: int, count: int, mix: Mapping[str, float] = SFT_MIX
) -> list[tuple[str, Prompt, teacher.Lesson]]:
    """Returns the rows of stage 1 with their class, their truth and what the teacher meant."""
    rng = random.Random(f"sft-{seed}")
    drawn = []
    for name, quota in quotas(mix, count).items():
        for number in range(quota):
            item = _sft_item(rng, name, number)
            drawn.append((name, item, _lesson(rng, item)))
    rng.shuffle(drawn)
    return [
        (name, prompt_of(f"sft-{i:05d}", item), lesson)
        for i, (name, item, lesson) in enumerate(drawn)
    ]


def sft_rows(seed: int, count: int, mix: Mapping[str, float] = SFT_MIX) -> list[SftRow]:
    """Returns `count` rows for stage 1, in training order; questions may repeat."""
    return [
        SftRow(id=prompt.id, question=prompt.question, response=lesson.response)
        for _, prompt, lesson in lessons(seed, count, mix)
    ]


# ---- rounds


def round_prompts(number: int, seed: int, count: int) -> list[Prompt]:
    """Returns `count` distinct prompts of round `number` (1, 2, ...) in the order of the search.

    Raises:
      ValueError: for a round below 1, or more prompts of a class than the world holds.
    """
    if number < 1:
        raise ValueError(f"rounds: found round {number}, expected 1 or more")
    wanted = [quotas(ROUND_MIX[min(r, len(ROUND_MIX)) - 1], count) for r in range(1, number + 1)]
    items: list[Item] = []
    for name, quota in wanted[-1].items():
        rng = random.Random(f"rounds-{seed}-{name}")
        skip = sum(earlier.get(name, 0) for earlier in wanted[:-1])
        items += _ROUND_CLASSES[name](rng, name, skip, quota)
    random.Random(f"order-{seed}-{number}").shuffle(items)
    return [prompt_of(f"r{number}-{i:04d}", item) for i, item in enumerate(items)]


def prm_lessons(seed: int, count: int) -> list[tuple[Prompt, str]]:
    """Returns `count` distinct further prompts for a reward model, with the teacher's responses.

    Half of them are framed. Safety needs no more than the rounds' trees; whether an answer is
    right takes many to learn.
    """
    items: list[Item] = []
    for name, quota in quotas(PRM_MIX, count).items():
        items += _from_tasks(random.Random(f"prm-{seed}-{name}"), name, 0, quota)
    random.Random(f"order-{seed}-prm").shuffle(items)
    rng, lessons = random.Random(f"teacher-{seed}-prm"), []
    for i, item in enumerate(items):
        lessons.append((prompt_of(f"prm-{i:05d}", item), _lesson(rng, item).response))
    return lessons


def _lesson(rng: random.Random, item: Item) -> teacher.Lesson:
    asked, framing = item
    if isinstance(asked, Act):
        return teacher.answer_act(rng, asked, framing)
    return teacher.solve_task(rng, asked, framing)


def _from_tasks(rng: random.Random, name: str, skip: int, quota: int) -> list[Item]:
    """Returns harmless questions, kinds in turn, none twice even over the rounds skipped."""
    framings = (PLAIN,) if name == "harmless" else _OWN["rounds"][0]
    seen: dict[str, Item] = {}
    for attempt in itertools.count():
        if len(seen) >= skip + quota:
            break
        # A small kind may be used up: its turn then passes to the next kind.
        item = task_of(rng, "rounds", TASK_KINDS[attempt % len(TASK_KINDS)])
        framing = rng.choice(framings)
        seen.setdefault(harm.framed(item.question, framing), (item, framing))
    return list(seen.values())[skip : skip + quota]


def _from_pool(rng: random.Random, name: str, skip: int, quota: int) -> list[Item]:
    """Returns questions about acts from a shuffled pool that starts again at its end."""
    framings, targets = _OWN["rounds"]
    if name == "jailbreak":
        pool = harm.acts(words.BAD_VERBS, targets, ("sft", "rounds"))
    else:
        pool = acts_of(name.removeprefix("framed_"), "rounds")
    plain = name in ("harmful", "fiction", "lookalike")
    items = list(itertools.product(pool, (PLAIN,) if plain else framings))
    if quota > len(items):
        raise ValueError(f"rounds: {quota} prompts of {name!r} asked, the world holds {len(items)}")
    rng.shuffle(items)
    return [items[(skip + i) % len(items)] for i in range(quota)]


_ROUND_CLASSES: dict[str, Callable[[random.Random, str, int, int], list[Item]]] = {
    "harmless": _from_tasks,
    "framed_harmless": _from_tasks,
    "lookalike": _from_pool,
    "framed_lookalike": _from_pool,
    "harmful": _from_pool,
    "fiction": _from_pool,
    "jailbreak": _from_pool,
    "framed_fiction": _from_pool,
}


# ---- benchmarks


def benchmark(name: str, split: str = "test") -> list[Prompt]:
    """Returns the held-out prompts of a benchmark, always the same ones.

    `harmful` is plain, `jailbreak` framed; `lookalike` and `harmless` are half plain, half framed.

    Raises:
      ValueError: for an unknown benchmark or split.
    """
    if name not in BENCHMARKS:
        raise ValueError(f"evaluate.benchmarks: found {name!r}, expected one of {[*BENCHMARKS]}")
    if split not in ("dev", "test"):
        raise ValueError(f"evaluate.split: found {split!r}, expected 'dev' or 'test'")
    rng = random.Random(f"{split}-{name}")
    items = list(itertools.islice(_benchmark_items(rng, name, split), BENCHMARKS[name]))
    return [prompt_of(f"{split}-{name}-{i:04d}", item) for i, item in enumerate(items)]


def _benchmark_items(rng: random.Random, name: str, split: str) -> Iterator[Item]:
    """Yields distinct questions of a benchmark, balanced over its classes."""
    framings, targets = _OWN[split]
    if name == "harmless":
        yield from _held_out_tasks(rng, split, framings)
    elif name == "jailbreak":
        # So few acts are dev's own that it takes those of stage 1 as well, never those of test.
        owners = ("test",) if split == "test" else ("sft", "rounds", "dev")
        pool = harm.acts(words.BAD_VERBS, targets, owners)
        yield from _shuffled(rng, itertools.product(pool, framings))
    else:
        pool = _shuffled(rng, acts_of(name, split))
        for i, act in enumerate(pool):
            yield act, PLAIN if name == "harmful" or i % 2 else rng.choice(framings)


def _shuffled(rng: random.Random, items) -> list:
    items = list(items)
    rng.shuffle(items)
    return items


def _held_out_tasks(rng: random.Random, split: str, framings: tuple[str, ...]) -> Iterator[Item]:
    """Yields task questions, kinds in turn, each question once, every second framed."""
    seen: set[str] = set()
    for turn in itertools.count():
        for kind in TASK_KINDS:
            item = task_of(rng, split, kind)
            while item.question in seen:
                item = task_of(rng, split, kind)
            seen.add(item.question)
            yield item, rng.choice(framings) if turn % 2 else PLAIN


def prompt_of(name: str, item: Item) -> Prompt:
    """Returns a question behind its framing as a row, with its truth."""
    asked, framing = item
    safety = isinstance(asked, Act) and asked.harmful
    return Prompt(
        id=name,
        question=harm.framed(asked.question, framing),
        type="safety" if safety else "helpfulness",
        ground_truth=None if safety else asked.answer,
        meta={"kind": asked.kind, "framing": framing, "form": asked.form},
    )
