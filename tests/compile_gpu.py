"""Compiles kernels, the engine and the head of Llama-3.1-8B for GPUs that are not there.

bash launch/compile_gpu.sh [WORD ...]        (only programs with one of the words in their names)

No GPU is needed, only JAX's CUDA plugin. The table says for each program whether it compiles, what
it is given, what it needs besides, and how many MB of the layers' weights it copies: best none.
Exit 1 where a program does not compile, or needs more than a tenth of the pool.
"""

import dataclasses
import math
import os
import pathlib
import re
import sys
import time
from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Any
from unittest import mock

os.environ["JAX_PLATFORMS"] = "cpu"
# Autotuning would run candidates on the GPU.
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_gpu_autotune_level=0"

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import NamedSharding, PartitionSpec

from stair_jax import mesh as mesh_lib
from stair_jax import ops
from stair_jax.engine import decode
from stair_jax.engine.batch import COLUMNS
from stair_jax.engine.siblings import Siblings
from stair_jax.kernels import top_k  # pyright: ignore[reportAttributeAccessIssue]
from stair_jax.model import cache, transformer
from stair_jax.model.groups import Groups
from stair_jax.model.spec import Spec

TARGETS = pathlib.Path(__file__).parent / "gpu_targets"
LLAMA_8B = Spec(
    L=32, D=4096, N=32, K=8, H=128, F=14336, V=128256, vocab=128256, eps=1e-5, theta=5e5,
    rope_scaling=None, qkv_bias=False, qk_norm=False, tied=False, family="llama",
)  # fmt: skip
SLOTS, WIDTH, PAGE, PAGES, CHUNK = 256, 64, 16, 16384, 8  # the pool holds 262,144 tokens, 34 GB
PROMPTS, BLOCK = 8, 256  # rows and tokens of one call of extend
CANDIDATES = 64
TRAINED, HEAD_CHUNK = 4 * 4096, 1024  # positions of a training step, and of a chunk of its logits
POOL_SHARE = 0.1  # of the pool that temporaries may take


@dataclasses.dataclass(frozen=True)
class Compiled:
    """What is worth knowing of a compiled program, in bytes on one device."""

    arguments: int
    temporaries: int
    calls: tuple[str, ...]  # what is not XLA's own: kernels and libraries
    copied: int  # weights that are written to memory before they are used


def mesh_of(target: str, shape: Sequence[int]) -> jax.sharding.Mesh:
    """Returns a mesh of a shape over GPUs of a target."""
    topology = topologies.get_topology_desc(
        topology_name=target,
        platform="cuda",
        target_config=(TARGETS / f"{target}.txt").read_text(),
        topology=f"1x1x{math.prod(shape)}",
    )
    return mesh_lib.make(shape, topology.devices)


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
    return jax.ShapeDtypeStruct(shape, jnp.int32)


@dataclasses.dataclass(frozen=True)
class Model:
    """Shapes of what the engine has on its mesh, and what makes programs of them."""

    mesh: jax.sharding.Mesh
    decoder: transformer.Decoder
    params: Any
    pool: cache.KVPool

    @classmethod
    def on(cls, mesh: jax.sharding.Mesh) -> "Model":
        """Returns the 8B model in bfloat16. Not to be called with the mesh set: it computes."""
        draw = lambda: transformer.by_layer(transformer.init(LLAMA_8B, jax.random.key(0)))  # noqa: E731
        params = jax.eval_shape(draw)
        params = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16), params)
        empty = partial(cache.empty_pool, LLAMA_8B, pages=PAGES, page_size=PAGE)
        pool = jax.eval_shape(partial(empty, dtype=jnp.bfloat16))
        axes = cache.KVPool(k=cache.POOL_AXES, v=cache.POOL_AXES)
        return cls(
            mesh,
            transformer.Decoder(LLAMA_8B, jnp.bfloat16),
            placed(params, mesh, transformer.logical_axes_by_layer(LLAMA_8B)),
            placed(pool, mesh, axes),
        )

    @property
    def weights(self) -> set[int]:
        """Elements of a layer's matrices, on one device."""
        layers = [x for x in jax.tree.leaves(self.params["layers"]) if x.ndim > 1]
        return {math.prod(x.sharding.shard_shape(x.shape)) for x in layers}


