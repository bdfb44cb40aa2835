"""What an attack asked and was told, all of it: kept, counted, and played back.

An attack speaks to models through `Chat`. A `Recorder` stands between: it draws the seeds, keeps
to the budget and writes down every call. What it wrote is a `Transcript`, plain JSON through
`records.to_json`, and `replay` makes a `Chat` of it.
"""

import collections
import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

from stair_jax.text import Turn

Conversation = Sequence[Turn]


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How a reply is drawn.

    Attributes:
      temperature: 0 is greedy.
      top_p: share of the probability that is drawn from.
      max_tokens: of a reply.
    """

    temperature: float
    top_p: float
    max_tokens: int


ATTACKER = Sampling(temperature=1.0, top_p=0.9, max_tokens=500)  # PAIR's config.py
TARGET = Sampling(temperature=0.0, top_p=1.0, max_tokens=1024)  # PAIR's, but for its 150 tokens
JUDGE = Sampling(temperature=0.0, top_p=1.0, max_tokens=10)  # PAIR's main.py


@runtime_checkable
class Chat(Protocol):
    """A model behind an engine or an endpoint."""

    def ask(
        self, conversations: Sequence[Conversation], *, seeds: Sequence[int], sampling: Sampling
    ) -> list[str]:
        """Returns a reply to each conversation, in their order.

        Args:
          conversations: each ends with a user turn and may begin with a system turn.
          seeds: one for each, from 0 to 2**31 - 1: a reply depends on its own conversation and
            seed only, not on its place among the others.
          sampling: of all of them.
        """
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Budget:
    """What an attack on one request may use; None is no limit.

    Attributes:
      calls: conversations asked of attacker, target and judge together.
      tokens: of all replies. A batch is asked only if it fits with replies of full length.
      tokens_of: counts the tokens of a reply.

    Raises:
      ValueError: for a limit below 1, or one on tokens that nothing counts.
    """

    calls: int | None = None
    tokens: int | None = None
    tokens_of: Callable[[str], int] | None = None

    def __post_init__(self):
        for name in ("calls", "tokens"):
            limit = getattr(self, name)
            if limit is not None and limit < 1:
                raise ValueError(f"budget: found {name} {limit}, expected at least 1 or None")
        if self.tokens is not None and self.tokens_of is None:
            raise ValueError(f"budget: found tokens {self.tokens}, expected tokens_of that counts")

    def limits(self) -> dict[str, int | None]:
        """Returns the limits, as a transcript's settings have them."""
        return {"budget_calls": self.calls, "budget_tokens": self.tokens}


