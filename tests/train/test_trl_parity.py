"""Our losses against TRL's and transformers', frozen by `make_trl_fixtures.py`; no torch here."""

import dataclasses
import functools
import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stair_jax.data import trajectories
from stair_jax.data.examples import PairExample, SftExample
from stair_jax.data.pair_batches import DpoData
from stair_jax.data.sft_batches import SftData
from stair_jax.hf import importer, names
from stair_jax.train import losses
from stair_jax.train.logprobs import Scorer, Scores
from tests.support.close import assert_sums_close
from tests.support.training import dpo_config, train_config

FOLDER = pathlib.Path(__file__).parents[1] / "golden" / "trl"
VALUES = json.loads((FOLDER / "values.json").read_text(encoding="utf-8"))
CASES = VALUES["cases"]
ROWS = json.loads((FOLDER / "rows.json").read_text(encoding="utf-8"))
close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)
PAIRS = [  # TRL's prompt is what both sides share: ours with the steps before
    PairExample(
        id=str(i),
        prompt=tuple(row["prompt"][:1]),
        prefix=tuple(row["prompt"][1:]),
        chosen=tuple(row["chosen"]),
        rejected=tuple(row["rejected"]),
        depth=1,
    )
    for i, row in enumerate(ROWS)
]


def settings(**change):
    return train_config(batch=len(PAIRS), buckets=(16, 24), micro_tokens=4096, **change)


@functools.cache
def model(name):
    return importer.load_onto(FOLDER / name)


@functools.cache
def reference_table():
    """The reference's log-probs of every response, as the stage hands them to the data."""
    spec, params = model("reference")
    data = DpoData(PAIRS, (), settings(), dpo_config(), seed=0, pad_id=0, row_shards=1)
    both = data.trajectories()
    score = jax.jit(Scorer.of(spec, settings()))
    tokens = np.zeros((len(both), 24), np.int32)
    for row, (prompt, response) in zip(tokens, both.values(), strict=True):
        row[: len(prompt + response)] = prompt + response
    ids = jnp.asarray(tokens)
    logp = np.asarray(score(params, ids, ids > 0).logp)
    return {
        key: row[len(prompt) : len(prompt + response)]
        for row, (key, (prompt, response)) in zip(logp, both.items(), strict=True)
    }


def case_of(name, batching="bucket"):
    """The loss of a case, and the batch of all pairs in the order of the fixtures."""
    case = CASES[name]
    config = dpo_config(
        loss=case["loss_type"],
        beta=case["beta"],
        sft_coef=case.get("rpo_alpha", 0.0),
        label_smoothing=case.get("label_smoothing", 0.0),
        sft_scope="step",
        sft_reduction="token",
    )
    train = settings(batching=batching)
    data = DpoData(PAIRS, (), train, config, seed=0, pad_id=0, row_shards=1)
    batch = data.with_reference(reference_table()).batch_at(0)
    order = [int(example.id) for example in data.rows_at(0)]
    assert sorted(order) == [*range(len(PAIRS))]
    loss = losses.Dpo.of(Scorer.of(model("policy")[0], train), config)
    return loss, jax.tree.map(lambda x: jnp.asarray(x[0]), batch), order


def total(loss, params, batch):
    """The loss of a batch by its sums and counts, and the means of all metrics."""
    sums, counts = loss.sums(params, None, batch), loss.counts(batch)
    means = {name: x / counts[loss.units[name]] for name, x in sums.items()}
    return sum(coef * means[name] for name, coef in loss.terms.items()), means


def their_gradients(name):
    with np.load(FOLDER / "gradients.npz") as file:
        return {key.split("/", 1)[1]: file[key] for key in file if key.startswith(f"{name}/")}


def check_gradients(name, grads):
    spec, theirs = model("policy")[0], their_gradients(name)
    tensors = names.tensors_of(spec)
    assert set(theirs) == set(tensors)
    for tensor, (rule, layer) in tensors.items():
        ours = functools.reduce(lambda tree, key: tree[key], rule.ours.split("/"), grads)
        ours = np.asarray(ours if layer is None else ours[layer])
        assert_sums_close(names.to_theirs(rule, ours, spec), theirs[tensor], name=tensor)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Given(Scorer):
    """Stands for the model: log-probs that it has said already."""

    logp: Any

    def __call__(self, params, tokens, wanted, **_):
        return Scores(self.logp, wanted)