def kernel(model: Model, rows: int, queries: int, width: int, dtype: Any) -> Any:
    s = LLAMA_8B
    pages = 2 * PAGES // jnp.dtype(dtype).itemsize  # as many bytes for every dtype
    pool = jax.ShapeDtypeStruct((s.L, pages, s.K, PAGE, s.H), dtype)
    q = jax.ShapeDtypeStruct((rows, s.K, queries, s.H), dtype)
    args = placed((q, pool, pool, ints(), ints(rows, width), ints(rows)), model.mesh)
    attend = partial(ops.paged_attention, scale=s.H**-0.5, implementation="pallas")
    return jax.jit(attend).lower(*args)


def largest(model: Model) -> Any:
    logits = jax.ShapeDtypeStruct((SLOTS, LLAMA_8B.V), jnp.float32)
    return jax.jit(partial(top_k.exact_top_k, k=CANDIDATES)).lower(placed(logits, model.mesh))


def extend(model: Model, *, fresh: bool) -> Any:
    width = BLOCK // PAGE if fresh else WIDTH
    args = ints(PROMPTS, BLOCK), ints(PROMPTS), ints(PROMPTS), ints(PROMPTS, width)
    return decode.extend.lower(
        model.params, model.pool, *placed(args, model.mesh), decoder=model.decoder, fresh=fresh
    )


