import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stair_jax.data.examples import PairExample, SftExample
from stair_jax.data.pair_batches import DpoData
from stair_jax.data.sft_batches import SftData
from stair_jax.model import lora, transformer
from stair_jax.model.spec import Spec
from stair_jax.train import throughput
from stair_jax.train.throughput import Work
from tests.support import specs
from tests.support.training import dpo_config, train_config

SPEC = specs.llama(L=2, D=6, N=4, K=2, H=8, F=7, V=11)
LAYERS = 2 * (2 * 6 * 8 * (4 + 2) + 3 * 6 * 7)  # attention and feed-forward


def test_weights_that_a_token_meets_are_those_of_the_model():
    params = jax.eval_shape(lambda: transformer.init(SPEC, jax.random.key(0)))
    matrices = {"wq", "wk", "wv", "wo", "w_gate", "w_up", "w_down"}
    found = sum(x.size for name, x in params["layers"].items() if name in matrices)
    assert SPEC.matrix_parameters(head=False) == LAYERS == found
    assert SPEC.matrix_parameters(head=True) == LAYERS + params["head"].size


def test_a_step_costs_six_a_weight_and_twelve_a_key_and_head_dim():
    work = Work(tokens=10, keys=30, scored=4)
    attention = 12 * 2 * 4 * 8 * 30  # layers, heads, head dim, keys
    assert throughput.step_flops(SPEC, work) == 6 * (LAYERS * 10 + 66 * 4) + attention


def test_frozen_weights_cost_four_and_their_adapters_six():
    work = Work(tokens=10, keys=30, scored=4)
    targets = ("q", "down")
    factors = jax.eval_shape(lambda: lora.init(SPEC, jax.random.key(0), rank=3, targets=targets))
    adapters = throughput.adapter_parameters(SPEC, 3, ("q", "down"))
    assert adapters == sum(x.size for x in jax.tree.leaves(factors)) == 2 * 3 * (6 + 32 + 7 + 6)
    found = throughput.step_flops(SPEC, work, adapters=adapters)
    full = throughput.step_flops(SPEC, work)
    assert found == full - 2 * (LAYERS * 10 + 66 * 4) + 6 * adapters * 10
    assert throughput.adapter_parameters(SPEC, 0, ("q",)) == 0


def test_a_reference_in_the_step_costs_one_more_forward_pass():
    work = Work(tokens=10, keys=30, scored=4)
    more = throughput.step_flops(SPEC, work, reference=True) - throughput.step_flops(SPEC, work)
    assert 3 * more == throughput.step_flops(SPEC, work)


def test_flops_are_those_that_xla_counts():
    """Of one full row, where nothing is padding; XLA computes all keys, not only those seen."""
    spec = Spec(
        L=1,
        D=64,
        N=4,
        K=2,
        H=16,
        F=128,
        V=96,
        vocab=96,
        eps=1e-5,
        theta=1e4,
        rope_scaling=None,
        qkv_bias=False,
        qk_norm=False,
        tied=False,
        family="llama",
    )
    params = jax.eval_shape(lambda: transformer.init(spec, jax.random.key(0)))
    decoder = transformer.Decoder(spec, jnp.float32, "none", "xla")

    def loss(params, tokens):
        hidden = decoder.apply({"params": params}, tokens)[0]
        return jnp.square(hidden).sum()

    tokens = jax.ShapeDtypeStruct((4, 32), jnp.int32)
    cost = jax.jit(jax.grad(loss)).lower(params, tokens).compile().cost_analysis()
    assert cost is not None
    ours = throughput.step_flops(spec, Work(tokens=128, keys=4 * 32 * 32, scored=0))
    # Norms, softmax and rotations are on top; the first layer's input needs no gradient.
    assert 0.95 < cost["flops"] / ours < 1.25


ROWS = [SftExample(id=str(n), prompt=(1,) * n, response=(2,) * (n + 1)) for n in (1, 2, 4)]


@pytest.mark.parametrize("batching", ["bucket", "pack"])
def test_work_of_rows_leaves_padding_out(batching):
    data = SftData(ROWS, train_config(batching=batching), seed=0, pad_id=0, row_shards=1)
    batch = data.batch_at(0)
    assert batch.tokens.size > 17
    assert throughput.work_of(batch) == Work(17, 6 + 15 + 45, 2 + 3 + 5)


def pair(i, prefix, chosen, rejected):
    return PairExample(id=i, prompt=(1, 2), prefix=prefix, chosen=chosen, rejected=rejected)


PAIRS = [pair("a", (3,), (4, 5), (6,)), pair("b", (3,), (4, 5), (7, 8, 9))]


def test_work_of_pairs_counts_both_sides_and_of_trees_each_token_once():
    def work(batching):
        config = train_config(batching=batching)
        data = DpoData(PAIRS, (), config, dpo_config(), seed=0, pad_id=0, row_shards=1)
        return throughput.work_of(data.batch_at(0))

    # Chosen rows hold 5 tokens, rejected ones 4 and 6; scored: the chosen response, the step.
    assert work("bucket") == Work(5 + 4 + 5 + 6, 15 + 10 + 15 + 21, 3 + 1 + 3 + 3)
    # Prompt and prefix once, then the three distinct steps behind them.
    assert work("tree") == Work(
        3 + 2 + 1 + 3, (1 + 2 + 3) + (4 + 5) + 4 + (4 + 5 + 6), 1 + 2 + 1 + 3
    )


def device(kind, **stats):
    return types.SimpleNamespace(device_kind=kind, memory_stats=lambda: stats or None)


@pytest.mark.parametrize(
    ("kind", "peak"),
    [
        ("NVIDIA A800-SXM4-80GB", 312e12),
        ("NVIDIA A100-PCIE-40GB", 312e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H800", 989e12),
        ("NVIDIA H200", 989e12),
    ],
)
def test_utilisation_is_a_share_of_all_devices_peak(kind, peak):
    assert throughput.mfu(peak, 0.5, [device(kind)] * 4) == pytest.approx(0.5)
    assert throughput.mfu(peak, 0.5, [device(kind), device("cpu")]) is None


def test_an_unknown_device_has_no_utilisation():
    assert throughput.mfu(1e12, 1.0, jax.devices()) is None
    assert throughput.mfu(1e12, 1.0, []) is None


def test_peak_memory_is_that_of_the_fullest_device():
    full, half = (device("x", peak_bytes_in_use=n, bytes_in_use=1) for n in (80, 40))
    assert throughput.peak_bytes([half, full, device("cpu")]) == 80
    assert throughput.peak_bytes([device("cpu")]) is None


def test_rows_that_are_absent_are_no_work():
    data = SftData(ROWS[:1], train_config(), seed=0, pad_id=0, row_shards=4)
    batch = data.batch_at(0)
    assert batch.weight.sum() == 1 < batch.weight.size
    assert throughput.work_of(batch) == Work(3, 6, 2)
    assert np.all(batch.tokens[batch.weight == 0] == 0)
