"""How an attack asks its target: the prompt alone, and of the response the final answer alone."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import NamedTuple

from stair_jax.evals.attacks.transcript import Chat, Place, Recorder, Sampling

Final = Callable[[str], str | None]  # the final answer of a response; None where there is none


class Said(NamedTuple):
    """What a target said to a prompt."""

    response: str  # whole
    answer: str | None


@dataclasses.dataclass(frozen=True)
class Target:
    """A model under attack.

    Attributes:
      chat: asks it; a system prompt, where it has one, is the chat's to add.
      final: takes the final answer out of a response, for example `text.final_answer`. What a
        model thinks before it answers is neither judged nor shown to an attacker.
    """

    chat: Chat
    final: Final

    def ask(
        self, recorder: Recorder, prompts: Mapping[Place, str], sampling: Sampling
    ) -> dict[Place, Said]:
        """Returns what the target says to each prompt; responses without an answer are counted.

        Raises:
          BudgetSpent: where the prompts do not all fit into the recorder's budget.
        """
        asked = {place: (("user", prompt),) for place, prompt in prompts.items()}
        replies = recorder.ask("target", self.chat, asked, sampling)
        said = {place: Said(reply, self.final(reply)) for place, reply in replies.items()}
        recorder.counts["no_answer"] += sum(not one.answer for one in said.values())
        return said
