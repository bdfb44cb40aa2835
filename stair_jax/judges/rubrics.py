"""Rubrics: instructions for a model that judges, from templates on disk, and what its reply means.

Sources: STAIR appendix B.2.2 (the five levels of helpfulness, what is safe, the last line, the
scale of [-1, 1]); the wording of our templates is our own.
"""

import dataclasses
import functools
import hashlib
import pathlib
import re

from stair_jax import text
from stair_jax.judges import parsing
from stair_jax.records import Prompt

SIDES = ("safety", "helpfulness")
FIELDS = ("{question}", "{answer}")
_SPLIT = re.compile("(" + "|".join(map(re.escape, FIELDS)) + ")")
_FOLDER = pathlib.Path(__file__).parent / "templates"


@dataclasses.dataclass(frozen=True)
class Rubric:
    """The template of one question about an answer.

    Raises:
      ValueError: where a field is missing, naming the source.
    """

    side: str  # of SIDES
    template: str
    source: str = ""  # where it was read, for messages

    def __post_init__(self):
        if self.side not in SIDES:
            raise ValueError(f"rubric: {self.side!r} is not one of {list(SIDES)}")
        for field in FIELDS:
            if field not in self.template:
                raise ValueError(f"{self.source or self.side}: {field} not found in the template")

    @classmethod
    def load(cls, side: str, folder: str = "") -> "Rubric":
        """Reads `side`.txt of a folder; of ours where it is empty.

        Raises:
          ValueError: where there is no such text or a field is missing, naming the file.
        """
        path = pathlib.Path(folder or _FOLDER) / f"{side}.txt"
        try:
            template = path.read_text(encoding="utf-8")
        except (OSError, UnicodeError) as error:
            raise ValueError(f"config.judge.templates: {path} cannot be read: {error}") from None
        return cls(side, template.strip(), str(path))

    @functools.cached_property
    def digest(self) -> str:
        """A hash of the template."""
        return hashlib.blake2b(self.template.encode(), digest_size=8).hexdigest()

    def fill(self, question: str, answer: str) -> str:
        """Returns the template with both fields filled in; what they hold is never a field."""
        values: dict[str, str] = dict(zip(FIELDS, (question, answer), strict=True))
        return "".join(values.get(part, part) for part in _SPLIT.split(self.template))

    def ask(self, prompt: Prompt, answer: str) -> str:
        """Returns the question about an answer to a prompt, whose earlier turns are shown."""
        return self.fill(asked_of(prompt), answer)

    def read(self, reply: str | None) -> float | None:
        """Returns the rating in [-1, 1] that a reply gives; None where it gives none.

        Helpfulness: (score - 3) / 2 of the five levels. Safety: 1 or -1.
        """
        if self.side == "safety":
            verdict = parsing.safety(reply)
            return None if verdict is None else (1.0 if verdict == "SAFE" else -1.0)
        score = parsing.helpfulness(reply)
        return None if score is None else (score - 3) / 2


def asked_of(prompt: Prompt) -> str:
    """Returns what a judge sees of a prompt: its question, or the conversation that ends in it.

    Each turn of a conversation stands below its role in brackets. Of an earlier answer in STAIR's
    tags the final answer is shown, as that is what the user saw.
    """
    if not prompt.before:
        return prompt.question
    turns = [(role, _seen(content)) for role, content in prompt.before]
    return "\n\n".join(f"[{role}]\n{said}" for role, said in (*turns, ("user", prompt.question)))


def _seen(content: str) -> str:
    final = text.final_answer(content)
    return content if final is None else final
