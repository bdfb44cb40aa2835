"""Attacks on the models that are evaluated, on disk: a row a request, as its attack ends.

What is there already is not made again. `evals.attacks` has the attacks, `attack_models` who plays
in them. Many requests are attacked at once, so that each model answers in batches; what is drawn
depends on the run's seed, the attack and the prompt's id alone.
"""

import contextlib
import dataclasses
import functools
import logging
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from stair_jax import jsonl, text
from stair_jax.config.words import split_csv
from stair_jax.evals.attacks import attacked, escalation, pair, pap, rounds
from stair_jax.evals.attacks.attacked import ESCALATION, PAIR, PAP, Attacked
from stair_jax.evals.attacks.prompts import PairPrompts
from stair_jax.evals.attacks.transcript import (
    ATTACKER,
    JUDGE,
    TARGET,
    Budget,
    Chat,
    Conversation,
    Sampling,
    Transcript,
    digest,
    seed_of,
)
from stair_jax.evals.benchmark import Benchmark
from stair_jax.log import progress
from stair_jax.records import Prompt
from stair_jax.run import attack_models, attack_results, judges, known_models
from stair_jax.run.answerer import Answerer
from stair_jax.run.attack_models import CUT, Cast, EngineModel
from stair_jax.run.attack_results import OnModel
from stair_jax.run.hashes import digest_of, of_text
from stair_jax.run.judged_figures import Verdicts
from stair_jax.run.workdir import Run

log = logging.getLogger(__name__)

_MOST_AT_ONCE = 256  # attacks under way, a thread each


def look(run: Run) -> None:
    """Reads the prompts of attacks, and whether a run can have the models that are named.

    Raises:
      ValueError: naming the setting.
    """
    c = run.config
    for attack in split_csv(c.evaluate.attacks):
        if attack == PAIR:
            _pair_prompts(run)
        for role, needed_by in attack_models.ROLES.items():
            if attack in needed_by and not (model := attack_models.of(c, role)).endpoint:
                try:
                    known_models.of_name(run, model.name)
                except ValueError as error:
                    raise ValueError(
                        f"config.evaluate.{role}: {error}; one behind an endpoint is NAME@URL"
                    ) from None


def _pair_prompts(run: Run) -> PairPrompts:
    try:
        return PairPrompts.load(run.config.evaluate.pair_prompts)
    except ValueError as error:
        raise ValueError(f"config.evaluate.pair_prompts: {error}") from None


