"""What an endpoint's error is about: this moment, this question, or every question.

Servers agree on little: one over-long question is 400, 413, 422, 429 or 500, and an empty account
401, 402, 403 or 400. So status, code and words are read together. Only a wrong key, a wrong model
or address and an exhausted quota are about every question. Any other answer from 400 to 499 is
about the question that was asked: it may be too long, or filtered. What may pass, passes.
"""

import dataclasses
import json
import re
from typing import Any

LONGEST_REASON = 300  # characters of a server's words that are shown and kept

_LATER = (408, 409, 425, 429)  # of the statuses from 400 to 499, those that may pass
_FOR_ALL = (401, 402, 403, 404, 405, 407, 410)  # key, money, model, address
_CODES_FOR_ALL = re.compile(
    "(?:insufficient|exceeded_current)_(?:quota|balance|credits?)(?:_error)?|arrearage|"
    "billing_(?:not_active|hard_limit_reached)|payment_required|account_deactivated|"
    "(?:invalid|incorrect)_api_key|(?:invalid_)?authentication(?:_error)?|"
    "(?:unknown_model|model_not_found)(?:_error)?"
)


def _any_of(*phrases: str) -> re.Pattern[str]:
    return re.compile("|".join(phrases), re.IGNORECASE)


_MONEY = _any_of(
    r"(?:insufficient|not enough|no|low|exhausted|negative)\W+(?:account\W+)?"
    r"(?:balance|credits?|funds|quota)",
    r"(?:balance|credits?|quota) (?:is |has been |are )?"
    r"(?:too low|exhausted|insufficient|used up|exceeded)",
    r"credit balance",
    r"exceeded (?:your|the) (?:current )?quota",
    r"overdue",
)
_KEY_OR_MODEL = _any_of(
    r"\bapi[ _-]?key\b",
    r"\bauthenticat",
    r"\bunauthori[sz]ed",
    r"\bmodel\b[^.\n]{0,80}?\b(?:not (?:exist|found|available|supported|loaded)|unknown)",
    r"\bmodel\b[^.\n]{0,80}?\bdoes(?:n't| not) exist",
    r"\b(?:no such|unknown|invalid|unsupported) model\b",
)
# Words about one question that count under every status.
_TOO_LONG = _any_of(
    r"context[ _-]?(?:length|size|window|limit)",
    r"maximum (?:context|sequence|input|prompt|model)",
    r"(?:prompt|input|request|message|question|text|sequence|content)s?\b[^.\n]{0,40}?"
    r"\b(?:too (?:long|large|big)|exceeds?\b)",
    r"too many (?:input )?tokens",
    r"reduce the length",
    r"`inputs`",  # must have less tokens
)
_FILTERED = _any_of(
    r"content[ _-]?(?:filter|management|policy|moderation)",
    r"responsible ?ai",
    r"moderation",
    r"\bflagged\b",
)
# Words about one question where a gateway forbids something: else that is about the key.
_FORBIDDEN = _any_of("blocked", "safety", "harmful", "inappropriate", "sensitive", "polic(?:y|ies)")
# Words of a server that has too much to do; others of its words may sound like a long question's.
_BUSY = _any_of(
    "queue|try again|busy|overload|retry|took|time[ds]?[ -]?out|per[- ]minute|rate[ -]limit"
)
# What servers say of a parameter that they do not take, and of a value that is out of its range.
_NOT_TAKEN = re.compile("unsupported_parameter|unsupported_value|unknown_parameter|extra_forbidden")
_UNSUPPORTED = _any_of(
    r"unsupported",
    r"not (?:be )?(?:supported|permitted|allowed|accepted|recogni[sz]ed|available)",
    r"not an? (?:valid|allowed|accepted|known)|invalid (?:parameter|argument|field|key|option)",
    r"(?:does|do|can)(?:n't| ?not) (?:support|accept)",
    r"cannot both be",
    r"can(?:'t| ?not) be (?:used|set|specified|combined|changed|modified)|fixed",
    r"unrecogni[sz]ed|unknown|unexpected|deprecated|no longer",
    r"extra (?:inputs?|fields?)",
    r"only (?:one|the default|\S+ is (?:allowed|supported|accepted))",
    r"may only",
)
_OUT_OF_RANGE = _any_of(
    r"above|below|max|minimum|min_value|between|range|less|greater|at (?:most|least)",
    r"[<>]=?|too (?:high|low)",
)


class Trouble(Exception):
    """No whole reply came; the next may. `wait` seconds are to pass first, if the server says."""

    def __init__(self, why: str, wait: float = 0.0):
        super().__init__(why)
        self.wait = wait


class Declined(Exception):
    """The endpoint answered, and what it said is no reply: cut at the limit, filtered, refused.

    `lasting`: whether that is about the question, so that asking again another day is of no use.
    False where the endpoint may be at fault.
    """

    def __init__(self, why: str, *, lasting: bool = True):
        super().__init__(why)
        self.lasting = lasting


class Refused(ValueError):
    """Whatever is asked, nothing will be answered: an unknown model, a wrong key."""


