"""Memory from sizes and settings: by hand, and against what XLA compiles for an 8B model."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import roofline
from stair_jax import mesh as mesh_lib
from stair_jax.data.batches import SftBatch
from stair_jax.model import footprint, lora, transformer
from stair_jax.model.footprint import Pass, Split
from stair_jax.train import optimizer
from stair_jax.train import step as step_lib
from stair_jax.train.logprobs import Scorer
from stair_jax.train.losses import Sft
from tests.support.placing import CONFIG, SPEC
from tests.support.training import train_config

ALONE = Split()
EIGHT = Split(fsdp=8)


def train(spec, config, split=ALONE, **change):
    how = {"trained": spec.parameters, "frozen": 0.0, "sides": 1, "head": True, "fused": False}
    return footprint.training(spec, config, split=split, **(how | change))


def test_a_pass_has_as_many_rows_as_fit_and_one_at_least():
    config = train_config(batch=8, micro_tokens=33, buckets=(7, 11))
    assert Pass.of(config, 1, ALONE) == Pass(3, 11, True)
    assert Pass.of(config, 2, ALONE) == Pass(2, 11, True)
    assert Pass.of(config, 1, Split(data=2, fsdp=4)) == Pass(1, 11, False)
    everything = dataclasses.replace(config, micro_tokens=10_000)
    assert Pass.of(everything, 1, ALONE) == Pass(8, 11, False)


def test_training_by_hand():
    s, config = SPEC, train_config(batch=4, micro_tokens=22, buckets=(11,), remat="full")
    found = train(s, config)
    P, heads = s.parameters, (s.N + 2 * s.K) * s.H
    assert found["weights"] == 4 * P
    assert found["moments"] == 8 * P
    assert found["gradients"] == 8 * P  # of a pass, and their sum
    assert found["the start, to compare"] == 2 * P
    layer = 6 * s.D + 4 * heads + 6 * s.F
    assert found["activations"] == 22 * (4 * (s.L * s.D + layer) + 3 * 4 * s.N * 11)
    assert found["head"] == 2 * 4 * 8 * s.V + 4 * s.V * s.D  # chunks of 8; its gradient
    assert "frozen weights" not in found
    assert train(s, dataclasses.replace(config, batch=2))["gradients"] == 4 * P


def test_adapters_leave_the_weights_frozen():
    s, config = SPEC, train_config(lora_rank=2, micro_tokens=11, buckets=(11,))
    found = train(s, config, trained=100, frozen=4.0 * s.parameters)
    assert found["moments"] == 800
    assert found["frozen weights"] == 4 * s.parameters
    assert found["head"] == 2 * 4 * 8 * s.V


def step_bytes(spec, config, rows):
    """Returns what a step over adapters takes besides its arguments, as XLA compiles it."""
    mesh = mesh_lib.make((1, 1, 1))
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())

    def like(draw, *key):
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere),
            jax.eval_shape(draw, *key),
        )

    key = jax.random.key(0)
    base = like(lambda key: transformer.init(spec, key), key)
    factors = like(lambda k: lora.init(spec, k, rank=2, targets=("q",), new_rows=len(rows)), key)
    batch = like(lambda: SftBatch.empty(np.zeros((1, 2, 16), np.int32)))
    tx, loss = optimizer.of(config, rows), Sft(Scorer.of(spec, config, rows))
    state = step_lib.abstract(factors, tx, mesh)
    leaves, tree = jax.tree.flatten(jax.tree.map(lambda x: x.sharding, state))
    programs = step_lib.Programs.of(loss, tx, tree, tuple(leaves))
    with jax.set_mesh(mesh):
        lowered = programs.whole.lower(state, {"base": base}, batch, jnp.float32(1e-3))
        return lowered.compile().memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize("tied", [True, False])
def test_new_rows_beside_adapters_cost_tables_as_xla_compiles_them(tied):
    spec = dataclasses.replace(SPEC, L=1, V=20_000, vocab=20_000, tied=tied)
    config = train_config(lora_rank=2, head_chunk=4, micro_tokens=32, buckets=(16,), batch=2)
    rows = (19_990, 19_991)
    compiled = step_bytes(spec, config, rows) - step_bytes(spec, config, ())
    how = {"trained": 100, "frozen": 4.0 * spec.parameters}
    found = train(spec, config, **how, new_rows=2)
    assert found["tables with new rows"] == pytest.approx(compiled, rel=0.2)
    assert "tables with new rows" not in train(spec, config, **how)
    full = dataclasses.replace(config, lora_rank=0)  # there all is trained anyway
    assert "tables with new rows" not in train(spec, full, new_rows=2)
    scored = train(spec, config, **how, new_rows=2, head=False)["tables with new rows"]
    assert scored == 2 * 4 * spec.V * spec.D  # the embedding alone: with its rows, and its gradient


@pytest.mark.parametrize(
    ("key", "less", "more"),
    [
        ("micro_tokens", 11, 44),
        ("head_chunk", 4, 11),
        ("remat", "full", "products"),
        ("remat", "products", "attention"),
        ("remat", "attention", "none"),
    ],
)
def test_every_knob_reaches_the_sum(key, less, more):
    low, high = (
        sum(train(SPEC, train_config(buckets=(11,), **{"remat": "full", key: x})).values())
        for x in (less, more)
    )
    assert low < high


@pytest.mark.parametrize(("remat", "compiled"), [("full", 28.4e9), ("products", 51.4e9)])
def test_an_8b_model_on_eight_gpus_is_what_xla_compiles(remat, compiled):
    """The table of docs/gpus.md: 8,192 tokens a GPU and pass, given and besides."""
    config = train_config(
        batch=128,
        micro_tokens=65_536,
        buckets=(2048,),
        head_chunk=1024,
        remat=remat,
        compute_dtype="bfloat16",
    )
    found = dict(train(roofline.SPECS["8b"], config, EIGHT, fused=True))
    del found["the start, to compare"]  # no argument of the program
    assert sum(found.values()) == pytest.approx(compiled, rel=0.15)


def test_an_engine_by_hand():
    s, config = SPEC, dataclasses.replace(CONFIG, slots=3, max_context=40, dtype="float32")
    found = footprint.engine(s, config, pool=1e6, programs=5, tensor=1)
    assert found["weights"] == 4 * s.parameters
    assert found["pool of keys"] == 1e6
    assert found["the slots' own keys"] == 3 * 40 * (2 * s.L * s.K * s.H * 4)
    assert found["programs"] == 5 * s.L * footprint.CODE_BYTES
    gpu = footprint.engine(s, config, pool=1e6, programs=0, tensor=1)
    assert gpu.keys() == {"weights", "pool of keys", "logits"}
