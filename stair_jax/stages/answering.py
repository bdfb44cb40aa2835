"""One model of the run, asked the benchmarks' questions in every way that is wanted."""

import dataclasses
import functools
import logging
import pathlib
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

from stair_jax import records
from stair_jax.engine.request import GREEDY, Sampling
from stair_jax.evals import miniature
from stair_jax.io import progress
from stair_jax.model.reward import Readout
from stair_jax.records import Answer, Prompt, Sample
from stair_jax.rewards.prm import RewardModelLike, aggregate
from stair_jax.search import beams, growth, guided, guided_mcts, selection
from stair_jax.search.beams import Found
from stair_jax.search.guided import Guide, Trail
from stair_jax.search.guided_mcts import Picked
from stair_jax.sections import GuidedConfig, SearchConfig, words
from stair_jax.stages import policies, reward_models
from stair_jax.stages.hashes import digest_of
from stair_jax.stages.run import Run
from stair_jax.stages.search import trees_in_flight
from stair_jax.strategies import MCTS, SAMPLED, Strategy

log = logging.getLogger(__name__)

Take = Callable[[Answer], None]


@dataclasses.dataclass
class Lost:
    """Scores of the reward model that were not finite, and choices that had none to go by."""

    missing: int = 0
    blind: int = 0

    def add(self, missing: int, blind: int) -> None:
        """Counts those of one prompt."""
        self.missing, self.blind = self.missing + missing, self.blind + blind

    def tell(self, model: str, label: str) -> None:
        """Says what was lost under a strategy, if anything was."""
        if self.missing or self.blind:
            log.warning(
                "evaluate %s: %s: scores of the reward model that were not finite, and are missing:"
                " %d; choices with no score to go by, where the first response stands in: %d",
                model,
                label,
                self.missing,
                self.blind,
            )


