"""Compiles kernels, the engine and the head of Llama-3.1-8B for GPUs that are not there.

bash launch/compile_gpu.sh [WORD ...]        (only targets and programs with one of the words)

No GPU is needed, only JAX's CUDA plugin. The engine's programs are compiled for two layers: the
others are the same; `plan.memory` compiles all. The table says for each program whether it
compiles, what it is given, what it needs besides, how often it writes a weight or the pool before
using it, and how many collectives move one of them. Exit 1 where a program does not compile, needs
more than a tenth of the pool of all layers, or does one of the last two.
"""

import dataclasses
import math
import os
import re
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any
from unittest import mock

os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import NamedSharding, PartitionSpec

from stair_jax import mesh as mesh_lib
from stair_jax import ops, xla_flags
from stair_jax.engine import decode, placing, sampling
from stair_jax.engine.batch import COLUMNS
from stair_jax.engine.siblings import Siblings
from stair_jax.model import cache, transformer
from stair_jax.model.groups import SharedPrefixCache
from stair_jax.model.spec import Spec
from stair_jax.plan import gpu_text
from stair_jax.plan.target import DESCRIPTIONS, GPU_OPTIONS, NO_TUNING

# As a run sets them, and what the caller adds; autotuning would run candidates on a GPU. XLA reads
# them when JAX first asks for a topology.
os.environ["XLA_FLAGS"] = " ".join([*xla_flags.OVERLAP, os.environ.get("XLA_FLAGS", ""), NO_TUNING])
OPTIONS = dict(GPU_OPTIONS)
TARGETS = DESCRIPTIONS
LLAMA_8B = Spec(
    L=32,
    D=4096,
    N=32,
    K=8,
    H=128,
    F=14336,
    V=128256,
    vocab=128256,
    eps=1e-5,
    theta=5e5,
    rope_scaling=None,
    qkv_bias=False,
    qk_norm=False,
    tied=False,
    family="llama",
)
LAYERS = 2
SLOTS, WIDTH, PAGE, PAGES, CHUNK = 256, 64, 16, 16384, 8  # the pool holds 262,144 tokens, 34 GB
PROMPTS, BLOCK = 8, 256  # rows and tokens of one call of extend
CANDIDATES = 64
LOGITS = (SLOTS, LLAMA_8B.V)  # of a step
READINGS = 3  # of all logits: their largest and their sum; and the drawn tokens are looked up
TRAINED, HEAD_CHUNK = 4 * 4096, 1024  # positions of a training step, and of a chunk of its logits
POOL_SHARE = 0.1  # of the pool of all layers that temporaries may take


@dataclasses.dataclass(frozen=True)
class Compiled:
    """What is worth knowing of a compiled program, in bytes on one device."""

    arguments: int
    temporaries: int
    calls: tuple[str, ...]  # what is not XLA's own: kernels and libraries
    written: list[str]  # weights that are written to memory before they are used
    moved: list[str]  # collectives of weights or the pool
    passes: list[str]  # readings of all logits, where that is all it does


def mesh_of(target: str, shape: Sequence[int]) -> jax.sharding.Mesh:
    """Returns a mesh of a shape over GPUs of a target."""
    topology = topologies.get_topology_desc(
        topology_name=target,
        platform="cuda",
        target_config=(TARGETS / f"{target}.txt").read_text(),
        topology=f"1x1x{math.prod(shape)}",
    )
    return mesh_lib.make(shape, topology.devices)


def parted(words: Sequence[str], known: Sequence[str]) -> tuple[list[str], list[str]]:
    """Returns the targets among the words, or all that are known, and the other words."""
    chosen = [target for target in known if target in words]
    return chosen or list(known), [word for word in words if word not in known]


def failure(error: Exception) -> str:
    """Returns what a table says of a program that does not compile."""
    return f"FAILED: {type(error).__name__}: {str(error).splitlines()[0][:200]}"


def placed(tree: Any, mesh: jax.sharding.Mesh, axes: Any = None) -> Any:
    """Returns shapes with the engine's shardings; replicated without `axes`."""
    if axes is None:
        where = jax.tree.map(lambda _: NamedSharding(mesh, PartitionSpec()), tree)
    else:
        where = mesh_lib.shardings(axes, mesh, tree, rules=mesh_lib.ENGINE_RULES)
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, where
    )


def ints(*shape: int) -> jax.ShapeDtypeStruct:
    """Returns the shape of an array of int32."""
    return jax.ShapeDtypeStruct(shape, jnp.int32)


