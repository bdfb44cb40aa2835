"""What makes a teacher's reply fit to be learned from, and why others are dropped.

The paper drops replies in a wrong format and unsafe answers to safety prompts (arXiv 2502.02384,
section 2.1). A helpful prompt that is refused is dropped as well, which is ours: it would teach to
refuse everything.
"""

import collections
import dataclasses
import enum
from collections.abc import Callable, Sequence

from stair_jax.data.formats import TYPES
from stair_jax.data.teaching import grammar, refusals
from stair_jax.data.teaching.grammar import Fault, Structured
from stair_jax.records import Prompt
from stair_jax.remote.client import Reply
from stair_jax.remote.open import OPEN, Open

# True: the final answer is safe to give to the question; None: nobody could say; OPEN: whoever
# could was away.
Verdict = bool | None | Open
Safe = Callable[[Sequence[tuple[Prompt, Structured]]], Sequence[Verdict]]


class Unfit(enum.StrEnum):
    """What keeps a well-formed reply, or the lack of one, from being learned from."""

    NO_REPLY = "no reply"
    UNSAFE = "an unsafe answer to a safety prompt"
    UNJUDGED = "an answer to a safety prompt without a verdict"
    REFUSED = "a helpful prompt refused"


Reason = Fault | Unfit
REASONS: tuple[Reason, ...] = (*Fault, *Unfit)


@dataclasses.dataclass(frozen=True)
class Filters:
    """Takes replies, or says why not.

    Attributes:
      safe: says of many at once whether the final answers to safety prompts are safe; it is asked
        about well-formed replies alone, each once.
      refuses: says whether the final answer to a helpful prompt is a refusal.
    """

    safe: Safe
    refuses: Callable[[str], bool] = refusals.is_refusal

    def read(
        self, prompts: Sequence[Prompt], replies: Sequence[Reply]
    ) -> list[Structured | Reason | Open]:
        """Returns the parts of each reply, or the first reason to drop it.

        Args:
          prompts: that were answered; `type` says which of the last filters a reply goes through.
          replies: to them. None, where the teacher gave none, is a reason; OPEN, where it was away,
            stays open, and so does what nobody could be reached to judge.

        Raises:
          ValueError: for a prompt of another type than safety and helpfulness.
        """
        found = [
            self._formed(prompt, reply) for prompt, reply in zip(prompts, replies, strict=True)
        ]
        asked = [
            (at, prompt, one)
            for at, (prompt, one) in enumerate(zip(prompts, found, strict=True))
            if prompt.type == "safety" and isinstance(one, Structured)
        ]
        verdicts = self.safe([(prompt, one) for _, prompt, one in asked]) if asked else []
        for (at, _, one), safe in zip(asked, verdicts, strict=True):
            if isinstance(safe, Open):
                found[at] = OPEN
            elif safe is None:
                found[at] = Unfit.UNJUDGED
            else:
                found[at] = one if safe else Unfit.UNSAFE
        return found

    def _formed(self, prompt: Prompt, reply: Reply) -> Structured | Reason | Open:
        """Returns what can be said of a reply without asking anybody."""
        if prompt.type not in TYPES:
            raise ValueError(
                f"prompt {prompt.id!r}: type {prompt.type!r} found, expected safety or helpfulness"
            )
        if isinstance(reply, Open):
            return reply
        if reply is None:
            return Unfit.NO_REPLY
        found = grammar.parse(reply)
        if isinstance(found, Fault):
            return found
        if prompt.type == "helpfulness" and self.refuses(found.answer):
            return Unfit.REFUSED
        return found


class Dropped:
    """Ids of what was dropped, by reason."""

    def __init__(self):
        self.ids: dict[str, list[str]] = collections.defaultdict(list)

    def add(self, reason: str, id: str) -> None:
        """Notes one."""
        self.ids[str(reason)].append(id)

    @property
    def counts(self) -> dict[str, int]:
        """How many were dropped, by reason."""
        return {reason: len(ids) for reason, ids in sorted(self.ids.items())}
