"""What the baselines learn from: preferences without reasoning, as in STAIR's seed data D.

Responses are ordinary chat: the answer and nothing else, no tag, no steps. Half of the rows are
helpful (chosen: a right answer; rejected: a wrong one, a doubt or a needless refusal), the others
are harmful (chosen: a refusal of one sentence; rejected: what complies). 6 % of all, as in the
paper, are jailbreaks with a refusal: STAIR never sees such answers, the baselines train on them.
Source of the shares: STAIR section 3.1 and appendix A.1 (25k, 22k and 3k of 50k).

Two differences, of necessity. The rejected side of a jailbreak is written, not sampled from the
model to be trained, which says the same words. And the questions are those of the split "rounds":
its framings, its jailbreak targets, so that what is held out from STAIR is held out here as well.
"""

import random

from stair_jax.miniature import harm, splits, teacher, verifier, words
from stair_jax.miniature.harm import PLAIN, Act
from stair_jax.records import Preference, SftRow

MIX = {"harmful": 0.32, "fiction": 0.12, "jailbreak": 0.06, **splits.HELPFUL}
_FRAMINGS = tuple(harm.ROUND_FRAMINGS)
_POOLS = {
    **{kind: splits.acts_of(kind, "rounds") for kind in ("harmful", "fiction", "lookalike")},
    "jailbreak": harm.acts(words.BAD_VERBS, words.ROUND_TARGETS, ("sft", "rounds")),
}


def direct_rows(seed: int, count: int) -> list[SftRow]:
    """Returns stage 1's rows with the final answers alone, for a model that does not reason.

    The model trained on them is to the baselines what the instruct model is in the paper: it
    answers, refuses what is plainly harmful, and falls for framings, as the teacher made it.
    """
    return [
        SftRow(id=row.id, question=row.question, response=str(verifier.answer_of(row.response)))
        for row in splits.sft_rows(seed, count)
    ]


def preferences(seed: int, count: int) -> list[Preference]:
    """Returns `count` rows of D in training order; questions may repeat."""
    rng = random.Random(f"preferences-{seed}")
    drawn = []
    for name, quota in splits.quotas(MIX, count).items():
        for number in range(quota):
            item = _item(rng, name, number)
            drawn.append((item, _answers(rng, item[0])))
    rng.shuffle(drawn)
    return [_row(f"d-{i:05d}", item, answers) for i, (item, answers) in enumerate(drawn)]


def _item(rng: random.Random, name: str, number: int) -> splits.Item:
    """Returns the question of one row and its framing."""
    kind = name.removeprefix("framed_")
    framing = rng.choice(_FRAMINGS) if name != kind or name == "jailbreak" else PLAIN
    if kind == "harmless":
        turn = splits.TASK_KINDS[number % len(splits.TASK_KINDS)]
        return splits.task_of(rng, "rounds", turn), framing
    return rng.choice(_POOLS[kind]), framing


def _answers(rng: random.Random, asked: splits.Asked) -> tuple[str, str]:
    """Returns the better and the worse answer."""
    refusal, lazy = rng.choice(teacher.REFUSALS), rng.random() < 0.5
    if not isinstance(asked, Act):
        return asked.example, rng.choice(teacher.DOUBTS) if lazy else asked.wrong
    if asked.harmful:
        return refusal, asked.answer
    other = rng.choice([tool for tool in words.TOOL.values() if tool != asked.tool])
    return asked.answer, refusal if lazy else asked.answer.replace(asked.tool, other, 1)


def _row(name: str, item: splits.Item, answers: tuple[str, str]) -> Preference:
    prompt = splits.prompt_of(name, item)
    return Preference(
        id=name,
        question=prompt.question,
        type=prompt.type,
        chosen=answers[0],
        rejected=answers[1],
    )
