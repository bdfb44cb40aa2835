"""The server against its own engine on the same prompts, and how soon a first token comes.

    python -m benchmarks.serving --out FILE.json [--checkpoint FOLDER]

The miniature's model with random weights, or a Hugging Face folder's, answers chats of the
miniature's prompts with so many tokens each. The engine alone is handed all requests at once; the
server is asked over loopback by another process, with 1 client and with as many as there are slots,
whole and streamed. Engine and server are one and the same engine, and take turns. Last, four
answers are drawn of each prompt, to see how much of the prompts was computed more than once.
"""

import argparse
import asyncio
import json
import pathlib
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks import harness
from benchmarks.harness import Claim

SLOTS, REQUESTS, TOKENS, REPETITIONS = 16, 64, 48, 5
CONTEXT = 256
RATIO = 0.8  # of the engine's tokens a second that should come through the server


def main(argv: Sequence[str] | None = None) -> None:
    """Measures, or asks a server as the client of a measurement."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] == ["--client"]:
        print(json.dumps(asyncio.run(ask(words[1], json.loads(sys.stdin.read())))))
        return
    parser = harness.parser_of(__doc__ or "")
    parser.add_argument("--checkpoint", default="", help="a Hugging Face folder; random otherwise")
    parser.add_argument("--requests", type=int, default=REQUESTS)
    parser.add_argument("--repetitions", type=int, default=REPETITIONS)
    harness.run(harness.parse(parser, words), measure, tables)


# The client's side


async def ask(url: str, plan: Mapping[str, Any]) -> dict[str, float]:
    """Asks chats with some clients at once.

    Args:
      url: of the server, up to /v1.
      plan: `model`, `prompts`, `tokens` of an answer, `clients`, `stream`, `n`.

    Returns:
      `seconds`, `tokens` of the answers, `first_s`, the median time to a first token of a stream.
    """
    import httpx2

    todo, firsts, drawn = list(plan["prompts"]), [], 0

    async def client() -> None:
        nonlocal drawn
        async with httpx2.AsyncClient(timeout=600) as http:
            while todo:
                body = {
                    "model": plan["model"],
                    "messages": [{"role": "user", "content": todo.pop()}],
                    "max_tokens": plan["tokens"],
                    "n": plan["n"],
                    "temperature": 1.0 if plan["n"] > 1 else 0.0,
                }
                count = await one(http, body)  # first: others add to the sum meanwhile
                drawn += count

    async def one(http: httpx2.AsyncClient, body: dict[str, Any]) -> int:
        if not plan["stream"]:
            answer = await http.post(f"{url}/chat/completions", json=body)
            return answer.raise_for_status().json()["usage"]["completion_tokens"]
        body |= {"stream": True, "stream_options": {"include_usage": True}}
        began, last = time.perf_counter(), ""
        async with http.stream("POST", f"{url}/chat/completions", json=body) as answer:
            async for line in answer.aiter_lines():
                if line.startswith("data: {"):
                    if not last:
                        firsts.append(time.perf_counter() - began)
                    last = line
        return json.loads(last.removeprefix("data: "))["usage"]["completion_tokens"]

    began = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(plan["clients"])))
    seconds = time.perf_counter() - began
    first = {"first_s": statistics.median(firsts)} if firsts else {}
    return {"seconds": seconds, "tokens": float(drawn), **first}


# The server's side


class Serving:
    """A model behind a server in a thread of this process."""

    def __init__(self, checkpoint: str, folder: pathlib.Path):
        from configs import tiny
        from stair_jax.config import default
        from stair_jax.log.metrics import Metrics
        from stair_jax.run.lineage import Lineage
        from stair_jax.run.workdir import Run
        from stair_jax.serve import running, served
        from stair_jax.serve.limits import Limits

        config = default() if checkpoint else tiny.get_config()
        if checkpoint:
            config.model.checkpoint = checkpoint
        config.workdir = str(folder)
        config.engine.update(slots=SLOTS, max_context=CONTEXT, pool_bytes=0)
        config.mesh.update(shape=(1, 1, 1), replicas=0)
        run = Run(config, folder, Lineage(folder / "lineage.json"), Metrics(folder))
        (self.model,) = served.load(run, ["base"], search=False)
        listening = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{listening.getsockname()[1]}/v1"
        begun = threading.Event()

        servers: list[Any] = []

        def started(_: Any, server: Any) -> None:
            servers.append(server)
            begun.set()

        limits = Limits(slots=SLOTS)
        work = running.listen([self.model], listening, limits, on_start=started)
        self._thread = threading.Thread(target=asyncio.run, args=(work,))
        self._thread.start()
        begun.wait()
        self._server = servers[0]

    def close(self) -> None:
        """Ends the server."""
        self._server.should_exit = True
        self._thread.join()

    def alone(self, prompts: Sequence[str], turn: int) -> dict[str, float]:
        """Returns what the engine takes for the same prompts, handed to it all at once."""
        from stair_jax.engine.request import GREEDY, Request

        engine, codec = self.model.engine, self.model.codec
        with harness.Watch() as watch:
            held = [engine.root(codec.prompt_ids(prompt)) for prompt in prompts]
            results = engine.generate(
                [
                    Request(
                        id=("alone", turn, i),
                        prefix=prefix,
                        key=("alone", i),
                        stop="end",
                        max_tokens=TOKENS,
                        sampling=GREEDY,
                    )
                    for i, prefix in enumerate(held)
                ]
            )
        for prefix in (*held, *(result.prefix for result in results)):
            engine.release(prefix)
        tokens = sum(len(result.ids) for result in results)
        return {"seconds": watch.seconds, "tokens": float(tokens), "per_s": tokens / watch.seconds}

    def asked(self, prompts: Sequence[str], **plan: Any) -> dict[str, float]:
        """Returns what another process takes that asks the server."""
        plan = {"model": "base", "prompts": prompts, "tokens": TOKENS, "n": 1, **plan}
        words = [sys.executable, "-m", "benchmarks.serving", "--client", self.url]
        done = subprocess.run(
            words, input=json.dumps(plan), check=True, stdout=subprocess.PIPE, text=True
        )
        found = json.loads(done.stdout.splitlines()[-1])
        return {**found, "per_s": found["tokens"] / found["seconds"]}


def measure(options: argparse.Namespace) -> tuple[dict[str, Any], dict[str, Claim]]:
    """Returns the figures of all sides, and what is claimed of them."""
    from stair_jax.miniature import splits

    prompts = [prompt.question for prompt in splits.round_prompts(1, 0, options.requests)]
    with tempfile.TemporaryDirectory() as name:
        serving = Serving(options.checkpoint, pathlib.Path(name))
        try:
            sides = {
                "engine": lambda turn: serving.alone(prompts, turn),
                "16 clients": lambda _: serving.asked(prompts, clients=SLOTS, stream=False),
                "16 streams": lambda _: serving.asked(prompts, clients=SLOTS, stream=True),
                "1 stream": lambda _: serving.asked(prompts[:6], clients=1, stream=True),
            }
            harness.alternate(sides, 1)  # whatever is compiled is compiled here
            rounds = harness.alternate(sides, options.repetitions)
            shared = _shared(serving, prompts)
        finally:
            serving.close()
    ratios = {side: harness.ratio(rounds, "per_s", side, "engine") for side in sides}
    firsts = {side: harness.median(rounds, side, "first_s") for side in ("16 streams", "1 stream")}
    claims = {
        "server_to_engine": Claim(ratios["16 clients"], ">=", RATIO),
        "streams_to_engine": Claim(ratios["16 streams"], ">=", RATIO),
        "prompt_tokens_computed_once": Claim(shared["computed"] / shared["unique"], "<=", 1.0),
    }
    facts = {"slots": SLOTS, "requests": len(prompts), "tokens": TOKENS}
    figures = {"machine": harness.machine("fastapi", "uvicorn"), **facts, "rounds": rounds}
    figures |= {"checkpoint": pathlib.Path(options.checkpoint).name, "ratios": ratios}
    return {**figures, "first_token_s": firsts, "best_of_4": shared}, claims


def _shared(serving: Serving, prompts: Sequence[str]) -> dict[str, float]:
    """Returns how many tokens of prompts were computed for four answers each, and how many are."""
    engine = serving.model.engine
    before = dict(engine.counters)
    serving.asked(prompts, clients=4, stream=False, n=4)
    after = engine.counters
    unique = sum(len(serving.model.codec.prompt_ids(prompt)) - 1 for prompt in prompts)
    computed, reused = (after[name] - before[name] for name in ("prefilled", "reused"))
    return {"unique": unique, "computed": computed, "reused": reused}


def tables(figures: Mapping[str, Any]) -> str:
    """Returns the figures as a table."""
    rounds = figures["rounds"]
    rows = [
        (
            side,
            harness.median(rounds, side, "per_s"),
            ratio,
            figures["first_token_s"].get(side),
        )
        for side, ratio in figures["ratios"].items()
    ]
    title = (
        f"{figures['requests']} chats, {figures['slots']} slots, {figures['tokens']} tokens each"
    )
    return harness.table(title, ("", "tokens/s", "to the engine", "first token, s"), rows)


if __name__ == "__main__":
    main()
