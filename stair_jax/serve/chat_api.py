"""/v1/chat/completions: the answer is the content, and the steps before it stand apart.

The server owns the turn that it answers with: nothing that a client sends stands in it, unless the
reward model is asked about it first. What looks like a tag or a special token in a client's text
stays plain text.
"""

from collections.abc import AsyncIterator, Sequence
from typing import Any

from fastapi import Request, Response
from fastapi.responses import JSONResponse

from stair_jax.engine.likelihood import Told
from stair_jax.serve import asking, chat_form, chat_search, logprobs, streams
from stair_jax.serve.chat_form import ChatStream
from stair_jax.serve.desk import Desk, Visit, unless_gone
from stair_jax.serve.errors import ApiError
from stair_jax.serve.events import Judged, Read
from stair_jax.serve.pieces import Parts, Reply
from stair_jax.serve.protocol import ChatRequest
from stair_jax.serve.questions import Question, answer_of, view_of
from stair_jax.serve.served import Drawing, Served


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
        if (strategy := chat_search.strategy_of(body, model)) is not None:
            return await chat_search.answer(
                self._desk, body, request, question, strategy, self._room(body, model, question)
            )
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
                events = ChatStream(body, model.name).events(
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
            chat_form.choice_of(index, reply.shown, ends[index], found[index])
            for index, reply in enumerate(replies)
        ]
        return chat_form.completion(visit.model, choices, self._usage(visit, question, replies))

    def _usage(self, visit: Visit, question: Question, replies: Sequence[Reply]) -> dict[str, Any]:
        usage: dict[str, Any] = visit.count(
            len(question.ids), sum(len(reply.ids) for reply in replies)
        )
        steps = sum(answer_of(visit.model, reply.ids)[0] for reply in replies)
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
            first, last = answer_of(visit.model, reply.ids)
            at = len(question.ids) - 1  # of the answer's first token among those told of
            own = Told(*(part[at + first : at + last] for part in told))
            found.append(logprobs.of_chat(visit.model.codec, reply.ids[first:last], own))
        return found