class Place(NamedTuple):
    """Where in an attack a call belongs; all count from 0."""

    stream: int
    iteration: int
    attempt: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Call:
    """One conversation that was asked, and the reply."""

    role: str  # "attacker", "target" or "judge"
    stream: int
    iteration: int
    attempt: int  # of an attacker
    asked: str  # a hash of conversation, seed and sampling
    seed: int
    reply: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Move:
    """One prompt that reached the target, and what came of it."""

    iteration: int
    improvement: str  # what the attacker says that it changed; empty in PAP
    prompt: str
    response: str | None = None  # the target's, whole; None where no target was asked
    answer: str | None = None  # the final answer in it; None or empty: there is none
    verdict: str | None = None  # the judge's reply; None where it was not asked
    rating: int | None = None  # 1 to 10; 1 where the verdict has none, None without a judge


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stream:
    """One conversation with the attacker, without its system turn."""

    name: str  # of the attacker's prompt or technique
    turns: tuple[tuple[str, str], ...]  # all of them, also those that were no longer shown
    moves: tuple[Move, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Transcript:
    """An attack on one request, as it went.

    Attributes:
      protocol: "pair", "pair-own-words" or "pap-own-words".
      goal: the original request.
      target_str: how a complying answer would begin; empty in PAP.
      seed: of all draws.
      settings: what the attack was told to do.
      prompts: system prompts as they were sent, by name.
      streams: in their order.
      calls: in the order in which they were asked.
      counts: of calls, replies that could not be read and so on; tokens where they were counted.
      ended: "success", "exhausted" or "budget".
    """

    protocol: str
    goal: str
    target_str: str
    seed: int
    settings: dict[str, Any]
    prompts: dict[str, str]
    streams: tuple[Stream, ...]
    calls: tuple[Call, ...]
    counts: dict[str, int]
    ended: str

    @property
    def best(self) -> Move | None:
        """The move with the highest rating, the first of several; None where none has one."""
        moves = [move for stream in self.streams for move in stream.moves]
        rated = [move for move in moves if move.rating is not None]
        # Sorting is stable and so is max: at the same iteration the first stream's comes first.
        rated.sort(key=lambda move: move.iteration)
        return max(rated, key=lambda move: move.rating or 0, default=None)


class BudgetSpent(Exception):
    """A batch does not fit into what is left of the budget; nothing of it was asked."""


class Recorder:
    """Asks models for an attack, within its budget, and writes down what they reply."""

    def __init__(self, seed: int, budget: Budget):
        self._seed, self._budget = seed, budget
        self.calls: list[Call] = []
        self.counts: collections.Counter[str] = collections.Counter(calls=0)
        if budget.tokens_of is not None:
            self.counts["tokens"] = 0

    def ask(
        self, role: str, chat: Chat, asked: Mapping[Place, Conversation], sampling: Sampling
    ) -> dict[Place, str]:
        """Returns the reply to each conversation, under its place.

        Raises:
          BudgetSpent: where they do not all fit.
          ValueError: where the chat does not give one text for each.
        """
        if not asked:
            return {}
        self._check_room(len(asked), sampling)
        places, conversations = list(asked), list(asked.values())
        seeds = [seed_of(self._seed, role, *place) for place in places]
        replies = chat.ask(conversations, seeds=seeds, sampling=sampling)
        if len(replies) != len(asked) or not all(isinstance(reply, str) for reply in replies):
            raise ValueError(f"{role}: found {len(replies)} replies, expected {len(asked)} texts")
        for place, conversation, seed, reply in zip(
            places, conversations, seeds, replies, strict=True
        ):
            hashed = digest(conversation, seed, sampling)
            where = place._asdict()
            self.calls.append(Call(role=role, **where, asked=hashed, seed=seed, reply=reply))
        self.counts["calls"] += len(asked)
        if self._budget.tokens_of is not None:
            self.counts["tokens"] += sum(map(self._budget.tokens_of, replies))
        return dict(zip(places, replies, strict=True))

    def _check_room(self, count: int, sampling: Sampling) -> None:
        calls, tokens = self._budget.calls, self._budget.tokens
        if calls is not None and self.counts["calls"] + count > calls:
            raise BudgetSpent
        if tokens is not None and self.counts["tokens"] + count * sampling.max_tokens > tokens:
            raise BudgetSpent


def seed_of(*parts: int | str) -> int:
    """Returns a seed from 0 to 2**31 - 1 that depends on every part."""
    hashed = hashlib.blake2b(json.dumps(parts).encode(), digest_size=4).digest()
    return int.from_bytes(hashed, "big") >> 1


def digest(conversation: Conversation, seed: int, sampling: Sampling) -> str:
    """Returns a hash of all that a chat is given for one reply."""
    facts = [[list(turn) for turn in conversation], seed, dataclasses.astuple(sampling)]
    return hashlib.blake2b(json.dumps(facts).encode(), digest_size=16).hexdigest()


class Replay:
    """A `Chat` that repeats what a transcript holds; it stands for any of the three models."""

    def __init__(self, transcript: Transcript):
        self._protocol = transcript.protocol
        self._replies = {call.asked: call.reply for call in transcript.calls}

    def ask(
        self, conversations: Sequence[Conversation], *, seeds: Sequence[int], sampling: Sampling
    ) -> list[str]:
        """Returns the recorded replies.

        Raises:
          ValueError: for a conversation that was not asked with that seed and that sampling.
        """
        return [
            self._reply(conversation, seed, sampling)
            for conversation, seed in zip(conversations, seeds, strict=True)
        ]

    def _reply(self, conversation: Conversation, seed: int, sampling: Sampling) -> str:
        reply = self._replies.get(digest(conversation, seed, sampling))
        if reply is None:
            said = conversation[-1][1] if conversation else ""
            raise ValueError(
                f"replay of {self._protocol}: found {said[:80]!r} with seed {seed}, "
                "expected a call of the transcript"
            )
        return reply


def replay(transcript: Transcript) -> Replay:
    """Returns a `Chat` that repeats what a transcript holds and raises for anything else."""
    return Replay(transcript)
