import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stair_jax import mesh as mesh_lib
from stair_jax.model import transformer
from stair_jax.train import logprobs, reference
from tests.support import specs
from tests.support.training import train_config

SPEC = specs.llama(L=1, D=8, N=2, K=1, H=4, F=8, V=11)
CONFIG = train_config(buckets=(8, 13), micro_tokens=40)
SCORER = logprobs.Scorer.of(SPEC, CONFIG)


@pytest.fixture(scope="module")
def params():
    tree = jax.jit(transformer.init, static_argnums=0)(SPEC, jax.random.key(0))
    return jax.tree.map(lambda x: x * 3, tree)


def trajectories(n=11):
    rng = np.random.default_rng(0)
    draw = lambda low, high: tuple(map(int, rng.integers(0, 11, rng.integers(low, high))))  # noqa: E731
    return {f"t{i}": (draw(2, 5), draw(1, 8)) for i in range(n)}


def table(folder, params, rows, *, shape=(1, 2, 1), config=CONFIG, key="k"):
    mesh = mesh_lib.make(shape)
    with jax.set_mesh(mesh):
        placed = jax.device_put(params, jax.sharding.NamedSharding(mesh, mesh_lib.spec()))
    return reference.table(
        SCORER, placed, rows, config=config, mesh=mesh, folder=folder, key=key, pad_id=0
    )


def test_every_response_token_is_scored_after_what_comes_before_it(params, tmp_path):
    rows = trajectories()
    got = table(tmp_path, params, rows)
    assert got.keys() == rows.keys()
    score = jax.jit(lambda t: SCORER(params, t, jnp.ones(t.shape, bool)).logp)
    for name, (prompt, response) in rows.items():
        row = np.zeros((1, 13), np.int32)
        row[0, : len(prompt + response)] = prompt + response
        want = np.asarray(score(jnp.asarray(row)))[0, len(prompt) : len(prompt + response)]
        np.testing.assert_allclose(got[name], want, atol=1e-5)


def test_what_lies_on_disk_is_not_computed_again(params, tmp_path, monkeypatch):
    monkeypatch.setattr(reference, "PART_BATCHES", 1)
    rows = trajectories()
    some = dict(list(rows.items())[:5])
    first = table(tmp_path, params, some)
    parts = sorted(tmp_path.rglob("*.parquet"))
    assert len(parts) > 1
    (tmp_path / "k" / "part-00099.tmp").write_bytes(b"torn")  # a killed writer's
    scored, real = [], reference._score
    monkeypatch.setattr(
        reference,
        "_score",
        lambda p, t, m, *, scorer: (scored.append(m), real(p, t, m, scorer=scorer))[1],
    )
    got = table(tmp_path, params, rows)
    assert sum(int(m.any(axis=1).sum()) for m in scored) == len(rows) - len(some)
    for name, logp in first.items():
        np.testing.assert_array_equal(got[name], logp)
    scored.clear()
    again = table(tmp_path, params, rows)
    assert not scored
    for name, logp in got.items():
        np.testing.assert_array_equal(again[name], logp)
    table(tmp_path, params, rows, key="other")
    assert scored


def test_the_key_changes_with_whatever_made_the_table():
    made = {"weights": "a", "words": "b"}
    other = dataclasses.replace(SCORER, compute_dtype="bfloat16")
    wider = dataclasses.replace(SCORER, spec=dataclasses.replace(SPEC, theta=2e4))
    keys = [
        reference.key_of(SCORER, **made),
        reference.key_of(SCORER, weights="c", words="b"),
        reference.key_of(SCORER, weights="a", words="c"),
        reference.key_of(other, **made),
        reference.key_of(wider, **made),
    ]
    assert len(set(keys)) == 5
    again = dataclasses.replace(SCORER, head_chunk=3, remat="full")
    assert reference.key_of(again, **made) == keys[0]
