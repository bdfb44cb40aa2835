"""Rows of other people's formats as ours: one normal form for teaching, one for preferences.

A row that is broken (a key is missing, or holds something else) ends in an error; a row that is
whole but says nothing to train on is left out, counted and listed by reason. Earlier turns of a
conversation become turns of the prompt; the last answer is what is trained.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, TypeVar

from stair_jax.data import sources
from stair_jax.jsonl import object_of, text_of
from stair_jax.records import Preference, SftRow
from stair_jax.text import Turn, tags_close

Row = Mapping[str, Any]
Kept = TypeVar("Kept", SftRow, Preference)

ROLES = {
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "system": "system",
}
_QUESTION, _ANSWER = ("prompt", "question"), ("answer", "response")
TYPES = ("safety", "helpfulness")


@dataclasses.dataclass(frozen=True)
class Loaded(Generic[Kept]):
    """Rows in the normal form, and the ids of those left out, by reason."""

    rows: list[Kept]
    dropped: dict[str, list[str]]


class _LeftOut(Exception):
    """A whole row that cannot be trained on; the text is the reason."""


def sft_rows(source: str, *, name: str = "auto", split: str = "train") -> Loaded[SftRow]:
    """Returns the teacher rows of a file or hub name.

    Args:
      source: a .json, .jsonl or .parquet file, or a name on the Hugging Face hub.
      name: of `SFT`; "auto" tells it by the columns of the first row.
      split: of a hub name.

    Raises:
      ValueError: for a source that cannot be read, columns that fit no format or several, or a
        broken row, naming file, row, key, what was found and what was expected.
    """
    rows = sources.read(source, split)
    convert = _chosen(source, rows, SFT, name)
    return _load(rows, convert, "s")


def preference_rows(source: str, *, name: str = "auto", split: str = "train") -> Loaded[Preference]:
    """Returns the preferences of a file or hub name; `name` is one of `PREFERENCES`.

    Raises:
      ValueError: as `sft_rows`.
    """
    rows = sources.read(source, split)
    convert = _chosen(source, rows, PREFERENCES, name)
    return _load(rows, convert, "d")


def _load(
    rows: Sequence[sources.Located], convert: Callable[[str, str, Row], Kept], letter: str
) -> Loaded[Kept]:
    kept: list[Kept] = []
    dropped: dict[str, list[str]] = {}
    seen: dict[str, tuple[str, Row]] = {}  # where an id stands, and its row
    for number, (where, row) in enumerate(rows, start=1):
        fields = object_of(where, row)
        given = id_of(where, fields)
        name = given or f"{letter}{number:05d}"
        before, same = seen.setdefault(name, (where, fields))
        if same != fields:
            raise ValueError(f"{where}: id is {name!r}, which {before} has with other content")
        try:
            if before != where:
                raise _LeftOut("a row that is there already, id and all")
            kept.append(_whole(convert(where, name, fields)))
        except _LeftOut as reason:
            dropped.setdefault(str(reason), []).append(name)
    return Loaded(kept, dropped)


def id_of(where: str, row: Row) -> str | None:
    """Returns a row's own id as a text; None where it has none.

    Raises:
      ValueError: for anything but a text that is not blank, a whole number or null.
    """
    given = row.get("id")
    if given is None:
        return None
    if (
        isinstance(given, bool | float)
        or not isinstance(given, str | int)
        or not str(given).strip()
    ):
        raise ValueError(f"{where}: id is {given!r:.60}, expected a text, a whole number or none")
    return str(given)


def _whole(row: Kept) -> Kept:
    """Returns a row; leaves it out where its answer opens a tag that it does not close."""
    if isinstance(row, SftRow) and not tags_close(row.response):
        raise _LeftOut("a tag of the answer is opened and not closed, or closed and not opened")
    return row


# Formats of teacher rows.


def _ours(where: str, name: str, row: Row) -> SftRow:
    question, response = text_of(where, row, *_QUESTION), text_of(where, row, *_ANSWER)
    return SftRow(id=name, question=question, response=response)


def _alpaca(where: str, name: str, row: Row) -> SftRow:
    return _sft(name, [*_alpaca_prompt(where, row), ("assistant", _string(where, row, "output"))])


def _alpaca_prompt(where: str, row: Row) -> list[Turn]:
    """Returns the turns before the answer: system, history, instruction with its input below."""
    turns: list[Turn] = []
    if row.get("system"):
        turns.append(("system", _string(where, row, "system")))
    history: list[Any] = row.get("history") or []
    for i, pair in enumerate(history):
        texts = [x for x in pair if isinstance(x, str)] if isinstance(pair, list) else []
        if len(texts) != 2 or len(pair) != 2:
            raise ValueError(
                f"{where}: history[{i}] is {pair!r:.60}, expected [instruction, response]"
            )
        turns += [("user", texts[0]), ("assistant", texts[1])]
    question = _string(where, row, "instruction")
    if row.get("input"):
        question = f"{question}\n{_string(where, row, 'input')}"
    return [*turns, ("user", question)]


def _sharegpt(where: str, name: str, row: Row) -> SftRow:
    return _sft(name, _turns(where, row, "conversations"))


def _openai(where: str, name: str, row: Row) -> SftRow:
    return _sft(name, _turns(where, row, "messages"))


def _sft(name: str, turns: Sequence[Turn]) -> SftRow:
    """Returns the last answer of a conversation under what comes before it."""
    last = max((i for i, (role, _) in enumerate(turns) if role == "assistant"), default=None)
    if last is None:
        raise _LeftOut("no answer")
    before, question = _prompt(turns[:last])
    return SftRow(id=name, question=question, response=_answer(turns[last]), before=before)


# Formats of preferences.


def _pairs(where: str, name: str, row: Row) -> Preference:
    """Our own pairs of steps: whole responses where both trajectories are finished."""
    if not (row.get("chosen_terminal") and row.get("rejected_terminal")):
        raise _LeftOut("a step that finishes nothing")
    chosen, rejected = text_of(where, row, "chosen_text"), text_of(where, row, "rejected_text")
    question = text_of(where, row, "question")
    return _preference(where, name, row, [("user", question)], chosen, rejected)


def _explicit(where: str, name: str, row: Row) -> Preference:
    """A prompt with two answers, each a text or a list of messages."""
    key = next(key for key in _QUESTION if key in row)
    if isinstance(row[key], str):
        prompt: list[Turn] = [("user", text_of(where, row, key))]
    else:
        prompt = _turns(where, row, key)
    sides = [_side(where, row, side, prompt) for side in ("chosen", "rejected")]
    return _preference(where, name, row, prompt, *sides)


def _side(where: str, row: Row, key: str, prompt: Sequence[Turn]) -> str:
    """Returns an answer; a list of messages may repeat the prompt before it."""
    if isinstance(row[key], str):
        return text_of(where, row, key)
    turns = _turns(where, row, key)
    if turns[: len(prompt)] == list(prompt):
        turns = turns[len(prompt) :]
    if len(turns) != 1:
        raise _LeftOut(f"{key} is not one answer to the prompt")
    return _answer(turns[0])


def _implicit(where: str, name: str, row: Row) -> Preference:
    """Two conversations; what they share is the prompt."""
    chosen, rejected = _turns(where, row, "chosen"), _turns(where, row, "rejected")
    shared = 0
    for one, other in zip(chosen, rejected, strict=False):
        if one != other:
            break
        shared += 1
    if shared == len(chosen) == len(rejected):
        raise _LeftOut("equal answers")
    if len(chosen) != shared + 1 or len(rejected) != shared + 1:
        raise _LeftOut("the answers differ in more than the last turn")
    sides = [_answer(turns[-1]) for turns in (chosen, rejected)]
    return _preference(where, name, row, chosen[:shared], *sides)


def _ranked_sharegpt(where: str, name: str, row: Row) -> Preference:
    prompt = _turns(where, row, "conversations")
    sides = [_answer(_turn(f"{where}: {key}", row[key])) for key in ("chosen", "rejected")]
    return _preference(where, name, row, prompt, *sides)


def _ranked_alpaca(where: str, name: str, row: Row) -> Preference:
    sides = [text_of(where, row, key) for key in ("chosen", "rejected")]
    return _preference(where, name, row, _alpaca_prompt(where, row), *sides)


def _preference(
    where: str, name: str, row: Row, prompt: Sequence[Turn], chosen: str, rejected: str
) -> Preference:
    kind = row.get("type", "")
    if kind and kind not in TYPES:
        raise ValueError(f"{where}: type is {kind!r}, expected one of {list(TYPES)}")
    if chosen == rejected:
        raise _LeftOut("equal answers")
    before, question = _prompt(prompt)
    return Preference(
        id=name, question=question, type=kind, chosen=chosen, rejected=rejected, before=before
    )


def _prompt(turns: Sequence[Turn]) -> tuple[tuple[Turn, ...], str]:
    """Returns the turns before the question, and the question."""
    if not turns or turns[-1][0] != "user":
        raise _LeftOut("no question before the answer")
    if not turns[-1][1].strip():
        raise _LeftOut("blank question")
    if any(role == "system" for role, _ in turns[1:]):
        raise _LeftOut("a system turn amid the conversation")
    return tuple(turns[:-1]), turns[-1][1]


def _answer(turn: Turn) -> str:
    role, content = turn
    if role != "assistant":
        raise _LeftOut(f"a turn of {role!r} as the answer")
    if not content.strip():
        raise _LeftOut("blank answer")
    return content


# Pieces of rows.


def _string(where: str, row: Row, key: str) -> str:
    """Returns a text that may be blank."""
    if not isinstance(row.get(key), str):
        raise ValueError(f"{where}: {key} is {row.get(key)!r:.60}, expected a text")
    return row[key]


def _turns(where: str, row: Row, key: str) -> list[Turn]:
    value = row.get(key)
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        raise ValueError(f"{where}: {key} is {value!r:.60}, expected a list of turns")
    return [_turn(f"{where}: {key}[{i}]", turn) for i, turn in enumerate(value)]


def asked_in(where: str, row: Row, key: str) -> tuple[tuple[Turn, ...], str]:
    """Returns the earlier turns of a conversation that ends in a question, and that question.

    Raises:
      ValueError: for what is no list of turns, a last turn that is no user's text, or a system turn
        that is not the first.
    """
    try:
        *before, (role, question) = _turns(where, row, key)
    except _LeftOut as reason:
        raise ValueError(f"{where}: {key}: {reason}, expected one of {sorted(ROLES)}") from None
    if role != "user" or not question.strip():
        raise ValueError(f"{where}: {key}: ends in a turn of {role!r}, expected a user's question")
    if "system" in [role for role, _ in before[1:]]:
        raise ValueError(f"{where}: {key}: a system turn amid the others, expected it first")
    return tuple(before), question


def _turn(where: str, turn: Any) -> Turn:
    """Returns (role, content) of {"role", "content"} or {"from", "value"}."""
    found = object_of(where, turn)
    for role, content in (("role", "content"), ("from", "value")):
        if role in found and content in found:
            if not isinstance(found[role], str) or not isinstance(found[content], str):
                raise ValueError(
                    f"{where}: {role} and {content} are {found[role]!r:.30} and"
                    f" {found[content]!r:.60}, expected texts"
                )
            if found[role] not in ROLES:
                raise _LeftOut(f"a turn of {found[role]!r}")
            return ROLES[found[role]], found[content]
    raise ValueError(
        f"{where}: found {sorted(found)}, expected 'role' and 'content', or 'from' and 'value'"
    )


# Which format a file has.


@dataclasses.dataclass(frozen=True)
class Format(Generic[Kept]):
    """How a format is told by its columns, and read.

    Every group of `needs` must have a column in the row, and no column may be in `never`.
    """

    convert: Callable[[str, str, Row], Kept]
    needs: tuple[tuple[str, ...], ...]
    never: tuple[str, ...] = ()

    def fits(self, row: Row) -> bool:
        """Returns whether a row has these columns."""
        has = all(any(key in row for key in group) for group in self.needs)
        return has and not any(key in row for key in self.never)

    def __str__(self) -> str:
        return "{" + ", ".join("/".join(group) for group in self.needs) + "}"


_BOTH = (("chosen",), ("rejected",))
SFT = {
    "ours": Format(_ours, (_QUESTION, _ANSWER)),
    "alpaca": Format(_alpaca, (("instruction",), ("output",))),
    "sharegpt": Format(_sharegpt, (("conversations",),)),
    "openai": Format(_openai, (("messages",),)),
}
PREFERENCES = {
    "pairs": Format(_pairs, (("question",), ("chosen_text",), ("rejected_text",))),
    "explicit": Format(
        _explicit, (_QUESTION, *_BOTH), ("chosen_text", "conversations", "instruction")
    ),
    "implicit": Format(
        _implicit, _BOTH, ("chosen_text", "conversations", "instruction", *_QUESTION)
    ),
    "sharegpt": Format(_ranked_sharegpt, (("conversations",), *_BOTH)),
    "alpaca": Format(_ranked_alpaca, (("instruction",), *_BOTH)),
}


def _chosen(
    source: str, rows: Sequence[sources.Located], formats: Mapping[str, Format[Kept]], name: str
) -> Callable[[str, str, Row], Kept]:
    """Returns the reader of a format, told by the first row where `name` is "auto"."""
    where, first = rows[0]
    columns = object_of(where, first)
    fitting = [known for known, one in formats.items() if one.fits(columns)]
    if name != "auto":
        if name not in formats:
            raise ValueError(f"{source}: format {name!r} is not one of {sorted(formats)}")
        if name not in fitting:
            raise ValueError(
                f"{where}: found columns {sorted(columns)}, expected {formats[name]} of the format"
                f" {name!r}"
            )
        return formats[name].convert
    if len(fitting) != 1:
        fit = f"fit several formats: {fitting}" if fitting else "fit no format"
        known = "; ".join(f"{known} {one}" for known, one in formats.items())
        raise ValueError(f"{where}: the columns {sorted(columns)} {fit}; name one of: {known}")
    return formats[fitting[0]].convert
