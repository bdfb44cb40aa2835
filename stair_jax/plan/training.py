"""Compiles the trainers' steps of Llama-3.1-8B for 8 GPUs of 80 GB that are not there.

bash launch/compile_gpu.sh [WORD ...]        (after the engine's programs)

No GPU is needed, only JAX's CUDA plugin. The table says for each step what a device is given (its
part of weights and moments, and the batch), what it needs besides, how many products of a layer
multiply float32 by float32, and how many all-gathers and reduce-scatters of matrices there are and
how many of them the GPU waits for. Exit 1 where a step does not compile or fit, has such a product,
or waits for more than a small part.
"""

# First: it chooses JAX's platform.
from stair_jax.plan.engine import LLAMA_8B, OPTIONS, failure, mesh_of, parted

# isort: split
import dataclasses
import math
import sys
import time
from collections.abc import Sequence
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from stair_jax import mesh as mesh_lib
from stair_jax.data.batches import ComparisonBatch, PairBatch, SftBatch, TrainingBatch
from stair_jax.model import lora, reward, transformer
from stair_jax.model.layout import Layout
from stair_jax.model.spec import Spec
from stair_jax.plan import gpu_text
from stair_jax.train import step as step_lib
from stair_jax.train.logprobs import Scorer
from stair_jax.train.losses import Dpo, Sft
from stair_jax.train.optimizer import adamw
from stair_jax.train.reward_losses import Prm
from stair_jax.train.values import Values

# Of the bytes that layers gather and scatter, what the GPU may wait for. With the flags of a run it
# is nothing on jax 0.11 and 0.12; without them it was .84 on an A100.
WAITS = 0.1
# XLA of jax 0.10 leaves .25 (A100) to .45 (H100) of them in one program, which fills the memory.
WAITS_LONGER = {"sft remat=attention, half": 0.5} if jax.__version_info__ < (0, 11) else {}
ROOM = 80e9 * 0.92  # of a GPU, what drivers and libraries leave
T, ACCUM = 2048, 2
TOKENS = 65_536  # of one pass: 8,192 a GPU
PAIRS = 8  # in a row of trees
RANK, ADAPTED = 16, tuple(lora.TARGETS)
GROWN = dataclasses.replace(LLAMA_8B, V=128_264, vocab=128_260)  # with STAIR's tags, see `hf.tags`
NEW_ROWS = tuple(range(LLAMA_8B.vocab, GROWN.vocab))  # theirs, trained beside adapters
TX = adamw(beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.0, clip_norm=1.0)
SCORER = Scorer(
    spec=LLAMA_8B, compute_dtype="bfloat16", remat="full", head_chunk=1024, lora_scale=0.0
)
DPO = Dpo(
    scorer=SCORER,
    loss="sigmoid",
    beta=0.1,
    sft_coef=0.2,
    sft_reduction="sequence",
    label_smoothing=0.0,
    reference="precomputed",
)
VALUES = Values(
    spec=reward.scalar(LLAMA_8B), compute_dtype="bfloat16", remat="full", lora_scale=0.0
)
HEAD = Prm(scorer=VALUES, loss="bt", centering=0.01)


def batch_of(loss: Any, mesh: Any, *, tree: bool, tokens: int) -> TrainingBatch:
    """Returns the shapes and places of a batch of so many tokens a pass."""
    rows = (ACCUM, tokens // T, T)
    ids = np.zeros(rows if tree or isinstance(loss, Sft) else (ACCUM, rows[1] // 2, 2, T), np.int32)
    layout, pairs = (Layout(ids, ids, ids), PAIRS) if tree else (None, 0)
    if isinstance(loss, Sft):
        batch = SftBatch.empty(ids)
    elif isinstance(loss, Prm):
        batch = ComparisonBatch.empty(ids, layout, pairs=pairs)
    else:
        batch = PairBatch.empty(ids, layout, pairs=pairs, reference=True)
    where = jax.sharding.NamedSharding(mesh, mesh_lib.spec(None, "batch"))
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), batch)


def weights(spec: Spec, mesh: Any, dtype: Any, *, scalar: bool = False) -> Any:
    """Returns the shapes and places of a policy's weights, or of a reward model's."""
    model: Any = reward if scalar else transformer
    return placed(lambda key: model.init(spec, key), model.logical_axes(spec), mesh, dtype)


def adapters(spec: Spec, mesh: Any) -> Any:
    """Returns the shapes and places of adapters, and of the rows of new tags beside them."""
    how: dict[str, Any] = {"rank": RANK, "targets": ADAPTED, "new_rows": len(NEW_ROWS)}
    axes = lora.logical_axes(ADAPTED, spec)
    return placed(lambda key: lora.init(spec, key, **how), axes, mesh, jnp.float32)


def placed(draw: Any, axes: Any, mesh: Any, dtype: Any) -> Any:
    """Returns the shapes that `draw` makes of a key, on the mesh."""
    shapes = jax.eval_shape(draw, jax.random.key(0))
    places = mesh_lib.shardings(axes, mesh, shapes)
    return jax.tree.map(
        lambda x, place: jax.ShapeDtypeStruct(x.shape, dtype, sharding=place), shapes, places
    )


def compiled(
    loss: Any, mesh: Any, *, tree: bool = False, low_rank: bool = False, tokens: int = TOKENS
) -> Any:
    """Returns the compiled pass of a step over a micro-batch, and the bytes of its moments."""
    scalar, spec = isinstance(loss, Prm), GROWN if low_rank else LLAMA_8B
    params, frozen = weights(spec, mesh, jnp.float32, scalar=scalar), None
    if low_rank:
        frozen = {"base": weights(spec, mesh, jnp.bfloat16, scalar=scalar)}
        factors = adapters(spec, mesh)
        params = reward.adapted(params, factors) if scalar else factors
        own = reward.scalar(spec) if scalar else spec
        scorer = dataclasses.replace(loss.scorer, spec=own, lora_scale=1.0, new_rows=NEW_ROWS)
        loss = dataclasses.replace(loss, scorer=scorer)
    state = step_lib.abstract(params, TX, mesh)
    leaves, treedef = jax.tree.flatten(jax.tree.map(lambda x: x.sharding, state))
    programs = step_lib.Programs.of(loss, TX, treedef, tuple(leaves))
    with jax.set_mesh(mesh), mock.patch.object(jax, "default_backend", return_value="gpu"):
        batch = batch_of(loss, mesh, tree=tree, tokens=tokens)
        sums, grads = jax.eval_shape(programs.zeros, state.params, frozen, batch)
        places = jax.tree.map(lambda x: x.sharding, state.params)
        total = (
            sums,
            jax.tree.map(
                lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place),
                grads,
                places,
            ),
        )
        add = programs.add.lower(
            total, state.params, frozen, batch, jax.ShapeDtypeStruct((), jnp.int32)
        )
        return add.compile(compiler_options=OPTIONS), _bytes(state.opt, mesh)


