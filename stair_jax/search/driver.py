"""Grows many trees over one engine: each exactly as if it were alone, all of them at once.

A tree waits for its own requests only, so its choices (UCB, ties) see the same numbers in the same
order whatever else is in flight; what is drawn depends on the request's key alone. Nothing here
may make one tree's outcome depend on another's, on the order of prompts, or on a restart.
"""

import collections
import dataclasses
import hashlib
import time
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence

import jax
import numpy as np

from stair_jax import text
from stair_jax.config.schema import SearchConfig
from stair_jax.engine.request import EngineLike, Result
from stair_jax.judges.base import Judge
from stair_jax.prm.reader import Item, RewardModelLike
from stair_jax.records import Prompt, Tree
from stair_jax.remote.open import Open
from stair_jax.search import mcts
from stair_jax.search.growth import Event, Growth, SearchCodec, Statistics, TaskId, Tools
from stair_jax.search.node_values import FROM_MODEL, NodeValues
from stair_jax.search.replay import remembering
from stair_jax.search.result_log import ResultLog
from stair_jax.search.reward import Reward
from stair_jax.search.tree import NONE, ROOT

PAUSE_S = 0.001  # between looks at a judge, while nothing else can be done
TOGETHER = 32  # trees that one call moves at most; few have news at a time, however many grow


@dataclasses.dataclass(frozen=True)
class Leftovers:
    """Prompts that produced no tree."""

    passed_over: dict[str, str]  # prompt id -> why
    left_open: tuple[str, ...]  # ids, to be begun again once whoever judges can be reached


def grow(
    prompts: Sequence[Prompt],
    *,
    engine: EngineLike,
    judge: Judge | None,
    codec: SearchCodec,
    config: SearchConfig,
    reward: Reward | None,
    seed: int,
    on_tree: Callable[[Tree], None],
    valuer: RewardModelLike | None = None,
    results: ResultLog | None = None,
    on_answer: Callable[[str], None] | None = None,
    further: Callable[[Tree], Sequence[Prompt]] | None = None,
) -> Leftovers:
    """Grows a tree on every prompt; returns those without one.

    `on_tree` gets each tree as it finishes, so not in the order of `prompts`. A prompt that the
    engine has no room for is passed over. A tree with an answer that was not judged (`OPEN`) is
    given up, and the others grow on. Without a judge, `reward` is not used, and the reward model
    says what answers are worth, as it does of steps (`config.value` is "prm" then). Whatever ends
    the call early, all sequences are given back to the engine. What is delivered to a tree stays in
    `results` until `on_tree` has returned; what is there already is not asked for. `on_answer` gets
    each response that is to be judged, before it is; what it raises ends the call. `further` says
    what else is to be grown once a tree is whole; it comes after all that waits.

    Raises:
      ValueError: where two prompts have the same id (ids fix the random draws), no tree may be in
        flight, the values are to come from a reward model and there is none, or somebody must
        judge and there is no judge or no `reward`.
    """
    if config.trees_in_flight < 1:
        raise ValueError(f"trees_in_flight: {config.trees_in_flight} found, 1 or more expected")
    _check_ids(prompts)
    if config.value not in FROM_MODEL:
        valuer = None
    elif valuer is None:
        raise ValueError(f"search.value {config.value!r} wants a reward model, found none")
    if (judge is None and config.value != "prm") or (judge is not None and reward is None):
        raise ValueError(f"search.value {config.value!r} wants a judge and a reward, found none")
    if results is not None:
        engine, judge = remembering(engine, judge, results)
    tools = Tools(
        engine=engine,
        judge=judge,
        codec=codec,
        config=config,
        reward=reward,
        seed=seed,
        valuer=valuer,
        on_answer=on_answer,
    )
    scheduler = TreeScheduler(prompts, tools)
    try:
        while scheduler.busy:
            for tree in scheduler.tick():
                on_tree(tree)
                if further is not None:
                    scheduler.add(further(tree))
                if results is not None:
                    results.drop(tree.prompt.id)
    finally:
        scheduler.close()
    return Leftovers(scheduler.passed_over, tuple(sorted(scheduler.left_open)))


def _check_ids(prompts: Sequence[Prompt]) -> None:
    counts = collections.Counter(prompt.id for prompt in prompts)
    for id, count in counts.items():
        if count > 1:
            raise ValueError(f"prompts: id {id!r} found {count} times, expected once")


