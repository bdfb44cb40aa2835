"""The objectives of a reward model: by hand, against torch, and in the step that trains it."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from stair_jax import config
from stair_jax import mesh as mesh_lib
from stair_jax.config.schema import PrmConfig
from stair_jax.data.batches import ComparisonBatch, ValuedBatch
from stair_jax.data.examples import ComparisonExample
from stair_jax.data.reward_batches import ComparisonData
from stair_jax.log.metrics import Metrics
from stair_jax.model import lora, reward
from stair_jax.train import loop, optimizer
from stair_jax.train import step as step_lib
from stair_jax.train.reward_losses import Prm, unit, value_loss
from tests.support.close import assert_sums_close, assert_trees_close
from tests.support.reward_losses import BT, CONFIG, MODEL, SPEC
from tests.support.training import train_config

TX = optimizer.of(CONFIG)
BCE = Prm(scorer=MODEL, loss="bce", centering=0.0)
MSE = dataclasses.replace(BCE, loss="mse")
ROWS, T, R = 8, 11, 3


# Scores of three pairs, better and worse; the third is padding. Margins 1.5 and -2.
PAIRS = jnp.array([[2.0, 0.5], [-1.0, 1.0], [50.0, -50.0]])
PAIR_BATCH = ComparisonBatch(
    tokens=jnp.zeros((3, 2, 5), jnp.int32),
    read=jnp.zeros((3, 2), jnp.int32),
    weight=jnp.array([1.0, 1.0, 0.0]),
    depth=jnp.array([2, 0, 2]),
)
# Scores and scaled values of two nodes, the second of 3 visits; the third was not read.
NODES = jnp.array([[0.8, -2.0, 7.0]])
NODE_BATCH = ValuedBatch(
    tokens=jnp.zeros((1, 5), jnp.int32),
    start=jnp.array([1]),
    read=jnp.array([[1, 2, 3]]),
    weight=jnp.array([[1.0, 3.0, 0.0]]),
    depth=jnp.array([[1, 4, 1]]),
    target=jnp.array([[0.75, 0.0, 1.0]]),
)


def test_bradley_terry_by_hand():
    sums = BT.of_pairs(PAIRS, PAIR_BATCH)
    # -log sigmoid(1.5) = log(1 + e^-1.5) = 0.20141328; of -2: log(1 + e^2) = 2.12692801
    np.testing.assert_allclose(sums["bt_loss"], 0.20141328 + 2.12692801, rtol=1e-6)
    assert sums["rewards/accuracies"] == 1
    assert sums["rewards/margins"] == 1.5 - 2
    assert sums["rewards/chosen"] == 2 - 1
    assert sums["rewards/rejected"] == 0.5 + 1
    assert sums["scores/mean"] == 1.25 + 0
    assert sums["scores/mean_square"] == (4 + 0.25) / 2 + 1
    assert sums["centering"] == 2.5**2 + 0


def test_bradley_terry_is_log_2_where_scores_are_equal_and_knows_no_level():
    level = jnp.array([[3.0, 3.0], [-4.0, -4.0], [0.0, 0.0]])
    sums = BT.of_pairs(level, PAIR_BATCH)
    np.testing.assert_allclose(sums["bt_loss"], 2 * math.log(2), rtol=1e-6)
    assert sums["rewards/accuracies"] == 0  # a tie is no success
    raised = BT.of_pairs(PAIRS + 5, PAIR_BATCH)
    np.testing.assert_allclose(raised["bt_loss"], 2.32834129, rtol=1e-6)
    assert raised["centering"] == 12.5**2 + 10**2


def test_pairs_are_counted_by_depth_and_whole_responses_apart():
    sums, counts = BT.of_pairs(PAIRS, PAIR_BATCH), BT.counts(PAIR_BATCH)
    assert (counts["pairs"], counts["depth-2"], counts["whole"]) == (2, 1, 1)
    assert sums["rewards/accuracies/depth-2"] == 1
    assert sums["rewards/accuracies/whole"] == 0
    assert sums["rewards/accuracies/depth-1"] == counts["depth-1"] == 0


@pytest.mark.parametrize(
    ("loss", "cost", "error", "mean"),
    [
        # r = 0.8, q = 3/4: log(1 + e^-0.8) = 0.37110067, of -0.8 it is 0.8 more, so that the cost
        # is 0.37110067 + 0.8 / 4; r = -2, q = 0: log(1 + e^-2) = 0.12692801, three times.
        # sigmoid(0.8) = 0.68997448, sigmoid(-2) = 0.11920292
        ("bce", 0.57110067 + 3 * 0.12692801, 0.06002552 + 3 * 0.11920292, 0.68997448 + 0.35760876),
        # (0.8 - 0.5)^2 = 0.09 and three times (-2 + 1)^2; (0.8 + 1) / 2 = 0.9, and -0.5 is cut to 0
        ("mse", 0.09 + 3 * 1, 0.15 + 0, 0.9 + 0),
    ],
)
def test_soft_labels_by_hand_with_visits_as_weights(loss, cost, error, mean):
    objective = dataclasses.replace(BCE, loss=loss)
    sums, counts = objective.of_nodes(NODES, NODE_BATCH), objective.counts(NODE_BATCH)
    assert counts["nodes"] == 4
    np.testing.assert_allclose(sums[f"{loss}_loss"], cost, rtol=1e-6)
    np.testing.assert_allclose(sums["values/absolute_error"], error, rtol=1e-6)
    np.testing.assert_allclose(sums["values/mean"], mean, rtol=1e-6)
    np.testing.assert_allclose(sums["values/target"], 0.75, rtol=1e-6)
    np.testing.assert_allclose(sums["scores/mean"], 0.8 - 6, rtol=1e-6)
    np.testing.assert_allclose(sums["scores/mean_square"], 0.64 + 12, rtol=1e-6)
    assert (counts["depth-1"], counts["depth-4"]) == (1, 3)
    np.testing.assert_allclose(
        sums["values/absolute_error/depth-1"] + sums["values/absolute_error/depth-4"],
        error,
        rtol=1e-6,
    )


@pytest.mark.parametrize("q", [0.0, 0.2, 0.7, 1.0])
def test_soft_labels_cost_least_at_their_value(q):
    raw = np.linspace(-4, 4, 801)
    at = {}
    for loss in ("bce", "mse"):
        cost = value_loss(jnp.asarray(raw), jnp.full(raw.shape, q), loss=loss)
        at[loss] = raw[np.argmin(cost)]
        readout = reward.Readout(position="eos", loss=loss, low=-1.0, high=1.0)
        np.testing.assert_allclose(unit(jnp.asarray(raw), loss=loss), readout.unit(raw), atol=1e-6)
        np.testing.assert_allclose(readout.unit(at[loss]), q, atol=0.02)  # the grid ends
    assert q == 0.5 or at["bce"] != at["mse"]


def test_extreme_scores_stay_finite():
    far = jnp.array([[2e4, -2e4], [-2e4, 2e4], [0.0, 0.0]])
    np.testing.assert_allclose(BT.of_pairs(far, PAIR_BATCH)["bt_loss"], 4e4, rtol=1e-6)
    raw, q = jnp.array([2e4, -2e4]), jnp.array([0.5, 0.0])
    np.testing.assert_allclose(value_loss(raw, q, loss="bce"), [1e4, 0], rtol=1e-6)


def test_gradients_equal_those_of_torch():
    torch = pytest.importorskip("torch")
    raw = torch.tensor(np.asarray(PAIRS[:2]), requires_grad=True)
    (-torch.nn.functional.logsigmoid(raw[:, 0] - raw[:, 1])).sum().backward()
    want = np.concatenate([raw.grad, np.zeros((1, 2))])
    got = jax.grad(lambda x: BT.of_pairs(x, PAIR_BATCH)["bt_loss"])(PAIRS)
    assert_sums_close(got, want)
    assert np.abs(got[:2]).min() > 0.1
    weight, q = (torch.tensor(np.asarray(x)) for x in (NODE_BATCH.weight, NODE_BATCH.target))
    for loss in ("bce", "mse"):
        raw = torch.tensor(np.asarray(NODES), requires_grad=True)
        if loss == "bce":
            cost = torch.nn.functional.binary_cross_entropy_with_logits(raw, q, reduction="none")
        else:
            cost = torch.nn.functional.mse_loss(raw, 2 * q - 1, reduction="none")
        (weight * cost).sum().backward()
        objective = dataclasses.replace(BCE, loss=loss)
        got = jax.grad(lambda x, o=objective: o.of_nodes(x, NODE_BATCH)[f"{o.loss}_loss"])(NODES)
        assert_sums_close(got, raw.grad)
        assert np.abs(got[0, :2]).min() > 0.05


def test_every_metric_has_a_count_and_every_term_is_a_metric():
    for loss, batch, sums in (
        (BT, PAIR_BATCH, BT.of_pairs(PAIRS, PAIR_BATCH)),
        (BCE, NODE_BATCH, BCE.of_nodes(NODES, NODE_BATCH)),
        (MSE, NODE_BATCH, MSE.of_nodes(NODES, NODE_BATCH)),
    ):
        assert set(sums) == set(loss.units)
        assert set(loss.units.values()) <= set(loss.counts(batch))
        assert set(loss.terms) <= set(sums)


def test_the_configuration_reaches_the_objective():
    section = config.default().prm
    bt = PrmConfig.of(section, loss="bt", centering=0.3)
    assert Prm.of(MODEL, bt) == BT
    assert Prm.of(MODEL, bt).terms == {"bt_loss": 1.0, "centering": 0.3}
    assert Prm.of(MODEL, PrmConfig.of(section, loss="mse")) == MSE


def pair_batch():
    rng = np.random.default_rng(0)
    return ComparisonBatch(
        tokens=rng.integers(0, SPEC.V, (ROWS, 2, T)).astype(np.int32),
        read=rng.integers(2, T, (ROWS, 2)).astype(np.int32),
        weight=np.array([1, 1, 1, 0, 1, 0, 0, 1], np.float32),  # in unequal halves
        depth=(np.arange(ROWS) % 3).astype(np.int32),
    )


def node_batch():
    rng = np.random.default_rng(1)
    return ValuedBatch(
        tokens=rng.integers(0, SPEC.V, (ROWS, T)).astype(np.int32),
        start=np.ones(ROWS, np.int32),
        read=np.sort(rng.integers(0, T, (ROWS, R)).astype(np.int32)),
        target=rng.uniform(0, 1, (ROWS, R)).astype(np.float32),
        weight=rng.integers(0, 5, (ROWS, R)).astype(np.float32),
        depth=np.broadcast_to(np.arange(1, R + 1, dtype=np.int32), (ROWS, R)).copy(),
    )


CASES = pytest.mark.parametrize(
    ("loss", "batch"), [(BT, pair_batch()), (BCE, node_batch())], ids=["bt", "bce"]
)
_START = {}


def start():
    """A reward model on the host, drawn once; its head is large enough to matter."""
    if not _START:
        tree = jax.jit(reward.init, static_argnums=0)(SPEC, jax.random.key(0))
        _START.update(jax.device_get(tree))
        _START["score"] = 10 * _START["score"]
    return dict(_START)


def cut(batch, micro=ROWS):
    """Returns the rows as micro-batches, as the data hands them out."""
    return batch.cut(len(batch.tokens) // micro)


def one_step(loss, batch, *, shape=(1, 1, 1), micro=ROWS):
    """Returns the metrics and the first moments (0.1 x the clipped gradient)."""
    mesh = mesh_lib.make(shape)
    params = start()
    params = jax.device_put(params, mesh_lib.shardings(reward.logical_axes(SPEC), mesh, params))
    with jax.set_mesh(mesh):
        state, out = step_lib.step(
            step_lib.init(params, TX, mesh),
            step_lib.place(cut(batch, micro), mesh),
            1e-2,
            loss=loss,
            tx=TX,
        )
    return {k: float(v) for k, v in out.items() if not np.isnan(v)}, optax.tree.get(state.opt, "mu")


def assert_same(one, two):
    """Asserts that metrics and moments are equal, which were no zeros."""
    for name, x in one[0].items():
        assert math.isclose(x, two[0][name], rel_tol=1e-5, abs_tol=1e-5), name
    assert all(np.abs(x).max() > 1e-6 for x in jax.tree.leaves(one[1]))
    assert_trees_close(one[1], two[1])


@CASES
def test_accumulation_and_padding_rows_change_nothing(loss, batch):
    halves = [float(batch.weight[i : i + 4].sum()) for i in (0, 4)]
    assert halves[0] != halves[1]  # a mean of means would be wrong
    whole = one_step(loss, batch)
    assert_same(whole, one_step(loss, batch, micro=4))
    longer = jax.tree.map(lambda x: np.concatenate([x, x[:4]]), batch)
    longer.weight[ROWS:] = 0
    assert longer.tokens[ROWS:].any()
    assert_same(whole, one_step(loss, longer, micro=ROWS + 4))


@CASES
@pytest.mark.parametrize("shape", [(1, 8, 1), (2, 2, 2)])
def test_a_sharded_step_equals_that_of_one_device(loss, batch, shape):
    got = one_step(loss, batch, shape=shape)
    assert not got[1]["layers"]["wq"].sharding.is_fully_replicated
    assert_same(one_step(loss, batch), got)


def test_what_has_no_weight_gets_no_gradient_at_all():
    batch = cut(pair_batch())
    batch.weight[:] = 0
    grads = jax.jit(jax.grad(lambda p: sum_of(BT, p, batch)))(start())
    assert all(not np.any(x) for x in jax.tree.leaves(grads))


def sum_of(loss, params, batch, frozen=None):
    micro = jax.tree.map(lambda x: jnp.asarray(x[0]), batch)
    sums = loss.sums(params, frozen, micro)
    return sum(coef * sums[name] for name, coef in loss.terms.items())


def test_centering_changes_the_gradient_and_pulls_scores_to_0():
    batch = cut(pair_batch())
    grad = jax.jit(jax.grad(sum_of, argnums=1), static_argnums=0)
    off, on = (grad(dataclasses.replace(BT, centering=c), start(), batch) for c in (0.0, 1.0))
    pull = on["score"] - off["score"]  # the gradient of the squared sums alone
    assert np.abs(pull).max() > 1e-3
    assert np.sum(pull * start()["score"]) > 0


def test_adapters_and_the_head_are_trained_and_nothing_else():
    loss = dataclasses.replace(BT, scorer=dataclasses.replace(MODEL, lora_scale=2.0))
    base, batch = jax.tree.map(jnp.asarray, start()), cut(pair_batch())
    factors = lora.init(SPEC, jax.random.key(1), rank=2, targets=("q", "down"))
    trained = reward.adapted(base, factors)
    value, grads = jax.jit(jax.value_and_grad(lambda p: sum_of(loss, p, batch, {"base": base})))(
        trained
    )
    assert set(grads) == {"layers", "score"}
    assert np.abs(grads["score"]).max() > 1e-3
    for name in ("q", "down"):
        assert np.abs(grads["layers"][name]["b"]).max() > 1e-4
    without = jax.jit(lambda p: sum_of(BT, p, batch))(base)  # B starts at 0
    np.testing.assert_allclose(value, without, rtol=1e-5)


@pytest.mark.parametrize("loss", [BT, BCE, MSE], ids=["bt", "bce", "mse"])
def test_eight_rows_are_learned_by_heart(loss):
    batch = pair_batch() if loss.pairs else node_batch()
    batch.weight[:] = 1
    mesh = mesh_lib.make((1, 1, 1))
    params = jax.device_put(start(), jax.sharding.NamedSharding(mesh, jax.P()))
    with jax.set_mesh(mesh):
        state, placed = step_lib.init(params, TX, mesh), step_lib.place(cut(batch), mesh)
        state, first = step_lib.step(state, placed, 2e-2, loss=loss, tx=TX)
        out = first
        for _ in range(149):
            state, out = step_lib.step(state, placed, 2e-2, loss=loss, tx=TX)
    if loss.pairs:
        assert first["rewards/accuracies"] < 1
        assert out["rewards/accuracies"] == 1
        assert out["rewards/margins"] > 1
    else:
        assert first["values/absolute_error"] > 0.15
        assert out["values/absolute_error"] < 0.05


def test_the_trainer_fits_a_reward_model_and_knows_its_settings(tmp_path):
    rng = np.random.default_rng(0)

    def some(count):
        return tuple(rng.integers(0, SPEC.V, count).tolist())

    rows = [
        ComparisonExample(id=str(i), prompt=some(3), depth=i % 2, better=some(4), worse=some(3))
        for i in range(8)
    ]
    config = train_config(batch=4, buckets=(11,), max_steps=2, epochs=9.0)
    data = ComparisonData(rows, config, seed=0, pad_id=0, row_shards=1)
    mesh = mesh_lib.make((1, 1, 1))

    def run(loss):
        with Metrics(tmp_path) as metrics:
            return loop.fit(
                jax.tree.map(jnp.asarray, start()),
                data,
                loss=loss,
                config=config,
                mesh=mesh,
                folder=tmp_path / "prm",
                metrics=metrics,
                stage="prm",
            )

    fitted = run(BT)
    assert fitted.step == 2
    assert np.abs(fitted.params["score"] - start()["score"]).max() > 1e-3
    seen = (tmp_path / "metrics.jsonl").read_text()
    for name in ("bt_loss", "rewards/accuracies", "scores/mean_square", "tokens_per_s"):
        assert f'"{name}"' in seen
    with pytest.raises(ValueError, match=r"prm\.centering"):
        run(dataclasses.replace(BT, centering=0.4))


@pytest.mark.parity
def test_loss_and_gradients_equal_those_of_a_classifier_of_transformers():
    """Their model finds the last token by its padding, ours is told where to read."""
    torch, transformers = (pytest.importorskip(name) for name in ("torch", "transformers"))
    theirs = transformers.LlamaForSequenceClassification(
        transformers.LlamaConfig(
            num_hidden_layers=SPEC.L,
            hidden_size=SPEC.D,
            num_attention_heads=SPEC.N,
            num_key_value_heads=SPEC.K,
            head_dim=SPEC.H,
            intermediate_size=SPEC.F,
            vocab_size=SPEC.V,
            rms_norm_eps=SPEC.eps,
            num_labels=1,
            pad_token_id=0,
            rope_parameters={"rope_theta": SPEC.theta, "rope_type": "default"},
        )
    )
    torch.manual_seed(0)
    for p in theirs.parameters():
        torch.nn.init.normal_(p, std=0.3)
    ours = as_tree({name: p.detach().numpy() for name, p in theirs.named_parameters()})

    batch = pair_batch()
    batch.weight[:] = 1
    batch.tokens[:] = np.maximum(batch.tokens, 1)  # 0 is their padding
    batch.tokens[np.arange(T) > batch.read[..., None]] = 0
    ids = torch.tensor(batch.tokens.reshape(-1, T).astype(np.int64))
    raw = theirs(ids, attention_mask=(ids != 0).long()).logits.reshape(ROWS, 2)
    margin, total = raw[:, 0] - raw[:, 1], raw[:, 0] + raw[:, 1]
    cost = (-torch.nn.functional.logsigmoid(margin) + 0.3 * total**2).mean()
    cost.backward()

    micro = cut(batch)
    value, grads = jax.jit(jax.value_and_grad(lambda p: sum_of(BT, p, micro) / ROWS))(ours)
    np.testing.assert_allclose(value, cost.item(), rtol=1e-5)
    want = as_tree({name: p.grad.numpy() for name, p in theirs.named_parameters()})
    assert all(np.abs(x).max() > 1e-4 for x in jax.tree.leaves(want))
    assert_trees_close(grads, want)


def as_tree(theirs):
    """Returns the one layer of a torch model in our layout: inputs first, heads apart."""
    at = {name.removeprefix("model."): x for name, x in theirs.items()}
    matrix = {
        k.split(".")[-2]: x.T for k, x in at.items() if k.startswith("layers.0.") and x.ndim == 2
    }
    heads = {"q": SPEC.N, "k": SPEC.K, "v": SPEC.K}
    layer = (
        {f"w{k}": matrix[f"{k}_proj"].reshape(SPEC.D, n, SPEC.H) for k, n in heads.items()}
        | {f"w_{k}": matrix[f"{k}_proj"] for k in ("gate", "up", "down")}
        | {
            "wo": matrix["o_proj"].reshape(SPEC.N, SPEC.H, SPEC.D),
            "attn_norm": at["layers.0.input_layernorm.weight"],
            "mlp_norm": at["layers.0.post_attention_layernorm.weight"],
        }
    )
    tree = {
        "embed": at["embed_tokens.weight"],
        "norm": at["norm.weight"],
        "score": at["score.weight"][0],
        "layers": {name: x[None] for name, x in layer.items()},
    }
    return jax.tree.map(np.ascontiguousarray, tree)
