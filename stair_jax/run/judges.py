"""The judges that a configuration names, and what a run remembers of them."""

import collections
import dataclasses
import functools
import json
import logging
import pathlib
import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence

from stair_jax import jsonl, text
from stair_jax.config import Config
from stair_jax.config.schema import JudgeConfig
from stair_jax.data.teaching import refusals
from stair_jax.engine.request import EngineLike, Sampling
from stair_jax.engine.scoring import Scoring
from stair_jax.engine.shared_engine import SharedEngine
from stair_jax.evals.benchmarks import gsm8k
from stair_jax.hf import reward_model
from stair_jax.judges import agreement, remote, self_reward
from stair_jax.judges import reward_model as reward_model_lib
from stair_jax.judges.base import ClosableJudge, Judge, Rater, Score, wants_response
from stair_jax.judges.composite import SafetyHelpfulnessJudge
from stair_jax.judges.reference import ReferenceRater
from stair_jax.judges.rubrics import SIDES, Rubric
from stair_jax.judges.rule import RuleJudge, RuleRater
from stair_jax.judges.self_reward import SelfRater
from stair_jax.judges.verifier import VerifierJudge, VerifierRater
from stair_jax.records import Prompt
from stair_jax.remote import client
from stair_jax.remote.open import Open
from stair_jax.run import models, worlds
from stair_jax.run.workdir import Run, engine_config
from stair_jax.search.driver import PAUSE_S
from stair_jax.world import World

log = logging.getLogger(__name__)

_READ_RUBRICS = ("self", "remote")  # judges that are asked in words
_AT_ONCE = 1024  # answers that wait for a judge, at most
_LEAST_ROOM = 32  # tokens of a question, an answer and a verdict that are worth asking about


def check_room(run: Run, longest: int) -> None:
    """Refuses rubrics that leave no room in the context of a model that judges itself.

    Where they leave less than a response may have, a line says so: longer answers have no score.

    Args:
      run: the run.
      longest: tokens that a response may have.

    Raises:
      ValueError: naming the side and how many tokens it takes.
    """
    c = run.config
    mine = [side for side in SIDES if c.judge[side] == "self"]
    if not mine:
        return
    codec, room = models.spec_and_codec(run)[1], c.engine.max_context
    taken = {side: len(codec.prompt_ids(rubric(c, side).fill("", ""))) for side in mine}
    side = max(taken, key=taken.__getitem__)
    said = f"config.judge.{side}: the rubric takes {taken[side]} of the {room} tokens of"
    if taken[side] + _LEAST_ROOM > room:
        least = taken[side] + longest
        raise ValueError(f"{said} config.engine.max_context; raise that to {least} or more")
    if taken[side] + longest > room:
        log.warning(
            "%s config.engine.max_context: questions and answers that need more than %d have no"
            " score",
            said,
            room - taken[side],
        )


def judge_of(
    run: Run, board: SharedEngine | None, codec: text.Codec, *, direct: bool = False
) -> ClosableJudge:
    """Returns the judge that `config.judge` names; whoever asked for it closes it.

    Args:
      board: of the engine of the model that judges as "self"; made while it has nothing to do.
        None where nobody does.
      codec: of that model.
      direct: whether responses are answers as a whole, without STAIR's format.
    """
    config = JudgeConfig.of(run.config.judge)
    names, world = (config.safety, config.helpfulness), worlds.of(run.config.data.prompts)
    if world and names == ("verifier", "verifier") and config.scope == "all":
        return VerifierJudge(lambda prompt, given: world.verify(prompt, given, direct))
    if names == ("rule", "none"):
        return RuleJudge(direct)
    raters = _Raters(run, board, codec, config, direct, world)
    return SafetyHelpfulnessJudge(
        raters.of("safety"),
        None if config.helpfulness == "none" else raters.of("helpfulness"),
        scope=config.scope,
        refusal_rule=config.refusal_rule,
        answer_of=_answer_of(world if "verifier" in names else None, direct),
    )


def _answer_of(world: World | None, direct: bool) -> Callable[[str], str | None]:
    """Returns what finds a final answer; of a world whose truth judges, in its format alone."""
    if world:
        return lambda response: world.answer_of(response, direct)
    return lambda response: text.final_answer(response, direct)