class TreeScheduler:
    """All trees of a run: those to come, and those growing (a row of the batch each)."""

    def __init__(self, prompts: Iterable[Prompt], tools: Tools):
        self.tools = tools
        self.passed_over: dict[str, str] = {}
        self.left_open: set[str] = set()  # prompt ids
        self._queue = collections.deque(prompts)
        self._free = list(range(tools.config.trees_in_flight))[::-1]
        self._growing: dict[int, Growth] = {}  # by row
        self._row_of: dict[str, int] = {}  # by prompt id
        self._count = 0  # of trees begun
        self._number_of: dict[int, int] = {}  # by row; trees are numbered as they begin
        self._walking: set[int] = set()  # rows that the last call left in the middle of a walk
        self._changed: set[int] = set()  # rows that something happened to since they were asked
        self._unseen: set[int] = set()  # likewise, since whole trees were taken out
        self._results: collections.deque[Result] = collections.deque()  # collected, not taken
        (device,) = tree_place().device_set
        with jax.default_device(device):  # made there, too: all trees are large beside a full GPU
            # One tree more than can grow: it never does, and fills up calls.
            empty = mcts.empty(tools.config.trees_in_flight + 1, tools.config)
        self._search = jax.device_put(empty, tree_place())

    @property
    def busy(self) -> bool:
        """True while there are trees to begin or to finish."""
        return bool(self._queue or self._growing)

    def add(self, prompts: Sequence[Prompt]) -> None:
        """Puts prompts behind those that wait."""
        self._queue.extend(prompts)

    def tick(self) -> list[Tree]:
        """Moves every tree that can move, then lets the engine work once; returns whole trees."""
        trees, judged = [], True
        self._read_values()  # of all trees in one call
        self._take_verdicts()
        while judged:  # an answer judged at once must not wait for the engine's next step
            self._advance()
            trees += self._take_finished()
            self._start_trees()
            judged = self._take_verdicts()
        engine = self.tools.engine
        if not engine.idle:
            engine.step()
        elif self.busy and not self._walking and not self._asked():
            time.sleep(PAUSE_S)  # all there is to do is to wait for a judge
        self._results.extend(engine.collect())
        while self._results:
            result = self._results.popleft()
            growth, task = self._addressee(result.id)
            growth.take(result, task)
            self._mark(growth)
        return trees

    def close(self) -> None:
        """Gives back what unfinished trees hold, and answers that a failure left untaken."""
        for growth in self._growing.values():
            growth.close()
        for result in self._results:
            self.tools.engine.release(result.prefix)

    def _addressee(self, id: Hashable) -> tuple[Growth, TaskId]:
        """Returns whom an answer is for."""
        if not isinstance(id, TaskId) or id.prompt_id not in self._row_of:
            raise KeyError(f"an answer to {id!r}, which no growing tree asked for")
        return self._growing[self._row_of[id.prompt_id]], id

    def _mark(self, growth: Growth) -> None:
        """Notes that something happened to a tree: it may be ready, or whole."""
        row = self._row_of[growth.prompt.id]
        self._changed.add(row)
        self._unseen.add(row)

    def _asked(self) -> list[tuple[Growth, int, Item]]:
        """Returns what the trees want the reward model to read."""
        if self.tools.valuer is None:
            return []
        trees = [(growth, growth.valuing) for growth in self._growing.values()]
        return [
            (growth, node, item)
            for growth, valuing in trees
            if valuing is not None
            for node, item in valuing.asked.items()
        ]

    def _read_values(self) -> None:
        """Has the reward model read what the trees ask for."""
        asked, model = self._asked(), self.tools.valuer
        if not asked or model is None:
            return
        readings = model.read([item for _, _, item in asked])
        for (growth, node, _), reading in zip(asked, readings, strict=True):
            growth.read(node, reading)
            self._mark(growth)

    def _take_verdicts(self) -> bool:
        verdicts = self.tools.judge.collect() if self.tools.judge is not None else []
        for id, score in verdicts:
            if isinstance(id, TaskId) and id.prompt_id in self.left_open:
                continue  # was asked for a tree that has been given up since
            growth, task = self._addressee(id)
            if isinstance(score, Open):
                self._give_up(growth)
            else:
                growth.score(score, task)
                self._mark(growth)
        return bool(verdicts)

    def _give_up(self, growth: Growth) -> None:
        """Gives back what a tree holds, and its row; the next tree there starts afresh."""
        growth.close()
        row = self._remove(growth)
        for rows in (self._walking, self._changed, self._unseen):
            rows.discard(row)
        self.left_open.add(growth.prompt.id)

    def _remove(self, growth: Growth) -> int:
        """Frees a tree's row, and returns it."""
        row = self._row_of.pop(growth.prompt.id)
        del self._growing[row], self._number_of[row]
        self._free.append(row)
        return row

    def _start_trees(self) -> None:
        """Gives free rows a prompt each, as long as there are any and the engine has too little.

        Trees begin in the order of their prompts; how many grow at once changes no tree.
        """
        engine = self.tools.engine
        while self._free and self._queue and (engine.hungry or not self._growing):
            prompt = self._queue.popleft()
            try:
                growth = self._begin_tree(prompt)
            except ValueError as error:
                self.passed_over[prompt.id] = str(error)
                continue
            row = self._free.pop()
            self._growing[row] = growth
            self._row_of[prompt.id] = row
            self._number_of[row], self._count = self._count, self._count + 1
            growth.evaluate(ROOT)  # asked for before all else, and what the engine's hunger sees
            self._mark(growth)

    def _begin_tree(self, prompt: Prompt) -> Growth:
        """Returns a new tree; ValueError where there is no room for its prompt."""
        ids, model = text.opening_ids(self.tools.codec, prompt), self.tools.valuer
        valuing = None if model is None else NodeValues(model, ids)
        try:
            return Growth(prompt, self.tools.engine.root(ids), self.tools, valuing, self._count)
        except ValueError:
            if valuing is not None:
                valuing.close()
            raise

    def _in_order(self, rows: Iterable[int]) -> list[int]:
        """Returns rows of growing trees, the oldest tree first."""
        return sorted(rows, key=self._number_of.__getitem__)

    def _advance(self) -> None:
        """Tells the device all news, and hands on what it asks for."""
        growing, walking = self._growing, self._walking
        rows = self._in_order(self._changed | walking)
        self._changed = set()
        news = {row: growing[row].tell() for row in rows if growing[row].ready or row in walking}
        if not news:
            return
        asks = self._call(news)
        self._walking = {row for row, (ask, *_) in asks.items() if ask == mcts.WALK}
        for row, (ask, node, iterations, revisits) in asks.items():
            growth = growing[row]
            if ask == mcts.EXPAND:
                growth.expand(node)
            elif ask == mcts.EVALUATE:
                growth.evaluate(node)
            elif ask == mcts.FINISHED:
                growth.finish(self._statistics(row), iterations=iterations, revisits=revisits)
            self._mark(growth)

    def _call(self, news: Mapping[int, Event]) -> dict[int, list[int]]:
        """Tells the device news, by row; returns what each of these trees asks for."""
        rows, B = list(news), min(TOGETHER, self.tools.config.trees_in_flight)
        parts = [rows[first : first + B] for first in range(0, len(rows), B)]
        found = []
        for part in parts:
            events = self._events(part, news, B)
            self._search, asks = mcts.advance(self._search, events, config=self.tools.config)
            found.append(asks)
        asks = np.concatenate(
            [asks[: len(part)] for part, asks in zip(parts, jax.device_get(found), strict=True)]
        )
        return dict(zip(rows, asks.tolist(), strict=True))

    def _events(self, rows: Sequence[int], news: Mapping[int, Event], B: int) -> mcts.Events:
        """Packs the news of some trees; the tree that never grows fills up."""
        A, spare = self.tools.config.num_children, self.tools.config.trees_in_flight
        row = np.full((B,), spare, np.int32)
        row[: len(rows)] = rows
        kind, count = np.full((B,), mcts.NOTHING, np.int32), np.zeros((B,), np.int32)
        seed, prior = np.zeros((B,), np.uint32), np.ones((B, A), np.float32)
        node, outcome = np.full((B, A), NONE, np.int32), np.zeros((B, A), np.int32)
        reward = np.zeros((B, A), np.float32)
        for b, event in enumerate(news[row] for row in rows):
            kind[b], count[b] = event.kind, len(event.priors)
            prior[b, : len(event.priors)] = event.priors
            if event.kind == mcts.START:
                seed[b] = tie_seed(self.tools.seed, self._growing[rows[b]].prompt.id)
            for slot, (evaluated, came_to) in enumerate(event.outcomes.items()):
                node[b, slot] = evaluated
                outcome[b, slot], reward[b, slot] = came_to
        return mcts.Events(
            row=row,
            kind=kind,
            seed=seed,
            count=count,
            prior=prior,
            node=node,
            outcome=outcome,
            reward=reward,
        )

    def _statistics(self, row: int) -> Statistics:
        """Fetches the arrays of a finished tree, and of no other."""
        return Statistics(**jax.device_get(mcts.statistics(self._search, np.int32(row))))

    def _take_finished(self) -> list[Tree]:
        """Takes the finished trees out and frees their rows."""
        trees = []
        rows, self._unseen = self._in_order(self._unseen), set()
        for row in rows:
            growth = self._growing[row]
            if growth.record is not None:
                trees.append(growth.record)
                self._changed.discard(self._remove(growth))
        return trees


def tree_place() -> jax.sharding.Sharding:
    """Returns where trees live: on a CPU, also beside an accelerator.

    A walk is a short loop that depends on its data at every step; and the accelerator is busy.
    """
    try:
        device = jax.local_devices(backend="cpu")[0]
    except RuntimeError:  # JAX was told to leave the CPU out
        device = jax.local_devices()[0]
    return jax.sharding.SingleDeviceSharding(device)


def tie_seed(seed: int, prompt_id: str) -> int:
    """Returns 32 bits that fix a tree's random ties, whatever row it grows in."""
    digest = hashlib.blake2b(f"{seed}\0{prompt_id}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big")