@dataclasses.dataclass(frozen=True)
class EngineShapes:
    """Shapes of what the engine has on its mesh, and what makes programs of them."""

    mesh: jax.sharding.Mesh
    decoder: transformer.Decoder
    params: Any
    pool: cache.KVPool

    @classmethod
    def on(cls, mesh: jax.sharding.Mesh, spec: Spec, pages: int = PAGES) -> "EngineShapes":
        """Returns a model in bfloat16. Not to be called with the mesh set: it computes."""
        empty = partial(cache.empty_pool, spec, pages=pages, page_size=PAGE)
        pool = jax.eval_shape(partial(empty, dtype=jnp.bfloat16))
        axes = cache.KVPool(k=cache.POOL_AXES, v=cache.POOL_AXES)
        return cls(
            mesh,
            transformer.Decoder(spec, jnp.bfloat16),
            placing.planned(spec, mesh, dtype=jnp.bfloat16, joined=True).tree,
            placed(pool, mesh, axes),
        )

    @property
    def spec(self) -> Spec:
        """Returns the model's sizes."""
        return self.decoder.spec


def kernel(model: EngineShapes, rows: int, queries: int, width: int, dtype: Any) -> Any:
    """Returns attention over pages, lowered."""
    s = LLAMA_8B
    pages = 2 * PAGES // jnp.dtype(dtype).itemsize  # as many bytes for every dtype
    pool = jax.ShapeDtypeStruct((s.L, pages, s.K, PAGE, s.H), dtype)
    q = jax.ShapeDtypeStruct((rows, s.K, queries, s.H), dtype)
    args = placed((q, pool, pool, ints(), ints(rows, width), ints(rows)), model.mesh)
    attend = partial(ops.paged_attention, scale=s.H**-0.5, implementation="pallas")
    return jax.jit(attend).lower(*args)


def largest(model: EngineShapes) -> Any:
    """Returns the candidates among all logits of a step, lowered."""
    logits = jax.ShapeDtypeStruct((SLOTS, LLAMA_8B.V), jnp.float32)
    return jax.jit(partial(ops.top_k, k=CANDIDATES)).lower(placed(logits, model.mesh))


def drawing(model: EngineShapes) -> Any:
    """Returns the draw of a step's tokens, whatever their settings, lowered."""
    shape = jax.ShapeDtypeStruct
    words, floats = shape((SLOTS, 2), jnp.uint32), shape((SLOTS,), jnp.float32)
    args = shape(LOGITS, jnp.float32), words, ints(SLOTS), floats, ints(SLOTS), floats, floats
    program = jax.jit(partial(sampling.draw, candidates=CANDIDATES))
    return program.lower(*placed(args, model.mesh))


def extend(model: EngineShapes, *, fresh: bool) -> Any:
    """Returns a block of prompts, lowered; `fresh`: the first."""
    width = BLOCK // PAGE if fresh else WIDTH
    args = ints(PROMPTS, BLOCK), ints(PROMPTS), ints(PROMPTS), ints(PROMPTS, width)
    return decode.extend.lower(
        model.params, model.pool, *placed(args, model.mesh), decoder=model.decoder, fresh=fresh
    )


