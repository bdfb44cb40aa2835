"""What searching and training need on GPUs of 80 GB, as compiled: all layers, no GPU.

python -m stair_jax.plan.memory [--out FILE.json] [WORD ...]    (in `compile_gpu.sh`'s environment)

The engine's programs are those of 256 slots and the pool that the row names; the trainers' are
those of `plan.training`. Each takes minutes: they are compiled one after the other. It prints a
Markdown table. A GPU of 80 GB has 85.1e9 bytes, of which an engine may take `engine.memory` or what
JAX takes of it; fits is said of 80e9 x 0.92, what drivers and libraries leave. Exit 1 where a
program does not compile or fit.
"""

# First: it chooses JAX's platform.
from stair_jax.plan.engine import (
    LLAMA_8B,
    PAGE,
    EngineShapes,
    chunk,
    copy,
    executable,
    extend,
    failure,
    mesh_of,
    parted,
)

# isort: split
import argparse
import dataclasses
import json
import pathlib
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax

from stair_jax.model.spec import Spec
from stair_jax.plan import training as training_lib
from stair_jax.plan.training import DPO, ROOM, SCORER, TOKENS
from stair_jax.train.losses import Sft

QWEN2_7B = Spec(
    L=28,
    D=3584,
    N=28,
    K=4,
    H=128,
    F=18944,
    V=152064,
    vocab=152064,
    eps=1e-6,
    theta=1e6,
    rope_scaling=None,
    qkv_bias=True,
    qk_norm=False,
    tied=False,
    family="qwen2",
)
LEAST = 200_000  # tokens of a pool
SERVING: dict[str, Callable[[EngineShapes], Any]] = {
    "decode": partial(chunk, attention="pallas", siblings=True),
    "extend, first block": partial(extend, fresh=True),
    "extend, later block": partial(extend, fresh=False),
    "copy pages": copy,
}
ENGINES = {  # name: sizes, GPUs of the tensor axis
    "8B search, one GPU (tensor 1; eight: the same on each)": (LLAMA_8B, 1),
    "Qwen2-7B engine, tensor 1": (QWEN2_7B, 1),
    "Qwen2-7B engine, tensor 4": (QWEN2_7B, 4),
}
LORA = dataclasses.replace(DPO, reference="lora_base")
STEPS: dict[str, tuple[tuple[int, int, int], Any, dict[str, Any]]] = {
    "8B DPO LoRA, one GPU, 8k tokens": ((1, 1, 1), LORA, {"low_rank": True, "tokens": TOKENS // 8}),
    "8B SFT, eight GPUs, 8k tokens each": ((1, 8, 1), Sft(SCORER), {}),
    "8B DPO, eight GPUs, 8k tokens each": ((1, 8, 1), DPO, {}),
}


def serving(target: str, engine: str, program: str) -> Any:
    """Returns a compiled program of an engine, and no bytes beside it."""
    spec, tensor = ENGINES[engine]
    model = EngineShapes.on(mesh_of(target, (1, 1, tensor)), spec, pages=-(-LEAST // PAGE))
    return executable(model, SERVING[program]), 0


def training(target: str, step: str) -> Any:
    """Returns the compiled pass of a step, and the bytes of the moments that lie beside it."""
    shape, loss, how = STEPS[step]
    return training_lib.compiled(loss, mesh_of(target, shape), **how)


def programs() -> dict[str, Callable[[str], Any]]:
    """Returns what compiles each row of the table for a target."""
    engines = {
        f"{engine}: {program}": partial(serving, engine=engine, program=program)
        for engine in ENGINES
        for program in SERVING
    }
    return engines | {step: partial(training, step=step) for step in STEPS}


def row(target: str, name: str, make: Callable[[str], Any]) -> dict[str, Any]:
    """Returns the figures of a program, or why it does not compile."""
    start = time.process_time()
    found: dict[str, Any] = {"gpu": target, "name": name, "fits": False}
    try:
        program, beside = make(target)
        memory = program.memory_analysis()
    except Exception as error:  # whatever it is, it belongs into the table
        return found | {"error": failure(error)}
    given, besides = memory.argument_size_in_bytes + beside, memory.temp_size_in_bytes
    # What is donated is given and returned in one place; the rest of the results comes on top.
    fresh = memory.output_size_in_bytes - memory.alias_size_in_bytes
    return found | {
        "given_bytes": given,
        "temp_bytes": besides,
        "fresh_bytes": fresh,
        "fits": given + besides + fresh <= ROOM,
        "cpu_s": time.process_time() - start,
    }


def main(words: list[str]) -> int:
    """Prints the table; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=pathlib.Path, help="JSON file of the figures")
    parser.add_argument("words", nargs="*")
    options = parser.parse_args(words)
    targets, rest = parted(options.words, ("a100", "h100"))
    print(f"jax {jax.__version__}, a pool of {LEAST:,} tokens, on one GPU:\n")
    print("| GPU | program | given GB | besides GB | fits 80 GB | CPU s to compile |")
    print("|-|-|-|-|-|-|")
    rows = []
    for name, make in programs().items():
        for target in targets if not rest or any(word in name for word in rest) else ():
            rows.append(found := row(target, name, make))
            figures = found.get("error") or " | ".join(
                [
                    f"{found['given_bytes'] / 1e9:.2f}",
                    f"{(found['temp_bytes'] + found['fresh_bytes']) / 1e9:.2f}",
                    "yes" if found["fits"] else "NO",
                    f"{found['cpu_s']:.0f}",
                ]
            )
            print(f"| {target} | {name} | {figures} |", flush=True)
            if options.out:
                options.out.write_text(json.dumps({"jax": jax.__version__, "rows": rows}, indent=1))
    return 0 if all(found["fits"] for found in rows) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
