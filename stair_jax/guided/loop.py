"""Answers found at test time: many prompts at once, over one engine and one reward model.

A strategy is a generator that works on one prompt's `PromptState`: it asks for continuations and
for readings of steps, and gets them once all of an ask are there. `find` runs the generators of all
prompts side by side: it keeps the engine's slots full, and reads the steps of many prompts
together. What is drawn depends on the request's key alone, so no answer depends on what else is
under way, nor on the order of prompts. Whatever fails, every sequence is given back.
"""

import collections
import dataclasses
from collections.abc import Callable, Collection, Generator, Hashable, Iterable, Mapping, Sequence
from typing import Any, Generic, NamedTuple, Protocol, TypeVar, runtime_checkable

from stair_jax import text
from stair_jax.config.schema import GuidedConfig
from stair_jax.engine.request import EngineLike, Prefix, Request, Result, Sampling
from stair_jax.prm.reader import Reading, RewardModelLike, finite
from stair_jax.records import Prompt
from stair_jax.search.growth import SearchCodec

T = TypeVar("T")
Steps = Sequence[Sequence[int]]


@runtime_checkable
class StepCodec(SearchCodec, Protocol):
    """What these strategies use of `text.Codec`."""

    @property
    def step_stop(self) -> Collection[int]:
        """Ids that end a step, those that end a response among them."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Guide:
    """What all prompts share."""

    engine: EngineLike
    reward_model: RewardModelLike | None  # None where the strategy reads nothing
    codec: StepCodec
    config: GuidedConfig
    max_depth: int  # steps of a response; the last one runs to the response's end
    seed: int
    # By the prompt's id, as `PromptState.limit`.
    limits: Mapping[str, int] = dataclasses.field(default_factory=dict)

    def limit_of(self, prompt: Prompt) -> int:
        """Returns how many tokens a response to a prompt has at most."""
        most = self.config.max_tokens
        return min(self.limits.get(prompt.id, most), most)

    @property
    def sampling(self) -> Sampling:
        """How every token is drawn that is not drawn greedily."""
        c = self.config
        return Sampling(temperature=c.temperature, top_p=c.top_p, top_k=c.top_k)

    @property
    def model(self) -> RewardModelLike:
        """The reward model, which is there."""
        assert self.reward_model is not None, "the strategy reads, so it needs a reward model"
        return self.reward_model


class Continuation(NamedTuple):
    """A continuation that a strategy asks for."""

    prefix: Prefix
    key: tuple[int | str, ...]  # of the draws, behind seed and prompt
    stop: str
    max_tokens: int
    sampling: Sampling


class Generate(NamedTuple):
    """Asks for continuations."""

    continuations: Sequence[Continuation]


class ReadSteps(NamedTuple):
    """Asks for readings: each of the steps that follow a sequence of the reward model."""

    items: Sequence[tuple[Prefix, Steps]]


Requests = Generator[Generate | ReadSteps, list[Any], T]
Method = Callable[["PromptState"], Requests[T]]


class PromptState:
    """One prompt under search: what it holds, and what it cost so far.

    Args:
      prompt: with an id that no other prompt of the call has.
      guide: what all prompts share.

    Raises:
      ValueError: where engine or reward model have no room for the prompt.
    """

    def __init__(self, prompt: Prompt, guide: Guide):
        self.prompt, self.guide = prompt, guide
        self.limit = guide.limit_of(prompt)  # tokens of a response
        self.tokens = 0  # generated, whether or not they came into the answer
        self.scored = 0  # tokens of responses that the reward model read
        self.missing = 0  # scores of the reward model that were not finite
        self.blind = 0  # choices between responses none of which had a score
        self.duplicates = 0  # continuations dropped because a sibling says the same
        self._held: dict[int, tuple[Any, Prefix]] = {}  # owner and sequence
        ids = text.opening_ids(guide.codec, prompt)
        self.root = self._hold(guide.engine, guide.engine.root(ids))
        try:
            model = guide.reward_model
            self.read_root = self._hold(model, model.root(ids)) if model else None
        except ValueError:
            self.close()
            raise

    def _hold(self, owner: Any, prefix: Prefix) -> Prefix:
        self._held[id(prefix)] = owner, prefix
        return prefix

    def generate(self, continuations: Sequence[Continuation]) -> Requests[list[Result]]:
        """Returns the results of continuations, in their order."""
        return (yield Generate(continuations)) if continuations else []

    def read(self, items: Sequence[tuple[Prefix, Steps]]) -> Requests[list[Reading]]:
        """Returns the readings, in the order of the items."""
        return (yield ReadSteps(items)) if items else []

    def took(self, result: Result) -> None:
        """Notes what a continuation cost, and owns its sequence from now on."""
        self.tokens += len(result.ids)
        self._hold(self.guide.engine, result.prefix)

    def took_reading(self, item: tuple[Prefix, Steps], reading: Reading) -> None:
        """Notes what a reading cost, and owns its sequence from now on."""
        self.scored += sum(map(len, item[1]))
        self.missing += sum(finite(raw) is None for raw in reading.raw)
        self._hold(self.guide.reward_model, reading.prefix)

    def release(self, prefix: Prefix) -> None:
        """Gives a sequence back, of the engine or of the reward model."""
        owner, _ = self._held.pop(id(prefix))
        owner.release(prefix)

    def close(self) -> None:
        """Gives back all that is still held."""
        while self._held:
            _, (owner, prefix) = self._held.popitem()
            owner.release(prefix)


def find(
    prompts: Iterable[Prompt],
    plan: Method[T],
    *,
    guide: Guide,
    read_at: int,
    on_found: Callable[[PromptState, T], None],
) -> dict[str, str]:
    """Runs a strategy on every prompt; returns why prompts were passed over, by prompt id.

    Args:
      prompts: with ids that differ, for they fix the random draws.
      plan: makes the strategy's generator for a prompt's state.
      guide: what all prompts share.
      read_at: so many sequences that wait to be read are read though the engine is busy.
      on_found: takes what each generator returns as soon as it ends, in no certain order.

    Raises:
      ValueError: where two prompts have the same id.
    """
    prompts = list(prompts)
    counts = collections.Counter(prompt.id for prompt in prompts)
    for id, count in counts.items():
        if count > 1:
            raise ValueError(f"prompts: id {id!r} found {count} times, expected once")
    scheduler = _PromptScheduler(prompts, plan, guide, read_at)
    try:
        while scheduler.busy:
            for state, found in scheduler.tick():
                on_found(state, found)
    finally:
        scheduler.close()
    return scheduler.passed_over


@dataclasses.dataclass(eq=False)
class _Runner(Generic[T]):
    """A prompt's state with its generator, and the answers to its last ask that are there."""

    state: PromptState
    requests: Requests[T]
    answers: list[Any] = dataclasses.field(default_factory=list)
    missing: int = 0


