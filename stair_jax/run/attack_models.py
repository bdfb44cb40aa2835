"""The models that take part in attacks, as `config.evaluate.attacker` and `attack_judge` name them.

Each is a model of the run, whose engine decodes what is asked of it, or one behind an endpoint,
whose replies stay in the run's `judgements`: nothing is paid for twice.
"""

import collections
import contextlib
import dataclasses
import pathlib
import queue
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from stair_jax import text
from stair_jax.config import Config, redaction
from stair_jax.config.schema import JudgeConfig
from stair_jax.config.strategies import GREEDY
from stair_jax.config.words import name_and_address, split_csv
from stair_jax.engine.request import Sampling as EngineSampling
from stair_jax.evals.attacks.rounds import Model as AskedModel
from stair_jax.evals.attacks.transcript import Conversation, Sampling, digest
from stair_jax.evals.benchmark import Benchmark
from stair_jax.records import Prompt
from stair_jax.remote.client import COUNTERS, Counts, EndpointClient, Reply
from stair_jax.remote.open import OPEN, Open
from stair_jax.run import known_models
from stair_jax.run.answerer import Answerer
from stair_jax.run.known_models import Model
from stair_jax.run.workdir import Run

ROLES = {"attacker": ("pair", "pap"), "attack_judge": ("pair",)}  # settings, and who needs them
CUT, NO_ROOM = "cut", "no_room"  # ends of replies that are not whole
PAUSE_S = 0.05  # between two looks at what came from an endpoint


class Named(NamedTuple):
    """A model as a setting names it."""

    name: str
    endpoint: str  # "": a model of the run


def of(c: Config, role: str) -> Named:
    """Returns the model that a setting of `ROLES` names."""
    return Named(*name_and_address(c.evaluate[role]))


def own_names(c: Config) -> set[str]:
    """Returns the models of the run that attack or judge."""
    attacks = set(split_csv(c.evaluate.attacks))
    models = [of(c, role) for role, needed_by in ROLES.items() if attacks & set(needed_by)]
    return {model.name for model in models if not model.endpoint}


def attackable(asked: Iterable[Benchmark]) -> list[Benchmark]:
    """Returns the benchmarks of plain harmful requests: those under attack already are left out."""
    return [one for one in asked if one.complied and not one.attacks]


def check(c: Config, asked: Iterable[Benchmark]) -> None:
    """Refuses attacks that nobody could make, or that would have nothing to attack.

    Raises:
      ValueError: naming the setting.
    """
    attacks, asked = split_csv(c.evaluate.attacks), list(asked)
    if not attacks:
        return
    if not attackable(asked):
        raise ValueError(
            f"config.evaluate.attacks: {list(attacks)} would have nothing to attack, none of"
            f" {[one.name for one in asked] or 'these prompts'} is a benchmark of plain harmful"
            " requests; add one to config.evaluate.benchmarks"
        )
    if "pap" in attacks and not split_csv(c.evaluate.pap_techniques):
        raise ValueError("config.evaluate.pap_techniques: empty, pap needs one")
    for role, needed_by in ROLES.items():
        key, model = f"config.evaluate.{role}", of(c, role)
        if not (needing := [name for name in attacks if name in needed_by]):
            continue
        if not model.name:
            raise ValueError(
                f"{key}: no name, {needing[0]} needs one; expected NAME@URL, or a model of the run"
            )
        if model.endpoint:
            redaction.check_address(f"evaluate.{role}", model.endpoint)
        elif "://" in model.name:
            raise ValueError(
                f"{key}: {redaction.shown_address(model.name)!r}, expected NAME@URL with http://"
                " or https://, or a model of the run"
            )


def named(run: Run, role: str) -> Model:
    """Returns the model of the run that plays a role.

    Raises:
      ValueError: where it is not there, naming the setting.
    """
    try:
        return known_models.named(run, of(run.config, role).name)
    except ValueError as error:
        raise ValueError(
            f"config.evaluate.{role}: {error}; one behind an endpoint is NAME@URL"
        ) from None


class EngineModel:
    """A model of the run that replies through its engine.

    Args:
      answerer: the model.
      whole: whether a reply is all that it says; else its final answer alone, "" where it has none.

    Attributes:
      ends: "cut" or "no_room" of replies that are not whole, by the digest of what was asked.
    """

    def __init__(self, answerer: Answerer, *, whole: bool):
        self._answerer, self._whole = answerer, whole
        self.ends: dict[str, str] = {}

    def ask(
        self, conversations: Sequence[Conversation], *, seeds: Sequence[int], sampling: Sampling
    ) -> list[str]:
        """Returns a reply to each conversation; "" where it leaves no room for one."""
        keys = [
            digest(talk, seed, sampling) for talk, seed in zip(conversations, seeds, strict=True)
        ]
        # What two attacks ask in the same words, with the same seed, is asked once.
        asked = {
            key: Prompt(id=key, question=talk[-1][1], type="safety", before=tuple(talk[:-1]))
            for key, talk in zip(keys, conversations, strict=True)
        }
        drawn = EngineSampling(temperature=sampling.temperature, top_p=sampling.top_p)
        replies, passed = self._answerer.converse(list(asked.values()), drawn, sampling.max_tokens)
        self.ends |= dict.fromkeys(passed, NO_ROOM)
        self.ends |= {key: CUT for key, reply in replies.items() if reply.cut}
        said = {key: self._said(reply.text) for key, reply in replies.items()}
        return [said.get(key, "") for key in keys]

    def _said(self, response: str) -> str:
        if self._whole:
            return response
        return text.final_answer(response, self._answerer.model.direct) or ""


