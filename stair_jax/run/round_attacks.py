"""Attacks that beat the model of a round's start, as further prompts of the round, on disk.

A row a rewrite that was tried, as its verdict comes; what is there already is not asked again.
`search.rewrites` has which are tried, in which order, and which twins they get.
"""

import collections
import contextlib
import dataclasses
import logging
from collections.abc import Mapping, Sequence

from stair_jax import jsonl
from stair_jax.config import Config, with_values
from stair_jax.config.attack_checks import families_of
from stair_jax.config.schema import RewardConfig
from stair_jax.config.stages import SEARCH
from stair_jax.config.words import FRAMINGS, TRANSFORMS, split_csv
from stair_jax.data.teaching import framings
from stair_jax.engine.request import GREEDY
from stair_jax.engine.shared_engine import SharedEngine
from stair_jax.evals.attacks import transforms
from stair_jax.log import progress
from stair_jax.records import Candidate, Prompt
from stair_jax.run import inputs, judges, models, prepared, rows, worlds
from stair_jax.run.hashes import digest_of
from stair_jax.run.known_models import Model
from stair_jax.run.workdir import Run
from stair_jax.search import candidates, rewrites
from stair_jax.search.candidates import Draw
from stair_jax.search.reward import Reward
from stair_jax.search.rewrites import Attempt, Rewriter

log = logging.getLogger(__name__)

RESULT = "search.attacks"  # in the lineage
FILE = "attempts.jsonl"
# Of safety prompts, whose helpfulness nobody rates here, it is S itself: R(-1, S) = S.
_SAFETY = Reward("paper", RewardConfig())
_KEY = "attack in the loop"  # of the draws; greedy ones need none, but a request has one


@dataclasses.dataclass(frozen=True)
class Found:
    """What is added to a round.

    Attributes:
      prompts: attacks, each followed by its twin.
      parents: the artefact that they are from; empty where none was looked for.
    """

    prompts: Sequence[Prompt] = ()
    parents: tuple[str, ...] = ()


def artefact(number: int) -> str:
    """Returns the lineage's name for the attacks of a round."""
    return f"round-{number}/attacks"


def of_round(run: Run, number: int, model: Model, prompts: Sequence[Prompt]) -> Found:
    """Returns the attacks that beat a model, with their twins; tries what was not tried yet.

    Args:
      run: whose `search.attacks` and other settings of attacks are meant, and `judge.safety`.
      number: of the round. The first one has none: no round has trained its model yet.
      model: that the round starts from.
      prompts: the round's own.

    Raises:
      LeftOpen: where the judge could not be reached for some answers; all others are on disk.
      ValueError: where what is there was made with other settings or rows.
    """
    if number == 1 or not split_csv(run.config.search.attacks):
        return Found()
    return _Attacks(run, number, model, prompts).run()


def rewriter_of(config: Config) -> Rewriter:
    """Returns what makes of a prompt the questions of `search.attacks`, by name of the rewrite.

    A world has rewrites of its own. Families of framings that a recipe holds out are not used.
    """
    if world := worlds.of(config.data.prompts):
        return Rewriter(questions=world.rewrites, is_plain=world.is_plain)
    known = {FRAMINGS: _framings, TRANSFORMS: _transforms}
    used = [known[kind](config) for kind in split_csv(config.search.attacks)]
    return Rewriter(
        questions=lambda prompt: {
            name: rewrite(prompt.question) for kind in used for name, rewrite in kind.items()
        },
        is_plain=lambda prompt: not any(one.frames(prompt.question) for one in framings.FRAMINGS),
    )


def _framings(config: Config) -> dict[str, rewrites.Rewrite]:
    used = families_of(config)
    return {f"{FRAMINGS}/{one.name}": one.frame for one in framings.FRAMINGS if one.family in used}


def _transforms(_: Config) -> dict[str, rewrites.Rewrite]:
    # The one that changes nothing gives no candidate: the round asks that already.
    return {f"{TRANSFORMS}/{name}": one.of for name, one in transforms.TRANSFORMS.items()}