@functools.cache
def pulled_back():
    """One program for all cases: the policy's log-probs, and the gradient under cotangents."""
    loss, batch, _ = case_of("sigmoid")
    tokens = batch.tokens.reshape(-1, batch.tokens.shape[-1])
    wanted = batch.step_mask.reshape(tokens.shape)

    def run(params, cotangent):
        logp, back = jax.vjp(lambda p: loss.scorer(p, tokens, wanted).logp, params)
        return logp, back(cotangent)[0]

    return functools.partial(jax.jit(run), model("policy")[1]), jnp.zeros(tokens.shape)


@pytest.mark.parametrize("name", CASES)
def test_totals_metrics_and_gradients_are_trls(name):
    loss, batch, _ = case_of(name)
    case = CASES[name]
    run, zeros = pulled_back()

    def given(logp):
        scorer = Given(**vars(loss.scorer), logp=logp)
        return total(dataclasses.replace(loss, scorer=scorer), None, batch)

    (value, means), slope = jax.jit(jax.value_and_grad(given, has_aux=True))(run(zeros)[0])
    close(value, case["total"])
    close(means["dpo_loss"], np.mean(case["losses"]))
    for metric in (
        "rewards/chosen",
        "rewards/rejected",
        "rewards/margins",
        "rewards/accuracies",
        "logps/chosen",
        "logps/rejected",
    ):
        close(means[metric], case["metrics"][metric], err_msg=metric)
    if "rpo_alpha" in case:
        close(means["nll_loss"], case["metrics"]["nll_loss"])
    check_gradients(name, run(slope)[1])


@pytest.mark.parametrize("name", CASES)
def test_every_pair_is_trls(name):
    loss, batch, order = case_of(name)
    case, steps = CASES[name], batch.step_mask
    run, zeros = pulled_back()
    policy = (run(zeros)[0].reshape(steps.shape) * steps).sum(-1)
    for row, pair in enumerate(order):
        alone = dataclasses.replace(batch, weight=jnp.zeros(len(policy)).at[row].set(1.0))
        found = loss.preference(policy, batch.ref_logp, alone)
        expected = {
            "dpo_loss": case["losses"][pair],
            "rewards/chosen": case["rewards_chosen"][pair],
            "rewards/rejected": case["rewards_rejected"][pair],
            "logps/chosen": case["logps_chosen"][pair],
            "logps/rejected": case["logps_rejected"][pair],
        }
        for metric, value in expected.items():
            close(found[metric], value, err_msg=metric)
        # TRL's reference under ipo is a mean over tokens; ours is a sum that the loss divides.
        length = steps[row].sum(-1) if loss.loss == "ipo" else 1
        theirs = [case["ref_chosen"][pair], case["ref_rejected"][pair]]
        close(batch.ref_logp[row] / length, theirs)


def test_a_batch_of_trees_is_trls_too():
    name = "smoothing-sft"
    loss, batch, _ = case_of(name, "tree")
    assert batch.layout is not None
    assert case_of(name)[1].layout is None
    run = jax.jit(jax.value_and_grad(functools.partial(total, loss), has_aux=True))
    (value, _), grads = run(model("policy")[1], batch)
    close(value, CASES[name]["total"])
    check_gradients(name, grads)


@pytest.mark.parametrize("batching", ["bucket", "pack"])
def test_supervised_fine_tuning_is_transformers(batching):
    rows = [
        SftExample(id=str(i), prompt=tuple(row["prompt"]), response=tuple(row["chosen"]))
        for i, row in enumerate(ROWS)
    ]
    train = settings(batching=batching)
    data = SftData(rows, train, seed=0, pad_id=0, row_shards=1)
    batch = jax.tree.map(lambda x: jnp.asarray(x[0]), data.batch_at(0))
    assert (batch.layout is not None) == (batching == "pack")
    spec, params = model("policy")
    loss = losses.Sft(Scorer.of(spec, train))
    run = jax.jit(jax.value_and_grad(functools.partial(total, loss), has_aux=True))
    (value, _), grads = run(params, batch)
    close(value, VALUES["sft"]["loss"])
    check_gradients("sft", grads)


def test_the_cases_differ():
    """A loss that ignored a setting would pass where two cases are one."""
    totals = [case["total"] for case in CASES.values()]
    assert min(abs(a - b) for i, a in enumerate(totals) for b in totals[:i]) > 1e-3
    assert not np.allclose(reference_table()[trajectories.key_of(*_first())], 0)


def _first():
    return PAIRS[0].prompt, PAIRS[0].sides[0]
