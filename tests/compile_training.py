"""Compiles the trainers' steps of Llama-3.1-8B for 8 GPUs of 80 GB that are not there.

bash launch/compile_gpu.sh [WORD ...]        (after the engine's programs)

No GPU is needed, only JAX's CUDA plugin. The table says for each step what a device is given (its
part of weights and moments, and the batch), what it needs besides, and whether both fit. Exit 1
where a program does not compile or fit.
"""

from tests.compile_gpu import LLAMA_8B, mesh_of  # first: it chooses JAX's platform

# isort: split
import dataclasses
import sys
import time
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp

from stair_jax import mesh as mesh_lib
from stair_jax.model import lora, transformer
from stair_jax.train import step as step_lib
from stair_jax.train.logprobs import Scorer
from stair_jax.train.losses import Dpo, Sft
from stair_jax.train.optimizer import AdamW

ROOM = 80e9 * 0.92  # of a GPU, what drivers and libraries leave
T, ACCUM = 2048, 2
TOKENS = 65_536  # of one pass: 8,192 a GPU
RANK, TARGETS = 16, tuple(lora.TARGETS)
TX = AdamW(beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.0, clip_norm=1.0)
SCORER = Scorer(
    spec=LLAMA_8B, compute_dtype="bfloat16", remat="full", head_chunk=1024, lora_scale=0.0
)
DPO = Dpo(
    scorer=SCORER, loss="sigmoid", beta=0.1, sft_coef=0.2, sft_reduction="sequence",
    label_smoothing=0.0, reference="precomputed",
)  # fmt: skip


def struct(shape, dtype, mesh, *axes):
    where = jax.sharding.NamedSharding(mesh, mesh_lib.spec(*axes))
    return jax.ShapeDtypeStruct(shape, dtype, sharding=where)


def batch_of(loss: Any, mesh: Any, *, tree: bool, tokens: int) -> dict[str, Any]:
    """Returns the shapes of a batch of so many tokens a pass."""

    def rows(dtype, *shape):
        axes = (None, "batch", *([None] * (len(shape) - 1)))
        return struct((ACCUM, *shape), dtype, mesh, *axes)

    if isinstance(loss, Sft):
        m = tokens // T
        return {"tokens": rows(jnp.int32, m, T), "loss_mask": rows(bool, m, T),
                "weight": rows(jnp.float32, m)}  # fmt: skip
    lead = (tokens // T, 8) if tree else (tokens // T // 2,)
    out = {
        "step_mask": rows(bool, *lead, 2, T), "sft_mask": rows(bool, *lead, T),
        "weight": rows(jnp.float32, *lead), "sft_weight": rows(jnp.float32, *lead),
        "depth": rows(jnp.int32, *lead), "ref_logp": rows(jnp.float32, *lead, 2),
    }  # fmt: skip
    if not tree:
        return out | {"tokens": rows(jnp.int32, *lead, 2, T)}
    names = ("tokens", "positions", "reach", "parent")
    return out | {name: rows(jnp.int32, lead[0], T) for name in names}


def weights(mesh: Any, dtype: Any) -> Any:
    shapes = jax.eval_shape(lambda key: transformer.init(LLAMA_8B, key), jax.random.key(0))
    places = mesh_lib.shardings(transformer.logical_axes(LLAMA_8B), mesh, shapes)
    return jax.tree.map(
        lambda x, place: jax.ShapeDtypeStruct(x.shape, dtype, sharding=place), shapes, places
    )


def adapters(mesh: Any) -> Any:
    draw = lambda key: lora.init(LLAMA_8B, key, rank=RANK, targets=TARGETS)  # noqa: E731
    shapes = jax.eval_shape(draw, jax.random.key(0))
    places = mesh_lib.shardings(lora.logical_axes(TARGETS), mesh, shapes)
    return jax.tree.map(
        lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), shapes, places
    )


def compiled(
    loss: Any, mesh: Any, *, tree: bool = False, low_rank: bool = False, tokens: int = TOKENS
) -> Any:
    """Returns a step's compiled program."""
    params, frozen = weights(mesh, jnp.float32), None
    if low_rank:
        frozen = {"base": weights(mesh, jnp.bfloat16)}
        params = adapters(mesh)
        scorer = dataclasses.replace(SCORER, lora_scale=1.0)
        loss = dataclasses.replace(loss, scorer=scorer)
    state = step_lib.abstract(params, TX, mesh)
    leaves, treedef = jax.tree.flatten(jax.tree.map(lambda x: x.sharding, state))
    program: Any = step_lib._program(loss, TX, treedef, tuple(leaves))
    with jax.set_mesh(mesh), mock.patch.object(jax, "default_backend", return_value="gpu"):
        lr = jax.ShapeDtypeStruct((), jnp.float32)
        batch = batch_of(loss, mesh, tree=tree, tokens=tokens)
        return program.lower(state, frozen, batch, lr).compile()


def remat(loss: Any, policy: str) -> Any:
    return dataclasses.replace(loss, scorer=dataclasses.replace(SCORER, remat=policy))


PROGRAMS = {
    "sft (1,8,1)": ((1, 8, 1), Sft(SCORER), {}),
    "sft (1,4,2)": ((1, 4, 2), Sft(SCORER), {}),
    "sft remat=attention, half": (
        (1, 8, 1),
        remat(Sft(SCORER), "attention"),
        {"tokens": TOKENS // 2},
    ),
    "sft remat=none, quarter": ((1, 8, 1), remat(Sft(SCORER), "none"), {"tokens": TOKENS // 4}),
    "dpo (1,8,1)": ((1, 8, 1), DPO, {}),
    "dpo tree": ((1, 8, 1), DPO, {"tree": True}),
    "dpo lora": ((1, 8, 1), dataclasses.replace(DPO, reference="lora_base"), {"low_rank": True}),
}


def main(wanted: list[str]) -> int:
    """Prints the table; returns 1 where a step does not compile or fit."""
    bad = 0
    print(f"{'step of Llama-3.1-8B, 8 x A100':<32}{'given GB':>10}{'besides GB':>12}  fits")
    for name, (shape, loss, how) in PROGRAMS.items():
        if wanted and not any(word in name for word in wanted):
            continue
        start = time.perf_counter()
        mesh = mesh_of("a100", shape)
        found = compiled(loss, mesh, **how).memory_analysis()
        given, besides = found.argument_size_in_bytes, found.temp_size_in_bytes
        fits = given + besides <= ROOM
        bad += not fits
        print(f"{name:<32}{given / 1e9:>10.1f}{besides / 1e9:>12.1f}  {'yes' if fits else 'NO'}"
              f"   ({time.perf_counter() - start:.0f} s)", flush=True)  # fmt: skip
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
