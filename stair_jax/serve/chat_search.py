"""Answers to chats that are found by test-time search."""

import dataclasses
import secrets
from collections.abc import AsyncIterator
from typing import Any

from fastapi import Request, Response
from fastapi.responses import JSONResponse

from stair_jax.config import strategies
from stair_jax.config.strategies import GREEDY, MCTS, Strategy
from stair_jax.records import Prompt
from stair_jax.serve import asking, chat_form, streams
from stair_jax.serve.chat_form import ChatStream
from stair_jax.serve.desk import Desk, Visit, unless_gone
from stair_jax.serve.errors import ApiError
from stair_jax.serve.events import Searched
from stair_jax.serve.pieces import Parts
from stair_jax.serve.protocol import ChatRequest
from stair_jax.serve.questions import Question, view_of, without_end
from stair_jax.serve.searching import Search
from stair_jax.serve.served import Served


async def answer(
    desk: Desk,
    body: ChatRequest,
    request: Request,
    question: Question,
    strategy: Strategy,
    max_tokens: int,
) -> Response:
    """Answers by a search; a stream of it has its answer in one piece.

    Args:
      desk: the server's state.
      body: of the request.
      request: whose client may hang up.
      question: of the chat.
      strategy: how the answer is found.
      max_tokens: of it.
    """
    model = desk.model(body.model)
    asking.check_temperature(body)
    if question.begun:
        raise ApiError(
            400,
            "messages: a search begins its answers itself",
            param="messages",
            code="assistant_prefix",
        )
    config = dataclasses.replace(model.guided, max_tokens=max_tokens, **_drawn_by(body))
    seed = secrets.randbits(62) if body.seed is None else body.seed
    prompt = Prompt(
        id=f"serve-{seed}", question=question.last, type="helpfulness", before=question.before
    )
    search = Search(strategy=strategy, prompt=prompt, config=config)
    # A tree asks for a few continuations at a time, all others for as many as they say.
    count = desk.limits.slots if strategy.kind == MCTS else strategy.width * strategy.each
    visit = Visit(desk, model, count)
    try:
        ticket = visit.holds(desk.worker.search(model, search))
        event = await unless_gone(request, visit.event(ticket))
    finally:
        visit.close()
    assert isinstance(event, Searched)
    found = event.found
    parts = view_of(model)(without_end(model, found.text), True)
    usage = visit.count(len(question.ids), found.tokens)
    told = {"name": strategy.name, "score": found.score, "scored_tokens": found.scored}
    finish = "length" if found.cut else "stop"
    if not body.stream:
        whole = chat_form.completion(model, [chat_form.choice_of(0, parts, finish, None)], usage)
        return JSONResponse({**whole, "search": told})

    async def growth() -> AsyncIterator[tuple[int, Parts, str]]:
        yield 0, parts, finish

    events = ChatStream(body, model.name).events(growth(), lambda: usage, {"search": told})
    return streams.streamed(desk, visit, events)


def strategy_of(body: ChatRequest, model: Served) -> Strategy | None:
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
