"""One request to an OpenAI-compatible endpoint: a whole reply comes back, or why there is none.

Replies are asked for in one piece, not streamed. A JSON document ends where it says it ends, so a
cut one cannot be read, whatever the server says of its length; and `finish_reason` stands in it.
What is not certain to be whole is never handed on.
"""

import asyncio
import contextlib
import datetime
import email.utils
import json
import os
import re
import time
from collections.abc import Iterator, Mapping
from typing import Any

import openai

from stair_jax.sections import JudgeConfig

LONGEST_WAIT = 300.0  # seconds, whatever a server wishes
_LATER = (408, 409, 429)  # of the statuses from 400 on, those that may pass, as all from 500 on do
# Codes of "400 Bad Request" that are about this one question, not about all of them.
_OWN_FAULT = ("content_filter", "context_length_exceeded")
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_EPOCH = 1e9  # a number of seconds above it is a date


class Trouble(Exception):
    """No whole reply came; the next may. `wait` seconds are to pass first, if the server says."""

    def __init__(self, why: str, wait: float = 0.0):
        super().__init__(why)
        self.wait = wait


class Declined(Exception):
    """The endpoint answered, and what it said is no reply: cut at the limit, filtered, refused."""


class Refused(ValueError):
    """Whatever is asked, nothing will be answered: an unknown model, a wrong key."""


class Endpoint:
    """Asks a model one question at a time; may be used by many tasks of one event loop.

    The key is read from OPENAI_API_KEY and appears in no message. The client never retries: that
    is decided in `remote` alone.

    Raises:
      ValueError: where address or model are missing, or the address is none.
    """

    def __init__(self, config: JudgeConfig):
        for name in ("endpoint", "model"):
            if not getattr(config, name):
                raise ValueError(f"config.judge.{name}: empty, a remote judge needs it")
        if not config.endpoint.startswith(("http://", "https://")):
            raise ValueError(
                f"config.judge.endpoint: {config.endpoint!r}, expected http:// or https:// in front"
            )
        self._config = config
        self._key = os.environ.get("OPENAI_API_KEY", "")
        self._client = openai.AsyncOpenAI(
            api_key=self._key or "none", base_url=config.endpoint, max_retries=0, timeout=None
        )
        self._limit = "max_tokens"  # what the server calls it

    async def ask(self, question: str) -> tuple[str, float]:
        """Returns the reply to one user turn, and for how long the server wants to be left alone.

        Takes `config.timeout` seconds at most, however slowly the server sends.

        Raises:
          Trouble, Declined, Refused: where there is no reply.
        """
        with self._explained():
            async with asyncio.timeout(self._config.timeout):
                response = await self._send(question)
                return reply_of(response.content), wait_of(response.headers, limited=False)

    async def _send(self, question: str) -> Any:
        c = self._config
        try:
            raw = await self._client.chat.completions.with_raw_response.create(
                model=c.model, messages=[{"role": "user", "content": question}],
                temperature=c.temperature, top_p=c.top_p, extra_body={self._limit: c.max_tokens},
            )  # fmt: skip
        except openai.BadRequestError as error:
            if error.param != "max_tokens" or self._limit != "max_tokens":
                raise
            self._limit = "max_completion_tokens"  # the newer name, of models that reason
            return await self._send(question)
        return raw.http_response

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """Turns whatever can happen on the way into our three exceptions."""
        try:
            yield
        except TimeoutError:
            raise Trouble(f"no whole reply within {self._config.timeout:g} s") from None
        except openai.APIStatusError as error:
            raise self._status(error) from None
        except openai.APIConnectionError as error:
            cause = error.__cause__ or error
            raise Trouble(self._clean(f"{type(cause).__name__}: {cause}")) from None

    def _status(self, error: openai.APIStatusError) -> Exception:
        status, told = error.status_code, " - " in error.message
        said = self._clean(error.message if told else f"{error.message} - {error.response.text}")
        if error.code == "insufficient_quota":
            return self._refused(said)
        if status in _LATER or status >= 500:
            limited = status in (429, 503)
            return Trouble(said, wait_of(error.response.headers, limited=limited))
        if status == 400 and (error.code in _OWN_FAULT or "maximum context length" in said):
            return Declined(said)
        return self._refused(said)

    def _refused(self, said: str) -> Refused:
        c = self._config
        return Refused(
            f"config.judge.endpoint: {c.endpoint} refuses config.judge.model={c.model!r}: {said}"
        )

    def _clean(self, said: str) -> str:
        """Returns a server's words on one line, without the key, should it repeat it."""
        said = " ".join(said.split())
        return (said.replace(self._key, "***") if self._key else said)[:300]

    async def close(self) -> None:
        """Closes all connections."""
        await self._client.close()


