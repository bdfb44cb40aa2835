"""One request to an OpenAI-compatible endpoint: a whole reply comes back, or why there is none.

Replies are asked for in one piece, neither streamed nor compressed. What a server says is handed on
without the secrets of the environment, should it repeat them.
"""

import asyncio
import contextlib
import datetime
import email.utils
import logging
import re
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from typing import Any

import httpx2
import openai
from openai.types.chat import ChatCompletionMessageParam

from stair_jax.config import redaction
from stair_jax.config.schema import JudgeConfig
from stair_jax.config.words import split_csv
from stair_jax.remote.complaints import (
    LONGEST_REASON,
    Complaint,
    Declined,
    Refused,
    Trouble,
    complaint_of,
    exception_of,
)
from stair_jax.remote.naming import JUDGE, Naming
from stair_jax.remote.replies import reply_of
from stair_jax.text import Turn

log = logging.getLogger(__name__)

LONGEST_WAIT = 300.0  # seconds, whatever a server wishes
LARGEST_REPLY = 8 << 20  # bytes of an answer, whatever a server sends
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_EPOCH = 1e9  # a number of seconds above it is a date


class Endpoint:
    """Asks a model one question at a time; may be used by many tasks of one event loop.

    The key is read from OPENAI_API_KEY and appears in no message. The client never retries: that
    is decided in `client` alone. `answered` is True once a reply came.

    A setting that the server does not take is left out of all further requests, which is logged.

    Args:
      config: of the endpoint.
      system: a system turn before every question; "": none.
      naming: of the settings, for messages.

    Raises:
      ValueError: where address or model are missing, where the address is none, or where the key
        cannot be sent.
    """

    def __init__(self, config: JudgeConfig, system: str = "", naming: Naming = JUDGE):
        for name, key in (("endpoint", naming.endpoint), ("model", naming.model)):
            if not getattr(config, name):
                raise ValueError(f"config.{key}: empty, a remote model needs its {name}")
        redaction.check_address(naming.endpoint, config.endpoint)
        self._naming = naming
        self.answered = False
        self._config, self._system = config, system
        self._left_out = set(split_csv(config.leave_out))
        self._limit = "max_tokens"  # what the server calls it
        self._client = openai.AsyncOpenAI(
            api_key=redaction.key() or "none",
            base_url=config.endpoint,
            max_retries=0,
            timeout=None,
            default_headers={"Accept-Encoding": "identity"},
            http_client=openai.DefaultAsyncHttpxClient(event_hooks={"response": [_look]}),
        )

    async def ask(
        self, question: str, before: Sequence[Turn] = (), seed: int | None = None
    ) -> tuple[str, float]:
        """Returns the reply to a user turn, and for how long the server wants to be left alone.

        Takes `config.timeout` seconds at most, however slowly the server sends.

        Args:
          question: the user turn.
          before: earlier turns, a system turn first where there is one.
          seed: of the draws, for servers that take one; None is not sent.

        Raises:
          Trouble, Declined, Refused: where there is no reply.
        """
        # All that is sent: words that a server repeats of it say nothing.
        said = "\n".join([*(content for _, content in before), question])
        with self._explained(said):
            async with asyncio.timeout(self._config.timeout):
                response = await self._send(self._messages(question, before), said, seed)
                reply = reply_of(response.content, said, answered=self.answered)
        self.answered = True
        return redaction.hide(reply), wait_of(response.headers, limited=False)

    async def _send(
        self, messages: list[ChatCompletionMessageParam], said: str, seed: int | None
    ) -> Any:
        """Returns the answer to messages, asked with the settings that the server takes."""
        sent = self._settings(seed)
        try:
            raw = await self._client.chat.completions.with_raw_response.create(
                model=self._config.model,
                messages=messages,
                extra_body=sent,
            )
        except openai.APIStatusError as error:
            complaint = complaint_of(error.status_code, error.response.content)
            if not self._leave_out(complaint, sent, said):
                raise
            return await self._send(messages, said, seed)
        return raw.http_response

    def _messages(self, question: str, before: Sequence[Turn]) -> list[ChatCompletionMessageParam]:
        system = [("system", self._system)] if self._system else []
        turns: Any = [
            {"role": role, "content": content}
            for role, content in (*system, *before, ("user", question))
        ]
        return turns

    def _settings(self, seed: int | None) -> dict[str, float]:
        c = self._config
        every = {"temperature": c.temperature, "top_p": c.top_p, "max_tokens": c.max_tokens}
        if seed is not None:
            every["seed"] = seed
        sent = {name: value for name, value in every.items() if name not in self._left_out}
        if "max_tokens" in sent and self._limit != "max_tokens":
            sent[self._limit] = sent.pop("max_tokens")
        return sent

    def _leave_out(self, complaint: Complaint, sent: Mapping[str, float], question: str) -> bool:
        """Leaves out the first setting that the server names, or calls it by its newer name.

        Returns whether there was one. Others may have noted it since the request was sent.
        """
        for name in ("top_p", "temperature", "max_tokens", "max_completion_tokens", "seed"):
            if name not in sent or not complaint.names(name, question):
                continue
            if name == "max_tokens":
                self._limit = "max_completion_tokens"  # the newer name, of models that reason
                return True
            setting = "max_tokens" if name == self._limit else name
            if setting not in self._left_out:
                self._left_out.add(setting)
                what = setting if setting == "seed" else f"config.{self._naming.draws}{setting}"
                said = f"{what} is left out, {_shown(complaint.message)}"
                log.warning("%s %s: %s", self._naming.endpoint, self._config.endpoint, said)
            return True
        return False

    @contextlib.contextmanager
    def _explained(self, question: str) -> Iterator[None]:
        """Turns whatever can happen on the way into our three exceptions, without secrets."""
        try:
            yield
        except TimeoutError:
            raise Trouble(f"no whole reply within {self._config.timeout:g} s") from None
        except openai.APIStatusError as error:
            raise self._without_secrets(self._status(error, question)) from None
        except openai.APIConnectionError as error:
            cause = error.__cause__ or error
            raise Trouble(_shown(f"{type(cause).__name__}: {cause}")) from None
        except (Trouble, Declined, Refused) as error:
            raise self._without_secrets(error) from None

    def _status(self, error: openai.APIStatusError, question: str) -> Exception:
        wait = wait_of(error.response.headers, limited=error.status_code in (429, 503))
        complaint = complaint_of(error.status_code, error.response.content)
        return exception_of(complaint, question, answered=self.answered, wait=wait)

    def _without_secrets(self, error: Exception) -> Exception:
        c, names, said = self._config, self._naming, _shown(str(error))
        if isinstance(error, Refused):
            who = f"config.{names.endpoint}: {c.endpoint} refuses config.{names.model}={c.model!r}"
            said = f"{who}: {said}"
        error.args = (said,)
        return error

    async def close(self) -> None:
        """Closes all connections."""
        await self._client.close()


