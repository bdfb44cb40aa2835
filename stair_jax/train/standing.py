"""Where tokens stand in the model's eyes at the places where they are due: rank and nats.

Shape letters: B rows  T tokens of a row  R places of a row  D model  V vocabulary
"""

import functools
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from stair_jax import mesh as mesh_lib
from stair_jax.config.schema import TrainConfig
from stair_jax.data.trajectories import score_batches
from stair_jax.model import heads
from stair_jax.train.logprobs import Scorer

Ids = tuple[int, ...]


class TokenRank(NamedTuple):
    """A token of a row, as the model finds it after those before it."""

    token: int
    nats: float
    rank: int  # 1 is the likeliest


def ranks_of(
    tokens: Collection[int],
    scorer: Scorer,
    params: Any,
    rows: Mapping[str, tuple[Ids, Ids]],
    *,
    base: Any,
    config: TrainConfig,
    mesh: jax.sharding.Mesh,
    pad_id: int,
) -> list[TokenRank]:
    """Returns all places in the rows' responses where one of `tokens` stands.

    Args:
      tokens: that are looked for.
      scorer: the one that training used.
      params: what was trained, on the mesh.
      rows: (prompt, response) ids by name.
      base: the frozen weights under adapters; None without.
      config: buckets and the token budget of a forward pass.
      mesh: where to compute; rows lie over its data and fsdp axes.
      pad_id: fills rows.
    """
    most = max((sum(x in tokens for x in response) for _, response in rows.values()), default=0)
    if not most:
        return []
    where = jax.sharding.NamedSharding(mesh, mesh_lib.spec("batch"))
    shards, found = mesh.shape["data"] * mesh.shape["fsdp"], []
    with jax.set_mesh(mesh):
        for _, batch in score_batches(rows, config, pad_id=pad_id, row_shards=shards):
            due_BT = batch.loss_mask & np.isin(batch.tokens, list(tokens))
            due_BT[:, 0] = False  # nothing is before it
            at_BR, real_BR = _indices(due_BT, most)
            placed = jax.device_put((batch.tokens, at_BR), where)
            nats_BR, rank_BR = jax.device_get(_standing(scorer, params, base, *placed))
            token_BR = np.take_along_axis(batch.tokens, at_BR, axis=1)
            columns = (x[real_BR].tolist() for x in (token_BR, nats_BR, rank_BR))
            found += [TokenRank(*place) for place in zip(*columns, strict=True)]
    return found


def _indices(due_BT: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the due tokens of each row, [B, most], and which of these numbers are any."""
    order_BR = np.argsort(~due_BT, axis=1, kind="stable")[:, :most].astype(np.int32)
    real_BR = np.take_along_axis(due_BT, order_BR, axis=1)
    return np.where(real_BR, order_BR, 1), real_BR


@functools.partial(jax.jit, static_argnames="scorer")
def _standing(scorer: Scorer, params: Any, base: Any, tokens_BT: Any, at_BR: Any) -> Any:
    """Returns nats and ranks [B, R] of the tokens at these indices; one row's logits at a time."""
    weights, hidden_BTD = scorer.hidden(params, tokens_BT, layout=None, base=base)
    hidden_BRD = jnp.take_along_axis(hidden_BTD, at_BR[..., None] - 1, axis=1)
    token_BR = jnp.take_along_axis(tokens_BT, at_BR, axis=1)

    def of_row(row: Any) -> Any:
        hidden_RD, token_R = row
        logits_RV = heads.logits(weights, hidden_RD, scorer.spec)
        own_R1 = jnp.take_along_axis(logits_RV, token_R[:, None], axis=-1)
        nats_R = jax.nn.logsumexp(logits_RV, axis=-1) - own_R1[:, 0]
        return nats_R, 1 + jnp.sum(logits_RV > own_R1, axis=-1)

    return jax.lax.map(of_row, (hidden_BRD, token_BR))
