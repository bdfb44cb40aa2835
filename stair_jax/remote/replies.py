"""The text of a chat completion, or why it holds none.

A JSON document ends where it says it ends, so a cut one cannot be read, whatever the server says of
its length; and it has a `finish_reason`. What is not certain to be whole is never handed on.
"""

import json
from typing import Any

from stair_jax.remote.complaints import Declined, Trouble, complaint_of, exception_of

_BY_THE_MODEL = ("content_filter", "tool_calls", "function_call")  # ends of whole replies
_BROKEN_OFF = ("error", "abort", "aborted", "cancelled", "insufficient_system_resource")
_TEXTS = ("text", "output_text")  # kinds of parts that are the reply; others are thoughts or media


def reply_of(body: bytes, question: str = "", *, answered: bool = False) -> str:
    """Returns the text of a chat completion.

    Args:
      body: of an answer with status 200.
      question: that it answers.
      answered: whether the endpoint has replied to a question before.

    Raises:
      Trouble: where `body` is not a whole one.
      Declined: where it is, and holds no finished text.
      Refused: where it is an error about every question.
    """
    try:
        data = json.loads(body)
    except (ValueError, RecursionError):
        raise Trouble(f"the reply is no whole JSON document: {_start(body)}") from None
    if isinstance(data, dict) and data.get("error") and not data.get("choices"):
        complaint = complaint_of(_status_in(data["error"]), body)
        raise exception_of(complaint, question, answered=answered)
    choices = data.get("choices") if isinstance(data, dict) else None
    if not isinstance(choices, list) or len(choices) != 1 or not isinstance(choices[0], dict):
        raise Trouble(f"the reply is no chat completion: {_start(body)}")
    message, reason = choices[0].get("message"), choices[0].get("finish_reason")
    if not isinstance(message, dict) or not isinstance(reason, str):
        raise Trouble("the reply does not say how it ended")
    _check_end(message, reason)
    text = _text_of(message.get("content"))
    if not text.strip():
        # The server may be at fault: it is asked again another day.
        raise Declined("the reply has no text", lasting=False)
    return text


def _start(body: bytes) -> str:
    """Returns all of a body as text: it is cut where it is shown, once no secret is in it."""
    return repr(body.decode(errors="replace"))


def _status_in(error: Any) -> int:
    """Returns the status that an error names which came with status 200; else 200."""
    code = error.get("code") if isinstance(error, dict) else None
    return code if isinstance(code, int) and 300 <= code < 600 else 200


def _check_end(message: dict[str, Any], reason: str) -> None:
    """Raises what a reply's end says, unless it is finished text."""
    if reason == "length":
        raise Declined("the reply was cut at config.judge.max_tokens")
    if reason in _BROKEN_OFF:
        raise Trouble(f"the reply was broken off: {reason!r}")
    if reason != "stop":
        raise Declined(f"the reply ended with {reason!r}", lasting=reason in _BY_THE_MODEL)
    if message.get("refusal") or message.get("tool_calls") or message.get("function_call"):
        raise Declined("the reply is a refusal or the call of a tool")


def _text_of(content: Any) -> str:
    """Returns a message's text, which may come in parts; "" where it has none.

    Raises:
      Declined: where a part is a refusal.
    """
    if not isinstance(content, list):
        return content if isinstance(content, str) else ""
    texts = []
    for part in content:
        if isinstance(part, str):
            texts.append(part)
        elif isinstance(part, dict) and part.get("type") == "refusal":
            raise Declined("the reply is a refusal or the call of a tool")
        elif isinstance(part, dict) and part.get("type", "text") in _TEXTS:
            texts.append(part["text"] if isinstance(part.get("text"), str) else "")
    return "".join(texts)
