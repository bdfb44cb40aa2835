"""/v1/chat/completions: the answer is the content, and the steps before it stand apart.

The server owns the turn that it answers with: nothing that a client sends stands in it, unless the
reward model is asked about it first. What looks like a tag or a special token in a client's text
stays plain text.
"""

import dataclasses
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

from fastapi import Request, Response
from fastapi.responses import JSONResponse

from stair_jax import text
from stair_jax.config import strategies
from stair_jax.config.strategies import GREEDY, MCTS, Strategy
from stair_jax.engine.likelihood import Told
from stair_jax.records import Prompt
from stair_jax.serve import asking, logprobs, pieces, streams
from stair_jax.serve.desk import Desk, Visit, unless_gone
from stair_jax.serve.errors import ApiError
from stair_jax.serve.pieces import Parts, Reply
from stair_jax.serve.protocol import ChatRequest, Message
from stair_jax.serve.searching import Search
from stair_jax.serve.served import Drawing, Served
from stair_jax.serve.worker import Judged, Read, Searched
from stair_jax.text import Turn


class Question:
    """The turns of a chat, as plain text. `ids` are those of the prompt; `begun` follows them.

    Args:
      messages: of the client.
      model: that is asked.
      begins: whether the last turn may be the beginning of the answer.

    Raises:
      ApiError: where a system turn is not the first, or the last is not the user's.
    """

    def __init__(self, messages: Sequence[Message], model: Served, *, begins: bool = False):
        # An assistant's earlier turn keeps tags in the codec, and a client must have none.
        codec = model.codec
        turns = [(m.role, text.escape(m.said, codec.specials)) for m in messages]
        self.begun: tuple[int, ...] = ()
        if begins and turns[-1][0] == "assistant":
            *turns, (_, said) = turns
            self.begun = tuple(codec.encode(said))
        roles = [role for role, _ in turns] or ["nobody"]
        if "system" in roles[1:]:
            raise ApiError(
                400, "messages: a system turn that is not the first one", param="messages"
            )
        if roles[-1] == "assistant":
            raise ApiError(
                400,
                "messages: the last turn is the assistant's; the server begins its answers itself,"
                " so that nothing is put into its mouth",
                param="messages",
                code="assistant_prefix",
            )
        if roles[-1] != "user":
            raise ApiError(400, "messages: the last turn is not the user's", param="messages")
        *before, (_, self.last) = turns
        self.before: tuple[Turn, ...] = tuple(before)
        self.ids = (*codec.prompt_ids(self.last, self.before), *self.begun)