def chunk(model: EngineShapes, attention: str, *, siblings: bool) -> Any:
    """Returns a chunk of decoding, lowered."""
    shared = Siblings.empty(SLOTS // 4, SLOTS, WIDTH).arrays() if siblings else {}
    groups = SharedPrefixCache(model.pool, **placed(shared, model.mesh), implementation=attention)
    stops = jax.ShapeDtypeStruct((3, model.spec.V), jnp.bool)
    args = ints(SLOTS, len(COLUMNS)), ints(SLOTS, WIDTH), stops, ints()
    plan = decode.DecodePlan(model.decoder, CHUNK, model.spec.V, CANDIDATES, logps=False)
    return decode.decode_chunk.lower(model.params, groups, *placed(args, model.mesh), plan=plan)


def packed(model: EngineShapes) -> Any:
    """Returns attention of packed rows with its gradient, as training runs it, lowered."""
    s, rows, length = LLAMA_8B, 8, 2048
    q, k = (jax.ShapeDtypeStruct((rows, length, n, s.H), jnp.bfloat16) for n in (s.N, s.K))

    def total(q: jax.Array, k: jax.Array, v: jax.Array, reach: jax.Array) -> jax.Array:
        out = ops.attention(q, k, v, reach=reach, implementation="cudnn")
        return out.astype(jnp.float32).sum()

    gradient = jax.jit(jax.grad(total, argnums=(0, 1, 2)))
    return gradient.lower(*placed((q, k, k, ints(rows, length)), model.mesh))


def head(model: EngineShapes) -> Any:
    """Returns the head's log-probs with their gradient, lowered."""
    s = LLAMA_8B
    shapes = (
        jax.ShapeDtypeStruct((TRAINED, s.D), jnp.bfloat16),
        jax.ShapeDtypeStruct((s.V, s.D), jnp.float32),
        ints(TRAINED),
        jax.ShapeDtypeStruct((TRAINED,), jnp.bool),
    )

    def total(*args: Any) -> jax.Array:
        return ops.linear_logp(*args, vocab=s.V, chunk=HEAD_CHUNK)[0].sum()

    program = jax.jit(jax.value_and_grad(total, argnums=(0, 1)))
    return program.lower(*placed(shapes, model.mesh))


def copy(model: EngineShapes) -> Any:
    """Returns the copy of pages, lowered."""
    pairs = placed((ints(SLOTS), ints(SLOTS)), model.mesh)
    return decode.copy_pages.lower(model.pool, *pairs)


PROGRAMS: dict[str, tuple[int, Callable[[EngineShapes], Any]]] = {
    "kernel, 256 slots": (1, partial(kernel, rows=256, queries=4, width=64, dtype="bfloat16")),
    "kernel, 64 groups of 4": (1, partial(kernel, rows=64, queries=16, width=64, dtype="bfloat16")),
    "kernel, 1 slot, 8k tokens": (
        1,
        partial(kernel, rows=1, queries=4, width=512, dtype="bfloat16"),
    ),
    "kernel, float32": (1, partial(kernel, rows=16, queries=4, width=64, dtype="float32")),
    "top 64 of the vocabulary": (1, largest),
    "draw, any settings": (1, drawing),
    "extend, first block": (1, partial(extend, fresh=True)),
    "extend, later block": (1, partial(extend, fresh=False)),
    "decode, xla": (1, partial(chunk, attention="xla", siblings=False)),
    "decode, pallas": (1, partial(chunk, attention="pallas", siblings=False)),
    "decode, pallas, siblings": (1, partial(chunk, attention="pallas", siblings=True)),
    "attention of packed rows": (1, packed),
    "copy pages": (1, copy),
    "head, value and gradient": (1, head),
    "extend, first block, 8 GPUs": (8, partial(extend, fresh=True)),
    "extend, later block, 8 GPUs": (8, partial(extend, fresh=False)),
    "decode, pallas, siblings, 8 GPUs": (8, partial(chunk, attention="pallas", siblings=True)),
    "copy pages, 8 GPUs": (8, copy),
}


def executable(model: EngineShapes, lowered: Callable[[EngineShapes], Any]) -> Any:
    """Returns the compiled program of what `lowered` makes of a model."""
    # What the operations ask before they choose an implementation: answered as the target would.
    asked = mock.patch.object(jax, "default_backend", return_value="gpu")
    with jax.set_mesh(model.mesh), asked:
        return lowered(model).compile(compiler_options=OPTIONS)


def compiled(target: str, name: str) -> Compiled:
    """Compiles one program for one target."""
    devices, lowered = PROGRAMS[name]
    spec = dataclasses.replace(LLAMA_8B, L=LAYERS)
    program = executable(EngineShapes.on(mesh_of(target, (1, 1, devices)), spec), lowered)
    memory, hlo = program.memory_analysis(), program.as_text()
    calls = {name.rpartition("$")[2] for name in re.findall(r'custom_call_target="([^"]+)"', hlo)}
    text = gpu_text.parse(hlo)
    served = lowered not in (packed, head)  # training's are bound for `plan.training`
    return Compiled(
        memory.argument_size_in_bytes,
        memory.temp_size_in_bytes,
        tuple(sorted(calls)),
        gpu_text.written(text) if served else [],
        gpu_text.moved(text) if served else [],
        gpu_text.passes(text, 4 * math.prod(LOGITS)) if lowered is drawing else [],
    )


def report(target: str, name: str) -> bool:
    """Compiles and prints a line of the table; returns whether all is well."""
    line, start = f"{target:<5} {name:<33}", time.process_time()
    try:
        found = compiled(target, name)
    except Exception as error:  # whatever it is, it belongs into the table
        print(f"{line} {failure(error)}", flush=True)
        return False
    s, devices = LLAMA_8B, PROGRAMS[name][0]
    pool = 4 * s.L * PAGES * s.K * PAGE * s.H / devices
    wrong = [
        *(["TOO MUCH"] if found.temporaries > POOL_SHARE * pool else []),
        *(f"WRITES {what}" for what in sorted(set(found.written))),
        *(f"MOVES {what}" for what in sorted(set(found.moved))),
        *(f"READS THE LOGITS: {what}" for what in found.passes[READINGS:]),
    ]
    print(
        f"{line} {found.arguments / 1e9:8.2f} {found.temporaries / 1e6:10.1f}"
        f" {len(found.written):7} {len(found.moved):6} {time.process_time() - start:6.0f}"
        f" {' '.join(found.calls)}{''.join(f'{chr(10)}      {line}' for line in wrong)}",
        flush=True,
    )
    return not wrong


def main(words: Sequence[str]) -> int:
    """Prints a table of the programs named by any of the words; returns the exit code."""
    print(f"jax {jax.__version__}, {LAYERS} layers of Llama-3.1-8B, on one device:")
    print("GPU   program                           given GB besides MB  writes  moves  CPU s calls")
    chosen, rest = parted(words, sorted(path.stem for path in TARGETS.glob("*.txt")))
    names = [n for n in PROGRAMS if not rest or any(word in n for word in rest)]
    well = [report(target, name) for target in chosen for name in names]
    return 0 if all(well) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
