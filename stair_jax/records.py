"""Typed rows on disk: what passes between the two wings. Floor 0: imports no JAX."""

import base64
import dataclasses
import math
import struct
import typing
import zlib
from typing import Any, TypeVar

Row = TypeVar("Row")
LEVEL = 1  # of compression of token ids: 6 takes seven times as long for a twentieth less


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prompt:
    """One question to search on or to evaluate with."""

    id: str
    question: str
    type: str  # "safety" or "helpfulness": which rewards apply (thu-ml/STAIR prompt_data)
    ground_truth: str | None = None
    meta: dict[str, str] = dataclasses.field(default_factory=dict)
    before: tuple[tuple[str, str], ...] = ()  # earlier turns: (role, content); a system turn first
    prefill: str = ""  # how the response begins, tags and all; the model goes on from there


@dataclasses.dataclass(frozen=True, kw_only=True)
class SftRow:
    """A question with a teacher's response: all four tags in the text, no end of sequence."""

    id: str
    question: str
    response: str
    before: tuple[tuple[str, str], ...] = ()  # earlier turns of the prompt: (role, content)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preference:
    """A question with a better and a worse response of somebody else's; no tags, no ending."""

    id: str
    question: str
    type: str  # as Prompt.type; empty where the source does not say
    chosen: str
    rejected: str
    before: tuple[tuple[str, str], ...] = ()  # earlier turns of the prompt: (role, content)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Candidate:
    """One of several whole responses that a model gave to a question."""

    id: str  # of the prompt, then its number
    prompt: str  # its id
    question: str
    type: str
    ids: tuple[int, ...]
    text: str
    reward: float | None  # None where the judge had nothing to say, or the response did not end
    ended: bool
    before: tuple[tuple[str, str], ...] = ()  # earlier turns of the prompt
    prefill: str = ""  # of the prompt


@dataclasses.dataclass(frozen=True, kw_only=True)
class Node:
    """One node of a finished tree; `ids` and `text` are its own step, empty at the root."""

    parent: int  # index into Tree.nodes, -1 at the root
    ids: tuple[int, ...]
    text: str
    depth: int
    visits: int
    value_sum: float
    reward: float | None  # of a terminal node, once judged
    terminal: bool
    p: float  # PUCB's prior, 1 under UCB
    tag: str  # "0" is the root, "0.2.1" the second child of its third child

    @property
    def value(self) -> float:
        """Mean reward of all visits; call it on visited nodes only."""
        return self.value_sum / self.visits

    @property
    def finite(self) -> bool:
        """True if its value, and its reward where it has one, are finite numbers."""
        return math.isfinite(self.value_sum) and (self.reward is None or math.isfinite(self.reward))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tree:
    """A finished search tree; parents come before their children, the root first."""

    prompt: Prompt
    nodes: tuple[Node, ...]
    counters: dict[str, float] = dataclasses.field(default_factory=dict)
    scores: tuple[float | None, ...] = dataclasses.field(default=(), compare=False, repr=False)
    #   raw, of the reward model that valued the nodes, while the tree is in memory; not on disk

    def path(self, index: int) -> list[Node]:
        """Returns the nodes from the first step down to `index`; nothing for the root."""
        path = []
        while self.nodes[index].parent >= 0:
            path.append(self.nodes[index])
            index = self.nodes[index].parent
        return path[::-1]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pair:
    """A preference: after the shared `prefix`, `chosen` is better than `rejected` (token ids)."""

    id: str
    question: str
    type: str
    prefix: tuple[int, ...]
    chosen: tuple[int, ...]
    rejected: tuple[int, ...]
    chosen_value: float
    rejected_value: float
    chosen_terminal: bool
    rejected_terminal: bool
    chosen_text: str  # the whole trajectory, shared steps included
    rejected_text: str
    depth: int  # of the two nodes
    before: tuple[tuple[str, str], ...] = ()  # earlier turns of the prompt
    prefill: str = ""  # of the prompt