class ChatHandler:
    """Answers chats.

    Args:
      desk: the server's state.
    """

    def __init__(self, desk: Desk):
        self._desk = desk

    async def answer(self, body: ChatRequest, request: Request) -> Response:
        """Answers a chat, whole or as a stream."""
        asking.check_stream(body)
        model = self._desk.model(body.model)
        begins = self._desk.limits.prefix_least is not None and model.reward_model is not None
        question = Question(body.messages, model, begins=begins)
        if (strategy := _strategy(body, model)) is not None:
            return await self._search(body, request, model, question, strategy)
        if (body.logprobs or body.top_logprobs is not None) and (body.stream or body.stops):
            raise ApiError(400, "logprobs: not with stream or stop", param="logprobs")
        if body.top_logprobs is not None and not body.logprobs:
            raise ApiError(400, "top_logprobs: only with logprobs", param="top_logprobs")
        drawing = Drawing(
            prompts=(question.ids,),
            keys=asking.keys_of(body),
            max_tokens=self._room(body, model, question),
            sampling=asking.sampling_of(body),
            grows=bool(body.stream or body.stops),
        )
        visit = Visit(self._desk, model, len(drawing.keys), stream=bool(body.stream))
        with streams.closing_on_error(visit):
            if question.begun:
                await unless_gone(request, self._judge(visit, question))
            ticket = visit.holds(self._desk.worker.draw(model, drawing))
            replies = [Reply(model.codec, view_of(model), body.stops) for _ in drawing.keys]
            growth = visit.growth(ticket, replies)
            if body.stream:
                events = _Stream(body, model.name).events(
                    growth, lambda: self._usage(visit, question, replies)
                )
                return streams.streamed(self._desk, visit, events)
            work = self._whole(body, visit, question, replies, growth)
            found = await unless_gone(request, work)
        visit.close()
        return JSONResponse(found)

    async def _judge(self, visit: Visit, question: Question) -> None:
        """Refuses a beginning that the reward model finds too little of."""
        size, least = len(question.begun), self._desk.limits.prefix_least
        ids = question.ids[:-size]
        event = await visit.event(
            visit.holds(self._desk.worker.judge(visit.model, ids, question.begun))
        )
        assert isinstance(event, Judged)
        assert least is not None
        if event.unit is None or event.unit < least:
            raise ApiError(
                400,
                "messages: the reward model finds too little of how the last turn begins an answer",
                param="messages",
                code="assistant_prefix",
            )

    def _room(self, body: ChatRequest, model: Served, question: Question) -> int:
        if body.max_tokens is not None and body.max_completion_tokens is not None:
            raise ApiError(
                400, "max_tokens and max_completion_tokens: expected one", param="max_tokens"
            )
        wanted = body.max_completion_tokens or body.max_tokens
        usual = model.guided.max_tokens
        return asking.room_for(model, question.ids, wanted, usual, self._desk.limits)

    async def _whole(
        self,
        body: ChatRequest,
        visit: Visit,
        question: Question,
        replies: Sequence[Reply],
        growth: AsyncIterator[tuple[int, Parts, str]],
    ) -> dict[str, Any]:
        ends: dict[int, str] = {}
        async for index, _, finish in growth:
            if finish:
                ends[index] = finish
        found: list[dict[str, Any] | None] = [None] * len(replies)
        if body.logprobs:
            found = await self._logprobs(visit, question, replies, body.top_logprobs or 0)
        choices = [
            _choice(index, reply.shown, ends[index], found[index])
            for index, reply in enumerate(replies)
        ]
        return _completion(visit.model, choices, self._usage(visit, question, replies))

    def _usage(self, visit: Visit, question: Question, replies: Sequence[Reply]) -> dict[str, Any]:
        usage: dict[str, Any] = visit.count(
            len(question.ids), sum(len(reply.ids) for reply in replies)
        )
        steps = sum(_answer_of(visit.model, reply.ids)[0] for reply in replies)
        return {**usage, "completion_tokens_details": {"reasoning_tokens": steps}}

    async def _logprobs(
        self, visit: Visit, question: Question, replies: Sequence[Reply], top: int
    ) -> list[dict[str, Any] | None]:
        """Returns those of the answers' tokens, and none of the steps before them."""
        rows = [(*question.ids, *reply.ids) for reply in replies]
        ticket = visit.holds(self._desk.worker.read(visit.model, rows, top))
        event = await visit.event(ticket)
        assert isinstance(event, Read)
        found: list[dict[str, Any] | None] = []
        for reply, told in zip(replies, event.told, strict=True):
            first, last = _answer_of(visit.model, reply.ids)
            at = len(question.ids) - 1  # of the answer's first token among those told of
            own = Told(*(part[at + first : at + last] for part in told))
            found.append(logprobs.of_chat(visit.model.codec, reply.ids[first:last], own))
        return found

    async def _search(
        self,
        body: ChatRequest,
        request: Request,
        model: Served,
        question: Question,
        strategy: Strategy,
    ) -> Response:
        """Answers by a search; a stream of it has its answer in one piece."""
        asking.check_temperature(body)
        if question.begun:
            raise ApiError(
                400,
                "messages: a search begins its answers itself",
                param="messages",
                code="assistant_prefix",
            )
        config = dataclasses.replace(
            model.guided, max_tokens=self._room(body, model, question), **_drawn_by(body)
        )
        seed = secrets.randbits(62) if body.seed is None else body.seed
        prompt = Prompt(
            id=f"serve-{seed}", question=question.last, type="helpfulness", before=question.before
        )
        search = Search(strategy=strategy, prompt=prompt, config=config)
        # A tree asks for a few continuations at a time, all others for as many as they say.
        count = self._desk.limits.slots if strategy.kind == MCTS else strategy.width * strategy.each
        visit = Visit(self._desk, model, count)
        try:
            ticket = visit.holds(self._desk.worker.search(model, search))
            event = await unless_gone(request, visit.event(ticket))
        finally:
            visit.close()
        assert isinstance(event, Searched)
        found = event.found
        parts = view_of(model)(_without_end(model, found.text), True)
        usage = visit.count(len(question.ids), found.tokens)
        told = {"name": strategy.name, "score": found.score, "scored_tokens": found.scored}
        finish = "length" if found.cut else "stop"
        if not body.stream:
            answer = _completion(model, [_choice(0, parts, finish, None)], usage)
            return JSONResponse({**answer, "search": told})

        async def growth() -> AsyncIterator[tuple[int, Parts, str]]:
            yield 0, parts, finish

        events = _Stream(body, model.name).events(growth(), lambda: usage)
        return streams.streamed(self._desk, visit, events)


