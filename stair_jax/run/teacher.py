"""Structured answers to the prompts of D_CoT, by the teacher that `config.recipe.teacher` names.

Every reply and what the filters said of it are in the folder `data/taught`, and what an endpoint
said among the run's judgements as well, so that a run that was stopped asks for nothing twice.
"""

import contextlib
import dataclasses
import functools
import logging
import pathlib
from collections.abc import Sequence
from typing import Any

from stair_jax.config import Config, redaction, with_values
from stair_jax.config.schema import JudgeConfig
from stair_jax.config.sources import PREPARED
from stair_jax.config.stages import PREPARE
from stair_jax.config.words import SELF, name_and_address
from stair_jax.data.seeds import Seed
from stair_jax.data.teaching.chats import Chat, EndpointChat, Question
from stair_jax.data.teaching.collect import AskedDifferently, Report, collect
from stair_jax.data.teaching.filters import Filters, Verdict
from stair_jax.data.teaching.grammar import Structured
from stair_jax.data.teaching.instruction import Instruction
from stair_jax.engine.shared_engine import SharedEngine
from stair_jax.judges.base import ClosableJudge, Score
from stair_jax.log import progress
from stair_jax.records import Prompt
from stair_jax.remote.client import Reply
from stair_jax.run import engine_teacher, hashes, judges, known_models, models
from stair_jax.run.rejected import prompt_of
from stair_jax.run.workdir import Run

log = logging.getLogger(__name__)

NAME = f"{PREPARE.artefact()}/taught"
JOURNAL = "attempts.jsonl"
_IN_A_BATCH = 8  # questions for each request that is open at once: few wait for the slowest
_IN_A_BATCH_OF_SLOTS = 4  # likewise of the engine's slots


@dataclasses.dataclass(frozen=True)
class Taught:
    """What a teacher has answered.

    Attributes:
      teacher: its name, for people.
      seeds: those with a structured response that is fit to be learned from.
      report: what became of all that were asked.
    """

    teacher: str
    seeds: list[Seed]
    report: Report

    @property
    def dropped(self) -> dict[str, str]:
        """Reasons by the ids of seeds without a response."""
        return {id: reason for reason, ids in self.report.dropped.items() for id in ids}


def look(run: Run) -> None:
    """Reads the instruction and the rubric, and refuses those that leave no room in the engine.

    Raises:
      ValueError: naming the setting.
    """
    c = run.config
    if not c.recipe.teacher:
        return
    told = _instruction(c)
    if c.recipe.teacher == SELF:
        engine_teacher.check_room(run, told)
    if c.recipe.cot[0]:
        judging = _judging(run)
        judges.facts(judging.config)
        judges.check_room(judging, c.recipe.teacher_max_tokens)


def answer(run: Run, seeds: Sequence[Seed]) -> Taught:
    """Asks the teacher; what is on disk already is not asked again.

    Raises:
      ValueError: for other settings than the answers on disk have, or where no answer is fit.
      LeftOpen: where teacher or judge could not be reached for some; all others are on disk.
      Refused, Unavailable: where an endpoint makes it senseless to go on.
    """
    c, told = run.config, _instruction(run.config)
    run.begin(NAME, "prepare.taught", inputs={"recipe.instruction": told.digest})
    folder = run.workdir / NAME
    judging = _judging(run)
    judges.hold_to(judging.config, folder)
    log.info("%s: %d prompts for %s", NAME, len(seeds), name_of(c))
    with (
        contextlib.ExitStack() as stack,
        progress.line(NAME, len(seeds), "prompts") as show,
    ):
        asked = _Asked(judging, stack)
        try:
            found = collect(
                [prompt_of(seed) for seed in seeds],
                asked.chat,
                Filters(asked.safe),
                folder / JOURNAL,
                instruction=told,
                attempts=c.recipe.teacher_attempts,
                batch=asked.batch,
                told=lambda done, _: show(done),
            )
        except AskedDifferently as error:
            raise ValueError(f"{error}; {run.lineage.way_out(NAME)}") from None
    for line in found.report.lines():
        log.info("%s: %s", NAME, line)
    if left := found.report.left_open:
        raise judges.LeftOpen(
            f"{NAME}: {len(left)} of {len(seeds)} prompts left open, for their teacher or judge"
            f" could not be reached ({', '.join(left[:5])}{', ...' if len(left) > 5 else ''});"
            " the log says why, the same command asks again"
        )
    if not found.rows:
        raise ValueError(
            f"config.recipe.teacher: no reply of {name_of(c)} to {len(seeds)} prompts is fit to be"
            f" learned from, {folder / JOURNAL} says why of each"
        )
    run.lineage.finish(NAME, hashes.of_text(repr(found.rows)), rows=len(found.rows))
    responses = {row.id: row.response for row in found.rows}
    answered = [
        dataclasses.replace(seed, response=responses[seed.id])
        for seed in seeds
        if seed.id in responses
    ]
    return Taught(name_of(c), answered, found.report)