class Answering:
    """A model that answers, its engine and its samples made when they are first needed.

    Args:
      run: the run.
      name: of the model.
      strategies: all that it is to answer with; those of `SAMPLED` share one set of samples.
    """

    def __init__(self, run: Run, name: str, strategies: Iterable[Strategy]):
        self._run, self._name = run, name
        self._config = GuidedConfig.of(run.config.evaluate)
        self._strategies = tuple(strategies)
        self._sampled = [s for s in self._strategies if s.kind in SAMPLED]
        self._benchmark_of = {
            prompt.id: (benchmark, prompt)
            for benchmark in words(self._config.benchmarks)
            for prompt in miniature.prompts(benchmark, self._config.split)
        }

    def answer(self, strategy: Strategy, have: Collection[str], take: Take) -> None:
        """Answers every prompt whose id is not in `have`, and hands each answer on as it comes.

        Raises:
          ValueError: where there is no room for a prompt, or the reward model is not there.
        """
        todo = [p for _, p in self._benchmark_of.values() if p.id not in have]
        if not todo:
            return
        if strategy.kind in SAMPLED:
            self._choose(strategy, todo, take)
            return
        if strategy.kind == MCTS:
            self._search(strategy, todo, take)
            return

        def found(trail: Trail, what: Found) -> None:
            row = self._row(trail.prompt, self._policy.codec.decode(what.ids))
            take(dataclasses.replace(row, tokens=trail.tokens, scored=trail.scored))

        greedy = strategy.kind == "greedy"
        plan = beams.greedy if greedy else functools.partial(beams.beam, strategy=strategy)
        self._hunt(strategy.name, todo, plan, self._guide(read=strategy.reads), found)

    def _search(self, strategy: Strategy, todo: Sequence[Prompt], take: Take) -> None:
        """Answers with the best end of a search tree on each prompt."""
        guide, count = self._guide(read=True), trees_in_flight(self._run, len(todo))
        search = SearchConfig.of(self._run.config.search)
        config = guided_mcts.config_of(search, guide, strategy.width)
        config = dataclasses.replace(config, trees_in_flight=count)
        unended, lost = 0, Lost()

        def found(prompt: Prompt, what: Picked) -> None:
            nonlocal unended
            unended += not what.ended
            lost.add(what.missing, what.blind)
            row = self._row(prompt, self._policy.codec.decode(what.ids))
            take(dataclasses.replace(row, tokens=what.tokens, scored=what.scored))

        find = functools.partial(guided_mcts.find, todo, config, guide=guide)
        logps = growth.wants_logps(config)
        self._find(strategy.name, len(todo), find, found, [guide.sampling], logps=logps)
        if unended:
            log.warning(
                "evaluate %s: %s: no answer to %d of %d prompts ended; beginnings stand in",
                self._name, strategy.name, unended, len(todo),
            )  # fmt: skip
        lost.tell(self._name, strategy.name)

    def _hunt(
        self, label: str, todo: Sequence[Prompt], plan: Any, guide: Guide, found: Callable
    ) -> None:
        """Runs a plan of `guided` over prompts."""
        plain = [GREEDY] if label == "greedy" else [guide.sampling]
        samplings = plain + [GREEDY] * label.startswith("lookahead")
        # The reward model's pool has room for some contexts a slot; beyond it, keys are lost again.
        slots = self._run.config.engine.slots
        find = functools.partial(guided.find, todo, plan, guide=guide, read_at=slots)
        lost = Lost()

        def counted(trail: Trail, what: Any) -> None:
            found(trail, what)
            lost.add(trail.missing, trail.blind)

        self._find(label, len(todo), find, counted, samplings)
        lost.tell(self._name, label)

    def _find(
        self,
        label: str,
        count: int,
        find: Callable[..., dict[str, str]],
        found: Callable[[Any, Any], None],
        samplings: Sequence[Sampling],
        *,
        logps: bool = False,
    ) -> None:
        """Runs a strategy over `count` prompts, with a progress line.

        Args:
          label: of the strategy.
          count: of prompts.
          find: answers them all; its `on_found` gets prompt or trail, and what was found.
          found: takes each of these.
          samplings: how tokens are drawn.
          logps: whether log-probs are used.
        """
        log.info("evaluate %s: %s, %d prompts", self._name, label, count)
        self._engine.compile(samplings, logps=logps)
        done = 0
        with progress.line(f"evaluate {self._name} {label}", count) as show:

            def counted(who: Any, what: Any) -> None:
                nonlocal done
                found(who, what)
                done += 1
                show(done, f"{self._engine.counters['delivered']} tokens")

            passed_over = find(on_found=counted)
        for id, reason in passed_over.items():
            raise ValueError(f"evaluate {self._name}: prompt {id}: {reason}")

    def _row(self, prompt: Prompt, response: str) -> Answer:
        benchmark, _ = self._benchmark_of[prompt.id]
        outcome = miniature.outcome(prompt, response, policies.is_direct(self._name))
        return Answer(
            id=prompt.id, benchmark=benchmark, question=prompt.question, response=response,
            outcome=outcome, tokens=0,
        )  # fmt: skip

    # Choosing among samples

    def _choose(self, strategy: Strategy, todo: Sequence[Prompt], take: Take) -> None:
        """Answers with one of the first `width` samples of each prompt."""
        lost = Lost()
        for prompt in todo:
            some = self._samples[prompt.id][: strategy.width]
            index = self._index(strategy, prompt, some)
            lost.add(sum(None in sample.raw for sample in some), index is None)
            chosen = some[index or 0]
            read = {sample.ids for sample in some} if strategy.reads else ()
            take(
                Answer(
                    id=prompt.id, benchmark=chosen.benchmark, question=prompt.question,
                    response=chosen.response, outcome=chosen.outcome,
                    tokens=sum(len(sample.ids) for sample in some), scored=sum(map(len, read)),
                )
            )  # fmt: skip
        lost.tell(self._name, strategy.name)

    def _index(self, strategy: Strategy, prompt: Prompt, some: Sequence[Sample]) -> int | None:
        """Returns which of the samples is the answer; None where none has a score."""
        if strategy.kind == "random_of":
            key = self._run.config.seed, prompt.id, strategy.name
            return selection.at_random(len(some), key)
        if strategy.kind == "oracle_of":
            benchmark, _ = self._benchmark_of[prompt.id]
            return selection.best([miniature.merit(benchmark, s.outcome) for s in some])
        readout = Readout.from_json(self._run.lineage.entries["prm"]["readout"])
        how = self._config.aggregation
        scores = [aggregate(sample.raw, readout, how) for sample in some]
        if strategy.kind == "best_of":
            return selection.best(scores)
        direct = policies.is_direct(self._name)
        answers = [selection.comparable(sample.response, direct) for sample in some]
        return selection.vote(scores, answers, readout)

    @functools.cached_property
    def _samples(self) -> dict[str, list[Sample]]:
        """All samples that the strategies choose among, by prompt; drawn where they are missing."""
        artefact, parent = f"evals/{self._name}/samples", policies.artefact_of(self._name)
        self._run.begin(artefact, "evaluate.guided", (parent,) if parent else ())
        folder = self._run.workdir / artefact
        folder.mkdir(parents=True, exist_ok=True)
        rows = self._stored(folder)
        count = max(strategy.width for strategy in self._sampled)
        read = any(strategy.reads for strategy in self._sampled)
        self._draw(folder, rows, range(count), read)
        content = ""
        for benchmark in words(self._config.benchmarks):
            some = [row for key, row in sorted(rows.items()) if row.benchmark == benchmark]
            records.write_jsonl(folder / f"{benchmark}.jsonl", some)
            content += "\n".join(repr((row.id, row.ordinal, row.ids)) for row in some)
        self._run.lineage.finish(artefact, digest_of(content), samples=len(rows))
        found: dict[str, list[Sample]] = {id: [] for id in self._benchmark_of}
        for (id, _), row in sorted(rows.items()):
            found[id].append(row)
        return found

    def _stored(self, folder: pathlib.Path) -> dict[tuple[str, int], Sample]:
        """Returns the samples on disk, by prompt and number; a later row replaces an earlier."""
        rows = {}
        for benchmark in words(self._config.benchmarks):
            path = folder / f"{benchmark}.jsonl"
            records.mend_jsonl(path)
            for row in records.read_jsonl(path, Sample) if path.exists() else []:
                rows[row.id, row.ordinal] = row
        return rows

    def _draw(
        self, folder: pathlib.Path, rows: dict[tuple[str, int], Sample], numbers: range, read: bool
    ) -> None:
        """Draws the samples that are missing, reads those unread, and appends both."""
        missing = {
            id: [number for number in numbers if (id, number) not in rows]
            for id in self._benchmark_of
        }
        unread = {
            id: [rows[id, n] for n in numbers if read and (id, n) in rows and not rows[id, n].raw]
            for id in self._benchmark_of
        }
        todo = [p for id, (_, p) in self._benchmark_of.items() if missing[id] or unread[id]]
        if not todo:
            return

        def plan(trail: Trail) -> guided.Moves[tuple[list[Found], list[Found]]]:
            id = trail.prompt.id
            return beams.sample(trail, missing[id], [row.ids for row in unread[id]], read)

        def found(trail: Trail, what: tuple[list[Found], list[Found]]) -> None:
            id = trail.prompt.id
            fresh = [
                self._sample(trail.prompt, number, one)
                for number, one in zip(missing[id], what[0], strict=True)
            ]
            later = [
                dataclasses.replace(row, raw=one.raw)
                for row, one in zip(unread[id], what[1], strict=True)
            ]
            for row in (*fresh, *later):
                journal.add(folder / f"{row.benchmark}.jsonl", row)
                rows[id, row.ordinal] = row

        with records.Journal() as journal:
            self._hunt(f"{len(numbers)} samples", todo, plan, self._guide(read=read), found)

    def _sample(self, prompt: Prompt, ordinal: int, found: Found) -> Sample:
        row = self._row(prompt, self._policy.codec.decode(found.ids))
        return Sample(
            id=prompt.id, benchmark=row.benchmark, ordinal=ordinal, ids=found.ids,
            response=row.response, outcome=row.outcome, raw=found.raw,
        )  # fmt: skip

    # Models

    @functools.cached_property
    def _policy(self) -> policies.Policy:
        return policies.load(self._run, self._name, for_engine=True)

    @functools.cached_property
    def _engine(self) -> Any:
        if any(strategy.reads for strategy in self._strategies):
            _ = self._reward_model  # first: the engine takes most of the memory that it finds
        return policies.engine_for(self._run, self._policy)

    @functools.cached_property
    def _reward_model(self) -> RewardModelLike:
        return reward_models.open_one(self._run)

    def _guide(self, *, read: bool) -> Guide:
        return Guide(
            engine=self._engine, reward_model=self._reward_model if read else None,
            codec=self._policy.codec, config=self._config,
            max_depth=self._run.config.search.max_depth, seed=self._run.config.seed,
        )  # fmt: skip