def _bytes(tree: Any, mesh: Any) -> int:
    """Returns the bytes that a tree takes on one device."""
    return sum(
        math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree)
    )


def remat(loss: Any, policy: str) -> Any:
    """Returns the loss with another choice of what is computed again."""
    return dataclasses.replace(loss, scorer=dataclasses.replace(SCORER, remat=policy))


PROGRAMS = {
    "sft (1,8,1)": ((1, 8, 1), Sft(SCORER), {}),
    "sft (1,4,2)": ((1, 4, 2), Sft(SCORER), {}),
    "sft remat=products": ((1, 8, 1), remat(Sft(SCORER), "products"), {}),
    "dpo tree remat=products": ((1, 8, 1), remat(DPO, "products"), {"tree": True}),
    "sft remat=attention, half": (
        (1, 8, 1),
        remat(Sft(SCORER), "attention"),
        {"tokens": TOKENS // 2},
    ),
    "sft remat=none, quarter": ((1, 8, 1), remat(Sft(SCORER), "none"), {"tokens": TOKENS // 4}),
    "dpo (1,8,1)": ((1, 8, 1), DPO, {}),
    "dpo tree": ((1, 8, 1), DPO, {"tree": True}),
    "sft lora": ((1, 8, 1), Sft(SCORER), {"low_rank": True}),
    "dpo lora": ((1, 8, 1), dataclasses.replace(DPO, reference="lora_base"), {"low_rank": True}),
    "prm": ((1, 8, 1), HEAD, {}),
    "prm tree": ((1, 8, 1), HEAD, {"tree": True}),
    "prm lora": ((1, 8, 1), HEAD, {"low_rank": True}),
}


def report(target: str, name: str) -> bool:
    """Compiles a step and prints a line of the table; returns whether all is well."""
    (shape, loss, how), line, start = PROGRAMS[name], f"{target:<5} {name:<26}", time.process_time()
    try:
        found, moments = compiled(loss, mesh_of(target, shape), **how)
    except Exception as error:  # whatever it is, it belongs into the table
        print(f"{line} {failure(error)}", flush=True)
        return False
    memory, text = found.memory_analysis(), gpu_text.parse(found.as_text())
    given, besides = memory.argument_size_in_bytes + moments, memory.temp_size_in_bytes
    wide, gathers = gpu_text.float32_products(text), gpu_text.gathers(text)
    own = [product for product in gpu_text.products(text) if product.of_a_layer]
    waits, share = [g for g in gathers if not g.apart], gpu_text.waiting(gathers)
    wrong = [
        *(["does not fit"] if given + besides > ROOM else []),
        *(["multiplies in float32"] if wide else []),
        *(["no product of a layer found"] if not own else []),
        *(["no gather of a matrix found"] if shape[1] > 1 and not gathers else []),
        *(["waits"] if share > WAITS_LONGER.get(name, WAITS) else []),
    ]
    print(
        f"{line} {given / 1e9:>9.1f} {besides / 1e9:>10.1f} {len(wide):>7} of {len(own):<3}"
        f" {len(waits):>5} of {len(gathers):<3} {share:>4.0%} {time.process_time() - start:>6.0f}"
        f"  {'ok' if not wrong else 'NO: ' + ', '.join(wrong)}",
        flush=True,
    )
    return not wrong


def main(words: Sequence[str]) -> int:
    """Prints a table of the steps named by any of the words; returns the exit code."""
    print(f"jax {jax.__version__}, steps of Llama-3.1-8B on 8 GPUs, on one of them:")
    print(
        f"{'GPU':<5} {'step':<26} {'given GB':>9} {'besides GB':>10} {'float32':>14}"
        f" {'waits':>17} CPU s"
    )
    chosen, rest = parted(words, ("a100", "h100"))
    names = [name for name in PROGRAMS if not rest or any(word in name for word in rest)]
    well = [report(target, name) for target in chosen for name in names]
    return 0 if all(well) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
