"""Packed rows train what plain rows train: values and gradients, layouts and losses together."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from stair_jax import mesh as mesh_lib
from stair_jax.data.examples import PairExample, SftExample
from stair_jax.data.pair_batches import DpoData
from stair_jax.data.sft_batches import SftData
from stair_jax.model import transformer
from stair_jax.train import logprobs, losses, optimizer
from stair_jax.train import step as step_lib
from tests.support import specs
from tests.support.close import assert_trees_close
from tests.support.training import dpo_config, train_config

SPEC = specs.llama(L=2, D=16, N=4, K=2, H=6, F=20, V=23)
PLAIN = train_config(batch=16, buckets=(16, 40), head_chunk=16)
_RNG = np.random.default_rng(7)


def draw(count):
    return tuple(map(int, _RNG.integers(1, SPEC.V, count)))


def groups():
    """Sibling groups of one to three pairs over shared steps, and one pair alone."""
    pairs = []
    for group, size in enumerate((3, 1, 2)):
        prompt, prefix = draw(2 + group), draw(3 * group)
        steps = [draw(2 + i) for i in range(size + 1)]
        pairs += [
            PairExample(
                id=f"{group}.{i}",
                prompt=prompt,
                prefix=prefix,
                chosen=steps[0],
                rejected=steps[i + 1],
                depth=1 + group,
            )
            for i in range(size)
        ]
    return pairs


def anchors():
    return [SftExample(id=f"a{i}", prompt=draw(3), response=draw(4 + i)) for i in range(3)]


ROWS = groups(), anchors()
WEIGHTS = {}


def weights():
    if not WEIGHTS:
        tree = jax.jit(transformer.init, static_argnums=0)(SPEC, jax.random.key(0))
        WEIGHTS.update(jax.device_get(jax.tree.map(lambda x: x * 2, tree)))
    return dict(WEIGHTS)


def gradients(loss, batch, shape=(1, 1, 1)):
    """Metrics, and the first moments, which are a tenth of the gradient."""
    mesh, tx = mesh_lib.make(shape), optimizer.of(dataclasses.replace(PLAIN, clip_norm=0.0))
    with jax.set_mesh(mesh):
        params = step_lib.on_mesh(jax.tree.map(jnp.asarray, weights()), mesh)
        state = step_lib.init(params, tx, mesh)
        state, out = step_lib.step(state, step_lib.place(batch, mesh), 1e-3, loss=loss, tx=tx)
    return {k: float(v) for k, v in out.items() if not np.isnan(v)}, jax.device_get(
        optax.tree.get(state.opt, "mu")
    )


def assert_same(got, want):
    (figures, grads), (wanted, wanted_grads) = got, want
    assert figures.keys() == wanted.keys()
    for name, x in wanted.items():
        assert abs(figures[name] - x) <= 1e-5 * max(1, abs(x)), name
    # Weights twice as large have sharp softmaxes: measured 2e-5 of the largest, with SSE4.2.
    assert_trees_close(grads, wanted_grads, 1e-4)


def table(data):
    rng = np.random.default_rng(1)
    return {
        k: rng.normal(-3, 0.3, len(ids)).astype(np.float32)
        for k, (_, ids) in sorted(data.trajectories().items())
    }


def laid_out(batch, **change):
    """The batch with another layout."""
    return dataclasses.replace(batch, layout=dataclasses.replace(batch.layout, **change))


@pytest.mark.parametrize(
    "change",
    [{}, {"scope": "response", "sft_scope": "step"}, {"loss": "ipo"}, {"sft_reduction": "token"}],
    ids=str,
)
def test_trees_cost_and_teach_what_their_pairs_do(change):
    loss = dpo_config(**({"anchors_per_pair": 0.5} | change))
    batches = {}
    for batching in ("bucket", "tree"):
        config = dataclasses.replace(PLAIN, batching=batching)
        data = DpoData(*ROWS, config, loss, seed=0, pad_id=0, row_shards=1)
        batches[batching] = data.with_reference(table(data)).batch_at(0)
    plain, tree = (batches[name].tokens for name in ("bucket", "tree"))
    assert tree.size < plain.size / 2
    objective = losses.Dpo.of(logprobs.Scorer.of(SPEC, PLAIN), loss)
    want = gradients(objective, batches["bucket"])
    assert {f"rewards/accuracies/depth-{d}" for d in (1, 2, 3)} <= set(want[0])
    assert_same(gradients(objective, batches["tree"]), want)
    blind = laid_out(batches["tree"], reach=np.full_like(tree, tree.shape[-1]))
    assert abs(gradients(objective, blind)[0]["loss"] - want[0]["loss"]) > 1e-4


def test_trees_in_several_passes_and_on_a_mesh_are_the_same():
    loss = dpo_config(anchors_per_pair=0.5)
    objective = losses.Dpo.of(logprobs.Scorer.of(SPEC, PLAIN), loss)

    def batch(shards=1, **change):
        config = dataclasses.replace(PLAIN, batching="tree", **change)
        data = DpoData(*ROWS, config, loss, seed=0, pad_id=0, row_shards=shards)
        return data.with_reference(table(data)).batch_at(0)

    one, many = batch(), batch(micro_tokens=40)
    assert len(one.tokens) == 1 < len(many.tokens)
    want = gradients(objective, one)
    assert_same(gradients(objective, many), want)
    assert_same(gradients(objective, batch(shards=4), (2, 2, 2)), want)


def test_packed_examples_cost_and_teach_what_they_do_alone():
    rows = [
        SftExample(id=str(i), prompt=draw(1 + i % 4), response=draw(2 + i % 7)) for i in range(13)
    ]
    batches = {}
    for batching in ("bucket", "pack"):
        config = dataclasses.replace(PLAIN, batching=batching)
        batches[batching] = SftData(rows, config, seed=0, pad_id=0, row_shards=1).batch_at(0)
    assert batches["pack"].tokens.size < batches["bucket"].tokens.size
    loss = losses.Sft(logprobs.Scorer.of(SPEC, PLAIN))
    want = gradients(loss, batches["bucket"])
    assert_same(gradients(loss, batches["pack"]), want)
    packed = batches["pack"]
    blind = laid_out(packed, positions=packed.layout.positions + 5)
    assert_same(gradients(loss, blind), want)  # rotary angles are relative
    leaking = laid_out(packed, reach=np.full_like(packed.tokens, 40))
    assert abs(gradients(loss, leaking)[0]["loss"] - want[0]["loss"]) > 1e-4