def _shown(said: str) -> str:
    """Returns a server's words on one line, without secrets; cut last, so that no piece is left."""
    return redaction.hide(" ".join(said.split()))[:LONGEST_REASON]


async def _look(response: httpx2.Response) -> None:
    """Looks at an answer before it is read.

    Raises:
      Refused: where it sends the question on to another host.
      Trouble: where it is compressed, which was not asked for: its size would be unknown.
    """
    if response.has_redirect_location:
        there = httpx2.URL()
        with contextlib.suppress(httpx2.InvalidURL):
            there = response.url.join(response.headers["location"])
        if not _same_server(response.url, there):
            raise Refused(
                f"HTTP {response.status_code}: it sends the question on to another host,"
                f" {there.scheme}://{there.netloc.decode(errors='replace')}"
            )
    encoding = response.headers.get("content-encoding", "identity")
    if encoding.strip().lower() not in ("", "identity"):
        raise Trouble(f"the reply came compressed ({encoding}), which was not asked for")
    assert isinstance(response.stream, httpx2.AsyncByteStream)
    response.stream = _Bounded(response.stream)


def _same_server(here: httpx2.URL, there: httpx2.URL) -> bool:
    """Returns whether a redirect stays where it was, or merely turns to TLS."""
    before, after = (here.scheme, here.port), (there.scheme, there.port)
    to_tls = before == ("http", None) and after == ("https", None)
    return here.host == there.host and (before == after or to_tls)


class _Bounded(httpx2.AsyncByteStream):
    """A body of LARGEST_REPLY bytes at most."""

    def __init__(self, stream: httpx2.AsyncByteStream):
        self._stream = stream

    async def __aiter__(self) -> AsyncIterator[bytes]:
        size = 0
        async for part in self._stream:
            size += len(part)
            if size > LARGEST_REPLY:
                raise Trouble(f"the reply is larger than {LARGEST_REPLY} bytes")
            yield part

    async def aclose(self) -> None:
        await self._stream.aclose()


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
