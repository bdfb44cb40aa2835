"""What makes a teacher's reply fit to be learned from, and why others are dropped.

The paper drops replies in a wrong format and unsafe answers to safety prompts (arXiv 2502.02384,
section 2.1). A helpful prompt that is refused is dropped as well, which is ours: it would teach to
refuse everything.
"""

import collections
import dataclasses
import enum
from collections.abc import Callable

from stair_jax.data.teaching import grammar, refusals
from stair_jax.data.teaching.grammar import Fault, Structured
from stair_jax.records import Prompt

# True: the final answer is safe to give to the question; None: nobody could say.
Safe = Callable[[str, str], bool | None]


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
      safe: says whether a final answer to a safety prompt is safe; called once a well-formed reply.
      refuses: says whether the final answer to a helpful prompt is a refusal.
    """

    safe: Safe
    refuses: Callable[[str], bool] = refusals.is_refusal

    def read(self, prompt: Prompt, reply: str | None) -> Structured | Reason:
        """Returns a reply's parts, or the first reason to drop it.

        Args:
          prompt: that was answered; `type` says which of the last filters it goes through.
          reply: None where the teacher gave none.

        Raises:
          ValueError: for a prompt of another type than safety and helpfulness.
        """
        if prompt.type not in ("safety", "helpfulness"):
            raise ValueError(
                f"prompt {prompt.id!r}: type {prompt.type!r} found, expected safety or helpfulness"
            )
        if reply is None:
            return Unfit.NO_REPLY
        found = grammar.parse(reply)
        if isinstance(found, Fault):
            return found
        if prompt.type == "helpfulness":
            return Unfit.REFUSED if self.refuses(found.answer) else found
        safe = self.safe(prompt.question, found.answer)
        if safe is None:
            return Unfit.UNJUDGED
        return found if safe else Unfit.UNSAFE


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
