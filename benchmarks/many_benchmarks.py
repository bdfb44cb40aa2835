"""Programs compiled and slots busy when the same prompts are 1, 4 or 16 benchmarks.

    python -m benchmarks.many_benchmarks --out FILE.json

Evaluates the tiny model with random weights, in a process for each count, on the miniature's
harmless prompts, cut into so many benchmarks. All prompts go through one engine together, so
neither figure should depend on the count.
"""

import argparse
import contextlib
import dataclasses
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks import harness
from benchmarks.harness import Claim

COUNTS = (1, 4, 16)
PROMPTS, SLOTS, TOKENS = 64, 8, 32
_COMPILED = "backend_compile_duration"  # the end of the event that XLA's compilations record


def main(argv: Sequence[str] | None = None) -> None:
    """Measures each count in a process of its own; prints and writes the figures."""
    harness.run(harness.parse(harness.parser_of(__doc__ or ""), argv), measure, tables)


def measure(options: argparse.Namespace) -> tuple[dict[str, Any], dict[str, Claim]]:
    """Returns the figures of all counts, and what is claimed of them."""
    del options
    found = {str(count): _in_process(count) for count in COUNTS}
    few, many = found[str(COUNTS[0])], found[str(COUNTS[-1])]
    claims = {
        "programs_more": Claim(many["programs"] - few["programs"], "<=", 0),
        "busy_slots_ratio": Claim(many["busy_slots"] / few["busy_slots"], ">=", 0.98),
    }
    facts = {"prompts": PROMPTS, "slots": SLOTS, "tokens": TOKENS}
    return {"machine": harness.machine(), **facts, "by_count": found}, claims


def tables(figures: Mapping[str, Any]) -> str:
    """Returns the figures as a table."""
    names = ("programs", "busy_slots", "delivered", "seconds")
    rows = [(count, *(of[name] for name in names)) for count, of in figures["by_count"].items()]
    title = f"{figures['prompts']} prompts, {figures['slots']} slots"
    return harness.table(title, ("benchmarks", *names), rows)


def _in_process(count: int) -> dict[str, Any]:
    harness.say(f"{count} benchmarks")
    words = [sys.executable, "-m", "benchmarks.many_benchmarks", "--count", str(count)]
    done = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def evaluated(count: int, prompts: int = PROMPTS, tokens: int = TOKENS) -> dict[str, Any]:
    """Evaluates prompts as so many benchmarks, in this process, which has compiled nothing yet.

    Args:
      count: of benchmarks.
      prompts: in all.
      tokens: of an answer at most.

    Returns:
      `programs`, XLA's compilations of the whole process; `busy_slots`, the share of slot-steps
      that drew a token; `delivered` tokens; `seconds` of the run.
    """
    import jax

    from configs import tiny
    from stair_jax import pipeline
    from stair_jax.engine import counters
    from stair_jax.run import models

    compiled, engines, make = [], [], models.engine_for
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, duration_secs, **_: compiled.extend([event] * event.endswith(_COMPILED))
    )

    def kept(*args: Any) -> Any:
        engines.append(make(*args))
        return engines[-1]

    c = tiny.get_config()
    c.stages, c.engine.slots, c.mesh.replicas = "evaluate", SLOTS, 1
    names = ",".join(_registered(count, prompts))
    c.evaluate.update(benchmarks=names, max_tokens=tokens, search="greedy")
    models.engine_for = kept  # the run keeps its engine, and with it the counters, to itself
    begun = time.monotonic()
    try:
        with tempfile.TemporaryDirectory() as c.workdir, contextlib.redirect_stdout(sys.stderr):
            pipeline.run(c)
    finally:
        models.engine_for = make
    (engine,) = engines
    return {
        "programs": len(compiled),
        "busy_slots": counters.shares(engine.counters)["busy_share"],
        "delivered": int(engine.counters["delivered"]),
        "seconds": time.monotonic() - begun,
    }


def _registered(count: int, prompts: int) -> list[str]:
    """Registers benchmarks that have the miniature's harmless prompts among them; their names."""
    from stair_jax.evals.benchmark import register, registered

    whole = registered()["harmless"]
    every, names = whole.load([], "test")[:prompts], []
    for number in range(count):
        name = f"part_{number:02d}"
        part = [
            dataclasses.replace(prompt, id=f"{name}/{place:03d}")
            for place, prompt in enumerate(every[number::count])
        ]
        columns = [column._replace(benchmark=name) for column in whole.columns]
        one = dataclasses.replace(
            whole, name=name, columns=columns, load=lambda rows, split, part=part: part
        )
        register(one)
        names.append(name)
    return names


if __name__ == "__main__":
    if sys.argv[1:2] == ["--count"]:
        print(json.dumps(evaluated(int(sys.argv[2]))))
    else:
        main()
