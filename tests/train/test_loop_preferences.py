"""The loop on preference pairs: its guards, and that it learns."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from stair_jax.data.examples import PairExample
from stair_jax.data.pair_batches import DpoData
from stair_jax.train import checkpoint, loop, losses
from stair_jax.train import step as step_lib
from tests.support.loops import CONFIG, ONE_BUCKET, SCORER, SPEC, fit, lines, weights
from tests.support.training import dpo_config


def spoilt(data, value):
    """The pairs, the reference of the first one of the second batch being `value`."""
    data.reference[data.examples.index(data.rows_at(1)[0])] = value
    return data


@pytest.mark.parametrize("save_every", [1, 100])
def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_what_is_good(tmp_path, save_every):
    config = dataclasses.replace(CONFIG, save_every=save_every, epochs=3.0)
    data = dpo_data(config)
    with pytest.raises(loop.NonFiniteError, match="sft step 2: loss nan") as error:
        fit(tmp_path, data=spoilt(data, np.nan), loss=DPO, config=config)
    dump = tmp_path / "sft" / "nonfinite-2.jsonl"
    assert str(dump) in str(error.value)
    rows = [json.loads(x) for x in dump.read_text().splitlines()]
    assert [x["id"] for x in rows] == [x.id for x in data.rows_at(1)]
    assert checkpoint.saved_steps(tmp_path / "sft" / "saved") == ([1] if save_every == 1 else [])
    assert {x["step"] for x in lines(tmp_path)} == {1}


@pytest.mark.parametrize("most", [1, 3])
def test_gradients_that_are_not_finite_are_skipped_counted_and_stop_at_last(
    tmp_path, monkeypatch, caplog, most
):
    real = step_lib.step

    def step(state, batch, lr, **kwargs):  # a finite loss with a gradient that is not
        state, out = real(state, batch, lr, **kwargs)
        return state, out | {"skipped": out["skipped"] * 0 + 1, "grad_norm": np.float32(np.inf)}

    monkeypatch.setattr(step_lib, "step", step)
    with pytest.raises(loop.NonFiniteError, match=f"step {most + 1}: loss .*, grad_norm inf"):
        fit(tmp_path, config=dataclasses.replace(ONE_BUCKET, max_skipped=most))
    assert [x["skipped_steps"] for x in lines(tmp_path)] == list(range(1, most + 1))
    assert f"skipped ({most} of at most {most})" in caplog.text
    dumped = sorted(x.name for x in (tmp_path / "sft").glob("nonfinite-*"))
    assert dumped == [f"nonfinite-{i}.jsonl" for i in range(1, most + 2)]


@pytest.mark.parametrize("shift", [0.0, 0.5])
def test_a_policy_that_is_not_its_reference_at_first_is_warned_of(tmp_path, caplog, shift):
    config = dataclasses.replace(CONFIG, max_steps=1)
    data = dpo_data(config)
    data.reference += shift
    fit(tmp_path, data=data, loss=DPO, config=config)
    assert ("policy and reference differ" in caplog.text) == (shift > 0)


def test_weights_of_an_earlier_round_as_the_reference_are_warned_of_in_bfloat16(tmp_path, caplog):
    config = dataclasses.replace(
        CONFIG, compute_dtype="bfloat16", batch=4, epochs=20.0, lr=1e-2, save_every=1000
    )
    loss = dataclasses.replace(DPO, scorer=dataclasses.replace(SCORER, compute_dtype="bfloat16"))
    data = dpo_data(config)
    later = fit(tmp_path / "round-1", data=data, loss=loss, config=config)
    assert "policy and reference differ" not in caplog.text
    assert lines(tmp_path / "round-1")[0]["kl_per_token"] != 0  # they do round apart
    one = dataclasses.replace(config, max_steps=1)
    fit(tmp_path / "round-2", data=data, loss=loss, config=one, params=later)
    assert "policy and reference differ" in caplog.text


DPO = losses.Dpo.of(SCORER, dpo_config(beta=0.5))


def pairs(n=6):
    rng = np.random.default_rng(2)
    draw = lambda k: tuple(map(int, rng.integers(1, SPEC.V, k)))  # noqa: E731
    return [
        PairExample(
            id=str(i), prompt=draw(2), prefix=draw(1), chosen=draw(3), rejected=draw(2 + i % 3)
        )
        for i in range(n)
    ]


def table_of(data):
    """The reference's log-probs of all trajectories, by the same weights."""
    params = jax.device_put(weights())
    score = jax.jit(lambda tokens, wanted: SCORER(params, tokens, wanted).logp)
    table = {}
    for key, (prompt, response) in data.trajectories().items():
        row, at = np.zeros((1, 11), np.int32), len(prompt)
        row[0, : at + len(response)] = prompt + response
        logp = score(jax.numpy.asarray(row), jax.numpy.ones((1, 11), bool))
        table[key] = np.asarray(logp)[0, at : at + len(response)]
    return table


def dpo_data(config=CONFIG):
    data = DpoData(pairs(), [], config, dpo_config(), seed=1, pad_id=0, row_shards=1)
    return data.with_reference(table_of(data))


def test_dpo_overfits_its_pairs(tmp_path):
    config = dataclasses.replace(CONFIG, batch=4, epochs=20.0, lr=1e-2, save_every=1000)
    fit(tmp_path, data=dpo_data(config), loss=DPO, config=config)
    first, *_, last = (x for x in lines(tmp_path) if "dpo_loss" in x)
    np.testing.assert_allclose(first["dpo_loss"], np.log(2), rtol=1e-5)
    assert abs(first["rewards/margins"]) < 1e-5
    assert last["rewards/accuracies"] == 1
    assert last["rewards/margins"] > 1
    assert last["nll_loss"] < first["nll_loss"]
