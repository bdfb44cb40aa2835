"""Whole trajectories, each once: what a reference model scores, whatever the pairs made of them."""

import hashlib
from collections.abc import Iterator, Mapping

import numpy as np

from stair_jax.config.schema import TrainConfig
from stair_jax.data.batches import SftBatch
from stair_jax.data.dataset import rows_and_passes, write
from stair_jax.data.examples import Ids

Key = str  # 32 hexadecimal digits


def key_of(prompt: Ids, response: Ids) -> Key:
    """Returns a trajectory's key: a hash of its token ids and of where its response begins."""
    ids = np.array([len(prompt), *prompt, *response], np.int32)
    return hashlib.blake2b(ids.tobytes(), digest_size=16).hexdigest()


def score_batches(
    trajectories: Mapping[Key, tuple[Ids, Ids]],
    config: TrainConfig,
    *,
    pad_id: int,
    row_shards: int,
) -> Iterator[tuple[list[Key], SftBatch]]:
    """Yields keys and rows of all trajectories, shortest first, one shape a bucket.

    A batch [m] is one pass over `micro_tokens`; its masks are on the responses. Rows behind the
    last key are absent.

    Raises:
      ValueError: for a trajectory longer than the last bucket.
    """
    length = {key: len(prompt) + len(response) for key, (prompt, response) in trajectories.items()}
    keys = sorted(trajectories, key=lambda key: (length[key], key))
    if keys and length[keys[-1]] > config.buckets[-1]:
        raise ValueError(
            f"trajectory {keys[-1]}: {length[keys[-1]]} tokens, expected {config.buckets[-1]} at"
            " most (config train.buckets)"
        )
    bucket = np.searchsorted(config.buckets, [length[key] for key in keys])
    for number, width in enumerate(config.buckets):
        here = [key for key, b in zip(keys, bucket, strict=True) if b == number]
        if not here:
            continue
        _, rows = rows_and_passes(len(here), width, config.micro_tokens, row_shards)
        for at in range(0, len(here), rows):
            part = here[at : at + rows]
            out = SftBatch.empty(np.full((rows, width), pad_id, np.int32))
            for row, key in enumerate(part):
                prompt, response = trajectories[key]
                write(out.tokens[row], prompt, response)
                out.loss_mask[row, len(prompt) : length[key]] = True
                out.weight[row] = 1
            yield part, out
