"""One model of the run, asked questions in every way that an answer can be found."""

import dataclasses
import functools
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from stair_jax import text
from stair_jax.config.schema import GuidedConfig, SearchConfig
from stair_jax.config.stages import PRM
from stair_jax.config.strategies import MCTS, Strategy
from stair_jax.engine.request import GREEDY, Sampling
from stair_jax.guided import beams, loop, mcts, selection
from stair_jax.guided.beams import Found
from stair_jax.guided.loop import Continuation, Guide, PromptState
from stair_jax.guided.mcts import Picked
from stair_jax.log import progress
from stair_jax.model.reward import Readout
from stair_jax.prm.reader import RewardModelLike, aggregate
from stair_jax.records import Prompt
from stair_jax.run import models, reward_models
from stair_jax.run.known_models import Model
from stair_jax.run.search_sizes import trees_in_flight
from stair_jax.run.workdir import Run
from stair_jax.search import growth

log = logging.getLogger(__name__)

Drawn = tuple[list[Found], list[Found]]  # fresh samples, and earlier ones that were read now


class Reply(NamedTuple):
    """What was found for a prompt, and what it cost."""

    text: str
    tokens: int  # generated, those of candidates that were not taken included
    scored: int  # tokens that a reward model read
    score: float | None  # raw, as `reader.aggregate`; None where it was not asked, or is missing
    cut: bool = False  # as Answerer.is_cut


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