class _Attacks:
    """The attacks on the model of one round's start; see `of_round`."""

    def __init__(self, run: Run, number: int, model: Model, prompts: Sequence[Prompt]):
        # Of a judge this needs the one side, and pays for no other.
        alone = with_values(run.config, {"judge.helpfulness": "none"})
        self._run, self._judged = run, dataclasses.replace(run, config=alone)
        self._name, self._model, self._prompts = artefact(number), model, prompts
        self._path = run.workdir / self._name / FILE
        self._seed = rows.noise_seed(run.config, number)
        self._most = rewrites.most_kept(prompts, run.config.search.attack_share)
        self._rewriter = rewriter_of(run.config)
        self._candidates = rewrites.candidates(
            prompts, self._rewriter, pool=run.config.search.attack_pool, seed=self._seed
        )

    def run(self) -> Found:
        """Tries rewrites until enough beat the model, and returns what is kept."""
        run, name = self._run, self._name
        read = {"data.prompts": inputs.of_rows(self._prompts)}
        run.begin(name, RESULT, (*self._model.parents, *prepared.parents(run, SEARCH)))
        if run.lineage.finished(name):
            run.lineage.check_inputs(name, read)
            run.lineage.verify(name, split_csv(run.config.edited))
            return self._kept(self._read())
        self._path.parent.mkdir(parents=True, exist_ok=True)
        rubrics = judges.hold_to(self._judged.config, self._path.parent)
        run.lineage.note_inputs(name, read)
        have = self._read()
        passed_over: dict[str, str] = {}
        if self._next(have, passed_over):
            self._try(have, passed_over)
        tried = [have[one.id] for one in self._candidates if one.id in have]
        jsonl.write_jsonl(self._path, tried)  # in their order, whichever verdict came first
        found = self._kept(have)
        counts = {
            "tried": len(tried),
            "beat": sum(one.beats for one in tried),
            "kept": len(found.prompts) // 2,
        }
        self._tell(tried, counts["kept"], passed_over)
        run.metrics.rewind(name, -1)
        run.metrics.log(name, 0, counts)
        digest = digest_of("\n".join(map(repr, tried)))
        run.lineage.finish(name, digest, [self._path], rubrics=rubrics, **counts)
        return found

    def _read(self) -> dict[str, Attempt]:
        """Returns the rows on disk that are of today's candidates, by id; of two the later."""
        jsonl.mend_jsonl(self._path)
        there = jsonl.read_jsonl(self._path, Attempt) if self._path.exists() else []
        asked = {prompt.id: prompt for prompt in self._candidates}
        return {row.id: row for row in there if row.id in asked and row.answers(asked[row.id])}

    def _kept(self, have: Mapping[str, Attempt]) -> Found:
        beaten = [one for one in self._candidates if one.id in have and have[one.id].beats]
        prompts = rewrites.with_twins(
            beaten, self._prompts, self._rewriter, most=self._most, seed=self._seed
        )
        return Found(prompts, (self._name,))

    def _next(self, have: Mapping[str, Attempt], passed_over: Mapping[str, str]) -> list[Prompt]:
        """Returns the candidates to be tried next, none once enough of those before are kept.

        They are tried in lots that fill the engine. A lot that a stop cut short is finished before
        anything is counted, so that a run that was stopped tries what one in one go does.
        """
        slots = self._run.config.engine.slots
        for start in range(0, len(self._candidates), slots):
            before = {one.id: have[one.id] for one in self._candidates[:start] if one.id in have}
            beaten = sum(one.beats for one in before.values())  # twins cost a sort of all prompts
            if beaten >= self._most and len(self._kept(before).prompts) >= 2 * self._most:
                return []
            lot = self._candidates[start : start + slots]
            if left := [one for one in lot if one.id not in have and one.id not in passed_over]:
                return left
        return []

    def _try(self, have: dict[str, Attempt], passed_over: dict[str, str]) -> None:
        """Has the model answer what is to be tried; each row is written once it has its verdict."""
        run = self._judged
        policy, also = models.load(run, self._model, for_engine=True), judges.samplings(run.config)
        engine = models.engine_for(run, policy)
        engine.compile([GREEDY, *also], extends=bool(also))
        board = SharedEngine(engine)
        client = board.client()
        draw = Draw(
            count=1,
            sampling=GREEDY,
            max_tokens=run.config.search.max_rollout_tokens,
            key=(self._seed, _KEY),
            direct=False,
        )
        with (
            contextlib.closing(judges.judge_of(run, board, policy.codec)) as judge,
            progress.line(self._name, len(self._candidates), "rewrites", done=len(have)) as show,
            jsonl.Journal() as journal,
        ):

            def keep(answer: Candidate) -> None:
                row = _attempt(prompts[answer.prompt], answer)
                journal.add(self._path, row)
                have[row.id] = row
                show(len(have), f"{engine.counters['delivered']:,} tokens")

            while lot := self._next(have, passed_over):
                prompts = {prompt.id: prompt for prompt in lot}
                leftovers = candidates.sample(
                    lot,
                    draw,
                    engine=client,
                    codec=policy.codec,
                    judge=judge,
                    reward=_SAFETY,
                    have=(),
                    on_candidate=keep,
                )
                passed_over |= leftovers.passed_over
                journal.flush()
                judges.check_open(self._name, leftovers.left_open)

    def _tell(self, tried: Sequence[Attempt], kept: int, passed_over: Mapping[str, str]) -> None:
        """Says what was tried, and what came of it."""
        name, model = self._name, self._model.name
        if passed_over:
            log.warning("%s: no room for %d rewrites, passed over", name, len(passed_over))
        if not self._most:
            said = "%s: config.search.attack_share leaves no room for an attack and its twin in %d"
            log.warning(f"{said} prompts, so none is tried", name, len(self._prompts))
            return
        beat = collections.Counter(one.attack for one in tried if one.beats)
        if not beat:
            said = "%s: none of %d rewrites beats %s, so none becomes a prompt"
            log.warning(said, name, len(tried), model)
            return
        log.info(
            "%s: %d of %d rewrites beat %s, %d are kept (%d wanted), each with a harmless twin: %s",
            name,
            beat.total(),
            len(tried),
            model,
            kept,
            self._most,
            ", ".join(f"{attack} {count}" for attack, count in beat.most_common()),
        )
        if kept < min(beat.total(), self._most):
            said = "%s: %d attacks are left out, no harmless prompt is left for a twin"
            log.warning(said, name, min(beat.total(), self._most) - kept)


def _attempt(prompt: Prompt, answer: Candidate) -> Attempt:
    return Attempt(
        id=prompt.id,
        of=prompt.meta[rewrites.OF],
        attack=prompt.meta[rewrites.ATTACK],
        question=prompt.question,
        response=answer.text,
        safety=answer.reward,
        before=prompt.before,
    )