def view_of(model: Served) -> Any:
    """Returns what a reader sees of a model's responses."""
    return pieces.direct if model.direct else pieces.reasoned


def _strategy(body: ChatRequest, model: Served) -> Strategy | None:
    """Returns how an answer is searched; None where it is simply drawn.

    Raises:
      ApiError: for a search that cannot be, or an option that it would ignore.
    """
    if body.search is None:
        return None
    try:
        strategy = strategies.parse(body.search)
    except ValueError as error:
        raise ApiError(400, f"search: {error}", param="search") from None
    if strategy.of.truth:
        raise ApiError(
            400, f"search: {strategy.name} needs the truth, which nobody knows here", param="search"
        )
    if strategy.of.reads and model.reward_model is None:
        raise ApiError(
            400,
            f"search: {strategy.name} asks a reward model; start the server with --search",
            param="search",
        )
    if strategy == GREEDY:
        if body.temperature:
            raise ApiError(400, "temperature: greedy search draws nothing", param="temperature")
        return None
    given = {"n": (body.n or 1) > 1, "stop": body.stops, "min_p": body.min_p}
    given |= {"logprobs": body.logprobs, "top_logprobs": body.top_logprobs is not None}
    for name, value in given.items():
        if value:
            raise ApiError(400, f"{name}: not with search {strategy.name}", param=name)
    return strategy


def _drawn_by(body: ChatRequest) -> dict[str, Any]:
    """Returns the settings of a search's draws that a request changes."""
    names = "temperature", "top_p", "top_k"
    return {name: getattr(body, name) for name in names if getattr(body, name) is not None}


def _answer_of(model: Served, ids: Sequence[int]) -> tuple[int, int]:
    """Returns where a response's answer begins and ends, in its tokens."""
    last = len(ids) - (1 if ids and ids[-1] in model.codec.end_stop else 0)
    if model.direct:
        return 0, last
    opened = ids.index(model.output_id) + 1 if model.output_id in ids else len(ids)
    return min(opened, last) if opened <= last else last, last


def _without_end(model: Served, said: str) -> str:
    """Returns a response's text without the token that ends a turn."""
    for end in model.codec.tokenizer.convert_ids_to_tokens(sorted(model.codec.end_ids)):
        if end and said.endswith(end):
            return said.removesuffix(end)
    return said


def _choice(index: int, parts: Parts, finish: str, found: dict[str, Any] | None) -> dict[str, Any]:
    message = {"role": "assistant", "content": parts.content, "refusal": None}
    if parts.reasoning:
        message["reasoning_content"] = parts.reasoning
    return {"index": index, "message": message, "logprobs": found, "finish_reason": finish}


def _completion(
    model: Served, choices: list[dict[str, Any]], usage: dict[str, Any]
) -> dict[str, Any]:
    return {
        "id": f"chatcmpl-{secrets.token_hex(12)}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": model.name,
        "choices": choices,
        "usage": usage,
    }


class _Stream:
    """The events of one streamed answer."""

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
        self, growth: AsyncIterator[tuple[int, Parts, str]], usage: Any
    ) -> AsyncIterator[str]:
        """Yields the role of each answer, its pieces, its end, and last of all the usage."""
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
                    yield self._event(index, {}, finish)
            counted = usage()
            if self._wants_usage:
                yield streams.line({**self._head, "choices": [], "usage": counted})
            yield streams.DONE
        except ApiError as error:
            yield streams.line(error.body)

    def _event(self, index: int, delta: dict[str, str], finish: str | None = None) -> str:
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish}
        return streams.line({**self._head, "choices": [choice]})
