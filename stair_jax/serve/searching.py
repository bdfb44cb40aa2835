"""Test-time search for one request, over an engine that answers others meanwhile."""

import dataclasses
import functools
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

from stair_jax.config.schema import GuidedConfig
from stair_jax.config.strategies import Strategy
from stair_jax.engine.request import EngineLike, Prefix, Request, Result
from stair_jax.prm.reader import RewardModelLike
from stair_jax.records import Prompt
from stair_jax.run import models
from stair_jax.run.answerer import Answerer
from stair_jax.run.answerer import Reply as Found
from stair_jax.run.workdir import Run


class SearchEngine:
    """What a search sees of an engine that it shares: `EngineLike`.

    Args:
      engine: that all share.
      number: of the search; its requests have ids (number, id) there.
      pause: lets the engine work for everybody.
    """

    def __init__(self, engine: EngineLike, number: int, pause: Callable[[], None]):
        self._engine, self._number, self._pause = engine, number, pause
        self._asked: set[Hashable] = set()  # without a result
        self.inbox: list[Result] = []  # uncollected, with ids of the search

    @property
    def counters(self) -> Mapping[str, int | float]:
        """What the engine has done so far, for everybody."""
        return self._engine.counters

    @property
    def idle(self) -> bool:
        """True where the search waits for nothing."""
        return not self._asked

    @property
    def hungry(self) -> bool:
        """True where more requests would keep more of the engine busy."""
        return self._engine.hungry

    def root(self, ids: Sequence[int]) -> Prefix:
        """Returns a new sequence; see `EngineLike.root`."""
        return self._engine.root(ids)

    def extend(self, prefix: Prefix, ids: Sequence[int]) -> Prefix:
        """Returns a new sequence, `prefix` and then `ids`; see `EngineLike.extend`."""
        return self._engine.extend(prefix, ids)

    def release(self, prefix: Prefix) -> None:
        """Gives a sequence back."""
        self._engine.release(prefix)

    def step(self) -> None:
        """Waits until the engine has worked for everybody."""
        self._pause()

    def submit(self, request: Request) -> None:
        """Queues a request; ids and groups need to differ within the search only."""
        group = None if request.group is None else (self._number, request.group)
        own = dataclasses.replace(request, id=(self._number, request.id), group=group)
        self._engine.submit(own)
        self._asked.add(request.id)

    def deliver(self, result: Result) -> None:
        """Takes a result of the engine; its id is (number, id)."""
        _, id = result.id  # pyright: ignore[reportGeneralTypeIssues]
        self._asked.discard(id)
        self.inbox.append(dataclasses.replace(result, id=id))

    def collect(self) -> list[Result]:
        """Returns the requests finished since the last call."""
        found, self.inbox = self.inbox, []
        return found

    def cancel(self, request_id: Hashable) -> None:
        """Forgets a request; it gives no result."""
        self._engine.cancel((self._number, request_id))
        self._asked.discard(request_id)
        for result in [r for r in self.inbox if r.id == request_id]:
            self.inbox.remove(result)
            self.release(result.prefix)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Search:
    """A search that a request asks for.

    Attributes:
      strategy: how an answer is found.
      prompt: what is asked; its id fixes the draws, beside the run's seed.
      config: how tokens are drawn, and how many.
    """

    strategy: Strategy
    prompt: Prompt
    config: GuidedConfig


def find(
    search: Search,
    *,
    run: Run,
    policy: models.Policy,
    engine: EngineLike,
    reward_model: RewardModelLike | None,
) -> Found:
    """Returns the answer of a search.

    Raises:
      ValueError: where there is none, saying why.
    """
    found: list[Found] = []
    answerer = _SharedAnswerer(run, policy.model, [search.strategy], compile_first=False)
    answerer.config = search.config
    answerer.lend(policy, engine, reward_model)
    passed_over = answerer.ask(
        search.strategy, [search.prompt], lambda _, reply: found.append(reply)
    )
    if not found:
        raise ValueError(passed_over[search.prompt.id])
    return found[0]


class _SharedAnswerer(Answerer):
    """An answerer that is lent what others use too."""

    _lent: tuple[models.Policy, EngineLike, RewardModelLike | None]

    def lend(
        self, policy: models.Policy, engine: EngineLike, reward_model: RewardModelLike | None
    ) -> None:
        """Has it answer with these."""
        self._lent = policy, engine, reward_model

    @functools.cached_property
    def policy(self) -> models.Policy:
        """The model, without weights."""
        return self._lent[0]

    @functools.cached_property
    def _engine(self) -> Any:
        return self._lent[1]

    @functools.cached_property
    def _reward_model(self) -> RewardModelLike:
        assert self._lent[2] is not None, "a strategy that reads was refused without a reward model"
        return self._lent[2]

    def _find(
        self,
        label: str,
        count: int,
        find: Callable[..., dict[str, str]],
        found: Callable[[Any, Any], None],
        samplings: Sequence[Any],
        *,
        logps: bool = False,
    ) -> dict[str, str]:
        """Runs a strategy; a request gets no progress line of its own."""
        del label, count, samplings, logps
        return find(on_found=found)