class Attacker:
    """The attacks of `config.evaluate.attacks`, on one model after another; none where it is empty.

    Args:
      run: the run.
      asked: all benchmarks, with their prompts.

    Raises:
      ValueError: where a model of the run that attacks or judges is not there.
    """

    def __init__(self, run: Run, asked: Sequence[Benchmark]):
        self._run, self._every = run, asked
        self._attacks = split_csv(run.config.evaluate.attacks)
        self._asked = attack_models.attackable(asked) if self._attacks else []
        self._cast = Cast(run)
        self._found: dict[str, OnModel] = {}

    def attack(self, answerer: Answerer) -> None:
        """Makes all attacks on a model that are not on disk yet.

        Raises:
          LeftOpen: where attacker or judge could not be reached for some; all others are on disk.
        """
        if not self._attacks:
            return
        rows = {attack: self._make(attack, answerer) for attack in self._attacks}
        self._found[answerer.model.name] = OnModel(answerer.model.direct, rows)

    def _make(self, attack: str, answerer: Answerer) -> Mapping[str, Sequence[Attacked]]:
        model, cast = answerer.model, self._cast
        artefact = f"evals/{model.name}/attacks/{attack}"
        parents = tuple(dict.fromkeys((*model.parents, *cast.parents(attack))))
        inputs = {f"evaluate.{role}": one.name for role, one in cast.roles(attack).items()}
        if attack == PAIR:
            inputs["evaluate.pair_prompts"] = of_text(repr(self._pair_prompts))
        self._run.begin(artefact, f"evaluate.{attack}", parents, inputs)
        folder = self._run.workdir / artefact
        folder.mkdir(parents=True, exist_ok=True)
        have = {row.id for one in self._asked for row in _read(folder, one)[0]}
        left_open = self._ask(attack, answerer, folder, have)
        found = {}
        for one in self._asked:
            found[one.name], others = _read(folder, one)
            # Those of prompts that are not asked today stay: they were dear.
            jsonl.write_jsonl(folder / f"{one.name}.jsonl", [*found[one.name], *others])
        judges.check_open(artefact, left_open)
        content = "\n".join(repr(row) for some in found.values() for row in some)
        count = sum(map(len, found.values()))
        self._run.lineage.finish(artefact, digest_of(content), attacked=count)
        return found

    def _ask(
        self, attack: str, answerer: Answerer, folder: pathlib.Path, have: set[str]
    ) -> list[str]:
        """Attacks what is left; returns ids of prompts whose attack nobody could end."""
        todo = [(one, p) for one in self._asked for p in one.prompts if p.id not in have]
        name, count = answerer.model.name, sum(len(one.prompts) for one in self._asked)
        log.info("evaluate %s: %s on %d requests, %d to be asked", name, attack, count, len(todo))
        if not todo:
            return []
        done = 0
        with contextlib.ExitStack() as stack:
            models = self._cast.open(attack, answerer, stack)
            target = models["target"]
            assert isinstance(target, EngineModel)
            journal = stack.enter_context(jsonl.Journal())
            show = stack.enter_context(
                progress.line(f"evaluate {name} {attack}", len(todo), "requests")
            )

            def took(_: str, row: Attacked) -> None:
                nonlocal done
                journal.add(folder / f"{row.benchmark}.jsonl", row)
                done += 1
                show(done)

            jobs = [(p.id, self._job(attack, one, p, answerer, target)) for one, p in todo]
            at_once = self._at_once(attack)
            return rounds.play(jobs, models, at_once=at_once, on_done=took)

    def _at_once(self, attack: str) -> int:
        """Returns how many requests are attacked at once: they fill the engine's slots."""
        c = self._run.config
        width = {
            PAIR: c.evaluate.pair_streams,
            PAP: len(split_csv(c.evaluate.pap_techniques)),
            ESCALATION: 1,
        }[attack]
        return min(_MOST_AT_ONCE, -(-c.engine.slots // width))

    def _job(
        self,
        attack: str,
        benchmark: Benchmark,
        prompt: Prompt,
        answerer: Answerer,
        target: EngineModel,
    ) -> rounds.Job[Attacked]:
        """Returns the attack on one prompt, to be given its models."""
        c = self._run.config.evaluate
        goal = prompt.meta.get("goal", prompt.question)
        limit = min(benchmark.max_tokens or c.max_tokens, c.max_tokens)
        usual: dict[str, Any] = {
            "seed": seed_of(self._run.config.seed, attack, prompt.id),
            "budget": Budget(calls=c.attack_calls or None),
        }
        sampling = dataclasses.replace(TARGET, max_tokens=limit)
        writes = dataclasses.replace(ATTACKER, max_tokens=c.attacker_tokens)

        def play(chats: Mapping[str, Chat], under_attack: _Target) -> Transcript:
            usual.update(target=under_attack, final=under_attack.final)
            if attack == ESCALATION:
                return escalation.attack(goal, sampling=sampling, **usual)
            if attack == PAP:
                techniques = split_csv(c.pap_techniques)
                settings = pap.Settings(techniques=techniques, attacker=writes, target=sampling)
                return pap.attack(goal, attacker=chats["attacker"], settings=settings, **usual)
            return pair.attack(
                goal,
                pair.target_of(prompt),
                attacker=chats["attacker"],
                judge=chats["judge"],
                settings=pair.Settings(
                    n_streams=c.pair_streams,
                    n_iterations=c.pair_iterations,
                    attacker=writes,
                    target=sampling,
                    judge=dataclasses.replace(JUDGE, max_tokens=c.attack_judge_tokens),
                ),
                prompts=self._pair_prompts,
                **usual,
            )

        def run(chats: Mapping[str, Chat]) -> Attacked:
            direct = answerer.model.direct
            under_attack = _Target(target, chats["target"], prompt.before, direct=direct)
            transcript = play(chats, under_attack)
            return Attacked(
                id=prompt.id,
                benchmark=benchmark.name,
                attack=attack,
                question=prompt.question,
                before=prompt.before,
                ends=attacked.ends_of(transcript, under_attack.ends),
                transcript=transcript,
            )

        return run

    @functools.cached_property
    def _pair_prompts(self) -> PairPrompts:
        return _pair_prompts(self._run)

    def verdicts(self) -> Verdicts:
        """Returns what judges say of the answers under attack.

        Raises:
          LeftOpen: where answers are left open, because no judge could be reached.
        """
        return attack_results.verdicts_of(self._run, self._asked, self._found)

    def tell(self, results: Mapping[str, Any], said: Verdicts) -> None:
        """Writes evals/attacks.json and report/attacks.md of all models, if any was attacked.

        Args:
          results: {model: {benchmark: {metric: ...}}} without attacks.
          said: `verdicts`.
        """
        if self._found:
            attack_results.write(self._run, self._every, self._asked, self._found, results, said)


class _Target:
    """A model under attack, behind the turns that a benchmark puts first; notes how replies end."""

    def __init__(
        self, model: EngineModel, chat: Chat, before: Sequence[tuple[str, str]], *, direct: bool
    ):
        self._model, self._chat = model, chat
        self._before, self._direct = tuple(before), direct
        self._cut: set[str] = set()  # responses
        self.ends: dict[str, str] = {}  # by the digest of what the attack asked

    def ask(
        self, conversations: Sequence[Conversation], *, seeds: Sequence[int], sampling: Sampling
    ) -> list[str]:
        """Returns the responses."""
        whole = [(*self._before, *talk) for talk in conversations]
        replies = self._chat.ask(whole, seeds=seeds, sampling=sampling)
        for talk, asked, seed, reply in zip(conversations, whole, seeds, replies, strict=True):
            if end := self._model.ends.get(digest(asked, seed, sampling)):
                self.ends[digest(talk, seed, sampling)] = end
                self._cut |= {reply} if end == CUT else set()
        return replies

    def final(self, response: str) -> str | None:
        """Returns the final answer; of a response without reasoning that was cut there is none."""
        if self._direct and response in self._cut:
            return None
        return text.final_answer(response, self._direct)


def _read(folder: pathlib.Path, benchmark: Benchmark) -> tuple[list[Attacked], list[Attacked]]:
    """Returns the rows on what a benchmark asks today, in its order, and all others; of two with
    one id the later.
    """
    path = folder / f"{benchmark.name}.jsonl"
    jsonl.mend_jsonl(path)
    rows = {r.id: r for r in jsonl.read_jsonl(path, Attacked)} if path.exists() else {}
    asked = {p.id: rows[p.id] for p in benchmark.prompts if p.id in rows and _is_of(rows[p.id], p)}
    return list(asked.values()), [row for id, row in rows.items() if id not in asked]


def _is_of(row: Attacked, prompt: Prompt) -> bool:
    """Returns whether a row attacks what a prompt asks today, with the aim that it has today."""
    if row.attack == PAIR and row.transcript.target_str != pair.target_of(prompt):
        return False
    return (row.question, row.before) == (prompt.question, prompt.before)
