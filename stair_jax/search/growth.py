"""The host's side of one growing tree: texts, sequences, and what is under way for it.

Statistics live on the device (`mcts`); here is what each node says and its sequence in the engine.
What the device asks for becomes requests; what comes back becomes an `Event` for the device. A
tree has one expansion or one evaluation under way at a time, until its iterations are done: then
all nodes never visited are evaluated together (`visit_all_nodes`).

An evaluation whose judge gives no score is tried once more (`TRIES`): a fresh rollout, or the
same answer judged again. If that fails too it counts as missing: the iteration is spent, nothing
is backed up, and the node stays as it was, to be selected again; only a node whose own answer
cannot be judged is closed for the rest of the search.
"""

import collections
import dataclasses
import math
from collections.abc import Collection, Hashable, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np

from stair_jax.config import SearchConfig
from stair_jax.engine.request import EngineLike, Prefix, Request, Result, Sampling
from stair_jax.records import Node, Prompt, Tree
from stair_jax.rewards.combine import Reward
from stair_jax.rewards.judges import Judge, Score
from stair_jax.search import mcts
from stair_jax.search.tree import NONE

TRIES = 2  # of an evaluation

COUNTERS = (
    "iterations", "expansions", "rollouts", "revisits", "judged", "missing", "tokens",
    "duplicates", "cut_steps", "cut_rollouts",
)  # fmt: skip


@runtime_checkable
class CodecLike(Protocol):
    """What the search uses of `text.Codec`."""

    @property
    def end_stop(self) -> Collection[int]:
        """Ids that end a response."""
        ...

    def prompt_ids(self, question: str) -> list[int]:
        """Returns the ids of the whole prompt, up to where the response begins."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Returns the text of `ids`, tags included."""
        ...


class Task(NamedTuple):
    """Names what an engine's result or a judge's verdict is about; the id of every request."""

    prompt_id: str
    node: int
    kind: str  # "step", "rollout" or "judge"
    ordinal: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tools:
    """What all trees of a run share."""

    engine: EngineLike
    judge: Judge
    codec: CodecLike
    config: SearchConfig
    reward: Reward
    seed: int


@dataclasses.dataclass(kw_only=True)
class Sprout:
    """A node on the host."""

    tag: str
    parent: int
    depth: int
    ids: tuple[int, ...]  # of this step
    text: str
    response: str  # of all steps down to here
    p: float
    ends: bool  # the step holds an end token: nothing can follow it
    prefix: Prefix | None  # owned; None where nothing will be asked of it any more
    draws: int = 0  # evaluations begun here; they number the requests


@dataclasses.dataclass(frozen=True)
class Event:
    """What a tree has to tell the device."""

    kind: int  # mcts.PLANT to mcts.MISSING_FOR_GOOD
    value: float = 0.0
    priors: tuple[float, ...] = ()  # one a child


@dataclasses.dataclass(frozen=True, kw_only=True)
class Statistics:
    """One tree's arrays from the device, after its last iteration."""

    visits: np.ndarray  # [M] int32
    value_sum: np.ndarray  # [M] float32
    reward: np.ndarray  # [M] float32
    terminal: np.ndarray  # [M] bool


