"""The host's side of one growing tree: texts, sequences, and what is under way for it.

Statistics live on the device (`mcts`); here is what each node says and its sequence in the engine.
What the device asks for becomes requests; what comes back becomes an `Event` for the device.

A tree has one expansion under way at a time, and waits until all of its steps are in. But the
first evaluation of a child starts as soon as the child is certain to be one: when its step and all
those before it are in, for a step that says the same as an earlier one is dropped. The outcome is
kept until the child is first visited. That changes no choice, since what is drawn depends on the
node alone, and wastes no token, since every node is visited in the end (`visit_all_nodes`: in the
last round, if not before). Where that setting is off, evaluations start when they are asked for.

A rollout whose judge gives no score is tried once more (`TRIES`), with a fresh one. If that fails
too it counts as missing: the iteration is spent, nothing is backed up, and the node stays as it
was, to be selected again. A node's own answer is judged once, for a judge would say the same again;
without a score the node is closed for the rest of the search. So is a node for which the reward
model has no value. Scores and values that are not finite numbers are missing, and are counted as
`not_finite` besides: none of them is ever backed up.
"""

import collections
import dataclasses
import math
from collections.abc import Callable, Collection, Hashable, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np

from stair_jax.config.schema import SearchConfig
from stair_jax.engine.request import EngineLike, Prefix, Request, Result, Sampling
from stair_jax.judges.base import Judge, Score
from stair_jax.prm.reader import Reading, RewardModelLike
from stair_jax.records import Node, Prompt, Tree
from stair_jax.search import mcts, roots
from stair_jax.search.node_values import NodeValues
from stair_jax.search.priors import prior
from stair_jax.search.reward import Reward
from stair_jax.search.tree import NONE, ROOT
from stair_jax.text import PromptCodec, ResponseCodec

TRIES = 2  # of an evaluation

COUNTERS = (
    "iterations",
    "expansions",
    "rollouts",
    "revisits",
    "judged",
    "missing",
    "tokens",
    "duplicates",
    "cut_steps",
    "cut_rollouts",
    "valued",
    "not_finite",
)


@runtime_checkable
class SearchCodec(PromptCodec, Protocol):
    """What the search uses of `text.Codec`."""

    @property
    def end_stop(self) -> Collection[int]:
        """Ids that end a response."""
        ...


class TaskId(NamedTuple):
    """Names what an engine's result or a judge's verdict is about; the id of every request."""

    prompt_id: str
    node: int
    kind: str  # "step", "rollout" or "judge"
    ordinal: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tools:
    """What all trees of a run share."""

    engine: EngineLike
    judge: Judge | None  # None: the reward model says what answers are worth too
    codec: SearchCodec
    config: SearchConfig
    reward: Reward | None  # what a judge's score amounts to
    seed: int
    valuer: RewardModelLike | None = None  # where `config.value` wants one
    on_answer: Callable[[str], None] | None = None  # sees each response that is to be judged


@dataclasses.dataclass(kw_only=True)
class HostNode:
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


class Outcome(NamedTuple):
    """What an evaluation came to."""

    kind: int  # mcts.REWARD to mcts.MISSING_FOR_GOOD
    reward: np.float32


@dataclasses.dataclass(frozen=True)
class Event:
    """What a tree has to tell the device."""

    kind: int  # mcts.NOTHING, START or CHILDREN
    priors: tuple[float, ...]  # one a child
    outcomes: dict[int, Outcome]  # by node, `num_children` at most


@dataclasses.dataclass(frozen=True, kw_only=True)
class Statistics:
    """One tree's arrays from the device, after its last iteration."""

    visits: np.ndarray  # [M] int32
    value_sum: np.ndarray  # [M] float32
    outcome: np.ndarray  # [M] int32, what is not used up, and kept rewards
    reward: np.ndarray  # [M] float32


