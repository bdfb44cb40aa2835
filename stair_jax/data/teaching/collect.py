"""Structured rows of many prompts from a teacher: batches, attempts, a journal, a report.

Every reply is on disk, with what the filters said, before the next batch is asked. Started again
with the same journal, `collect` asks only what has no line there.
"""

import collections
import dataclasses
import hashlib
import pathlib
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from stair_jax import jsonl
from stair_jax.data.teaching import grammar, refusals
from stair_jax.data.teaching.chats import Chat, Question
from stair_jax.data.teaching.filters import Filters, Reason
from stair_jax.data.teaching.grammar import Structured
from stair_jax.data.teaching.instruction import Instruction
from stair_jax.records import Prompt, SftRow
from stair_jax.remote.client import Reply
from stair_jax.remote.open import Open

KEPT = "kept"
Told = Callable[[int, int], None]  # prompts settled, all prompts


@dataclasses.dataclass(frozen=True, kw_only=True)
class Attempt:
    """A line of the journal: one reply, and what became of it."""

    id: str  # of the prompt
    attempt: int  # from 0
    asked: str  # a hash of what was asked, see `_asked`
    reason: str  # KEPT, or one of the filters' reasons
    text: str  # the response as it is trained if it was kept, else the reply as it came
    steps: int = 0  # of a response that was kept


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
    """What became of the prompts.

    Attributes:
      prompts: how many were asked, by type.
      kept: prompts with a row, by type.
      attempts: of each attempt, from the first: replies by reason, `KEPT` among them.
      dropped: ids of prompts whose last attempt was rejected, by that reason.
      left_open: ids of prompts whose teacher or judge could not be reached.
      refusals: the kept answers that refuse, by their words, the most frequent first.
      characters: of the rows' responses: fewest, median, most; all None without a row.
      steps: rows by their number of steps, the analysis included.
    """

    prompts: dict[str, int]
    kept: dict[str, int]
    attempts: list[dict[str, int]]
    dropped: dict[str, list[str]]
    left_open: list[str]
    refusals: dict[str, int]
    characters: dict[str, float | None]
    steps: dict[int, int]

    def lines(self) -> Iterator[str]:
        """Yields the report for people, a line each."""
        for kind, count in self.prompts.items():
            yield f"{kind}: {self.kept.get(kind, 0)} of {count} prompts have a row"
        for number, reasons in enumerate(self.attempts, start=1):
            said = ", ".join(f"{reason} {count}" for reason, count in reasons.items())
            yield f"attempt {number}: {said}"
        for reason, ids in self.dropped.items():
            yield f"dropped, {reason}: {len(ids)} (first {ids[0]})"
        if self.left_open:
            yield f"left open: {len(self.left_open)} (first {self.left_open[0]})"
        if self.refusals:
            yield f"refusals: {sum(self.refusals.values())}, wordings: {len(self.refusals)}"
        if self.characters["median"] is not None:
            yield "characters: {fewest:.0f} to {most:.0f}, median {median:.0f}".format(
                **self.characters
            )


class AskedDifferently(ValueError):
    """A journal has lines of questions other than those of today."""


@dataclasses.dataclass(frozen=True)
class Collected:
    """The rows that were kept, in the prompts' order, and the report."""

    rows: list[SftRow]
    report: Report


def collect(
    prompts: Sequence[Prompt],
    chat: Chat,
    filters: Filters,
    journal: pathlib.Path,
    *,
    instruction: Instruction,
    attempts: int = 3,
    batch: int = 64,
    told: Told = lambda done, total: None,
) -> Collected:
    """Returns a structured row of every prompt that the teacher has a fit reply to.

    Args:
      prompts: to ask; their ids differ.
      chat: the teacher.
      filters: what a reply must pass.
      journal: the file of attempts; made where it is missing, gone on with where it is there.
      instruction: how the teacher is asked.
      attempts: how often a prompt is asked whose replies are rejected.
      batch: questions that the teacher is given at once.
      told: called after every batch.

    Raises:
      ValueError: for `attempts` or `batch` below 1, or ids that are not distinct.
      AskedDifferently: for a journal whose lines were asked differently, naming the file and the
        first such id.
    """
    if attempts < 1 or batch < 1:
        raise ValueError(f"attempts={attempts} and batch={batch}: expected both at least 1")
    twice = [id for id, n in collections.Counter(p.id for p in prompts).items() if n > 1]
    if twice:
        raise ValueError(f"prompts: id {twice[0]!r} found twice, expected distinct ids")
    questions = {prompt.id: instruction.ask(prompt) for prompt in prompts}
    known = _known(journal, prompts, questions)
    left_open: set[str] = set()
    for number in range(attempts):
        due = [p for p in prompts if _is_due(known[p.id], number) and p.id not in left_open]
        for start in range(0, len(due), batch):
            some = due[start : start + batch]
            replies = chat([Question(p, questions[p.id], number) for p in some])
            found = []
            read = filters.read(some, replies)
            for prompt, reply, what in zip(some, replies, read, strict=True):
                if isinstance(what, Open):
                    left_open.add(prompt.id)
                else:
                    found.append(_attempt(prompt, questions[prompt.id], number, reply, what))
            jsonl.append_jsonl(journal, *found)
            for one in found:
                known[one.id].append(one)
            told(sum(_settled(ones, attempts) for ones in known.values()), len(prompts))
    return Collected(_rows(prompts, known, attempts), _report(prompts, known, left_open, attempts))