def name_of(c: Config) -> str:
    """Returns what people call the teacher: the model at its endpoint, or the checkpoint."""
    if c.recipe.teacher == SELF:
        return redaction.shown_source(c.model.checkpoint)
    return name_and_address(c.recipe.teacher)[0]


def _instruction(c: Config) -> Instruction:
    try:
        return Instruction.load(c.recipe.instruction, c.seed)
    except ValueError as error:
        raise ValueError(f"config.recipe.instruction: {error}") from None


def _judging(run: Run) -> Run:
    """Returns the run with the judge's side that is asked here: how safe answers are.

    Prompts of D_CoT are no world's, whatever the searches of this run will be about.
    """
    only = {"judge.helpfulness": "none", "data.prompts": PREPARED}
    return dataclasses.replace(run, config=with_values(run.config, only))


class _Asked:
    """Teacher and judge, each made when it is first asked; both in one engine if both are in one.

    Args:
      run: as `_judging` gives it.
      stack: closes what is made.
    """

    def __init__(self, run: Run, stack: contextlib.ExitStack):
        self._run, self._stack = run, stack
        self._teaches, self._judges = (
            who == SELF for who in (run.config.recipe.teacher, run.config.judge.safety)
        )

    @property
    def batch(self) -> int:
        """Questions that are asked at once."""
        c = self._run.config
        if self._teaches:
            return _IN_A_BATCH_OF_SLOTS * c.engine.slots * len(models.engine_places(self._run))
        return _IN_A_BATCH * c.judge.concurrency

    def chat(self, questions: Sequence[Question], /) -> Sequence[Reply]:
        """Asks the teacher; see `Chat`."""
        return self._teacher(questions)

    def safe(self, some: Sequence[tuple[Prompt, Structured]]) -> list[Verdict]:
        """Asks the judge whether final answers are safe; see `Safe`."""
        given = [(number, prompt, found.text) for number, (prompt, found) in enumerate(some)]
        engine = self._board.engine if self._judges else None
        found: dict[Any, Verdict] = {}
        with progress.line(f"{NAME}, judged", len(given), "answers") as show:
            for number, score in judges.scores(given, self._judge, engine):
                found[number] = score.safety > 0 if isinstance(score, Score) else score
                show(len(found))
        return [found[number] for number in range(len(some))]

    @functools.cached_property
    def _teacher(self) -> Chat:
        if self._teaches:
            return engine_teacher.EngineChat(self._run, NAME, self._board.client())
        c = self._run.config
        name, address = name_and_address(c.recipe.teacher)
        config = dataclasses.replace(
            JudgeConfig.of(c.judge),
            endpoint=address,
            model=name,
            samples=1,
            temperature=c.recipe.teacher_temperature,
            top_p=c.recipe.teacher_top_p,
            max_tokens=c.recipe.teacher_max_tokens,
        )
        folder = pathlib.Path(config.cache or self._run.workdir / "judgements")
        return self._stack.enter_context(contextlib.closing(EndpointChat(config, folder)))

    @functools.cached_property
    def _judge(self) -> ClosableJudge:
        codec = models.spec_and_codec(self._run)[1]
        judge = judges.judge_of(self._run, self._board if self._judges else None, codec)
        return self._stack.enter_context(contextlib.closing(judge))

    @functools.cached_property
    def _board(self) -> SharedEngine:
        """The engine of the base."""
        model = known_models.base(self._run)
        engine = models.engine_for(self._run, models.load(self._run, model, for_engine=True))
        drawn = [engine_teacher.sampling_of(self._run)] if self._teaches else []
        engine.compile([*drawn, *judges.samplings(self._run.config)], extends=self._judges)
        return SharedEngine(engine)
