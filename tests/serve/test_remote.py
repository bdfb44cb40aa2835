"""Our own server behind our own client: how a run asks a judge, and what its errors mean there."""

import asyncio

import pytest

from stair_jax.remote.complaints import Declined, Refused, Trouble
from stair_jax.remote.endpoint import Endpoint
from tests.support import remote, serving

__all__ = ["_direct"]
_direct = remote._direct


def ask(server, question="what can you do ?", before=(), **change):
    options = {"model": "sft", "max_tokens": 40, "timeout": serving.TIMEOUT_S} | change
    config = remote.config(server.url, **options)

    async def asked():
        endpoint = Endpoint(config, "do")
        try:
            return await endpoint.ask(question, before, 5)
        finally:
            await endpoint.close()

    return asyncio.run(asked())


def test_a_reply_is_the_answer_without_its_steps(server):
    assert ask(server, top_p=0.0) == (serving.CONTENT, 0.0)
    turns = (("user", "what"), ("assistant", "yes"))
    assert ask(server, before=turns, top_p=0.0)[0] == serving.CONTENT


def test_an_answer_that_was_cut_is_no_reply(server):
    with pytest.raises(Declined, match="cut at"):
        ask(server, max_tokens=4)


def test_an_unknown_model_is_about_every_question(server):
    with pytest.raises(Refused, match="model: not one of sft, plain, random"):
        ask(server, model="gpt")


def test_a_question_that_is_too_long_is_about_itself(server):
    with pytest.raises(Declined, match="maximum context length") as found:
        ask(server, "can " * 99)
    assert found.value.lasting


def test_a_server_that_is_full_is_left_alone_for_as_long_as_it_says(server):
    most = server.limits.slots + server.limits.queue
    server.desk.gate.enter(most)
    try:
        with pytest.raises(Trouble) as found:
            ask(server)
        assert found.value.wait >= 1
    finally:
        server.desk.gate.leave(most, 0.1)
