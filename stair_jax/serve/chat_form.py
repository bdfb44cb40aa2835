"""The form of a chat's answer, whole or as events."""

import secrets
import time
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

from stair_jax.serve import streams
from stair_jax.serve.errors import ApiError
from stair_jax.serve.pieces import Parts
from stair_jax.serve.protocol import ChatRequest
from stair_jax.serve.served import Served


def choice_of(
    index: int, parts: Parts, finish: str, found: dict[str, Any] | None
) -> dict[str, Any]:
    """Returns one of a whole answer's choices; `found` are its log-probs."""
    message = {"role": "assistant", "content": parts.content, "refusal": None}
    if parts.reasoning:
        message["reasoning_content"] = parts.reasoning
    return {"index": index, "message": message, "logprobs": found, "finish_reason": finish}


def completion(
    model: Served, choices: list[dict[str, Any]], usage: dict[str, Any]
) -> dict[str, Any]:
    """Returns a whole answer."""
    return {
        "id": f"chatcmpl-{secrets.token_hex(12)}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": model.name,
        "choices": choices,
        "usage": usage,
    }


class ChatStream:
    """The events of one streamed answer.

    Args:
      body: of the request.
      model: the model's name.
    """

    def __init__(self, body: ChatRequest, model: str):
        options = body.stream_options
        self._wants_usage = options is not None and options.include_usage
        self._head = {
            "id": f"chatcmpl-{secrets.token_hex(12)}",
            "object": "chat.completion.chunk",
            "created": int(time.time()),
            "model": model,
        }

    async def events(
        self,
        growth: AsyncIterator[tuple[int, Parts, str]],
        usage: Callable[[], Any],
        more: Mapping[str, Any] | None = None,
    ) -> AsyncIterator[str]:
        """Yields the role of each answer, its pieces, its end, and last of all the usage.

        Args:
          growth: index of an answer, what is new of it, and "stop" or "length" with its end.
          usage: counts tokens, once.
          more: stands in the event that ends an answer.
        """
        begun: set[int] = set()
        try:
            async for index, parts, finish in growth:
                if index not in begun:
                    begun.add(index)
                    yield self._event(index, {"role": "assistant", "content": ""})
                if parts.reasoning:
                    yield self._event(index, {"reasoning_content": parts.reasoning})
                if parts.content:
                    yield self._event(index, {"content": parts.content})
                if finish:
                    yield self._event(index, {}, finish, more)
            counted = usage()
            if self._wants_usage:
                yield streams.line({**self._head, "choices": [], "usage": counted})
            yield streams.DONE
        except ApiError as error:
            yield streams.line(error.body)

    def _event(
        self,
        index: int,
        delta: dict[str, str],
        finish: str | None = None,
        more: Mapping[str, Any] | None = None,
    ) -> str:
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish}
        return streams.line({**self._head, "choices": [choice], **(more or {})})
