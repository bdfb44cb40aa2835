"""Grows many trees over one engine: each exactly as if it were alone, all of them at once.

A tree waits for its own requests only, so its choices (UCB, ties) see the same numbers in the same
order whatever else is in flight; what is drawn depends on the request's key alone. Nothing here
may make one tree's outcome depend on another's, on the order of prompts, or on a restart.
"""

import collections
import hashlib
import time
from collections.abc import Callable, Iterable, Sequence

import jax
import numpy as np

from stair_jax.config import SearchConfig
from stair_jax.engine.request import EngineLike
from stair_jax.records import Prompt, Tree
from stair_jax.rewards.combine import Reward
from stair_jax.rewards.judges import Judge
from stair_jax.search import mcts
from stair_jax.search.growth import CodecLike, Growth, Statistics, Tools

PAUSE_S = 0.001  # between looks at a judge, while nothing else can be done


def grow(
    prompts: Sequence[Prompt],
    *,
    engine: EngineLike,
    judge: Judge,
    codec: CodecLike,
    config: SearchConfig,
    reward: Reward,
    seed: int,
    on_tree: Callable[[Tree], None],
) -> dict[str, str]:
    """Grows a tree on every prompt; returns why prompts were passed over, by prompt id.

    `on_tree` gets each tree as it finishes, so not in the order of `prompts`. A prompt that the
    engine has no room for is passed over. Whatever ends the call early, all sequences are given
    back to the engine.

    Raises:
      ValueError: where two prompts have the same id (ids fix the random draws).
    """
    ids = collections.Counter(prompt.id for prompt in prompts)
    if repeated := [id for id, count in ids.items() if count > 1]:
        raise ValueError(f"prompts: id {repeated[0]!r} found {ids[repeated[0]]} times, expected once")
    tools = Tools(
        engine=engine, judge=judge, codec=codec, config=config, reward=reward, seed=seed
    )  # fmt: skip
    nursery = Nursery(prompts, tools)
    try:
        while nursery.busy:
            for tree in nursery.tick():
                on_tree(tree)
    finally:
        nursery.close()
    return nursery.passed_over


class Nursery:
    """All trees of a run: those to come, those growing (a row of the batch each)."""

    def __init__(self, prompts: Iterable[Prompt], tools: Tools):
        self.tools = tools
        self.passed_over: dict[str, str] = {}
        self._queue = collections.deque(prompts)
        rows = tools.config.trees_in_flight
        self._rows: list[Growth | None] = [None] * rows
        self._row_of: dict[str, int] = {}
        self._search = mcts.empty(rows, tools.config)

    @property
    def busy(self) -> bool:
        """True while there are trees to plant or to finish."""
        return bool(self._queue or self._row_of)

    def tick(self) -> list[Tree]:
        """Moves every tree that can move, then lets the engine work once."""
        trees, moved = [], True
        while moved:  # an answer judged at once must not wait for the engine's next step
            self._plant()
            moved = self._advance()
            moved |= self._take_verdicts()
            trees += self._harvest()
        engine = self.tools.engine
        if engine.idle:
            time.sleep(0 if trees else PAUSE_S)
            return trees
        engine.step()
        for result in engine.collect():
            _, prompt_id, node, kind, ordinal = result.id
            self._growth(prompt_id).take(result, node=node, kind=kind, ordinal=ordinal)
        return trees

    def _take_verdicts(self) -> bool:
        verdicts = self.tools.judge.collect()
        for (_, prompt_id, node, *_), score in verdicts:
            self._growth(prompt_id).score(score, node=node)
        return bool(verdicts)

    def _growth(self, prompt_id: str) -> Growth:
        growth = self._rows[self._row_of[prompt_id]]
        assert growth is not None  # `_row_of` lists the occupied rows
        return growth

    def _plant(self) -> None:
        for row, growth in enumerate(self._rows):
            while growth is None and self._queue:
                prompt = self._queue.popleft()
                try:
                    root = self.tools.engine.root(self.tools.codec.prompt_ids(prompt.question))
                except ValueError as error:
                    self.passed_over[prompt.id] = str(error)
                    continue
                growth = self._rows[row] = Growth(prompt, root, self.tools)
                self._row_of[prompt.id] = row

    def _advance(self) -> bool:
        """Tells the device all news in one call, and passes on what it asks for."""
        rows = [row for row in self._row_of.values() if self._rows[row].event is not None]
        if not rows:
            return False
        self._search, asks = mcts.advance(
            self._search, self._events(rows), config=self.tools.config
        )
        asks = jax.device_get(asks)
        finished = [row for row in rows if asks[row, mcts.ASK] == mcts.FINISHED]
        final = self._statistics(finished)
        for row in rows:
            growth, node = self._rows[row], int(asks[row, mcts.NODE])
            match asks[row, mcts.ASK]:
                case mcts.EXPAND:
                    growth.expand(node)
                case mcts.EVALUATE:
                    growth.evaluate(node)
                case mcts.FINISHED:
                    iterations, revisits = asks[row, [mcts.ITERATIONS, mcts.REVISITS]].tolist()
                    growth.finish(final[row], iterations=iterations, revisits=revisits)
        return True

    def _events(self, rows: list[int]) -> mcts.Events:
        """Packs the trees' news, and takes them off the trees."""
        B, A = len(self._rows), self.tools.config.num_children
        events = mcts.Events(
            kind=np.full((B,), mcts.NOTHING, np.int32),
            count=np.zeros((B,), np.int32),
            seed=np.zeros((B,), np.uint32),
            value=np.zeros((B,), np.float32),
            prior=np.ones((B, A), np.float32),
        )
        for row in rows:
            growth = self._rows[row]
            event, growth.event = growth.event, None
            events.kind[row], events.value[row] = event.kind, event.value
            events.count[row] = len(event.priors)
            events.prior[row, : len(event.priors)] = event.priors
            if event.kind == mcts.PLANT:
                events.seed[row] = tie_seed(self.tools.seed, growth.prompt.id)
        return events

    def _statistics(self, rows: list[int]) -> dict[int, Statistics]:
        if not rows:
            return {}
        tree = self._search.tree
        arrays = jax.device_get((tree.visits, tree.value_sum, tree.reward, tree.terminal))
        names = "visits", "value_sum", "reward", "terminal"
        return {
            row: Statistics(**{n: array[row] for n, array in zip(names, arrays, strict=True)})
            for row in rows
        }

    def _harvest(self) -> list[Tree]:
        """Takes the finished trees out; their rows are free."""
        trees = []
        for id, row in list(self._row_of.items()):
            growth = self._rows[row]
            if growth is not None and growth.record is not None:
                trees.append(growth.record)
                self._rows[row] = None
                del self._row_of[id]
        return trees

    def close(self) -> None:
        """Gives back what unfinished trees hold."""
        for growth in self._rows:
            if growth is not None:
                growth.close()


def tie_seed(seed: int, prompt_id: str) -> int:
    """Returns 32 bits that fix a tree's random ties, whatever row it grows in."""
    digest = hashlib.blake2b(f"{seed}\0{prompt_id}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big")
