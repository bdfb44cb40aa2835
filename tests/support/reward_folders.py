"""Hugging Face folders of small reward models."""

import functools
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from stair_jax import text
from stair_jax.hf import reward_model
from stair_jax.miniature import tokenizer as miniature_tokenizer
from stair_jax.model import reward, transformer
from stair_jax.model.reward import Readout
from stair_jax.model.spec import RopeScaling
from tests.support import specs

TOKENIZER = miniature_tokenizer.build()
VOCAB = len(TOKENIZER)
TINY = specs.llama(
    L=2,
    D=12,
    N=4,
    K=2,
    H=6,
    F=14,
    V=VOCAB,
    rope_scaling=RopeScaling(factor=8.0, low=1.0, high=4.0, original=16),
)
EOS = Readout(position="eos", loss="bt", low=-1.0, high=3.0)


def codec(system=""):
    return text.Codec(miniature_tokenizer.build(), "llama3", system)


def weights(spec, init=reward.init):
    """Returns a reward model whose every parameter matters."""
    shapes = jax.eval_shape(functools.partial(init, spec), jax.random.key(0))
    random = np.random.default_rng(1)

    def draw(path, x):
        noise = random.normal(size=x.shape).astype(np.float32)
        return 1 + 0.3 * noise if "norm" in jax.tree_util.keystr(path) else 0.3 * noise

    return jax.tree_util.tree_map_with_path(draw, shapes)


def our_scores(spec, params, rows, dtype=jnp.float32):
    """Returns the scores of all tokens of each row."""

    @jax.jit
    def run(params, ids):
        hidden, _ = transformer.Decoder(spec, dtype).apply({"params": params}, ids)
        return reward.scores(params, hidden)

    width = max(map(len, rows))
    ids = np.asarray([[*row, *[0] * (width - len(row))] for row in rows], np.int32)
    scores = np.asarray(run(params, ids))
    return [x[: len(row)] for x, row in zip(scores, rows, strict=True)]


def save(path, spec=TINY, readout=EOS, **options: Any):
    options = {"dtype": "float32"} | options
    reward_model.save(path, spec, weights(spec), readout, options.pop("codec", codec()), **options)
    return path


def edit_config(folder, **change):
    file = folder / "config.json"
    kept = json.loads(file.read_text()) | change
    file.write_text(json.dumps({key: x for key, x in kept.items() if x != "gone"}))