def chunk(model: Model, attention: str, *, siblings: bool) -> Any:
    shared = Siblings.empty(SLOTS // 4, SLOTS, WIDTH).arrays() if siblings else {}
    groups = Groups(model.pool, **placed(shared, model.mesh), implementation=attention)
    stops = jax.ShapeDtypeStruct((3, LLAMA_8B.V), jnp.bool)
    args = ints(SLOTS, len(COLUMNS)), ints(SLOTS, WIDTH), stops, ints()
    plan = decode.Plan(model.decoder, CHUNK, LLAMA_8B.V, CANDIDATES, logps=False)
    return decode.decode_chunk.lower(model.params, groups, *placed(args, model.mesh), plan=plan)


def packed(model: Model) -> Any:
    """Attention of packed rows with its gradient, as training runs it."""
    s, rows, length = LLAMA_8B, 8, 2048
    q, k = (jax.ShapeDtypeStruct((rows, length, n, s.H), jnp.bfloat16) for n in (s.N, s.K))

    def total(q: jax.Array, k: jax.Array, v: jax.Array, reach: jax.Array) -> jax.Array:
        out = ops.attention(q, k, v, reach=reach, implementation="cudnn")
        return out.astype(jnp.float32).sum()

    gradient = jax.jit(jax.grad(total, argnums=(0, 1, 2)))
    return gradient.lower(*placed((q, k, k, ints(rows, length)), model.mesh))


def head(model: Model) -> Any:
    s = LLAMA_8B
    shapes = (
        jax.ShapeDtypeStruct((TRAINED, s.D), jnp.bfloat16),
        jax.ShapeDtypeStruct((s.V, s.D), jnp.float32),
        ints(TRAINED), jax.ShapeDtypeStruct((TRAINED,), jnp.bool),
    )  # fmt: skip

    def total(*args: Any) -> jax.Array:
        return ops.linear_logp(*args, vocab=s.V, chunk=HEAD_CHUNK)[0].sum()

    program = jax.jit(jax.value_and_grad(total, argnums=(0, 1)))
    return program.lower(*placed(shapes, model.mesh))


def copy(model: Model) -> Any:
    pairs = placed((ints(SLOTS), ints(SLOTS)), model.mesh)
    return decode.copy_pages.lower(model.pool, *pairs)


PROGRAMS: dict[str, tuple[int, Callable[[Model], Any]]] = {
    "kernel, 256 slots": (1, partial(kernel, rows=256, queries=4, width=64, dtype="bfloat16")),
    "kernel, 64 groups of 4": (1, partial(kernel, rows=64, queries=16, width=64, dtype="bfloat16")),
    "kernel, 1 slot, 8k tokens": (
        1,
        partial(kernel, rows=1, queries=4, width=512, dtype="bfloat16"),
    ),
    "kernel, float32": (1, partial(kernel, rows=16, queries=4, width=64, dtype="float32")),
    "top 64 of the vocabulary": (1, largest),
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


def compiled(target: str, name: str) -> Compiled:
    """Compiles one program for one target."""
    devices, lowered = PROGRAMS[name]
    model = Model.on(mesh_of(target, (1, 1, devices)))
    # What the operations ask before they choose an implementation: answered as the target would.
    asked = mock.patch.object(jax, "default_backend", return_value="gpu")
    with jax.set_mesh(model.mesh), asked:
        program = lowered(model).compile()
    memory, hlo = program.memory_analysis(), program.as_text()
    calls = {name.rpartition("$")[2] for name in re.findall(r'custom_call_target="([^"]+)"', hlo)}
    return Compiled(
        memory.argument_size_in_bytes,
        memory.temp_size_in_bytes,
        tuple(sorted(calls)),
        copied(hlo, model.weights),
    )


def copied(hlo: str, sizes: Collection[int]) -> int:
    """Returns the bytes of arrays of the given sizes that instructions write, each counted once.

    A scan over stacked weights would take a slice in every layer. Where XLA cannot give a product
    a place inside the stack it copies the slice first, and so reads all weights twice and writes
    them once in every step. What a fusion keeps to itself is not written.
    """
    total, loops = 0, {*re.findall(r"body=%([^\s,]+)", hlo)}
    for computation in re.split(r"\n(?=%|ENTRY)", hlo):
        first, *instructions = computation.splitlines()
        if first.startswith("ENTRY") or first.split(" ")[0].removeprefix("%") in loops:
            total += sum(map(partial(_written, sizes=sizes), instructions))
    return total


def _written(instruction: str, sizes: Collection[int]) -> int:
    """Returns the bytes of an instruction's result if that is new and of one of the sizes."""
    match = re.match(r"\s*(?:ROOT )?%\S+ = [bf]+16\[([\d,]+)\]\S* ([\w-]+)\(", instruction)
    views = {"parameter", "get-tuple-element", "bitcast"}
    if not match or match[2] in views or match[2].endswith("-start"):
        return 0
    size = math.prod(map(int, match[1].split(",")))
    return 2 * size if size in sizes else 0


def report(target: str, name: str) -> bool:
    """Compiles and prints a line of the table; returns whether all is well."""
    line, start = f"{target:<5} {name:<33}", time.perf_counter()
    try:
        found = compiled(target, name)
    except Exception as error:  # whatever it is, it belongs into the table
        print(f"{line} FAILED: {type(error).__name__}: {str(error).splitlines()[0][:200]}")
        return False
    s, devices = LLAMA_8B, PROGRAMS[name][0]
    pool = 4 * s.L * PAGES * s.K * PAGE * s.H / devices
    well = found.temporaries < POOL_SHARE * pool
    notes = " ".join(found.calls) + ("" if well else " TOO MUCH")
    print(
        f"{line} {found.arguments / 1e9:8.2f} {found.temporaries / 1e6:10.1f}"
        f" {found.temporaries / pool:8.2%} {found.copied / 1e6:8.0f}"
        f" {time.perf_counter() - start:7.1f} {notes}",
        flush=True,
    )
    return well


def main(words: Sequence[str]) -> int:
    """Prints the table of the programs whose names have one of the words; returns the exit code."""
    print(f"jax {jax.__version__}, on one device:")
    print("GPU   program                           given GB besides MB  of pool   copied seconds")
    names = [n for n in PROGRAMS if not words or any(word in n for word in words)]
    targets = sorted(path.stem for path in TARGETS.glob("*.txt"))
    well = [report(target, name) for target in targets for name in names]
    return 0 if all(well) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