class Growth:
    """One tree, from its prompt to its record.

    `event` is what the device must hear next, `record` the finished tree; None until then.
    """

    def __init__(self, prompt: Prompt, root: Prefix, tools: Tools):
        self.prompt, self.tools = prompt, tools
        self.nodes = [
            Sprout(
                tag="0", parent=NONE, depth=0, ids=(), text="", response="", p=1.0, ends=False,
                prefix=root,
            )
        ]  # fmt: skip
        self.counters: collections.Counter[str] = collections.Counter(dict.fromkeys(COUNTERS, 0))
        self.event: Event | None = Event(mcts.PLANT)
        self.record: Tree | None = None
        self._requests: set[Hashable] = set()  # in the engine
        self._steps: dict[int, Result] = {}  # of the expansion under way, by ordinal
        self._tries: dict[int, int] = {}  # of the evaluations under way, by node
        self._last_round: dict[int, np.float32 | None] = {}  # rewards, by node
        self._final: Statistics | None = None  # once the iterations are done

    def expand(self, node: int) -> None:
        """Asks for the next steps after `node`."""
        self.counters["expansions"] += 1
        for k in range(self.tools.config.num_children):
            self._generate(node, "step", k)

    def evaluate(self, node: int) -> None:
        """Asks for the reward of `node`: of its own answer, or of a rollout from it."""
        sprout = self.nodes[node]
        self._tries[node] = self._tries.get(node, 0) + 1
        ordinal, sprout.draws = sprout.draws, sprout.draws + 1
        if sprout.ends:
            self._judge(node, ordinal, sprout.response)
        else:
            self.counters["rollouts"] += 1
            self._generate(node, "rollout", ordinal)

    def finish(self, final: Statistics, *, iterations: int, revisits: int) -> None:
        """Takes what the iterations left; evaluates what they never reached."""
        self.counters["iterations"], self.counters["revisits"] = iterations, revisits
        size = len(self.nodes)
        arrays = dataclasses.asdict(final)
        self._final = Statistics(**{name: array[:size].copy() for name, array in arrays.items()})
        if self.tools.config.visit_all_nodes:
            for node in np.flatnonzero(self._final.visits == 0).tolist():
                self.evaluate(node)
        self._settle()

    def _generate(self, node: int, kind: str, ordinal: int) -> None:
        tools, sprout = self.tools, self.nodes[node]
        step, c = kind == "step", tools.config
        assert sprout.prefix is not None  # only a node that ends gives its sequence back early
        request = Request(
            id=Task(self.prompt.id, node, kind, ordinal),
            prefix=sprout.prefix,
            key=(tools.seed, self.prompt.id, sprout.tag, kind, ordinal),
            stop="step" if step else "end",
            max_tokens=c.max_step_tokens if step else c.max_rollout_tokens,
            sampling=Sampling(temperature=c.temperature, top_k=c.top_k, top_p=c.top_p),
        )
        self._requests.add(request.id)
        tools.engine.submit(request)

    def _judge(self, node: int, ordinal: int, response: str) -> None:
        self.counters["judged"] += 1
        task = Task(self.prompt.id, node, "judge", ordinal)
        self.tools.judge.submit(task, self.prompt, response)

    def take(self, result: Result, task: Task) -> None:
        """Takes what the engine generated for this tree."""
        _, node, kind, ordinal = task
        self._requests.discard(result.id)
        self.counters["tokens"] += len(result.ids)
        if result.finish == "length":
            self.counters[f"cut_{kind}s"] += 1
        if kind == "rollout":
            response = self.nodes[node].response + self.tools.codec.decode(result.ids)
            self.tools.engine.release(result.prefix)
            self._judge(node, ordinal, response)
            return
        self._steps[ordinal] = result
        if len(self._steps) == self.tools.config.num_children:
            self._attach(node)

    def _attach(self, node: int) -> None:
        """Makes children of the steps that came in, all but those that repeat a sibling's text."""
        first, seen = len(self.nodes), set()
        for _, result in sorted(self._steps.items()):
            step = self.tools.codec.decode(result.ids)
            if step in seen:
                self.counters["duplicates"] += 1
                self.tools.engine.release(result.prefix)
                continue
            self.nodes.append(self._child(node, len(seen), step, result))
            seen.add(step)
        self._steps = {}
        priors = tuple(sprout.p for sprout in self.nodes[first:])
        self.event = Event(mcts.CHILDREN, priors=priors)

    def _child(self, node: int, slot: int, step: str, result: Result) -> Sprout:
        parent = self.nodes[node]
        ends = any(token in self.tools.codec.end_stop for token in result.ids)
        if ends:
            self.tools.engine.release(result.prefix)
        return Sprout(
            tag=f"{parent.tag}.{slot}",
            parent=node,
            depth=parent.depth + 1,
            ids=result.ids,
            text=step,
            response=parent.response + step,
            p=prior(result.logps, self.tools.config),
            ends=ends,
            prefix=None if ends else result.prefix,
        )

    def score(self, score: Score | None, task: Task) -> None:
        """Takes the judge's verdict; where there is none, asks once more."""
        node = task.node
        if score is None and self._tries[node] < TRIES:
            self.evaluate(node)
            return
        del self._tries[node]
        reward = self._joined(score)
        if self._final is not None:
            self._last_round[node] = reward
            self._settle()
            return
        ends = self.nodes[node].ends
        if reward is None:
            self.event = Event(mcts.MISSING_FOR_GOOD if ends else mcts.MISSING)
        else:
            self.event = Event(mcts.TERMINAL_REWARD if ends else mcts.REWARD, float(reward))

    def _joined(self, score: Score | None) -> np.float32 | None:
        if score is None:
            self.counters["missing"] += 1
            return None
        for name, count in score.counts.items():
            self.counters[f"judge_{name}"] += count
        return np.float32(self.tools.reward(score.safety, score.helpfulness, self.prompt.type))

    def _settle(self) -> None:
        """Ends the tree once the last round is complete, backing that up in the nodes' order.

        The order decides the last bit of a sum, so it must not be that of arrival.
        """
        final = self._final
        if self._tries or final is None:
            return
        for node, reward in sorted(self._last_round.items()):
            if reward is None:
                continue
            if self.nodes[node].ends:
                final.terminal[node], final.reward[node] = True, reward
            while node != NONE:
                final.visits[node] += 1
                final.value_sum[node] += reward
                node = self.nodes[node].parent
        self.close()
        self.record = Tree(
            prompt=self.prompt,
            nodes=tuple(self._node(i, final) for i in range(len(self.nodes))),
            counters={name: float(count) for name, count in self.counters.items()},
        )

    def _node(self, i: int, final: Statistics) -> Node:
        sprout, terminal = self.nodes[i], bool(final.terminal[i])
        return Node(
            parent=sprout.parent,
            ids=sprout.ids,
            text=sprout.text,
            depth=sprout.depth,
            visits=int(final.visits[i]),
            value_sum=float(final.value_sum[i]),
            reward=float(final.reward[i]) if terminal else None,
            terminal=terminal,
            p=sprout.p,
            tag=sprout.tag,
        )

    def close(self) -> None:
        """Gives everything back to the engine: requests under way and sequences held."""
        for id in self._requests:
            self.tools.engine.cancel(id)
        held = [result.prefix for result in self._steps.values()]
        held += [sprout.prefix for sprout in self.nodes if sprout.prefix is not None]
        for prefix in held:
            self.tools.engine.release(prefix)
        for sprout in self.nodes:
            sprout.prefix = None
        self._requests, self._steps = set(), {}


def prior(logps: Sequence[float], config: SearchConfig) -> float:
    """Returns PUCB's p of a step from its tokens' log-probs; 1 where the score does not use it.

    "arithmetic" is the mean of the probabilities, "geometric" the exponential of the mean
    log-prob, "uniform" one over the number of children. Source: thu-ml/STAIR src/mcts.py.
    """
    if config.score != "pucb":
        return 1.0
    if config.prior == "uniform":
        return 1.0 / config.num_children
    if not logps:  # a step that had no room for a token
        return 0.0
    if config.prior == "geometric":
        return math.exp(math.fsum(logps) / len(logps))
    return math.fsum(map(math.exp, logps)) / len(logps)
