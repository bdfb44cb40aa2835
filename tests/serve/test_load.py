"""Many clients at once: nothing is lost, no page stays, and memory does not grow."""

import asyncio
import collections
import contextlib
import pathlib
import random

import httpx2
import pytest

from tests.support import serving

CLIENTS, REQUESTS = 64, 1000
GROWTH = 24 << 20  # bytes that the second half of the requests may add; the first warms caches up
KINDS = ("whole", "stream", "left", "cut", "echo", "search", "bad")


def memory():
    """Bytes of this process that lie in memory."""
    for line in pathlib.Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) << 10
    pytest.skip("this system does not say what memory a process has")


async def one(client, kind, number):
    """Asks one request; returns what became of it."""
    chat = {"model": "sft", "messages": [{"role": "user", "content": "what can you do ?"}]}
    loop = {"model": "sft", "prompt": ["loop", "one"][number % 2], "max_tokens": 5 + number % 70}
    if kind == "left":  # a client that goes away in the middle of a stream
        async with client.stream("POST", "/v1/completions", json=loop | {"stream": True}) as answer:
            async for _ in answer.aiter_lines():
                break
        return answer.status_code == 200
    if kind == "cut":  # one that does not wait for its answer
        with contextlib.suppress(httpx2.TimeoutException):
            await client.post("/v1/completions", json=loop, timeout=0.05)
        return True
    body = {
        "whole": chat,
        "stream": chat | {"stream": True},
        "echo": loop | {"prompt": "what can you do", "echo": True, "logprobs": 1, "max_tokens": 1},
        "search": chat | {"search": "best_of_2", "temperature": 0.5},
        "bad": chat | {"unknown": 1},
    }[kind]
    path = "/v1/completions" if kind == "echo" else "/v1/chat/completions"
    answer = await client.post(path, json=body)
    if kind == "bad":
        return answer.status_code == 400
    if kind == "stream":
        return answer.status_code == 200 and answer.text.endswith("data: [DONE]\n\n")
    if kind == "echo":
        return len(answer.json()["choices"][0]["logprobs"]["tokens"]) == 5
    return answer.json()["choices"][0]["message"]["content"] == serving.CONTENT


async def all_of(server, count, seed):
    """Asks with CLIENTS at once; returns (kind, whether it went well) of each request."""
    draws, found = random.Random(seed), []
    todo = [(draws.choice(KINDS), number) for number in range(count)]

    async def client():
        limits = httpx2.Limits(max_connections=1)
        async with httpx2.AsyncClient(base_url=server.root, timeout=600, limits=limits) as http:
            while todo:
                kind, number = todo.pop()
                found.append((kind, await one(http, kind, number)))

    await asyncio.gather(*(client() for _ in range(CLIENTS)))
    return found


@pytest.mark.slow
def test_a_thousand_requests_of_all_kinds_by_64_clients(tmp_path):
    model = serving.serve_model(tmp_path, search=True, slots=16)
    with serving.serving([model], queue=4 * CLIENTS) as server:
        sizes, counts = [], collections.Counter()
        for part in range(4):
            found = asyncio.run(all_of(server, REQUESTS // 4, part))
            serving.wait_until(lambda: server.desk.gate.inside == 0)
            serving.wait_until(lambda: serving.pages_used(model) == 0)
            counts.update(found)
            sizes.append(memory())
        assert sum(counts.values()) == REQUESTS
        assert {kind: counts[kind, False] for kind in KINDS} == dict.fromkeys(KINDS, 0)
        assert model.engine.idle
        assert not serving.pages_held(model)
        assert not server.desk.worker._draws
        assert not server.desk.worker._searches
        print({kind: counts[kind, True] for kind in KINDS}, [size >> 20 for size in sizes])
        assert sizes[-1] - sizes[1] < GROWTH
