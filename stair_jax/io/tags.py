"""STAIR's tags as special tokens of a checkpoint that does not know them yet."""

import dataclasses
import logging
from typing import Any

import numpy as np

from stair_jax.model.spec import Spec
from stair_jax.text import TAGS

log = logging.getLogger(__name__)

Params = Any  # the tree of `transformer.init`
TAG_NOISE = 0.1  # of the spread of the other rows; ours
VOCAB_MULTIPLE = 8  # a grown vocabulary still divides over a tensor axis of 2, 4 or 8


def tag(tokenizer: Any, spec: Spec) -> tuple[Spec, list[int]]:
    """Adds STAIR's tags to a tokenizer as special tokens; returns the sizes then, and new ids.

    Tags that it already has are left as they are.
    """
    new = [name for name in TAGS if name not in tokenizer.get_vocab()]
    if not new:
        return spec, []
    extra = {"additional_special_tokens": new}
    tokenizer.add_special_tokens(extra, replace_extra_special_tokens=False)
    rows = tokenizer.convert_tokens_to_ids(new)
    size = spec.V
    if max(rows) >= size:
        size = -(-(max(rows) + 1) // VOCAB_MULTIPLE) * VOCAB_MULTIPLE
    return dataclasses.replace(spec, V=size), rows


def add_tags(tokenizer: Any, spec: Spec, params: Params, *, seed: int) -> tuple[Any, Spec, Params]:
    """Returns a tokenizer that holds STAIR's tags as special tokens, and a model with their rows.

    The rows of a new one (embedding and head) are the mean of the trained rows plus a little
    noise, whether the vocabulary had spare rows there or must grow. The arguments are not changed,
    except that `tokenizer` is the one returned.
    """
    trained = len(tokenizer)
    after, rows = tag(tokenizer, spec)
    if not rows:
        return tokenizer, spec, params
    fresh = np.union1d(rows, np.arange(spec.V, after.V))
    random = np.random.default_rng(seed)
    grown = dict(params)
    for name in ("embed",) if spec.tied else ("embed", "head"):
        old = np.asarray(params[name])
        table = np.concatenate([old, np.zeros((after.V - spec.V, spec.D), old.dtype)])
        noise = random.normal(size=(len(fresh), spec.D)) * old[:trained].std() * TAG_NOISE
        table[fresh] = old[:trained].mean(axis=0, keepdims=True) + noise
        grown[name] = table
    log.info("%d tags added as tokens %s, vocabulary %d -> %d", len(rows), rows, spec.V, after.V)
    return tokenizer, after, grown
