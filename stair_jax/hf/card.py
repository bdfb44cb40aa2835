"""Model cards: the README.md of an exported folder, as the Hugging Face hub reads it.

The text is `card.md`, a Jinja template; what stands in it is made of `Facts`. Any text among these
is shown as it is: what means something to YAML, Markdown or HTML is written so that it does not.
"""

import dataclasses
import functools
import hashlib
import pathlib
import re
from collections.abc import Sequence
from typing import Any, Literal

import huggingface_hub
import jinja2

from stair_jax.config import redaction
from stair_jax.model.reward import Readout

FILE = "README.md"
ARXIV = "2502.02384"
# What HTML and Markdown read as more than a letter; | ends a cell of a table.
_MARKS = str.maketrans({mark: f"&#{ord(mark)};" for mark in "&<>\\`*[]|~$#"})
_SEAL = "<!-- stair_jax replaces this card by newer ones as long as its text has the hash {} -->\n"
_SEALED = re.compile(r"(.*)<!-- stair_jax .* has the hash ([0-9a-f]{16}) -->\n", re.DOTALL)

_MEANING = {
    "bt": "Differences of scores count, between responses to one prompt: the sigmoid of a"
    " difference is the probability that the first is the better one.",
    "bce": "The sigmoid of a score is the probability that the response is good.",
    "mse": "A score is between -1 and 1, the worst and the best response.",
}
_MEANING["implicit"] = _MEANING["bt"]


class Markdown(str):
    """Text that is Markdown already."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scores:
    """What a card says of a reward model's scores.

    Attributes:
      readout: how they are read.
      end: the token that ends a turn.
      beta: by which an implicit model's are multiplied.
      reference: name of the model that an implicit one is compared with; "" without one.
      trees: how many were set aside, to measure it on.
      held_out: rows of (figure, value) of these.
    """

    readout: Readout
    end: str
    beta: float
    reference: str
    trees: int
    held_out: Sequence[Sequence[str]]

    @property
    def kind(self) -> Literal["implicit", "steps", "once"]:
        """Where a score is read."""
        if self.readout.loss == "implicit":
            return "implicit"
        return "steps" if self.readout.position == "step_end" else "once"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Facts:
    """What a card says of a model; texts may hold anything.

    Attributes:
      name: of the model.
      about: sentences on what was trained.
      base: name of the checkpoint that the run started from; "" for random weights.
      base_hash: of its files.
      license: of the base, as its own card states it; "" if it does not.
      data: rows of (what it was for, name, hash).
      rounds: rows of (round, trees, pairs).
      settings: rows of (key, value, default).
      results: a table; "" if nothing was measured.
      notes: on the results.
      template: name of the chat template.
      system: text of its system turn; "" without one.
      direct: whether a response is the answer as a whole.
      max_tokens: of a response.
      scores: of a reward model; None of others.
      use: sentences on the intended use.
      limits: sentences.
      missing: sentences on what was not measured.
      datasets: hub names among the data.
    """

    name: str
    about: str
    base: str
    base_hash: str
    license: str
    data: Sequence[Sequence[str]]
    rounds: Sequence[Sequence[str]]
    settings: Sequence[Sequence[str]]
    results: Markdown
    notes: Sequence[str]
    template: str
    system: str
    direct: bool
    max_tokens: int
    scores: Scores | None
    use: str
    limits: Sequence[str]
    missing: Sequence[str]
    datasets: Sequence[str]


def write(facts: Facts) -> str:
    """Returns the card, with a seal at its end: see `is_sealed`."""
    shown = {field.name: getattr(facts, field.name) for field in dataclasses.fields(facts)}
    shown |= _of_scores(facts.scores) | {
        "front_matter": Markdown(_front_matter(facts)),
        "data": table(("for", "name", "hash"), facts.data),
        "rounds": table(("round", "trees", "pairs"), facts.rounds),
        "settings": table(("setting", "value", "default"), facts.settings),
        "base": _linked(facts.base),
    }
    text = redaction.hide(_template().render(shown)).rstrip() + "\n\n"
    return text + _SEAL.format(_hash(text))


def _of_scores(scores: Scores | None) -> dict[str, Any]:
    """Returns what the template has of a reward model's scores."""
    if scores is None:
        return {"kind": "answer", "held_out": ""}
    once, readout = scores.kind == "once", scores.readout
    return {
        "kind": scores.kind,
        "held_out": table(("figure", "value"), scores.held_out),
        "trees": scores.trees,
        "beta": f"{scores.beta:g}",
        "reference": scores.reference,
        "meaning": _MEANING[readout.loss],
        "unit": "(s + 1) / 2" if readout.loss == "mse" else "the sigmoid of s",
        "low": f"{readout.low:g}",
        "span": f"{readout.high - readout.low:g}",
        "architecture": f"AutoModelFor{'Sequence' if once else 'Token'}Classification",
        "end": Markdown(scores.end if once else ""),
    }


def is_sealed(card: str) -> bool:
    """Returns whether a card is as `write` left it: nobody has edited its text."""
    found = _SEALED.fullmatch(card)
    return bool(found) and _hash(found[1]) == found[2]


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _front_matter(facts: Facts) -> str:
    """Returns what the hub reads: YAML, written by its own client.

    A base that lies in a folder is left out: on the hub its name could be somebody else's model.
    """
    on_hub = redaction.is_hub_name(facts.base)
    kind = facts.scores.kind if facts.scores else "answer"
    task = {"steps": "token-classification", "once": "text-classification"}
    data = huggingface_hub.ModelCardData(
        base_model=facts.base if on_hub else None,
        base_model_relation="finetune" if on_hub else None,
        license=facts.license or None,
        library_name="transformers",
        pipeline_tag=task.get(kind, "text-generation"),
        datasets=[*facts.datasets] or None,
        tags=[
            "stair",
            "safety",
            "alignment",
            "reward-model" if facts.scores else "reasoning",
            f"arxiv:{ARXIV}",
        ],
    )
    return data.to_yaml().strip()


def license_of(folder: pathlib.Path) -> str:
    """Returns the licence that a model's own card names in its front matter; "" if it names none.

    Only words that the hub takes for a licence count: anything else would be shown to nobody.
    """
    file = folder / FILE
    try:
        found = (huggingface_hub.metadata_load(file) or {}).get("license")
    except Exception:  # no file, not text, not YAML: its parsers raise what they like
        return ""
    if isinstance(found, str) and re.fullmatch(r"[a-z0-9][a-z0-9.-]{0,60}", found):
        return found
    return ""


def escape(text: object) -> str:
    """Returns a text that Markdown and HTML show as it is, on one line."""
    if isinstance(text, Markdown):
        return text
    visible = "".join(letter if letter.isprintable() else " " for letter in str(text))
    return " ".join(visible.split()).translate(_MARKS)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Markdown:
    """Returns a table, "" where it has no rows."""
    if not rows:
        return Markdown("")
    lines = [head, ["---"] * len(head), *([escape(cell) for cell in row] for row in rows)]
    return Markdown("\n".join(f"| {' | '.join(line)} |" for line in lines))


def _linked(base: str) -> Markdown:
    if redaction.is_hub_name(base):
        return Markdown(f"[{base}](https://huggingface.co/{base})")
    return Markdown(f"a checkpoint called {escape(base)}" if base else "")


@functools.cache
def _template() -> jinja2.Template:
    text = pathlib.Path(__file__).with_name("card.md").read_text(encoding="utf-8")
    frame = jinja2.Environment(
        finalize=escape, undefined=jinja2.StrictUndefined, keep_trailing_newline=True
    )
    return frame.from_string(text)