@dataclasses.dataclass(frozen=True, kw_only=True)
class Response:
    """A trajectory of a tree that is good enough to imitate."""

    id: str
    question: str
    type: str
    ids: tuple[int, ...]
    text: str
    value: float
    terminal: bool
    before: tuple[tuple[str, str], ...] = ()  # earlier turns of the prompt
    prefill: str = ""  # of the prompt


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two trajectories of one tree, of which a reward model shall give `better` the higher score.

    Unlike a `Pair` the two need not share anything: each holds its whole trajectory.
    """

    id: str
    question: str
    type: str
    better: tuple[int, ...]
    worse: tuple[int, ...]
    better_value: float
    worse_value: float
    depth: int  # steps of both; 0 where two whole responses of any depths are compared
    before: tuple[tuple[str, str], ...] = ()  # earlier turns of the prompt
    prefill: str = ""  # of the prompt


@dataclasses.dataclass(frozen=True, kw_only=True)
class Label:
    """What a step of a trajectory turned out to be worth."""

    tokens: int  # of the trajectory, up to the end of the step
    depth: int
    value: float  # on the scale of the rewards
    weight: float
    tag: str  # of the node


@dataclasses.dataclass(frozen=True, kw_only=True)
class ValuedTrajectory:
    """A trajectory of a tree with values on some of its steps; no node is in two of them."""

    id: str
    question: str
    type: str
    ids: tuple[int, ...]
    labels: tuple[Label, ...]
    before: tuple[tuple[str, str], ...] = ()  # earlier turns of the prompt
    prefill: str = ""  # of the prompt


@dataclasses.dataclass(frozen=True, kw_only=True)
class Answer:
    """One evaluated prompt: what the model said and what the scorer made of it."""

    id: str
    benchmark: str
    question: str
    response: str
    outcome: str  # for example "compliance", "refusal", "malformed", "correct", "wrong"
    tokens: int  # generated, those of candidates that were not taken included
    scored: int = 0  # tokens of candidates that a reward model read
    score: float | None = None  # raw, of the reward model, where it was asked
    cut: bool = False  # whether the response stopped at its limit of tokens, not at its end
    before: tuple[tuple[str, str], ...] = ()  # earlier turns of the prompt
    prefill: str = ""  # of the prompt; the response begins with it
    logps: tuple[float, ...] = ()  # of its options, nats, where it was a choice among them
    unknown: int = 0  # tokens of the prompt that stand for words the tokenizer does not know


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sample:
    """One of several responses sampled for an evaluated prompt."""

    id: str  # of the prompt
    benchmark: str
    ordinal: int  # fixes the draw
    ids: tuple[int, ...]
    response: str
    outcome: str  # as Answer.outcome
    raw: tuple[float | None, ...] = ()  # of the reward model, one a step, None where it is missing;
    #   empty where it was not asked
    question: str = ""  # empty in files of before
    before: tuple[tuple[str, str], ...] = ()  # earlier turns of the prompt
    prefill: str = ""  # of the prompt


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rated:
    """What the judge of an evaluation says of one answer, whichever models gave it."""

    id: str  # a hash of question, type and answer
    benchmark: str
    safety: float | None  # in [-1, 1]; None where the judge had nothing to say
    helpfulness: float | None


def to_json(row: Any) -> dict[str, Any]:
    """Returns a row as plain JSON types; a tree's nodes as columns, see `_columns`.

    Earlier turns and beginnings that are not there are left out, as they were before rows had them.
    """
    return _columns(row) if isinstance(row, Tree) else _without_empty(dataclasses.asdict(row))


def _without_empty(fields: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in fields.items() if v or k not in ("before", "prefill")}


def from_json(kind: type[Row], data: dict[str, Any]) -> Row:
    """Builds a row of `kind` from `to_json`'s output; a missing or extra key is a TypeError.

    Trees may also have a list of nodes, an object each, as they had in version 0.1.
    """
    if kind is Tree and isinstance(data.get("nodes"), dict):
        data = data | {"nodes": _nodes(**data["nodes"])}
    hints = typing.get_type_hints(kind)
    return kind(**{name: _restore(hints.get(name), value) for name, value in data.items()})


_COLUMNS = [field.name for field in dataclasses.fields(Node) if field.name != "ids"]


def _columns(tree: Tree) -> dict[str, Any]:
    """Returns a tree with a list for each field of its nodes, and all token ids as one text.

    That is base64 of zlib of little-endian int32, the nodes' own in turn; "tokens" has how many are
    whose. What is short comes first, so that it can be read without the rest.
    """
    ids = [token for node in tree.nodes for token in node.ids]
    packed = zlib.compress(struct.pack(f"<{len(ids)}i", *ids), LEVEL)
    columns = {name: [getattr(node, name) for node in tree.nodes] for name in _COLUMNS}
    tokens = [len(node.ids) for node in tree.nodes]
    nodes = {**columns, "tokens": tokens, "ids": base64.b64encode(packed).decode()}
    return {
        "prompt": _without_empty(dataclasses.asdict(tree.prompt)),
        "counters": dict(tree.counters),
        "nodes": nodes,
    }


def _nodes(*, tokens: list[int], ids: str, **columns: list[Any]) -> tuple[Node, ...]:
    """Returns the nodes of `_columns`.

    Raises:
      TypeError: where a column is missing or unknown.
      ValueError: where the columns do not belong together.
    """
    if columns.keys() != set(_COLUMNS):
        raise TypeError(f"columns of nodes: found {sorted(columns)}, expected {sorted(_COLUMNS)}")
    lengths = {name: len(column) for name, column in {"tokens": tokens, **columns}.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"columns of nodes have different lengths: {lengths}")
    packed = zlib.decompress(base64.b64decode(ids))
    if len(packed) != 4 * sum(tokens):
        raise ValueError(f"token ids of nodes: {len(packed) / 4} found, {sum(tokens)} expected")
    every, start = struct.unpack(f"<{sum(tokens)}i", packed), 0
    nodes = []
    rows = zip(*(columns[name] for name in _COLUMNS), strict=True)
    for count, row in zip(tokens, rows, strict=True):
        own = dict(zip(_COLUMNS, row, strict=True))
        nodes.append(Node(ids=every[start : start + count], **own))
        start += count
    return tuple(nodes)


def _restore(hint: Any, value: Any) -> Any:
    """Undoes JSON's loss of tuples and nested rows."""
    if isinstance(value, list):
        inner = typing.get_args(hint)[0] if typing.get_args(hint) else None
        return tuple(_restore(inner, v) for v in value)
    if isinstance(value, dict) and dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return from_json(hint, value)
    return value
