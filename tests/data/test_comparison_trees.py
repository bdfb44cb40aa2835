"""Comparisons of a prompt packed in one row against the same ones row by row."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stair_jax.data import examples, preview
from stair_jax.data.examples import ComparisonExample
from stair_jax.data.reward_batches import ComparisonData, ComparisonTrees, ValuedData
from stair_jax.model import reward, transformer
from stair_jax.records import Comparison
from stair_jax.run import objectives
from stair_jax.train.logprobs import Scorer
from stair_jax.train.values import Ratios
from tests.support.close import assert_trees_close
from tests.support.codecs import CODEC, EOS
from tests.support.reward_losses import BT, CONFIG, SPEC
from tests.support.reward_rows import ROW
from tests.support.training import train_config


def example(name, prompt, better, worse, depth=0):
    return ComparisonExample(id=name, prompt=prompt, better=better, worse=worse, depth=depth)


ROWS = [
    example("a", (5, 6), (7, 8, 9, 1), (7, 8, 2)),
    example("b", (5, 6), (7, 8, 9, 1), (7, 8, 4), 2),
    example("c", (5, 6), (7, 8, 2), (7, 8, 4)),
    example("d", (3,), (4, 1), (9, 10, 11, 12), 1),
    example("e", (3,), (4,), (4, 9)),  # one begins like the other: its own token stays apart
]
FRAME = {"seed": 0, "pad_id": 0, "row_shards": 1}


def trees(rows=ROWS, **change):
    settings = {"batch": 8, "batching": "tree", "buckets": (20,)} | change
    return ComparisonTrees(rows, train_config(**settings), **FRAME)


def flat(batch):
    return jax.tree.map(lambda x: jnp.asarray(x[0]), batch)


def test_what_a_prompts_trajectories_share_is_set_apart():
    rows = [
        Comparison(
            id=x.id,
            question=str(x.prompt),
            type="safety",
            better=x.better,
            worse=x.worse,
            better_value=1.0,
            worse_value=-1.0,
            depth=x.depth,
        )
        for x in ROWS
    ]
    a, b, c, d, e = examples.implicit_examples(rows, CODEC, "step_end")
    assert (a.prefix, a.chosen, a.rejected) == ((7, 8), (9, 1), (2,))
    assert b.prefix == c.prefix == (7, 8)
    assert (d.prefix, d.chosen, d.rejected) == ((), (4, 1), (9, 10, 11, 12))
    assert (e.prefix, e.chosen, e.rejected) == ((), (4,), (4, 9))
    for row, pair in zip(ROWS, (a, b, c, d, e), strict=True):
        assert (pair.id, pair.depth, pair.sides) == (row.id, row.depth, (row.better, row.worse))
    assert a.prompt == tuple(CODEC.prompt_ids("(5, 6)"))
    [at_eos, *_] = examples.implicit_examples(rows, CODEC, "eos")
    assert at_eos.sides == ((7, 8, 9, EOS), (7, 8, 2, EOS))  # the first ends so by itself


def test_packed_pairs_have_the_loss_and_gradient_of_rows():
    wide = ComparisonData(ROWS, dataclasses.replace(CONFIG, batch=8), **FRAME)
    packed, rows = flat(trees().batch_at(0)), flat(wide.batch_at(0))
    assert packed.tokens.size < rows.tokens.size / 2
    params = reward.init(SPEC, jax.random.key(0))

    @jax.jit
    def both(params, batch):
        total = lambda p: (s := BT.sums(p, None, batch))["bt_loss"] + s["centering"]  # noqa: E731
        return BT.sums(params, None, batch), jax.grad(total)(params)

    (sums, grads), (want, want_grads) = both(params, packed), both(params, rows)
    assert float(want["bt_loss"]) > 1
    for name, x in want.items():
        np.testing.assert_allclose(sums[name], x, rtol=1e-5, atol=1e-5, err_msg=name)
    assert_trees_close(grads, want_grads)
    counts = BT.counts(packed), BT.counts(rows)
    assert {k: float(v) for k, v in counts[0].items()} == {
        k: float(v) for k, v in counts[1].items()
    }


def test_every_pair_is_read_at_the_ends_of_its_sides():
    batch = trees().batch_at(0)
    sides = [[s.parts[0].ids + s.parts[-1].ids for s in row] for row in preview.rows(batch)]
    want = [[[*x.prompt, *x.better], [*x.prompt, *x.worse]] for x in ROWS]
    assert sorted(sides) == sorted(want)
    assert batch.real_tokens() < sum(len(ids) for pair in want for ids in pair)


def test_groups_that_do_not_fit_a_row_are_parted_and_pairs_that_do_not_are_dropped():
    long = example("long", (5, 6), (7, *range(1, 13)), (8, *range(1, 9)))
    data = trees([*ROWS, long], buckets=(11,))
    assert data.dropped == {"too long": ["long"]}
    assert trees([*ROWS, long]).dropped == {"too long with both sides": ["long"]}
    small = trees(buckets=(8,))
    pairs = [p for b in range(small.steps_per_epoch) for p in preview.rows(small.batch_at(b))]
    assert len(pairs) == len(ROWS) - len(list(itertools.chain(*small.dropped.values())))


def test_rows_set_aside_are_measured_too():
    data = trees(eval_rows=2)
    assert len(data.examples) + len(data.eval_examples) == len(ROWS)
    held = [row for batch in data.eval_batches() for row in preview.rows(batch)]
    assert len(held) == len(data.eval_examples) > 0


def test_an_implicit_reward_is_the_scaled_log_ratio_behind_the_prompt():
    data = ValuedData([ROW], train_config(), **FRAME)
    batch = flat(next(iter(data.in_order()))[1])
    scorer = Scorer.of(SPEC, CONFIG)
    policy, other = (transformer.init(SPEC, jax.random.key(i)) for i in (0, 1))
    ratios = Ratios(scorer=scorer, beta=0.4)
    raw = jax.jit(ratios)(policy, batch.tokens, batch.read, batch.start, base=other)
    tokens = batch.tokens[:1]
    logp = [scorer(p, tokens, jnp.ones(tokens.shape, bool)).logp[0] for p in (policy, other)]
    each = np.asarray(logp[0] - logp[1])
    assert each[1] != 0  # of the prompt: no part of the score
    want = [0.4 * each[2 : end + 1].sum() for end in ROW.reads]
    np.testing.assert_allclose(raw[0], want, atol=1e-5)
    alone = jax.jit(ratios)(policy, batch.tokens, batch.read, batch.start, base=None)
    want = [0.4 * np.asarray(logp[0])[2 : end + 1].sum() for end in ROW.reads]
    np.testing.assert_allclose(alone[0], want, atol=1e-5)


@pytest.mark.parametrize("more", [1, 2])
def test_layers_on_top_change_nothing_until_they_are_trained(more):
    policy = transformer.init(SPEC, jax.random.key(0))
    deeper = dataclasses.replace(SPEC, L=SPEC.L + more)
    grown = reward.deepened(policy, deeper, jax.random.key(1))
    assert set(grown) == set(policy)
    tokens = jnp.arange(1, 8)[None]

    def hidden(spec, params):
        return transformer.Decoder(spec, jnp.float32).apply({"params": params}, tokens)[0]

    before = hidden(SPEC, policy)
    np.testing.assert_allclose(hidden(deeper, grown), before, atol=1e-6)
    trained = jax.tree.map(lambda x: x + 0.1, grown)
    assert np.abs(hidden(deeper, trained) - before).max() > 0.1
    fresh = jax.tree.map(lambda x: np.asarray(x)[SPEC.L :], grown["layers"])
    assert np.abs(fresh["wq"]).max() > 0  # it can learn: its input is looked at
    assert not fresh["wo"].any()


def test_the_objective_of_an_implicit_reward_model_takes_its_constants():
    from stair_jax.config.schema import PrmConfig
    from tests.support.configs import tiny

    c = tiny(prm__beta=0.7, prm__sft_coef=0.2, prm__reference="start")
    loss = objectives.implicit_loss(c, PrmConfig.of(c.prm))
    assert loss is not None
    assert (loss.beta, loss.sft_coef, loss.reference) == (0.7, 0.2, "on_the_fly")
    c.prm.reference = "none"
    alone = objectives.implicit_loss(c, PrmConfig.of(c.prm))
    assert alone is not None
    assert alone.reference == "none"
    plain = tiny(prm__loss="bt")
    assert objectives.implicit_loss(plain, PrmConfig.of(plain.prm)) is None
