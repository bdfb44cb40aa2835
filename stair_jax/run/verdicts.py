"""Verdicts of language models on answers to published benchmarks: each distinct question once.

A judge sees the request and the final answer, and neither the reasoning nor whose answer it is. It
is asked at temperature 0. Replies that were paid for stay in the run's `judgements`, so that asking
again after a kill, or for another model with the same answer, costs nothing.
"""

import collections
import contextlib
import dataclasses
import functools
import logging
import pathlib
import queue
from collections.abc import Iterable, Iterator, Mapping, Sequence

from stair_jax import jsonl, text
from stair_jax.config.schema import JudgeConfig
from stair_jax.evals import judge_prompts
from stair_jax.evals.benchmark import Benchmark
from stair_jax.evals.judge_prompts import JudgePrompt, Wording
from stair_jax.log import progress
from stair_jax.records import Answer, Prompt
from stair_jax.remote.client import COUNTERS, Counts, EndpointClient, Reply
from stair_jax.remote.open import Open
from stair_jax.run import hashes, judge_models, judges
from stair_jax.run.judge_models import JudgeModel
from stair_jax.run.workdir import Run
from stair_jax.search.driver import PAUSE_S

log = logging.getLogger(__name__)

ARTEFACT = "evals/verdicts"
_ID_DIGITS = 24  # of a hash
_AT_ONCE = 1024  # questions that wait for their replies, at most

Replies = Mapping[tuple[str, str], str | None]  # by judge and question; None: the judge gave none


@dataclasses.dataclass(frozen=True, kw_only=True)
class Verdict:
    """A row on disk: what a judge replied to a question."""

    id: str  # of the question
    benchmark: str
    judge: str
    prompt: str  # name of the judge's prompt
    reply: str | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Question:
    """A question to any judge about an answer."""

    benchmark: str
    prompt: JudgePrompt
    request: str
    answer: str
    system: str
    text: str  # the user turn
    attack: str = ""  # that got the answer; no judge sees it

    @functools.cached_property
    def id(self) -> str:
        """What the question is known by: a judge sees nothing else."""
        return hashes.of_text(repr((self.prompt.name, self.system, self.text)))[:_ID_DIGITS]


def questions_of(
    benchmark: Benchmark,
    prompt: Prompt,
    answer: Answer,
    wordings: Mapping[str, Wording],
    *,
    direct: bool,
) -> list[Question]:
    """Returns what judges are asked about an answer; nothing if it was cut or is malformed.

    Args:
      benchmark: that was asked.
      prompt: of it.
      answer: to the prompt.
      wordings: by the name of a judge's prompt; {} where nobody judges.
      direct: whether all of the response is the answer, of a model that does not reason.
    """
    final = None if answer.cut or not wordings else text.final_answer(answer.response, direct)
    if not final:
        return []
    return [
        Question(
            benchmark=benchmark.name,
            prompt=one,
            request=prompt.meta.get("goal", prompt.question),
            answer=final,
            system=wordings[one.name].system,
            text=judge_prompts.question(wordings[one.name], prompt, final),
        )
        for one in judge_models.prompts_of(benchmark)
        if one.asks(prompt)
    ]


def ask(run: Run, asked: Iterable[Question]) -> Replies:
    """Returns every judge's reply to every question; asks for what is not on disk yet.

    Raises:
      ValueError: where `judge.leave_out` differs from what made the replies on disk.
      LeftOpen: where no judge could be reached for some; all others are on disk.
    """
    wanted, models = {one.id: one for one in asked}, judge_models.of(run.config)
    folder = run.workdir / ARTEFACT
    run.begin(ARTEFACT, "evaluate.verdicts")
    folder.mkdir(parents=True, exist_ok=True)
    have = _stored(folder)
    left_open: list[str] = []
    with jsonl.Journal() as journal:
        for model in models:
            # Where there was no reply the client knows whether asking again makes sense.
            done = {row.id for row in have.values() if row.judge == model.name and row.reply}
            todo = [one for id, one in wanted.items() if id not in done]
            for row in _shown(_ask(run, model, todo, left_open), model, len(todo)):
                if have.get((row.judge, row.id)) != row:
                    journal.add(folder / f"{row.benchmark}.jsonl", row)
                have[row.judge, row.id] = row
    judges.check_open(ARTEFACT, left_open)
    run.lineage.finish(ARTEFACT, hashes.digest_of("\n".join(sorted(map(repr, have.values())))))
    return {(model.name, id): have[model.name, id].reply for model in models for id in wanted}


def _stored(folder: pathlib.Path) -> dict[tuple[str, str], Verdict]:
    """Returns the rows of a folder, by judge and question."""
    found = {}
    for path in sorted(folder.glob("*.jsonl")):
        jsonl.mend_jsonl(path)
        found |= {(row.judge, row.id): row for row in jsonl.read_jsonl(path, Verdict)}
    return found


def _shown(rows: Iterator[Verdict], model: JudgeModel, count: int) -> Iterator[Verdict]:
    if not count:
        return
    log.info("%s: %d questions to %s", ARTEFACT, count, model.name)
    with progress.line(f"{ARTEFACT} by {model.name}", count, "answers") as show:
        for number, row in enumerate(rows, start=1):
            yield row
            show(number, "answers")


def _ask(
    run: Run, model: JudgeModel, todo: Sequence[Question], left_open: list[str]
) -> Iterator[Verdict]:
    """Yields a judge's replies as they come; ids of what nobody answered go into `left_open`."""
    groups: dict[str, list[Question]] = {}
    for one in todo:
        groups.setdefault(one.prompt.name, []).append(one)
    for some in groups.values():
        for one, reply in _replies(run, model, some):
            if isinstance(reply, Open):
                left_open.append(one.id)
                continue
            yield Verdict(
                id=one.id,
                benchmark=one.benchmark,
                judge=model.name,
                prompt=one.prompt.name,
                reply=reply,
            )


def _replies(
    run: Run, model: JudgeModel, some: Sequence[Question]
) -> Iterator[tuple[Question, Reply]]:
    """Yields the replies to questions of one prompt: they share system turn and limit.

    Raises:
      Refused, Unavailable: where it makes no sense to go on.
    """
    config = _config(run, model, some[0].prompt)
    folder = pathlib.Path(config.cache or run.workdir / "judgements")
    line = EndpointClient(config, folder, system=some[0].system)
    came: queue.SimpleQueue[tuple[Question, list[Reply]]] = queue.SimpleQueue()
    counts: Counts = collections.Counter(dict.fromkeys(COUNTERS, 0))
    waiting, under_way = collections.deque(some), 0

    def deliver(one: Question, replies: list[Reply]) -> None:
        came.put((one, replies))

    with contextlib.closing(line):
        while waiting or under_way:
            while waiting and under_way < _AT_ONCE:
                one = waiting.popleft()
                line.ask(one.text, 1, counts, functools.partial(deliver, one))
                under_way += 1
            line.check()
            with contextlib.suppress(queue.Empty):
                one, [reply] = came.get(timeout=PAUSE_S)
                under_way -= 1
                yield one, reply


def _config(run: Run, model: JudgeModel, prompt: JudgePrompt) -> JudgeConfig:
    return dataclasses.replace(
        JudgeConfig.of(run.config.judge),
        endpoint=model.endpoint,
        model=model.name,
        samples=1,
        temperature=0.0,
        top_p=1.0,
        max_tokens=prompt.max_tokens,
    )