class EndpointModel:
    """A model behind an endpoint; whoever made it closes it.

    Args:
      config: of the endpoint, with the model's name.
      folder: of the replies that were paid for.
    """

    def __init__(self, config: JudgeConfig, folder: pathlib.Path):
        self._config, self._folder = config, folder
        self._lines: dict[Sampling, EndpointClient] = {}
        self._counts: Counts = collections.Counter(dict.fromkeys(COUNTERS, 0))

    def ask(
        self, conversations: Sequence[Conversation], *, seeds: Sequence[int], sampling: Sampling
    ) -> list[str | Open]:
        """Returns a reply to each; "" where the endpoint has none to give, OPEN where it was away.

        Raises:
          Refused, Unavailable: where it makes no sense to go on.
        """
        line = self._line(sampling)
        came: queue.SimpleQueue[tuple[int, list[Reply]]] = queue.SimpleQueue()
        for number, (talk, seed) in enumerate(zip(conversations, seeds, strict=True)):
            line.ask(
                talk[-1][1],
                1,
                self._counts,
                lambda replies, number=number: came.put((number, replies)),
                before=talk[:-1],
                seed=seed,
            )
        found: dict[int, str | Open] = {}
        while len(found) < len(conversations):
            line.check()
            with contextlib.suppress(queue.Empty):
                number, [reply] = came.get(timeout=PAUSE_S)
                found[number] = OPEN if isinstance(reply, Open) else reply or ""
        return [found[number] for number in range(len(conversations))]

    def _line(self, sampling: Sampling) -> EndpointClient:
        if sampling not in self._lines:
            config = dataclasses.replace(
                self._config,
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                max_tokens=sampling.max_tokens,
            )
            self._lines[sampling] = EndpointClient(config, self._folder)
        return self._lines[sampling]

    def close(self) -> None:
        """Ends all asking."""
        for line in self._lines.values():
            line.close()


class Cast:
    """Who plays which role, for all models that are attacked; engines are made when first needed.

    Args:
      run: the run.

    Raises:
      ValueError: where a model of the run that attacks or judges is not there.
    """

    def __init__(self, run: Run):
        self._run = run
        self._own: dict[str, Answerer] = {}
        for role, needed_by in ROLES.items():
            if set(needed_by) & set(split_csv(run.config.evaluate.attacks)) and not (
                of(run.config, role).endpoint
            ):
                named(run, role)

    def roles(self, attack: str) -> dict[str, Named]:
        """Returns who plays in an attack beside its target, by the setting that names it."""
        return {role: of(self._run.config, role) for role, by in ROLES.items() if attack in by}

    def parents(self, attack: str) -> tuple[str, ...]:
        """Returns the artefacts that the players of an attack come from."""
        return tuple(
            parent
            for role, model in self.roles(attack).items()
            if not model.endpoint
            for parent in named(self._run, role).parents
        )

    def open(
        self, attack: str, target: Answerer, stack: contextlib.ExitStack
    ) -> Mapping[str, AskedModel]:
        """Returns the models of an attack by the roles that `evals.attacks` knows.

        Args:
          attack: one of `config.words.ATTACKS`.
          target: is attacked; whom it also plays, it plays with the same engine.
          stack: closes endpoints.
        """
        found: dict[str, AskedModel] = {"target": EngineModel(target, whole=True)}
        for role, model in self.roles(attack).items():
            name = "judge" if role == "attack_judge" else role
            if model.endpoint:
                found[name] = stack.enter_context(contextlib.closing(self._remote(model)))
            else:
                found[name] = EngineModel(self._answerer(role, target), whole=False)
        return found

    def _answerer(self, role: str, target: Answerer) -> Answerer:
        model = named(self._run, role)
        if model == target.model:
            return target
        if model.name not in self._own:
            self._own[model.name] = Answerer(self._run, model, [GREEDY])
        return self._own[model.name]

    def _remote(self, model: Named) -> EndpointModel:
        config = dataclasses.replace(
            JudgeConfig.of(self._run.config.judge),
            endpoint=model.endpoint,
            model=model.name,
            samples=1,
        )
        return EndpointModel(config, pathlib.Path(config.cache or self._run.workdir / "judgements"))