def reply_of(body: bytes) -> str:
    """Returns the text of a chat completion.

    Raises:
      Trouble: where `body` is not a whole one.
      Declined: where it is, and holds no finished text.
    """
    try:
        data = json.loads(body)
    except (ValueError, RecursionError):
        raise Trouble(f"the reply is no whole JSON document: {body[:60]!r}") from None
    choices = data.get("choices") if isinstance(data, dict) else None
    if not isinstance(choices, list) or len(choices) != 1 or not isinstance(choices[0], dict):
        raise Trouble(f"the reply is no chat completion: {body[:60]!r}")
    message, reason = choices[0].get("message"), choices[0].get("finish_reason")
    if not isinstance(message, dict) or not isinstance(reason, str):
        raise Trouble("the reply does not say how it ended")
    if reason == "length":
        raise Declined("the reply was cut at config.judge.max_tokens")
    if reason != "stop":
        raise Declined(f"the reply ended with {reason!r}")
    if message.get("refusal") or message.get("tool_calls") or message.get("function_call"):
        raise Declined("the reply is a refusal or the call of a tool")
    text = message.get("content")
    if not isinstance(text, str) or not text.strip():
        raise Declined("the reply has no text")
    return text


def wait_of(headers: Mapping[str, str], *, limited: bool) -> float:
    """Returns for how many seconds a server wants nothing to be asked; LONGEST_WAIT at most.

    Args:
      headers: of its answer, by lower-case name: retry-after (seconds or a date), retry-after-ms,
        x-ratelimit-remaining-* and x-ratelimit-reset-* of requests and of tokens.
      limited: whether the answer says that there was too much to do. Otherwise only an allowance
        that is used up counts.
    """
    said = []
    if limited:
        said = [
            seconds * unit
            for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0))
            if (seconds := seconds_of(headers.get(name, ""))) is not None
        ][:1]
    if not said:
        resets = {
            kind: seconds_of(headers.get(f"x-ratelimit-reset-{kind}", ""))
            for kind in ("requests", "tokens")
        }
        used_up = [
            kind
            for kind in resets
            if headers.get(f"x-ratelimit-remaining-{kind}", "").strip() == "0"
        ]
        kinds = used_up or (list(resets) if limited else [])
        said = [seconds for kind in kinds if (seconds := resets[kind]) is not None]
    return min(max(said, default=0.0), LONGEST_WAIT)


def seconds_of(text: str) -> float | None:
    """Returns a duration such as "1.5", "6m0s" or "120ms", or the time until a date; else None."""
    text = text.strip()
    with contextlib.suppress(ValueError):
        seconds = float(text)
        if seconds != seconds:  # NaN
            return None
        return max(0.0, seconds - time.time() if seconds > _EPOCH else seconds)
    parts = _DURATION.findall(text)
    if parts and "".join(number + unit for number, unit in parts) == text:
        return sum(float(number) * _UNITS[unit] for number, unit in parts)
    with contextlib.suppress(ValueError):
        date = email.utils.parsedate_to_datetime(text)
        if date.tzinfo is None:
            date = date.replace(tzinfo=datetime.UTC)
        return max(0.0, date.timestamp() - time.time())
    return None