@dataclasses.dataclass(frozen=True)
class _Raters:
    """Makes who rates one side of an answer."""

    run: Run
    board: SharedEngine | None
    codec: text.Codec
    config: JudgeConfig
    direct: bool
    world: World | None  # of the prompts

    def of(self, side: str) -> Rater:
        """Returns the rater of a side; a model's is compared with the truth, where that is known.

        It is known of a world's prompts.
        """
        name, world = getattr(self.config, side), self.world
        if name == "rule":
            return RuleRater()
        if name == "reference":
            return ReferenceRater(gsm8k.number_of, refusals.is_refusal)
        if name == "verifier":
            assert world is not None, "the verifier knows a world's prompts"
            return VerifierRater(lambda prompt, answer: world.verify(prompt, answer, True), side)
        made = {"self": self._self, "remote": self._remote, "reward_model": self._reward_model}
        rater = made[name](side)
        if world is None:
            return rater
        bare = self.direct or not wants_response(rater)

        def truth(prompt: Prompt, given: str) -> float:
            return float(getattr(world.verify(prompt, given, bare), side))

        return agreement.Compared(rater, truth)

    def _self(self, side: str) -> Rater:
        assert self.board is not None, "who judges as self needs an engine"
        return SelfRater(
            rubric(self.run.config, side),
            engine=self.board.client(),
            codec=self.codec,
            config=self.config,
            seed=self.run.config.seed,
            replicas=len(models.engine_places(self.run)),
        )

    @functools.cached_property
    def _line(self) -> client.EndpointClient:
        """The line to the endpoint, which the sides share."""
        folder = self.config.cache or self.run.workdir / "judgements"
        return client.EndpointClient(self.config, pathlib.Path(folder))

    def _remote(self, side: str) -> Rater:
        return remote.RemoteRater(rubric(self.run.config, side), self._line)

    def _reward_model(self, _: str) -> Rater:
        """Returns a rater from a folder or the hub: ours sees the response, others' the answer."""
        place, sizes = models.engine_places(self.run)[0], engine_config(self.run.config)
        found = reward_model.load(self.config.reward_model, place, sizes.dtype)
        if found.codec is not None:
            encode = reward_model_lib.of_response(found.codec, found.readout)
        else:
            encode = reward_model_lib.of_chat(found.tokenizer, found.pad_id)
        return reward_model_lib.RewardRater(
            Scoring(found.spec, found.params, config=sizes, mesh=place, give_away=True),
            found.readout,
            encode,
            max_tokens=sizes.max_context,
            wants_response=found.codec is not None,
        )


def scores(
    given: Iterable[tuple[Hashable, Prompt, str]], judge: Judge, engine: EngineLike | None
) -> Iterator[tuple[Hashable, Score | Open | None]]:
    """Yields what a judge says of responses, in the order of its verdicts.

    Args:
      given: ids that differ, prompts and responses.
      judge: is kept busy until it has spoken of all.
      engine: that the judge asks; None where it asks none.
    """
    left, waiting = collections.deque(given), 0
    while left or waiting:
        while left and waiting < _AT_ONCE and (engine is None or engine.hungry):
            judge.submit(*left.popleft())
            waiting += 1
        if engine and not engine.idle:
            engine.step()
        found = judge.collect()
        if not found and (engine is None or engine.idle):  # all there is to do is to wait
            time.sleep(PAUSE_S)
        waiting -= len(found)
        yield from found


class LeftOpen(OSError):
    """Some answers were judged by nobody, so that a stage is not finished."""


def check_open(artefact: str, left_open: Sequence[str]) -> None:
    """Ends a run whose judge could not be reached, once all else is done and on disk.

    Args:
      left_open: ids of what waits for its judge.

    Raises:
      LeftOpen: where there are any.
    """
    if left_open:
        raise LeftOpen(
            f"{artefact}: {len(left_open)} left open, for nobody judged them"
            f" ({', '.join(left_open[:5])}{', ...' if len(left_open) > 5 else ''});"
            " the log says why, the same command asks again"
        )


def rubric(config: Config, side: str) -> Rubric:
    """Returns the rubric of a side; raises as `Rubric.load`."""
    folder = config.judge.templates
    return Rubric.load(side, str(world.templates) if (world := worlds.of(folder)) else folder)


def samplings(config: Config) -> list[Sampling]:
    """Returns how the judge draws in the policy's engine, for `compile`; [] where it does not."""
    own = "self" in (config.judge.safety, config.judge.helpfulness)
    return [self_reward.sampling_of(JudgeConfig.of(config.judge))] if own else []


def facts(config: Config) -> dict[str, str]:
    """Returns the hashes of the rubrics that a model is asked with, by side.

    Raises:
      ValueError: for a template that cannot be used, naming its file.
    """
    asked = [side for side in SIDES if config.judge[side] in _READ_RUBRICS]
    return {side: rubric(config, side).digest for side in asked}


def hold_to(config: Config, folder: pathlib.Path) -> dict[str, str]:
    """Notes in a folder which rubrics its content is judged with; returns `facts`.

    Raises:
      ValueError: where what is there was judged with another one, naming it.
    """
    path, now = folder / "rubrics.json", facts(config)
    made = json.loads(path.read_text(encoding="utf-8")) if path.exists() else now
    for side in SIDES:
        if made.get(side) != now.get(side):
            raise ValueError(
                f"config.judge.templates: {side}.txt has changed ({now.get(side)}) since {folder}"
                f" was begun ({made.get(side)}); put it back or use a new --config.workdir"
            )
    jsonl.write_json(path, now)
    return now


def metrics(judge: ClosableJudge) -> dict[str, float]:
    """Returns what a judge has counted in this session, and how far it agrees with the truth."""
    counted = {f"judge/{name}": float(count) for name, count in judge.counters.items()}
    for side in SIDES:
        found = agreement.shares(judge.counters, side)
        counted |= {f"judge/{name}": share for name, share in found.items()}
    return counted
