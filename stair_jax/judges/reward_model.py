"""Reward models as judges: how helpful an answer is, from the score of a whole text."""

import collections
import itertools
import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from stair_jax import text
from stair_jax.engine.request import Prefix
from stair_jax.judges.base import Rating
from stair_jax.model.reward import Readout
from stair_jax.records import Prompt

Split = tuple[list[int], list[int]]  # ids of a text: what its rivals share, and the rest (never [])
Encode = Callable[[Prompt, str], Split]


@runtime_checkable
class ScoringLike(Protocol):
    """What a rater uses of `scoring.Scoring`."""

    def root(self, ids: Sequence[int]) -> Prefix:
        """Returns a new sequence."""
        ...

    def extend(
        self, items: Sequence[tuple[Prefix, Sequence[int]]]
    ) -> list[tuple[Prefix, np.ndarray]]:
        """Returns the sequences with ids behind them, and the raw score at each of the ids."""
        ...

    def release(self, prefix: Prefix) -> None:
        """Gives a sequence back."""
        ...


class RewardRater:
    """A `Rater` that asks a reward model: 2 unit(raw) - 1, in [-1, 1], at the end of a text.

    What was submitted since the last `collect` is scored in one call there, and the tokens that
    answers to one prompt share are computed once. A text that exceeds the context is missing,
    counted as `too_long`, one with nothing to score as `empty`, a score that is not finite as
    `not_finite`; the others are `scored`.

    Args:
      scoring: with the reward model's weights.
      readout: of the reward model.
      encode: makes a text of a prompt and an answer; see `of_response`, `of_chat`.
      max_tokens: of a text; the engine's context.
      wants_response: whether `submit` is to be given whole responses, reasoning included, and not
        the final answers alone.
    """

    def __init__(
        self,
        scoring: ScoringLike,
        readout: Readout,
        encode: Encode,
        *,
        max_tokens: int,
        wants_response: bool,
    ):
        self.wants_response = wants_response
        self._scoring, self._readout, self._encode = scoring, readout, encode
        self._max_tokens = max_tokens
        self._waiting: list[tuple[Hashable, Split]] = []
        self._done: list[tuple[Hashable, Rating]] = []
        self._counts: collections.Counter[str] = collections.Counter()

    def submit(self, id: Hashable, prompt: Prompt, answer: str) -> None:
        """Queues an answer, or a whole response where `wants_response`."""
        shared, rest = self._encode(prompt, answer)
        if rest and len(shared) + len(rest) <= self._max_tokens:
            self._waiting.append((id, (shared, rest)))
        else:
            self._counts["too_long" if rest else "empty"] += 1
            self._done.append((id, None))

    def collect(self) -> list[tuple[Hashable, Rating]]:
        """Returns the ratings of all that was submitted since the last call."""
        waiting, self._waiting = self._waiting, []
        done, self._done = self._done, []
        if not waiting:
            return done
        roots: dict[tuple[int, ...], Prefix] = {}
        for _, (shared, _) in waiting:
            if tuple(shared) not in roots:
                roots[tuple(shared)] = self._scoring.root(shared)
        scored = self._scoring.extend([(roots[tuple(a)], rest) for _, (a, rest) in waiting])
        for (id, _), (prefix, raw) in zip(waiting, scored, strict=True):
            self._scoring.release(prefix)
            done.append((id, self._rating(float(raw[-1]))))
        for root in roots.values():
            self._scoring.release(root)
        return done

    def _rating(self, raw: float) -> Rating:
        if not math.isfinite(raw):
            self._counts["not_finite"] += 1
            return None
        self._counts["scored"] += 1
        return 2.0 * float(self._readout.unit(raw)) - 1.0

    @property
    def counters(self) -> Mapping[str, int]:
        """Texts that were `scored`, `too_long`, `empty` and `not_finite`."""
        return self._counts

    def close(self) -> None:
        """Forgets what waits; nothing is held between two calls of `collect`."""
        self._waiting, self._done = [], []


def of_response(codec: text.Codec, readout: Readout) -> Encode:
    """Returns the text of our own reward models: the policy's prompt and the whole response.

    Under the read-out "eos" an end of sequence follows, as in training.
    """
    end = [codec.eos_id] if readout.position == "eos" else []

    def encode(prompt: Prompt, response: str) -> Split:
        ids = codec.encode(response)
        return text.opening_ids(codec, prompt), ids if ids[-1:] == end else ids + end

    return encode


def of_chat(tokenizer: Any, pad_id: int | None) -> Encode:
    """Returns the text of others' outcome models: turns and final answer in their own template.

    Nothing is put behind what the template makes, and special tokens that either text holds are
    broken up. It is read where transformers reads it: at the last token that does not pad.

    Args:
      tokenizer: of the model, with a chat template.
      pad_id: of the model's configuration; None where it has none.

    Raises:
      ValueError: where the tokenizer has no chat template, or one without the turns of both.
    """
    if not tokenizer.chat_template:
        raise ValueError("judge.reward_model: its tokenizer has no chat template")
    specials = sorted({*tokenizer.all_special_tokens, *tokenizer.get_added_vocab()})

    def ids_of(turns: list[dict[str, str]], ask: bool) -> list[int]:
        return tokenizer.apply_chat_template(
            turns, add_generation_prompt=ask, tokenize=True, return_dict=False
        )

    def encode(prompt: Prompt, answer: str) -> Split:
        said = [*prompt.before, ("user", prompt.question), ("assistant", answer)]
        turns = [{"role": role, "content": text.escape(x, specials)} for role, x in said]
        whole = ids_of(turns, False)
        while whole[1:] and whole[-1] == pad_id:
            del whole[-1]
        # Templates may write the beginning of a turn otherwise where it is still to be filled.
        alike = zip(whole[:-1], ids_of(turns[:-1], True), strict=False)
        common = max(1, sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], alike)))
        return whole[:common], whole[common:]

    _try(encode)
    return encode


def _try(encode: Encode) -> None:
    """Raises ValueError where texts cannot be made, or do not hold both the turns."""
    turns = [("a", "a"), ("a", "b"), ("b", "a")]
    try:
        made = [
            encode(Prompt(id="", question=question, type="helpfulness"), answer)
            for question, answer in turns
        ]
    except Exception as error:  # a template may raise whatever it likes
        reason = (str(error).splitlines() or [""])[0]
        raise ValueError(
            f"judge.reward_model: its chat template fails on a user's and an assistant's turn: "
            f"{type(error).__name__}: {reason}"
        ) from error
    if not all(rest for _, rest in made) or made[0] in made[1:]:
        raise ValueError("judge.reward_model: its chat template leaves the question or answer out")