class Growth:
    """One tree, from its prompt to its record.

    Once it is `ready`, the device can move it on with what `tell` returns. `record` is the finished
    tree, None until then.
    """

    def __init__(
        self,
        prompt: Prompt,
        root: Prefix,
        tools: Tools,
        valuing: NodeValues | None = None,
        turn: int = 0,
    ):
        self.prompt, self.tools, c = prompt, tools, tools.config
        self.turn = turn  # of all its requests: that of the oldest tree is the lowest
        self.valuing = valuing  # None where all values are those of rollouts
        self._sampling = sampling_of(c)
        self.nodes = [
            HostNode(
                tag="0",
                parent=NONE,
                depth=0,
                ids=(),
                text="",
                response="",
                p=1.0,
                ends=False,
                prefix=root,
            )
        ]
        self.counters: collections.Counter[str] = collections.Counter(dict.fromkeys(COUNTERS, 0))
        self.record: Tree | None = None
        self._news = mcts.START
        self._requests: set[Hashable] = set()  # in the engine
        self._steps: dict[int, Result] = {}  # that wait for an earlier one, by ordinal
        self._taken = 0  # steps of the last expansion that were made children or dropped
        self._first = 1  # node of the last expansion, or where the next one's will be
        self._tries: dict[int, int] = {}  # of the evaluations under way, by node
        self._outcomes: dict[int, Outcome] = {}  # that the device was not told, by node
        self._awaited = ROOT  # node whose outcome the device asked for; NONE once all is over
        self._final: Statistics | None = None  # once the iterations are done

    @property
    def ready(self) -> bool:
        """True where what the device waits for is there."""
        return self._news == mcts.CHILDREN or self._awaited in self._outcomes

    def tell(self) -> Event:
        """Returns the news, which count as delivered then; some outcomes may be left over."""
        news, self._news = self._news, mcts.NOTHING
        new = self.nodes[self._first :] if news == mcts.CHILDREN else []
        # What does not fit can wait: the device will ask for it.
        awaited_first = sorted(self._outcomes, key=lambda node: node != self._awaited)
        nodes = awaited_first[: self.tools.config.num_children]
        return Event(
            kind=news,
            priors=tuple(host_node.p for host_node in new),
            outcomes={node: self._outcomes.pop(node) for node in nodes},
        )

    def expand(self, node: int) -> None:
        """Asks for the next steps after `node`."""
        self.counters["expansions"] += 1
        self._taken, self._first = 0, len(self.nodes)
        given = node == ROOT and self._give(self.prompt.meta.get(roots.TURN_BACK, ""))
        for k in range(given, self.tools.config.num_children):
            self._generate(node, "step", k, group=node)
        self._attach_in_order(node)

    def _give(self, step: str) -> bool:
        """Makes a text the first of the steps behind the root; returns whether there was room.

        Under PUCB its prior is that of one of `num_children` equally likely ones.
        """
        tools, root = self.tools, self.nodes[ROOT]
        if not step:
            return False
        assert isinstance(tools.codec, ResponseCodec), "who is given steps encodes them"
        assert root.prefix is not None
        ids = tuple(tools.codec.encode(step))
        try:
            prefix = tools.engine.extend(root.prefix, ids)
        except ValueError:
            return False
        p = math.log(1 / tools.config.num_children)
        logps = (p,) * len(ids) if wants_logps(tools.config) else ()
        task = TaskId(self.prompt.id, ROOT, "step", 0)
        self._steps[0] = Result(id=task, ids=ids, logps=logps, prefix=prefix, finish="stop")
        return True

    def evaluate(self, node: int) -> None:
        """Lets the device wait for the outcome of `node`."""
        self._awaited = node
        self._seek(node)

    def finish(self, final: Statistics, *, iterations: int, revisits: int) -> None:
        """Takes what the iterations left; evaluates what they never reached."""
        self.counters["iterations"], self.counters["revisits"] = iterations, revisits
        size = len(self.nodes)
        arrays = dataclasses.asdict(final)
        self._final = final = Statistics(**{n: array[:size].copy() for n, array in arrays.items()})
        self._awaited = NONE
        if self.tools.config.visit_all_nodes:
            for node in np.flatnonzero(final.visits == 0).tolist():
                if final.outcome[node] != mcts.UNKNOWN:
                    self._outcomes[node] = Outcome(int(final.outcome[node]), final.reward[node])
                self._seek(node)
        self._settle()

    def _seek(self, node: int) -> None:
        """Starts an evaluation of `node`, unless its outcome is there or under way, or is missing
        for good: a node's own answer was judged before, or the reward model has no value for it.
        """
        if node in self._outcomes or node in self._tries:
            return
        host_node = self.nodes[node]
        judged = host_node.ends and host_node.draws and self.tools.judge is not None
        if not judged and not (self.valuing is not None and self.valuing.missing(node)):
            self._begin(node)

    def _begin(self, node: int) -> None:
        """Starts an evaluation: of the node's own answer, of a rollout from it, or of the step."""
        host_node = self.nodes[node]
        self._tries[node] = self._tries.get(node, 0) + 1
        ordinal, host_node.draws = host_node.draws, host_node.draws + 1
        if host_node.ends and self.tools.judge is not None:
            self._judge(node, ordinal, host_node.response)
            return
        known = self.valuing is None or self.valuing.ask(node, host_node.parent, host_node.ids)
        if self.tools.config.value != "prm":
            self.counters["rollouts"] += 1
            self._generate(node, "rollout", ordinal, group=host_node.parent)
        elif known:
            self._take_value(node)

    def _generate(self, node: int, kind: str, ordinal: int, *, group: int) -> None:
        """Asks the engine to go on from `node`; all that go on from `group` share its path."""
        tools, host_node = self.tools, self.nodes[node]
        step, c = kind == "step", tools.config
        path = self.nodes[group].prefix if group != NONE else None
        assert host_node.prefix is not None  # only a node that ends gives its sequence back early
        request = Request(
            id=TaskId(self.prompt.id, node, kind, ordinal),
            prefix=host_node.prefix,
            key=(tools.seed, self.prompt.id, host_node.tag, kind, ordinal),
            stop="step" if step else "end",
            max_tokens=c.max_step_tokens if step else c.max_rollout_tokens,
            sampling=self._sampling,
            turn=self.turn,
            logps=step and wants_logps(c),
            group=(self.prompt.id, group) if path else None,
            shared=len(path.ids) if path else 0,
        )
        self._requests.add(request.id)
        tools.engine.submit(request)

    def _judge(self, node: int, ordinal: int, response: str) -> None:
        """Asks for a verdict on a response, with what it began behind: judges know its format."""
        assert self.tools.judge is not None
        response = self.prompt.prefill + response
        self.counters["judged"] += 1
        if self.tools.on_answer is not None:
            self.tools.on_answer(response)
        task = TaskId(self.prompt.id, node, "judge", ordinal)
        self.tools.judge.submit(task, self.prompt, response)

    def take(self, result: Result, task: TaskId) -> None:
        """Takes what the engine generated for this tree."""
        _, node, kind, ordinal = task
        self._requests.discard(result.id)
        self.counters["tokens"] += len(result.ids)
        if result.finish == "length":
            self.counters[f"cut_{kind}s"] += 1
        if kind == "rollout":
            response = self.nodes[node].response + self._continued(node, result.ids)
            self.tools.engine.release(result.prefix)
            self._judge(node, ordinal, response)
            return
        self._steps[ordinal] = result
        self._attach_in_order(node)

    def _attach_in_order(self, node: int) -> None:
        """Makes children of the steps that are there and whose elders are."""
        while (step := self._steps.pop(self._taken, None)) is not None:
            self._taken += 1
            self._attach(node, step)
        if self._taken == self.tools.config.num_children:
            self._news = mcts.CHILDREN

    def _attach(self, node: int, result: Result) -> None:
        """Makes a child of the next step in order, unless it repeats a sibling's text."""
        step, siblings = self._continued(node, result.ids), self.nodes[self._first :]
        if any(step == sibling.text for sibling in siblings):
            self.counters["duplicates"] += 1
            self.tools.engine.release(result.prefix)
            return
        self.nodes.append(self._child(node, len(siblings), step, result))
        self._start_early(len(self.nodes) - 1)

    def _continued(self, node: int, ids: Sequence[int]) -> str:
        """Returns what `ids` add to the response of a node, so that texts join to the text of all.

        A step that is cut may end within a character or amid a word, which only the tokens before
        it tell. A character comes with the last of its bytes.
        """
        decode, said, path = self.tools.codec.decode, self.nodes[node].response, [*ids]
        while node != ROOT:
            path[:0] = self.nodes[node].ids
            node = self.nodes[node].parent
        whole = decode(path)
        return whole[len(said) :] if whole.startswith(said) else decode(ids)

    def _start_early(self, child: int) -> None:
        """Starts the first evaluation of a new child, where it is sure to be visited."""
        if self.tools.config.visit_all_nodes:
            self._begin(child)

    def _child(self, node: int, slot: int, step: str, result: Result) -> HostNode:
        parent = self.nodes[node]
        ends = any(token in self.tools.codec.end_stop for token in result.ids)
        if ends:
            self.tools.engine.release(result.prefix)
        return HostNode(
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

    def read(self, node: int, reading: Reading) -> None:
        """Takes what the reward model says of a node, as `valuing.asked`."""
        assert self.valuing is not None
        self.valuing.take(node, reading)
        self.counters["valued"] += 1
        self.counters["not_finite"] += self.valuing.missing(node)
        if self.tools.config.value == "prm":
            self._take_value(node)
            self._settle()

    def _take_value(self, node: int) -> None:
        """Ends an evaluation by the reward model alone."""
        assert self.valuing is not None
        del self._tries[node]
        self._outcomes[node] = self._outcome(node, self.valuing.value(node), for_good=True)

    def score(self, score: Score | None, task: TaskId) -> None:
        """Takes the judge's verdict; where a rollout has none, tries another one."""
        node, reward = task.node, self._reward(score)
        ends = self.nodes[node].ends
        if reward is None and self._tries[node] < TRIES and not ends:
            self._begin(node)
            return
        del self._tries[node]
        if score is not None and reward is not None:
            for name, count in score.counts.items():
                self.counters[f"judge_{name}"] += count
        self._outcomes[node] = self._mixed(node, reward)
        self._settle()

    def _reward(self, score: Score | None) -> float | None:
        """Returns what a verdict amounts to; None where there is none, or no finite number."""
        if score is None:
            return None
        assert self.tools.reward is not None
        reward = self.tools.reward(score.safety, score.helpfulness, self.prompt.type)
        if not math.isfinite(reward):
            self.counters["not_finite"] += 1
            return None
        return reward

    def _mixed(self, node: int, reward: float | None) -> Outcome:
        """Returns the outcome of an evaluation, with the reward model's share where it has one."""
        ends = self.nodes[node].ends
        if reward is None or self.valuing is None or ends or node == ROOT:
            return self._outcome(node, reward, for_good=ends)
        weight, value = self.tools.config.value_weight, self.valuing.value(node)
        if value is None:
            return self._outcome(node, None, for_good=True)
        return self._outcome(node, (1 - weight) * reward + weight * value, for_good=False)

    def _outcome(self, node: int, reward: float | None, *, for_good: bool) -> Outcome:
        """Returns an outcome; `for_good`: where it is missing, asking again would give the same."""
        if reward is None:
            self.counters["missing"] += 1
            return Outcome(mcts.MISSING_FOR_GOOD if for_good else mcts.MISSING, np.float32(0))
        ends = self.nodes[node].ends
        return Outcome(mcts.TERMINAL_REWARD if ends else mcts.REWARD, np.float32(reward))

    def _settle(self) -> None:
        """Ends the tree once the last round is complete, backing that up in the nodes' order.

        The order decides the last bit of a sum, so it must not be that of arrival.
        """
        final = self._final
        if self._tries or final is None:
            return
        for node, (kind, reward) in sorted(self._outcomes.items()):
            if kind in (mcts.MISSING, mcts.MISSING_FOR_GOOD):
                continue
            if kind == mcts.TERMINAL_REWARD:
                final.outcome[node], final.reward[node] = mcts.KEPT_REWARD, reward
            while node != NONE:
                final.visits[node] += 1
                final.value_sum[node] += reward
                node = self.nodes[node].parent
        self.close()
        self.record = Tree(
            prompt=self.prompt,
            nodes=tuple(self._node(i, final) for i in range(len(self.nodes))),
            counters={name: float(count) for name, count in self.counters.items()},
            scores=self._scores(),
        )

    def _scores(self) -> tuple[float | None, ...]:
        return () if self.valuing is None else tuple(map(self.valuing.raw, range(len(self.nodes))))

    def _node(self, i: int, final: Statistics) -> Node:
        host_node, terminal = self.nodes[i], final.outcome[i] == mcts.KEPT_REWARD
        return Node(
            parent=host_node.parent,
            ids=host_node.ids,
            text=host_node.text,
            depth=host_node.depth,
            visits=int(final.visits[i]),
            value_sum=float(final.value_sum[i]),
            reward=float(final.reward[i]) if terminal else None,
            terminal=bool(terminal),
            p=host_node.p,
            tag=host_node.tag,
        )

    def close(self) -> None:
        """Gives everything back: requests under way and sequences held."""
        for id in self._requests:
            self.tools.engine.cancel(id)
        held = [result.prefix for result in self._steps.values()]
        held += [host_node.prefix for host_node in self.nodes if host_node.prefix is not None]
        for prefix in held:
            self.tools.engine.release(prefix)
        for host_node in self.nodes:
            host_node.prefix = None
        self._requests, self._steps = set(), {}
        if self.valuing is not None:
            self.valuing.close()


def sampling_of(config: SearchConfig) -> Sampling:
    """Returns how every token of a tree is drawn."""
    names = "temperature", "top_k", "top_p", "min_p"
    return Sampling(**{name: getattr(config, name) for name in names})


def wants_logps(config: SearchConfig) -> bool:
    """Returns whether the steps' log-probs are used: by PUCB, unless its prior is uniform."""
    return config.score == "pucb" and config.prior != "uniform"
