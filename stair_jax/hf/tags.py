"""STAIR's tags as special tokens of a checkpoint that does not know them yet."""

import dataclasses
import functools
import json
import logging
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tokenizers import Tokenizer

from stair_jax.model import lora
from stair_jax.model.spec import Spec
from stair_jax.text import TAGS

log = logging.getLogger(__name__)

Params = Any  # the tree of `transformer.init`
START = "tags start as the mean of their pieces"  # where what is made from the base is told apart
TAG_NOISE = 0.1  # of the spread of the other rows; ours
VOCAB_MULTIPLE = 8  # rows of a grown table still divide over a tensor axis of 2, 4 or 8


def tag(tokenizer: Any, spec: Spec) -> tuple[Spec, list[int]]:
    """Adds STAIR's tags to a tokenizer as special tokens; returns the sizes then, and new ids.

    Tags that it already has are left as they are.
    """
    new = [name for name in TAGS if name not in tokenizer.get_vocab()]
    if not new:
        return spec, []
    _name_beyond_holes(tokenizer, new)
    extra = {"additional_special_tokens": new}
    tokenizer.add_special_tokens(extra, replace_extra_special_tokens=False)
    rows = tokenizer.convert_tokens_to_ids(new)
    _check_own(tokenizer, new, rows)
    return grown(spec, rows), rows


def grown(spec: Spec, rows: Sequence[int]) -> Spec:
    """Returns the sizes of a model that has these tokens, too."""
    if max(rows) < spec.vocab:  # it had spare rows
        return spec
    vocab = max(rows) + 1
    table = -(-max(vocab, spec.V) // VOCAB_MULTIPLE) * VOCAB_MULTIPLE
    return dataclasses.replace(spec, V=table, vocab=vocab)


def _name_beyond_holes(tokenizer: Any, new: list[str]) -> None:
    """Gives new tokens ids behind all others, where a vocabulary has holes.

    A token that is added gets the number of tokens for its id, which is then a word's. One that
    the model beneath knows keeps the id that it has there.
    """
    ids = tokenizer.get_vocab().values()
    last, backend = max(ids, default=-1), tokenizer.backend_tokenizer
    if last < len(ids):
        return
    written = json.loads(backend.to_str())
    words = written["model"]["vocab"]
    if isinstance(words, dict):
        words |= {name: last + 1 + number for number, name in enumerate(new)}
        backend.model = Tokenizer.from_str(json.dumps(written)).model


def _check_own(tokenizer: Any, new: list[str], rows: list[int]) -> None:
    """Raises ValueError where a new token is no token of its own."""
    vocabulary = tokenizer.get_vocab()
    for name, row in zip(new, rows, strict=True):
        shared = [word for word, id in vocabulary.items() if id == row and word != name]
        if shared or tokenizer.encode(name, add_special_tokens=False) != [row]:
            raise ValueError(
                f"tokenizer: {name} gets id {row}, which is that of {shared[:1] or 'nothing'},"
                " expected an id of its own; the vocabulary has holes"
            )


def add_tags(tokenizer: Any, spec: Spec, params: Params, *, seed: int) -> tuple[Any, Spec, Params]:
    """Returns a tokenizer that holds STAIR's tags as special tokens, and a model with their rows.

    The row of a new one (embedding and head) is the mean of those of the tokens that spelled the
    tag before, plus a little noise, whether the vocabulary had spare rows there or must grow; rows
    that only pad the table are 0. The arguments are not changed, except that `tokenizer` is the one
    returned.
    """
    after, growths = growths_of(tokenizer, spec, seed=seed)
    return tokenizer, after, {**params, **{name: g(params[name]) for name, g in growths.items()}}


def growths_of(
    tokenizer: Any, spec: Spec, *, seed: int
) -> tuple[Spec, dict[str, Callable[..., jax.Array]]]:
    """Returns the sizes with STAIR's tags, and by name what gives a table their rows.

    Such a function takes the table, and as `place` a sharding of its result; None leaves that
    open. Nothing is returned by name where the tokenizer, which is changed, has all tags.
    """
    trained = len(tokenizer)
    spelled = {name: tokenizer.encode(name, add_special_tokens=False) for name in TAGS}
    after, rows = tag(tokenizer, spec)
    if not rows:
        return spec, {}
    fresh = np.union1d(rows, np.arange(spec.vocab, after.vocab))
    pieces = [spelled.get(name, ()) for name in tokenizer.convert_ids_to_tokens(fresh.tolist())]
    random = np.random.default_rng(seed)
    growths = {}
    for name in lora.tables_of(spec):
        noise = random.normal(size=(len(fresh), spec.D)).astype(np.float32) * TAG_NOISE
        more = after.V - spec.V
        how = {"fresh": fresh, "noise": noise, "trained": trained, "more": more}
        growths[name] = functools.partial(_grown, **how, **_flat(pieces))
    sizes = spec.vocab, after.vocab
    log.info("%d tags added as tokens %s, vocabulary %d -> %d", len(rows), rows, *sizes)
    return after, growths


def _flat(pieces: Sequence[Sequence[int]]) -> dict[str, np.ndarray]:
    """Returns the pieces of all new rows one after the other, and the row of each."""
    owners = [row for row, ids in enumerate(pieces) for _ in ids]
    ids = [i for row in pieces for i in row]
    return {"pieces": np.array(ids, np.int32), "owners": np.array(owners, np.int32)}


@functools.partial(jax.jit, static_argnames=("trained", "more", "place"))
def _grown(
    table: Any,
    fresh: Any,
    noise: Any,
    pieces: Any,
    owners: Any,
    *,
    trained: int,
    more: int,
    place: Any = None,
) -> jax.Array:
    """Returns a table with `more` rows of 0 below, and the rows `fresh` near their pieces' mean.

    A row without pieces, which is no tag, is near the mean of all. On the devices of the table: of
    a large model no row comes to the host.
    """
    old = table[:trained].astype(jnp.float32)
    sums = jnp.zeros(noise.shape).at[owners].add(table[pieces].astype(jnp.float32))
    counts = jnp.zeros((len(noise), 1)).at[owners].add(1)
    means = jnp.where(counts, sums / jnp.maximum(counts, 1), old.mean(axis=0, keepdims=True))
    rows = means + noise * old.std()
    longer = jnp.pad(table, ((0, more), (0, 0)))
    grown = longer.at[fresh].set(rows.astype(table.dtype))
    return grown if place is None else jax.lax.with_sharding_constraint(grown, place)
