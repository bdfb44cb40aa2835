"""/v1/completions: text or tokens that go on, without a chat template, and their log-probs.

Text is plain text: what looks like a tag in it becomes no tag. Of tokens, the special ones are
refused, but for the one that begins a text.
"""

import secrets
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

from fastapi import Request, Response
from fastapi.responses import JSONResponse

from stair_jax import text
from stair_jax.engine.likelihood import Told
from stair_jax.serve import asking, logprobs, pieces, streams
from stair_jax.serve.desk import Desk, Visit, unless_gone
from stair_jax.serve.errors import ApiError
from stair_jax.serve.events import Read
from stair_jax.serve.pieces import Parts, Reply
from stair_jax.serve.protocol import CompletionRequest
from stair_jax.serve.served import Drawing, Served

_USUAL = 16  # tokens of an answer where nothing is asked for, as OpenAI's
Ids = tuple[int, ...]


class CompletionHandler:
    """Answers completions.

    Args:
      desk: the server's state.
    """

    def __init__(self, desk: Desk):
        self._desk = desk

    async def answer(self, body: CompletionRequest, request: Request) -> Response:
        """Answers a completion, whole or as a stream."""
        _check(body)
        model = self._desk.model(body.model)
        prompts = prompts_of(body, model)
        rooms = [
            asking.room_for(model, ids, body.max_tokens, _USUAL, self._desk.limits)
            for ids in prompts
        ]
        drawing = Drawing(
            prompts=tuple(prompts),
            keys=asking.keys_of(body),
            max_tokens=min(rooms),
            sampling=asking.sampling_of(body),
            grows=bool(body.stream or body.stops),
        )
        count = len(prompts) * len(drawing.keys)
        visit = Visit(self._desk, model, count, stream=bool(body.stream))
        with streams.closing_on_error(visit):
            work = _Work(self._desk, visit, body, drawing)
            if body.stream:
                return streams.streamed(self._desk, visit, work.events())
            found = await unless_gone(request, work.whole())
        visit.close()
        return JSONResponse(found)


class _Work:
    """One request for completions."""

    def __init__(self, desk: Desk, visit: Visit, body: CompletionRequest, drawing: Drawing):
        self._desk, self._visit, self._body, self._drawing = desk, visit, body, drawing
        self._model, self._each = visit.model, len(drawing.keys)
        codec = self._model.codec
        count = len(drawing.prompts) * self._each
        self._replies = [Reply(codec, pieces.raw, body.stops) for _ in range(count)]
        self._head = {
            "id": f"cmpl-{secrets.token_hex(12)}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": self._model.name,
        }

    async def whole(self) -> dict[str, Any]:
        """Returns the whole answer."""
        ends = dict.fromkeys(range(len(self._replies)), "length")
        async for index, _, finish in self._growth():
            ends[index] = finish or ends[index]
        found: Sequence[Any] = [None] * len(self._replies)
        if self._body.logprobs is not None:
            found = await self._logprobs(self._body.logprobs)
        choices = [
            self._choice(index, self._echoed(index) + reply.shown.content, ends[index], own)
            for index, (reply, own) in enumerate(zip(self._replies, found, strict=True))
        ]
        return {**self._head, "choices": choices, "usage": self._usage()}

    async def events(self) -> AsyncIterator[str]:
        """Yields the events of a stream."""
        begun: set[int] = set()
        try:
            async for index, parts, finish in self._growth():
                said = parts.content if index in begun else self._echoed(index) + parts.content
                begun.add(index)
                if said or finish:
                    choice = self._choice(index, said, finish or None, None)
                    yield streams.line({**self._head, "choices": [choice]})
            usage, options = self._usage(), self._body.stream_options
            if options is not None and options.include_usage:
                yield streams.line({**self._head, "choices": [], "usage": usage})
            yield streams.DONE
        except ApiError as error:
            yield streams.line(error.body)

    async def _growth(self) -> AsyncIterator[tuple[int, Parts, str]]:
        """Yields what is drawn; nothing where nothing was to be."""
        if not self._drawing.max_tokens:
            return
        ticket = self._visit.holds(self._desk.worker.draw(self._model, self._drawing))
        async for grown in self._visit.growth(ticket, self._replies):
            yield grown

    def _prompt(self, index: int) -> Ids:
        return self._drawing.prompts[index // self._each]

    def _echoed(self, index: int) -> str:
        if not self._body.echo:
            return ""
        return logprobs.text_of(self._model.codec, self._prompt(index))

    async def _logprobs(self, top: int) -> list[dict[str, Any]]:
        """Returns those of each answer, and of its prompt where that is echoed."""
        rows = [(*self._prompt(i), *reply.ids) for i, reply in enumerate(self._replies)]
        long = [row for row in rows if len(row) > 1]
        told: list[Told] = []
        if long:
            ticket = self._visit.holds(self._desk.worker.read(self._model, long, top))
            event = await self._visit.event(ticket)
            assert isinstance(event, Read)
            told = event.told
        left = iter(told)
        return [
            logprobs.of_completion(
                self._model.codec,
                row,
                next(left) if len(row) > 1 else None,
                0 if self._body.echo else len(self._prompt(i)),
            )
            for i, row in enumerate(rows)
        ]

    def _choice(
        self, index: int, said: str, finish: str | None, found: dict[str, Any] | None
    ) -> dict[str, Any]:
        return {"index": index, "text": said, "logprobs": found, "finish_reason": finish}

    def _usage(self) -> dict[str, Any]:
        prompt_tokens = sum(map(len, self._drawing.prompts))
        return self._visit.count(prompt_tokens, sum(len(reply.ids) for reply in self._replies))


def _check(body: CompletionRequest) -> None:
    """Refuses what cannot be, or would be ignored."""
    asking.check_stream(body)
    if body.best_of is not None and body.best_of != (body.n or 1):
        raise ApiError(
            400, f"best_of: {body.best_of}, expected as many as n ({body.n or 1})", param="best_of"
        )
    if body.logprobs is not None and (body.stream or body.stops):
        raise ApiError(400, "logprobs: not with stream or stop", param="logprobs")
    if body.max_tokens == 0 and not body.echo:
        raise ApiError(400, "max_tokens: 0, and echo is off: nothing to answer", param="max_tokens")


def prompts_of(body: CompletionRequest, model: Served) -> list[Ids]:
    """Returns the prompts of a request as ids.

    Raises:
      ApiError: for an empty text, or tokens that a client may not send.
    """
    given: Any = body.prompt
    several = isinstance(given, list) and not isinstance(given[0], int)
    return [_ids_of(one, model) for one in (given if several else [given])]


def _ids_of(prompt: str | Sequence[int], model: Served) -> Ids:
    codec = model.codec
    if isinstance(prompt, str):
        ids = codec.encode(text.escape(prompt, codec.specials))
        if not ids:
            raise ApiError(400, "prompt: empty, expected text of a token or more", param="prompt")
        return tuple(ids)
    if (largest := max(prompt)) >= codec.size:
        raise ApiError(400, f"prompt: token {largest}, expected below {codec.size}", param="prompt")
    inner = prompt[1:] if prompt[0] in model.begins else prompt
    if found := model.special_ids.intersection(inner):
        shown = ", ".join(map(str, sorted(found)[:5]))
        raise ApiError(
            400,
            f"prompt: special tokens within it ({shown}), which only the server may set; chats are"
            " asked at /v1/chat/completions",
            param="prompt",
            code="special_tokens",
        )
    return tuple(prompt)