@dataclasses.dataclass(frozen=True)
class Complaint:
    """What a server says went wrong."""

    status: int  # of HTTP, or the one in the body
    message: str  # on one line
    codes: tuple[str, ...] = ()  # the names it gives the error, in small letters
    parameter: str = ""  # of the request, that it names

    @property
    def too_long_or_filtered(self) -> bool:
        """True where the words say so of the question."""
        words = " ".join((self.message, *self.codes))
        busy = self._later and _BUSY.search(words)
        return bool((_TOO_LONG.search(words) and not busy) or _FILTERED.search(words))

    @property
    def _later(self) -> bool:
        return self.status in _LATER or self.status >= 500 or self.status < 300

    def is_for_all(self, question: str, *, answered: bool) -> bool:
        """Returns whether no question will be answered.

        Args:
          question: that was asked; words that it holds itself say nothing.
          answered: whether the endpoint has answered a question before. Then key and model are
            right, and words about them are about a question that mentions such things.
        """
        if any(map(_CODES_FOR_ALL.fullmatch, self.codes)):
            return True
        if 300 <= self.status < 400:
            return True
        if self.status in _FOR_ALL:
            about_one = self.status == 403 and (
                self.too_long_or_filtered or _FORBIDDEN.search(self.message)
            )
            return not about_one
        if self._later or self.too_long_or_filtered:
            return False
        return _says(_MONEY, self.message, question) or (
            not answered and _says(_KEY_OR_MODEL, self.message, question)
        )

    @property
    def may_pass(self) -> bool:
        """True where the same question may be answered a moment later."""
        return self._later and not self.too_long_or_filtered

    def names(self, parameter: str, question: str) -> bool:
        """Returns whether a parameter of the request is what the server does not take.

        A value that is out of its range is another matter, and so is a word of the question.
        """
        if self.status not in (400, 422) or self.too_long_or_filtered:
            return False
        not_taken = _UNSUPPORTED.search(self.message) or any(map(_NOT_TAKEN.search, self.codes))
        if self.parameter == parameter:
            words = " ".join((self.message, *self.codes))
            return bool(not_taken or not _OUT_OF_RANGE.search(words))
        # In quotes where the question holds the word, too: it may be repeated.
        quote = "['\"`]" if parameter in question else ""
        word = re.search(
            rf"(?<![A-Za-z0-9_]){quote}{parameter}{quote}(?![A-Za-z0-9_])", self.message
        )
        return bool(word and not_taken and word.group() not in question)


def exception_of(
    complaint: Complaint, question: str, *, answered: bool, wait: float = 0.0
) -> Trouble | Declined | Refused:
    """Returns what to raise for a complaint.

    Args:
      complaint: of the endpoint.
      question: that was asked.
      answered: whether the endpoint has answered a question before. Until then, a complaint in
        unknown words may be about the endpoint, and does not last.
      wait: seconds that the server wants to be left alone for.
    """
    if complaint.is_for_all(question, answered=answered):
        return Refused(complaint.message)
    if complaint.may_pass:
        return Trouble(complaint.message, wait)
    return Declined(complaint.message, lasting=answered or complaint.too_long_or_filtered)


def _says(pattern: re.Pattern[str], message: str, question: str) -> bool:
    """Returns whether a message says something that it does not repeat from the question."""
    asked = question.lower()
    return any(found.group().lower() not in asked for found in pattern.finditer(message))


def complaint_of(status: int, body: bytes) -> Complaint:
    """Returns what the body of an error says, in any of the forms that servers use."""
    text = body.decode(errors="replace")
    try:
        data = json.loads(text)
    except (ValueError, RecursionError):
        return Complaint(status, f"HTTP {status}: {_line(text)}")
    return _of_json(status, data)


def _of_json(status: int, data: Any) -> Complaint:
    while isinstance(data, list) and data:  # [{"error": ...}]
        data = data[0]
    error = data.get("error", data) if isinstance(data, dict) else data
    if not isinstance(error, dict):  # {"error": "too long", "error_type": "validation"}
        codes = _codes(data, "error_type", "code", "type") if isinstance(data, dict) else ()
        return Complaint(status, f"HTTP {status}: {_line(_plain(error))}", codes)
    inner = error.get("innererror", error.get("metadata"))
    codes = _codes(error, "code", "type", "status", "reason")
    if isinstance(inner, dict):
        codes += _codes(inner, "code", "reason", "type")
    message = next((error[k] for k in ("message", "detail", "msg", "error") if error.get(k)), data)
    parameter = error.get("param")
    if isinstance(message, list) and message and isinstance(message[0], dict):
        # [{"loc": ["body", "top_p"], "msg": "Extra inputs are not permitted", "type": ...}]
        found = [error for error in message if isinstance(error, dict)]
        codes += tuple(code for error in found for code in _codes(error, "type"))
        message = "; ".join(f"{_place(error.get('loc'))}: {error.get('msg')}" for error in found)
    said = f"HTTP {status}: {_line(_plain(message))}"
    return Complaint(status, said, codes, parameter if isinstance(parameter, str) else "")


def _codes(data: Any, *names: str) -> tuple[str, ...]:
    found = [data.get(name) for name in names] if isinstance(data, dict) else []
    return tuple(code.lower() for code in found if isinstance(code, str))


def _place(loc: Any) -> str:
    return ".".join(map(str, loc)) if isinstance(loc, list) else str(loc)


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _line(text: str) -> str:
    return " ".join(text.split())
