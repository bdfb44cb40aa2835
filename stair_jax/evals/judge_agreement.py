"""How far judges can be trusted: what each of them said, and how often two of them agree.

Verdicts are compared as words (`judge_figures.Reading.verdict`): of StrongREJECT both judges must
come to the same official score.
"""

import collections
import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

from stair_jax.evals.attacks.replies import refuses
from stair_jax.evals.judge_figures import Reading

SHOWN = 20  # disagreements
_UNREAD_SHARE = 0.1  # more than this is worth a warning


class Judged(NamedTuple):
    """A judge's reply to a question about an answer.

    Attributes:
      judge: name of the model.
      prompt: name of what it was asked.
      id: of the question, the same for every judge.
      benchmark: that was answered.
      request: that was made.
      answer: that was given.
      reply: the whole of it; None where the judge gave none.
      reading: what it says; None where that cannot be read.
    """

    judge: str
    prompt: str
    id: str
    benchmark: str
    request: str
    answer: str
    reply: str | None
    reading: Reading | None


def kappa(first: Sequence[str], second: Sequence[str]) -> float | None:
    """Returns Cohen's kappa of two judges' verdicts on the same answers.

    (observed - expected) / (1 - expected), where `expected` is the share of equal verdicts that
    chance would give judges with these counts of each verdict. 1 is perfect, 0 is chance; None
    where it is undefined: without answers, and where both judges only ever say the same one thing.

    Source: Cohen 1960.

    Raises:
      ValueError: where the judges have not as many verdicts.
    """
    if len(first) != len(second):
        raise ValueError(f"kappa: {len(first)} and {len(second)} verdicts, expected as many")
    count = len(first)
    one, other = collections.Counter(first), collections.Counter(second)
    by_chance = sum(one[word] * other[word] for word in one)  # of count squared
    if by_chance == count**2:
        return None
    equal = sum(a == b for a, b in zip(first, second, strict=True))
    return (equal * count - by_chance) / (count**2 - by_chance)


def report(judged: Sequence[Judged]) -> dict[str, Any]:
    """Returns {warnings, judges, agreement}, for JSON.

    Args:
      judged: every judge's reply to every distinct question.
    """
    groups: dict[tuple[str, str], list[Judged]] = {}
    for one in judged:
        groups.setdefault((one.prompt, one.judge), []).append(one)
    counted = [_counts(rows) for rows in groups.values()]
    names = list(dict.fromkeys(one.judge for one in judged))
    prompts = list(dict.fromkeys(one.prompt for one in judged))
    return {
        "warnings": [line for counts in counted for line in _warnings(counts)],
        "judges": counted,
        "agreement": [
            _compared(groups.get((prompt, a), []), groups.get((prompt, b), []), prompt, (a, b))
            for prompt in prompts
            for a, b in itertools.combinations(names, 2)
        ],
    }


def _counts(rows: Sequence[Judged]) -> dict[str, Any]:
    """Returns what a judge's replies to one prompt were."""
    verdicts = collections.Counter(one.reading.verdict for one in rows if one.reading)
    replies = [one.reply for one in rows if one.reply is not None]
    read = sum(verdicts.values())
    return {
        "judge": rows[0].judge,
        "prompt": rows[0].prompt,
        "asked": len(rows),
        "read": read,
        "parse_failures": len(replies) - read,
        "no_reply": len(rows) - len(replies),
        "refusals": sum(map(refuses, replies)),
        "verdicts": dict(sorted(verdicts.items())),
    }


def _warnings(counts: dict[str, Any]) -> list[str]:
    asked, who = counts["asked"], f"{counts['judge']} on {counts['prompt']}"
    found = []
    if counts["read"] > 1 and len(counts["verdicts"]) == 1:
        [verdict] = counts["verdicts"]
        found.append(f"{who}: the same verdict, {verdict!r}, on all {counts['read']} answers")
    for key, what in (
        ("parse_failures", "replies cannot be read"),
        ("no_reply", "questions got no reply: cut, filtered or too long"),
    ):
        if counts[key] > _UNREAD_SHARE * asked:
            found.append(f"{who}: {counts[key]} of {asked} {what}")
    if counts["refusals"]:
        found.append(f"{who}: {counts['refusals']} of {asked} replies refuse to judge")
    return found


def _compared(
    first: Sequence[Judged], second: Sequence[Judged], prompt: str, names: tuple[str, str]
) -> dict[str, Any]:
    """Returns how far two judges agree on the answers that both have a reading of."""
    others = {one.id: one for one in second if one.reading}
    both = [(one, others[one.id]) for one in first if one.reading and one.id in others]
    both.sort(key=lambda pair: pair[0].id)
    words = [(a.reading.verdict, b.reading.verdict) for a, b in both if a.reading and b.reading]
    apart = [pair for pair, (a, b) in zip(both, words, strict=True) if a != b]
    equal = len(both) - len(apart)
    return {
        "prompt": prompt,
        "judges": list(names),
        "n": len(both),
        "equal": equal / len(both) if both else None,
        "kappa": kappa([a for a, _ in words], [b for _, b in words]),
        "apart": len(apart),
        "disagreements": [_disagreement(*pair) for pair in apart[:SHOWN]],
    }


def _disagreement(first: Judged, second: Judged) -> dict[str, Any]:
    return {
        "benchmark": first.benchmark,
        "request": first.request,
        "answer": first.answer,
        "verdicts": {
            one.judge: one.reading.verdict for one in (first, second) if one.reading is not None
        },
    }
