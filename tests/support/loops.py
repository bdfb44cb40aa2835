"""A training loop over a small model."""

import dataclasses
import json
import pathlib
from typing import Any

import jax
import numpy as np

from stair_jax import mesh as mesh_lib
from stair_jax.data.examples import SftExample
from stair_jax.data.sft_batches import SftData
from stair_jax.log.metrics import Metrics
from stair_jax.model import transformer
from stair_jax.train import logprobs, loop, losses
from tests.support import specs
from tests.support.training import train_config

SPEC = specs.llama(L=1, D=16, N=4, K=2, H=6, F=20, V=13)
CONFIG = train_config(epochs=2.5)
ONE_BUCKET = dataclasses.replace(CONFIG, buckets=(11,))  # half the compilation
SCORER = logprobs.Scorer.of(SPEC, CONFIG)
SFT = losses.Sft(SCORER)
MESH = (1, 1, 1)
_DRAWN = {}


def weights():
    """Starting weights, drawn once."""
    if not _DRAWN:
        _DRAWN.update(jax.jit(transformer.init, static_argnums=0)(SPEC, jax.random.key(0)))
    return jax.device_get(dict(_DRAWN))


def sft_rows(n=14):
    rng = np.random.default_rng(0)
    return [
        SftExample(
            id=str(i),
            prompt=(1 + i % 6, 1 + i % 5),
            response=tuple(map(int, rng.integers(1, SPEC.V, 2 + i % 8))),
        )
        for i in range(n)
    ]


def sft_data(n=14, config=CONFIG, seed=0):
    return SftData(sft_rows(n), config, seed=seed, pad_id=0, row_shards=4)


def fit(
    folder,
    *,
    data=None,
    loss: Any = SFT,
    config=CONFIG,
    params=None,
    more=None,
    tx=None,
    shape=MESH,
    whole=False,
):
    """Runs a stage named "sft" in `folder`; returns host copies of the weights."""
    with Metrics(folder) as metrics:
        out = loop.fit(
            weights() if params is None else params,
            data or sft_data(config=config),
            loss=loss,
            config=config,
            mesh=mesh_lib.make(shape),
            folder=pathlib.Path(folder) / "sft" / "saved",
            metrics=metrics,
            stage="sft",
            more=more,
            tx=tx,
        )
    return out if whole else jax.device_get(out.params)


def lines(folder):
    return [json.loads(x) for x in (folder / "metrics.jsonl").read_text().splitlines()]
