"""The instruction that makes a teacher write structured reasoning, as a template on disk.

Its points are those of STAIR (arXiv 2502.02384) appendix A.2: the role, the problem analysis with a
roadmap, steps that turn to safety where a risk shows, the final answer, varied refusals, the form.
The wording is ours.

The paper asks for refusals that vary. A teacher that is asked one question at a time cannot know
how it refused before, so each question shows it another refusal to word its own like.
"""

import dataclasses
import hashlib
import pathlib

from stair_jax.data.teaching import refusals
from stair_jax.records import Prompt
from stair_jax.text import TAGS, Turn, escape

FIELD, REFUSAL = "{question}", "{refusal}"
_OWN = pathlib.Path(__file__).parent / "templates" / "instruction.txt"
_NAMES = {"system": "System", "user": "User", "assistant": "Assistant"}


@dataclasses.dataclass(frozen=True)
class Instruction:
    """A template with one place for the question, and places for a refusal if it likes.

    Raises:
      ValueError: where the place is missing or there are several, naming the source.
    """

    template: str
    source: str = "instruction"  # where it was read, for messages
    seed: int = 0  # of the refusals that are shown

    def __post_init__(self):
        if (count := self.template.count(FIELD)) != 1:
            raise ValueError(f"{self.source}: found {FIELD} {count} times, expected it once")

    @classmethod
    def load(cls, path: str = "", seed: int = 0) -> "Instruction":
        """Reads a file of the user's; ours where `path` is empty.

        Args:
          path: of the file.
          seed: of the refusals that are shown.

        Raises:
          ValueError: where the file cannot be read or has not one place, naming it.
        """
        file = pathlib.Path(path) if path else _OWN
        try:
            template = file.read_text(encoding="utf-8")
        except (OSError, UnicodeError) as error:
            raise ValueError(f"{file}: cannot be read: {error}") from None
        return cls(template.strip(), str(file), seed)

    @property
    def digest(self) -> str:
        """A hash of the template."""
        return hashlib.blake2b(self.template.encode(), digest_size=8).hexdigest()

    def ask(self, prompt: Prompt) -> str:
        """Returns the user turn that asks for a structured response to a prompt.

        Tags that the question holds are broken up, so that only the instruction's own are tags.
        Earlier turns stand before the question, each after the name of who speaks.
        """
        question = prompt.question
        if prompt.before:
            turns = [*prompt.before, ("user", question)]
            question = "\n\n".join(f"{_NAMES.get(role, role)}: {said}" for role, said in turns)
        shown = refusals.refusal(prompt.id, self.seed, hurts=False)
        before, after = (part.replace(REFUSAL, shown) for part in self.template.split(FIELD))
        return before + escape(question, TAGS) + after

    def messages(self, prompt: Prompt) -> list[Turn]:
        """Returns the whole conversation that a model goes on from: `ask` in one user turn."""
        return [("user", self.ask(prompt))]