def _attempt(
    prompt: Prompt, question: str, number: int, reply: Reply, found: Structured | Reason
) -> Attempt:
    kept = isinstance(found, Structured)
    text = found.text if kept else reply if isinstance(reply, str) else ""
    return Attempt(
        id=prompt.id,
        attempt=number,
        asked=_asked(prompt, question),
        reason=KEPT if kept else str(found),
        text=text.encode(errors="replace").decode(),  # half a surrogate pair cannot be written
        steps=len(found.steps) if kept else 0,
    )


def _known(
    journal: pathlib.Path, prompts: Sequence[Prompt], questions: dict[str, str]
) -> dict[str, list[Attempt]]:
    """Returns the attempts on disk of each prompt, in their order."""
    known: dict[str, list[Attempt]] = {prompt.id: [] for prompt in prompts}
    hashes = {prompt.id: _asked(prompt, questions[prompt.id]) for prompt in prompts}
    journal.parent.mkdir(parents=True, exist_ok=True)
    jsonl.mend_jsonl(journal)
    for row in jsonl.read_jsonl(journal, Attempt) if journal.exists() else []:
        if row.id not in known:
            continue  # of a prompt that is asked no more
        if row.asked != hashes[row.id]:
            raise AskedDifferently(
                f"{journal}: prompt {row.id!r} was asked as {row.asked}, expected"
                f" {hashes[row.id]}: instruction, question or type changed since"
            )
        known[row.id].append(row)
    return known


def _asked(prompt: Prompt, question: str) -> str:
    """Returns a hash of what decides a reply and the filters that it goes through."""
    content = f"{prompt.type}\x1f{question}"
    return hashlib.blake2b(content.encode(errors="replace"), digest_size=8).hexdigest()


def _is_due(ones: list[Attempt], number: int) -> bool:
    return len(ones) == number and not (ones and ones[-1].reason == KEPT)


def _settled(ones: list[Attempt], attempts: int) -> bool:
    return bool(ones) and (ones[-1].reason == KEPT or len(ones) >= attempts)


def _rows(
    prompts: Sequence[Prompt], known: dict[str, list[Attempt]], attempts: int
) -> list[SftRow]:
    return [
        SftRow(id=p.id, question=p.question, response=one.text, before=p.before)
        for p in prompts
        for one in known[p.id][:attempts]
        if one.reason == KEPT
    ]


def _report(
    prompts: Sequence[Prompt],
    known: dict[str, list[Attempt]],
    left_open: set[str],
    attempts: int,
) -> Report:
    tried = {p.id: known[p.id][:attempts] for p in prompts}
    kept = {id: ones[-1] for id, ones in tried.items() if ones and ones[-1].reason == KEPT}
    by_number = [collections.Counter[str]() for _ in range(attempts)]
    dropped: dict[str, list[str]] = collections.defaultdict(list)
    for prompt in prompts:
        for one in tried[prompt.id]:
            by_number[one.attempt][one.reason] += 1
        if prompt.id not in kept and prompt.id not in left_open:
            dropped[tried[prompt.id][-1].reason].append(prompt.id)
    lengths = [len(one.text) for one in kept.values()]
    characters: dict[str, Any] = dict.fromkeys(("fewest", "median", "most"))
    if lengths:
        ends = min(lengths), statistics.median(lengths), max(lengths)
        characters = dict(zip(characters, map(float, ends), strict=True))
    return Report(
        prompts=dict(collections.Counter(p.type for p in prompts)),
        kept=dict(collections.Counter(p.type for p in prompts if p.id in kept)),
        attempts=[dict(sorted(some.items())) for some in by_number if some],
        dropped=dict(sorted(dropped.items())),
        left_open=[p.id for p in prompts if p.id in left_open],
        refusals=_refusals(kept.values()),
        characters=characters,
        steps=dict(sorted(collections.Counter(one.steps for one in kept.values()).items())),
    )


def _refusals(kept: Iterable[Attempt]) -> dict[str, int]:
    """Returns how often each wording of a refusal was kept."""
    found = (grammar.parse(one.text) for one in kept)
    answers = (one.answer for one in found if isinstance(one, Structured))
    return dict(collections.Counter(filter(refusals.is_refusal, answers)).most_common())
