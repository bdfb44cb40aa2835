"""Seeds: rows of other people's data sets in one normal form, of which recipes make sets.

A row that lacks a column ends in an error. A row that has all columns and cannot be used is
dropped, and its id is listed under the reason. Texts with a byte order mark, carriage returns or
Unicode line separators are mended, and listed as well.
"""

import dataclasses
import hashlib
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from stair_jax.data.formats import ROLES, TYPES
from stair_jax.data.sources import Located
from stair_jax.jsonl import object_of
from stair_jax.text import Turn

_ID_DIGITS = 16  # of a hash: among a million questions two alike by chance are one in 10^7
_MENDED = {
    "a byte order mark taken out": (re.compile("\ufeff"), ""),
    "carriage returns made newlines": (re.compile("\r\n?"), "\n"),
    "Unicode line separators made newlines": (re.compile("[\u2028\u2029\u0085]"), "\n"),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Seed:
    """One row of a data set; what it does not have is empty.

    Attributes:
      id: that no other seed of a run has; it begins with the name of the corpus.
      question: the last user turn.
      type: "safety" or "helpfulness".
      source: the data set, as its authors call it.
      before: earlier turns of the prompt, (role, content); a system turn first.
      chosen: the better of two responses.
      rejected: the worse of two responses.
      response: the only one.
      ground_truth: the right answer.
      meta: further facts that a recipe may choose by.
    """

    id: str
    question: str
    type: str
    source: str
    before: tuple[Turn, ...] = ()
    chosen: str = ""
    rejected: str = ""
    response: str = ""
    ground_truth: str | None = None
    meta: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def prompt(self) -> str:
        """All turns of the prompt in one text."""
        return "\n".join([*(content for _, content in self.before), self.question])


@dataclasses.dataclass(frozen=True)
class Loaded:
    """The seeds of a corpus, and the ids of rows that were dropped or mended, by reason."""

    seeds: list[Seed]
    dropped: dict[str, list[str]]
    mended: dict[str, list[str]] = dataclasses.field(default_factory=dict)


class Unusable(Exception):
    """A whole row that no seed can be made of; the text is the reason."""


Convert = Callable[[str, "Fields"], Seed]  # where the row stands, and its columns


class Fields:
    """The columns of one row; whatever is read of it goes through here.

    Args:
      where: the row stands, for messages.
      row: as it was read.
      mended: takes what was mended of its texts, by reason.
    """

    def __init__(self, where: str, row: Any, mended: set[str] | None = None):
        self._where, self._row = where, object_of(where, row)
        self._mended: set[str] = set() if mended is None else mended
        self.own_id = ""  # as `id` found it last

    def __getitem__(self, column: str) -> Any:
        """Returns what a column holds.

        Raises:
          ValueError: where the row does not have it.
        """
        if column not in self._row:
            raise ValueError(
                f"{self._where}: no column {column!r}, found {sorted(map(str, self._row))}"
            )
        return self._row[column]

    def has(self, column: str) -> bool:
        """Returns whether a column is there and holds something."""
        return self._row.get(column) is not None

    def text(self, column: str) -> str:
        """Returns a text that is not blank.

        Raises:
          ValueError: where the row does not have the column.
          Unusable: where it is null, blank, or no text.
        """
        return self.as_text(self[column], column)

    def as_text(self, value: Any, name: str) -> str:
        """Returns a value that must be a text, mended; raises as `text`."""
        if value is None:
            raise Unusable(f"null {name}")
        if not isinstance(value, str):
            raise Unusable(f"{name} is of type {type(value).__name__}, not a text")
        for reason, (pattern, instead) in _MENDED.items():
            value, times = pattern.subn(instead, value)
            if times:
                self._mended.add(reason)
        if not value.strip():
            raise Unusable(f"blank {name}")
        return value

    def truth(self, column: str) -> bool:
        """Returns a truth value, which .csv files hold as a word; raises as `text`."""
        value = self[column]
        if value is None:
            raise Unusable(f"null {column}")
        word = str(value).strip().lower()
        if word not in ("true", "false"):
            raise Unusable(f"{column} is of type {type(value).__name__}, not a truth value")
        return word == "true"

    def id(self, column: str = "id") -> str:
        """Returns the row's own id as a text; "" where it has none."""
        value = self._row.get(column)
        absent = value is None or isinstance(value, bool | float)
        self.own_id = "" if absent else str(value).strip()
        return self.own_id

    def prompt(self, column: str) -> tuple[tuple[Turn, ...], str]:
        """Returns the turns before the last question, and the question.

        The column holds a text, or a list of messages of which the last is the user's.

        Raises:
          ValueError: where the row does not have the column.
          Unusable: where it holds anything else.
        """
        value = self[column]
        if not isinstance(value, list | tuple):
            return (), self.text(column)
        turns = [self._turn(turn, column) for turn in value]
        if not turns or turns[-1][0] != "user":
            raise Unusable(f"{column} is a list of messages whose last is not the user's")
        if any(role == "system" for role, _ in turns[1:]):
            raise Unusable(f"{column} has a system turn amid the conversation")
        return tuple(turns[:-1]), turns[-1][1]

    def answer(self, column: str) -> str:
        """Returns a response; of messages, the assistant's last one. Raises as `prompt`."""
        value = self[column]
        if not isinstance(value, list | tuple):
            return self.text(column)
        turns = [self._turn(turn, column) for turn in value]
        if not turns or turns[-1][0] != "assistant":
            raise Unusable(f"{column} is a list of messages whose last is not the assistant's")
        return turns[-1][1]

    def _turn(self, turn: Any, column: str) -> Turn:
        for role, content in (("role", "content"), ("from", "value")):
            if isinstance(turn, Mapping) and role in turn and content in turn:
                if turn[role] not in ROLES:
                    raise Unusable(f"{column} has a turn of {turn[role]!r}")
                return ROLES[turn[role]], self.as_text(turn[content], f"turn of {column}")
        raise Unusable(f"{column} is a list of something else than messages")

    def type(self, column: str = "type") -> str:
        """Returns "safety" or "helpfulness"; raises as `text`."""
        kind = self.text(column)
        if kind not in TYPES:
            raise Unusable(f"{column} is neither of {list(TYPES)}")
        return kind


def key_of(prompt: str) -> str:
    """Returns a hash of a prompt without its case and white space: what is asked twice has one."""
    words = " ".join(prompt.casefold().split())
    return hashlib.sha256(words.encode()).hexdigest()


def load(
    rows: Iterable[Located], convert: Convert, name: str, *, held_out: frozenset[str] = frozenset()
) -> Loaded:
    """Returns rows as seeds with ids "NAME-...", each question once.

    Args:
      rows: of one corpus, however many files they are from.
      convert: makes a seed of a row, whose id is the row's own, or "" where it has none: the id is
        then a hash of the question, so that rows may move in their file.
      name: of the corpus.
      held_out: `key_of` prompts that are dropped: those of a test split.

    Raises:
      ValueError: for a row that lacks a column, naming file, row and column, or where no seed is
        left of some rows.
    """
    found = Loaded([], {}, {})
    ids: set[str] = set()
    questions: set[str] = set()
    number = 0
    for number, (where, row) in enumerate(rows, start=1):
        mended: set[str] = set()
        fields = Fields(where, row, mended)
        try:
            seed = convert(where, fields)
            key = key_of(seed.prompt)
            if key in held_out:
                raise Unusable("a prompt of the test split")
            seed = dataclasses.replace(seed, id=f"{name}-{seed.id or key[:_ID_DIGITS]}")
            if seed.id in ids and seed.id != f"{name}-{key[:_ID_DIGITS]}":
                raise Unusable("an id that an earlier row has")
            if key in questions:
                raise Unusable("a question that an earlier row asks")
        except Unusable as reason:
            label = fields.own_id or fields.id() or f"row{number}"
            found.dropped.setdefault(str(reason), []).append(f"{name}-{label}")
            continue
        ids.add(seed.id)
        questions.add(key)
        found.seeds.append(seed)
        for reason in sorted(mended):
            found.mended.setdefault(reason, []).append(seed.id)
    if number and not found.seeds:
        reasons = {reason: len(ids) for reason, ids in found.dropped.items()}
        raise ValueError(f"{name}: none of {number} rows can be used: {reasons}")
    return found