class Answerer:
    """A model with its engine and its reward model, made when they are first needed.

    Args:
      run: the run.
      model: that is asked.
      strategies: all that it is to answer with.
      limits: tokens of a response, by prompt id, where they are fewer than the run's. The attribute
        of that name takes further ones, of prompts that are known later.
      compile_first: whether all programs are compiled before the first answer, so that none of
        many waits for one.
    """

    def __init__(
        self,
        run: Run,
        model: Model,
        strategies: Iterable[Strategy],
        *,
        limits: Mapping[str, int] | None = None,
        compile_first: bool = True,
    ):
        self._run, self.model, self._compile_first = run, model, compile_first
        self.limits = dict(limits or {})
        self.config = GuidedConfig.of(run.config.evaluate)
        self._reads = any(strategy.of.reads for strategy in strategies)
        self._compiled: set[Sampling] = set()  # by `converse`

    def ask(
        self,
        strategy: Strategy,
        prompts: Sequence[Prompt],
        on_reply: Callable[[Prompt, Reply], None],
    ) -> dict[str, str]:
        """Answers prompts, and hands each reply on as it comes.

        Returns:
          Why prompts were passed over, by prompt id.

        Raises:
          ValueError: where the reward model is not there, or the strategy needs the truth.
        """
        if strategy.of.samples:
            return self._ask_samples(strategy, prompts, on_reply)
        if strategy.kind == MCTS:
            return self._search(strategy, prompts, on_reply)

        def found(state: PromptState, what: Found) -> None:
            score = self.score_of(what.raw) if strategy.of.reads else None
            on_reply(
                state.prompt,
                self._reply(what.ids, state.tokens, state.scored, score),
            )

        def plan(state: PromptState) -> loop.Requests[Found]:
            return beams.PLANS[strategy.kind](state, strategy)

        guide = self._guide(strategy.of.reads)
        drawn = [guide.sampling] * (strategy.of.greedy != "all")
        greedy = [GREEDY] * (strategy.of.greedy != "none")
        return self._hunt(strategy.name, prompts, plan, guide, found, drawn + greedy)

    def draw(
        self,
        label: str,
        prompts: Sequence[Prompt],
        missing: Mapping[str, Sequence[int]],
        unread: Mapping[str, Sequence[tuple[int, ...]]],
        on_drawn: Callable[[Prompt, Drawn], None],
        *,
        read: bool,
    ) -> dict[str, str]:
        """Draws samples of each prompt, and reads what is still to be read.

        Args:
          label: for the progress line.
          prompts: each is handed on once all of its samples are there.
          missing: numbers of the samples to draw, by prompt id; a number fixes a draw.
          unread: token ids of earlier samples, by prompt id.
          on_drawn: takes the fresh samples, and those of `unread` with scores.
          read: whether the reward model reads them.

        Returns:
          Why prompts were passed over, by prompt id.
        """

        def plan(state: PromptState) -> loop.Requests[Drawn]:
            id = state.prompt.id
            return beams.sample(state, missing[id], unread[id], read)

        def found(state: PromptState, what: Drawn) -> None:
            on_drawn(state.prompt, what)

        guide = self._guide(read)
        return self._hunt(label, prompts, plan, guide, found, [guide.sampling])

    def converse(
        self, prompts: Sequence[Prompt], sampling: Sampling, max_tokens: int
    ) -> tuple[dict[str, Reply], dict[str, str]]:
        """Replies to prompts once, as it is told to draw; for callers with a progress of their own.

        Args:
          prompts: with ids that differ; an id fixes the draws, beside the run's seed.
          sampling: of every token.
          max_tokens: of a reply.

        Returns:
          Replies, and why prompts were passed over, both by prompt id.
        """

        def plan(state: PromptState) -> loop.Requests[Found]:
            key = (beams.START, "reply", 0)
            asked = Continuation(state.root, key, "end", max_tokens, sampling)
            (result,) = yield from state.generate([asked])
            return Found(ids=result.ids)

        def found(state: PromptState, what: Found) -> None:
            replies[state.prompt.id] = self._reply(what.ids, state.tokens, state.scored, None)

        replies: dict[str, Reply] = {}
        if self._compile_first and sampling not in self._compiled:
            self._engine.compile([sampling])
            self._compiled.add(sampling)
        slots, guide = self._run.config.engine.slots, self._guide(read=False)
        passed = loop.find(prompts, plan, guide=guide, read_at=slots, on_found=found)
        return replies, passed

    def choose(
        self,
        strategy: Strategy,
        prompt: Prompt,
        some: Sequence[Found],
        merits: Sequence[float],
        lost: Lost,
    ) -> int:
        """Returns which of some samples a strategy takes, the first where it knows none better.

        Args:
          strategy: how.
          prompt: of the samples.
          some: the samples.
          merits: of each, for an oracle.
          lost: what is missing is counted there.
        """
        key = self._run.config.seed, prompt.id, strategy.name
        index = selection.CHOICES[strategy.kind](_Samples(self, some, key, merits, prompt.prefill))
        lost.add(sum(sample.raw.count(None) for sample in some), index is None)
        return index or 0

    def comparable(self, ids: Sequence[int], prefill: str = "") -> str | None:
        """Returns a response's answer for a vote; None where it did not come to its end."""
        if self.is_cut(ids):
            return None
        return selection.comparable(prefill + self.text_of(ids), self.model.direct)

    def reply_of(self, strategy: Strategy, some: Sequence[Found], chosen: int) -> Reply:
        """Returns one of some samples as the reply that it is; equal ones were read once."""
        read = {sample.ids for sample in some} if strategy.of.reads else ()
        tokens = sum(len(sample.ids) for sample in some)
        score = self.score_of(some[chosen].raw) if strategy.of.reads else None
        return self._reply(some[chosen].ids, tokens, sum(map(len, read)), score)

    def unknown_in(self, prompt: Prompt) -> int:
        """Returns how many tokens of a prompt stand for words that the model does not know."""
        codec = self.policy.codec
        return text.unknown_of(codec, text.opening_ids(codec, prompt))

    def score_of(self, raw: Sequence[float | None]) -> float | None:
        """Returns a response's raw score from the reward model's, one a step."""
        return aggregate(raw, self.readout, self.config.aggregation)

    def text_of(self, ids: Sequence[int]) -> str:
        """Returns a response's text; of one without reasoning, without the end of the turn."""
        return self.policy.codec.decode(ids[:-1] if self.model.direct and self._ended(ids) else ids)

    def is_cut(self, ids: Sequence[int]) -> bool:
        """Returns whether a response stopped at a limit of tokens or steps, not at its end."""
        return not self._ended(ids)

    def _ended(self, ids: Sequence[int]) -> bool:
        return bool(ids) and ids[-1] in self.policy.codec.end_stop

    def _reply(self, ids: Sequence[int], tokens: int, scored: int, score: float | None) -> Reply:
        return Reply(self.text_of(ids), tokens, scored, score, self.is_cut(ids))

    # Ways to ask

    def _ask_samples(
        self,
        strategy: Strategy,
        prompts: Sequence[Prompt],
        on_reply: Callable[[Prompt, Reply], None],
    ) -> dict[str, str]:
        """Answers with one of fresh samples of each prompt."""
        if strategy.of.truth:
            raise ValueError(f"{strategy.name}: needs benchmarks whose truth is known")

        def drawn(prompt: Prompt, what: Drawn) -> None:
            chosen = self.choose(strategy, prompt, what[0], (), lost)
            on_reply(prompt, self.reply_of(strategy, what[0], chosen))

        lost = Lost()
        missing = {prompt.id: range(strategy.width) for prompt in prompts}
        nothing: dict[str, list[tuple[int, ...]]] = {prompt.id: [] for prompt in prompts}
        passed = self.draw(strategy.name, prompts, missing, nothing, drawn, read=strategy.of.reads)
        # The scores that are missing were said where they were read.
        Lost(blind=lost.blind).tell(self.model.name, strategy.name)
        return passed

    def _search(
        self,
        strategy: Strategy,
        prompts: Sequence[Prompt],
        on_reply: Callable[[Prompt, Reply], None],
    ) -> dict[str, str]:
        """Answers with the best end of a search tree on each prompt."""
        guide, count = self._guide(read=True), trees_in_flight(self._run, len(prompts))
        search = SearchConfig.of(self._run.config.search)
        config = mcts.config_of(search, guide, strategy.width)
        config = dataclasses.replace(config, trees_in_flight=count)
        unended, lost = 0, Lost()

        def found(prompt: Prompt, what: Picked) -> None:
            nonlocal unended
            unended += not what.ended
            lost.add(what.missing, what.blind)
            on_reply(prompt, self._reply(what.ids, what.tokens, what.scored, what.score))

        find = functools.partial(mcts.find, prompts, config, guide=guide)
        logps = growth.wants_logps(config)
        passed_over = self._find(
            strategy.name, len(prompts), find, found, [guide.sampling], logps=logps
        )
        if unended:
            log.warning(
                "evaluate %s: %s: no answer to %d of %d prompts ended; beginnings stand in",
                self.model.name,
                strategy.name,
                unended,
                len(prompts),
            )
        lost.tell(self.model.name, strategy.name)
        return passed_over

    def _hunt(
        self,
        label: str,
        prompts: Sequence[Prompt],
        plan: loop.Method[Any],
        guide: Guide,
        found: Callable[[PromptState, Any], None],
        samplings: Sequence[Sampling],
    ) -> dict[str, str]:
        """Runs a plan of `guided` over prompts; `samplings` are those that it asks with."""
        # The reward model's pool has room for some contexts a slot; beyond it, keys are lost again.
        slots = self._run.config.engine.slots
        find = functools.partial(loop.find, prompts, plan, guide=guide, read_at=slots)
        lost = Lost()

        def counted(state: PromptState, what: Any) -> None:
            found(state, what)
            lost.add(state.missing, state.blind)

        passed_over = self._find(label, len(prompts), find, counted, samplings)
        lost.tell(self.model.name, label)
        return passed_over

    def _find(
        self,
        label: str,
        count: int,
        find: Callable[..., dict[str, str]],
        found: Callable[[Any, Any], None],
        samplings: Sequence[Sampling],
        *,
        logps: bool = False,
    ) -> dict[str, str]:
        """Runs a strategy over `count` prompts, with a progress line.

        Args:
          label: of the strategy.
          count: of prompts.
          find: answers them all; its `on_found` gets prompt or state, and what was found.
          found: takes each of these.
          samplings: how tokens are drawn.
          logps: whether log-probs are used.

        Returns:
          Why prompts were passed over, by prompt id.
        """
        log.info("evaluate %s: %s, %d prompts", self.model.name, label, count)
        if self._compile_first:
            self._engine.compile(samplings, logps=logps)
        done = 0
        with progress.line(f"evaluate {self.model.name} {label}", count, "prompts") as show:

            def counted(who: Any, what: Any) -> None:
                nonlocal done
                found(who, what)
                done += 1
                show(done, f"{self._engine.counters['delivered']} tokens")

            return find(on_found=counted)

    # Models

    @functools.cached_property
    def policy(self) -> models.Policy:
        """The model; the engine has its weights."""
        return models.load(self._run, self.model, for_engine=True)

    @functools.cached_property
    def _engine(self) -> Any:
        if self._reads:
            _ = self._reward_model  # first: the engine takes most of the memory that it finds
        return models.engine_for(self._run, self.policy)

    @functools.cached_property
    def _reward_model(self) -> RewardModelLike:
        return reward_models.open_one(self._run)

    @functools.cached_property
    def readout(self) -> Readout:
        """Of the reward model's scores."""
        return Readout.from_json(self._run.lineage.entries[PRM.artefact()]["readout"])

    def _guide(self, read: bool) -> Guide:
        return Guide(
            engine=self._engine,
            reward_model=self._reward_model if read else None,
            codec=self.policy.codec,
            config=self.config,
            max_depth=self._run.config.search.max_depth,
            seed=self._run.config.seed,
            limits=self.limits,
        )


@dataclasses.dataclass(frozen=True)
class _Samples:
    """Some samples of a prompt, worked out as far as a choice asks; see `selection.Samples`."""

    of: Answerer
    found: Sequence[Found]
    key: tuple[int | str, ...]
    merits: Sequence[float]
    prefill: str

    def __len__(self) -> int:
        return len(self.found)

    @property
    def scores(self) -> Sequence[float | None]:
        return [self.of.score_of(sample.raw) for sample in self.found]

    @property
    def readout(self) -> Readout:
        return self.of.readout

    @property
    def answers(self) -> Sequence[str | None]:
        return [self.of.comparable(sample.ids, self.prefill) for sample in self.found]
