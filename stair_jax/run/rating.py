"""The run's judge on answers of an evaluation: one judge for all models, each answer once."""

import contextlib
import dataclasses
import logging
import pathlib
from collections.abc import Iterable, Iterator

from stair_jax import jsonl
from stair_jax.engine.request import EngineLike
from stair_jax.engine.shared_engine import SharedEngine
from stair_jax.judges.base import ClosableJudge
from stair_jax.log import progress
from stair_jax.records import Prompt, Rated
from stair_jax.remote.open import Open
from stair_jax.run import hashes, judges, known_models, models
from stair_jax.run.hashes import digest_of
from stair_jax.run.known_models import Model
from stair_jax.run.workdir import Run

log = logging.getLogger(__name__)

ARTEFACT = "evals/ratings"
_ID_DIGITS = 24  # of a hash


@dataclasses.dataclass(frozen=True, kw_only=True)
class Given:
    """An answer that was given to a prompt of a benchmark."""

    benchmark: str
    prompt: Prompt
    response: str
    direct: bool  # whether all of the response is the answer

    @property
    def id(self) -> str:
        """What the answer is known by: a judge sees nothing else of it."""
        asked = self.prompt.question, self.prompt.type, self.response, self.direct
        asked += (self.prompt.before,) if self.prompt.before else ()
        return hashes.of_text(repr(asked))[:_ID_DIGITS]


def judge_name(run: Run) -> str:
    """Returns who judges, for a protocol: "self" is the model that round 1 started from."""
    c = run.config.judge
    sides = dict.fromkeys((c.safety, c.helpfulness))
    return "+".join(f"{side} ({_own(run).name})" if side == "self" else side for side in sides)


def _own(run: Run) -> Model:
    """Returns the model that judges as "self": one for all that are judged."""
    return known_models.parent_of_round(run, 1)


def rate(run: Run, given: Iterable[Given]) -> dict[str, Rated]:
    """Returns what the judge says of each answer, by its id; asks for what is not on disk yet.

    Raises:
      ValueError: where answers are left open, because nobody judged them.
    """
    wanted = {one.id: one for one in given}
    c, folder = run.config, run.workdir / ARTEFACT
    own = "self" in (c.judge.safety, c.judge.helpfulness)
    run.begin(ARTEFACT, "evaluate.rated", _own(run).parents if own else ())
    folder.mkdir(parents=True, exist_ok=True)
    judges.hold_to(c, folder)
    have = _stored(folder)
    left_open: list[str] = []
    todo = [one for id, one in wanted.items() if id not in have]
    if todo:
        log.info("%s: %d answers, judged by %s", ARTEFACT, len(todo), judge_name(run))
        with jsonl.Journal() as journal, progress.line(ARTEFACT, len(todo), "answers") as show:
            for row in _ask(run, todo, left_open):
                journal.add(folder / f"{row.benchmark}.jsonl", row)
                have[row.id] = row
                show(sum(one.id in have for one in todo), "answers")
    judges.check_open(ARTEFACT, left_open)
    run.lineage.finish(ARTEFACT, digest_of("\n".join(sorted(map(repr, have.values())))))
    return {id: have[id] for id in wanted}


def _stored(folder: pathlib.Path) -> dict[str, Rated]:
    found = {}
    for path in sorted(folder.glob("*.jsonl")):
        jsonl.mend_jsonl(path)
        found |= {row.id: row for row in jsonl.read_jsonl(path, Rated)}
    return found


def _ask(run: Run, todo: list[Given], left_open: list[str]) -> Iterator[Rated]:
    """Yields the verdicts as they come; ids that nobody judged go into `left_open`."""
    samplings, board = judges.samplings(run.config), None
    if samplings:
        engine = models.engine_for(run, models.load(run, _own(run), for_engine=True))
        engine.compile(samplings, extends=True)
        board = SharedEngine(engine)
    _, codec = models.spec_and_codec(run)
    for direct in (False, True):  # answers with and without reasoning are read in two ways
        some = [one for one in todo if one.direct == direct]
        if not some:
            continue
        with contextlib.closing(judges.judge_of(run, board, codec, direct=direct)) as judge:
            yield from _judged(some, judge, board.engine if board else None, left_open)


def _judged(
    some: list[Given], judge: ClosableJudge, engine: EngineLike | None, left_open: list[str]
) -> Iterator[Rated]:
    """Yields the verdicts of one judge; see `_ask`."""
    asked = {one.id: one for one in some}
    given = ((one.id, one.prompt, one.response) for one in some)
    for id, score in judges.scores(given, judge, engine):
        one = asked[str(id)]
        if isinstance(score, Open):
            left_open.append(one.prompt.id)
            continue
        yield Rated(
            id=one.id,
            benchmark=one.benchmark,
            safety=score.safety if score else None,
            helpfulness=score.helpfulness if score else None,
        )