class _PromptScheduler(Generic[T]):
    """All prompts of a call: those to come, and those under search."""

    def __init__(self, prompts: Iterable[Prompt], plan: Method[T], guide: Guide, read_at: int):
        self._queue = collections.deque(prompts)
        self._plan, self._guide, self._read_at = plan, guide, read_at
        self._running: set[_Runner[T]] = set()
        self._asked: dict[Hashable, tuple[_Runner[T], int]] = {}  # of the engine, by request id
        self._reads: list[tuple[_Runner[T], int, tuple[Prefix, Steps]]] = []  # not begun
        self._done: list[tuple[PromptState, T]] = []
        self._count = 0  # of requests
        self.passed_over: dict[str, str] = {}

    @property
    def busy(self) -> bool:
        """True while prompts are to come or under search."""
        return bool(self._queue or self._running)

    def tick(self) -> list[tuple[PromptState, T]]:
        """Advances every prompt that can go on; returns what was found."""
        engine = self._guide.engine
        self._start_prompts()
        if not engine.idle:
            engine.step()
        self._take(engine.collect())
        # An engine that wants more is fed new prompts first: a call that reads few costs as much.
        fed = engine.hungry and self._queue
        starved = (engine.idle or engine.hungry) and not fed
        if self._reads and (starved or len(self._reads) >= self._read_at):
            self._read()
        done, self._done = self._done, []
        return done

    def close(self) -> None:
        """Gives back what unfinished prompts hold, and forgets what they asked for."""
        for id in self._asked:
            self._guide.engine.cancel(id)
        for runner in self._running:
            runner.requests.close()
            runner.state.close()

    def _start_prompts(self) -> None:
        while self._queue and (self._guide.engine.hungry or not self._running):
            prompt = self._queue.popleft()
            try:
                state = PromptState(prompt, self._guide)
            except ValueError as error:
                self.passed_over[prompt.id] = str(error)
                continue
            runner = _Runner(state, self._plan(state))
            self._running.add(runner)
            self._advance(runner, first=True)

    def _take(self, results: Sequence[Result]) -> None:
        """Hands results to their prompts, all before any strategy goes on and may fail."""
        ready = []
        for result in results:
            runner, index = self._asked.pop(result.id)
            runner.state.took(result)
            if self._answered(runner, index, result):
                ready.append(runner)
        for runner in ready:
            self._advance(runner)

    def _read(self) -> None:
        """Reads all that waits to be read in one call."""
        waiting, self._reads = self._reads, []
        readings = self._guide.model.read([item for _, _, item in waiting])
        ready = []
        for (runner, index, item), reading in zip(waiting, readings, strict=True):
            runner.state.took_reading(item, reading)
            if self._answered(runner, index, reading):
                ready.append(runner)
        for runner in ready:
            self._advance(runner)

    def _answered(self, runner: _Runner[T], index: int, answer: Any) -> bool:
        """Notes an answer; returns whether it was the last that was missing."""
        runner.answers[index] = answer
        runner.missing -= 1
        return not runner.missing

    def _advance(self, runner: _Runner[T], first: bool = False) -> None:
        """Lets a strategy go on with its answers, up to its next ask or its end."""
        try:
            ask = next(runner.requests) if first else runner.requests.send(runner.answers)
        except StopIteration as end:
            self._running.remove(runner)
            runner.state.close()
            self._done.append((runner.state, end.value))
            return
        if isinstance(ask, Generate):
            self._open(runner, len(ask.continuations))
            self._submit(runner, ask.continuations)
        else:
            self._open(runner, len(ask.items))
            self._reads += [(runner, index, item) for index, item in enumerate(ask.items)]

    def _open(self, runner: _Runner[T], count: int) -> None:
        runner.answers, runner.missing = [None] * count, count

    def _submit(self, runner: _Runner[T], continuations: Sequence[Continuation]) -> None:
        """Asks the engine; what goes on from one sequence shares all of it."""
        prompt_id = runner.state.prompt.id
        for index, continuation in enumerate(continuations):
            self._count += 1
            request = Request(
                id=(prompt_id, self._count),
                prefix=continuation.prefix,
                key=(self._guide.seed, prompt_id, *continuation.key),
                stop=continuation.stop,
                max_tokens=continuation.max_tokens,
                sampling=continuation.sampling,
                group=(prompt_id, id(continuation.prefix)),
                shared=len(continuation.prefix.ids),
            )
            self._guide.engine.submit(request)
            self._asked[request.id] = runner, index
