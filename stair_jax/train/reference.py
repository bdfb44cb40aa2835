"""The reference model's log-probs: once per trajectory and token, on disk, resumable.

    <folder>/<key>/part-00000.parquet ...      columns: trajectory, logp

A trajectory is stored whole, token by token: another scope, loss or beta, and every pair that
shares it, read the same row.
"""

import hashlib
import json
import os
import pathlib
from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from stair_jax import mesh as mesh_lib
from stair_jax.config.schema import TrainConfig
from stair_jax.data.trajectories import score_batches
from stair_jax.log import progress
from stair_jax.program import Program
from stair_jax.train.logprobs import Scorer

Ids = tuple[int, ...]
PART_BATCHES = 64  # forward passes between two files: what a kill costs at most
_SCHEMA = pa.schema({"trajectory": pa.string(), "logp": pa.list_(pa.float32())})


def key_of(scorer: Scorer, **made_from: str) -> str:
    """Returns the name under which log-probs are kept: of the model, its words and precision.

    Args:
      scorer: its sizes and compute dtype count.
      made_from: hashes, by what they are of: weights, tokenizer, template.
    """
    facts = {**made_from, "spec": repr(scorer.spec), "dtype": scorer.compute_dtype}
    return hashlib.blake2b(json.dumps(facts, sort_keys=True).encode(), digest_size=8).hexdigest()


def table(
    scorer: Scorer,
    params: Any,
    trajectories: Mapping[str, tuple[Ids, Ids]],
    *,
    config: TrainConfig,
    mesh: jax.sharding.Mesh,
    folder: pathlib.Path,
    key: str,
    pad_id: int,
) -> dict[str, np.ndarray]:
    """Returns the log-probs of every response token, float32 nats, by trajectory.

    What lies in `folder` under `key` is read; the rest is computed and written, a file at a time.

    Args:
      scorer: the one that training uses: rewards are then 0 at its first step, but for rounding.
      params: the reference model's, on the mesh.
      trajectories: (prompt, response) ids by name.
      config: buckets and the token budget of a forward pass.
      mesh: where to compute; rows lie over its data and fsdp axes.
      folder: of all tables.
      key: of this one, from `key_of`.
      pad_id: fills rows.
    """
    path = folder / key
    found = _read(path)
    missing = {name: ids for name, ids in trajectories.items() if name not in found}
    where = jax.sharding.NamedSharding(mesh, mesh_lib.spec("batch"))
    shards, fresh, passes = mesh.shape["data"] * mesh.shape["fsdp"], {}, 0
    batches = score_batches(missing, config, pad_id=pad_id, row_shards=shards)
    done, total = len(trajectories) - len(missing), len(trajectories)
    line = progress.line("log-probs of the reference", total, "trajectories", done=done)
    with line as show:
        for passes, (names, batch) in enumerate(batches, start=1):
            placed = jax.device_put(batch, where)
            program = scoring(scorer, params, placed.tokens, placed.loss_mask, mesh)
            logp_BT = np.asarray(program.run())
            for name, row, mask in zip(names, logp_BT, batch.loss_mask, strict=False):
                fresh[name] = row[mask]
            show(show.done + len(names))
            if passes % PART_BATCHES == 0:
                _write(path, fresh)
                found, fresh = found | fresh, {}
    _write(path, fresh)
    return {name: (found | fresh)[name] for name in trajectories}


def scoring(
    scorer: Scorer, params: Any, tokens: Any, mask: Any, mesh: jax.sharding.Mesh
) -> Program:
    """Returns the forward pass of a batch [m, T], of arrays or of their shapes."""
    rows, width = tokens.shape
    return Program(
        name=f"reference of {rows} x {width} tokens",
        call=_score,
        args=(params, tokens, mask),
        static={"scorer": scorer},
        mesh=mesh,
    )


def planned(scorer: Scorer, params: Any, rows: int, width: int, mesh: jax.sharding.Mesh) -> Program:
    """Returns the forward pass of so many rows of so many tokens, on shapes of the parameters."""
    where = jax.sharding.NamedSharding(mesh, mesh_lib.spec("batch"))
    tokens, mask = (
        jax.ShapeDtypeStruct((rows, width), dtype, sharding=where) for dtype in (np.int32, np.bool_)
    )
    return scoring(scorer, params, tokens, mask, mesh)


@partial(jax.jit, static_argnames="scorer")
def _score(params: Any, tokens: jax.Array, mask: jax.Array, *, scorer: Scorer) -> jax.Array:
    return scorer(params, tokens, mask).logp


def _read(path: pathlib.Path) -> dict[str, np.ndarray]:
    """Returns what whole files hold; a file appears whole or not at all."""
    found: dict[str, np.ndarray] = {}
    for file in sorted(path.glob("part-*.parquet")):
        rows = pq.read_table(file, schema=_SCHEMA)
        names = rows.column("trajectory").to_pylist()
        logps = rows.column("logp").combine_chunks()
        values, at = np.asarray(logps.values), np.asarray(logps.offsets)
        found |= {n: values[a:b] for n, a, b in zip(names, at[:-1], at[1:], strict=True)}
    return found


def _write(path: pathlib.Path, rows: Mapping[str, np.ndarray]) -> None:
    """Adds a file; under another name first, so that a killed writer leaves nothing half."""
    if not rows:
        return
    path.mkdir(parents=True, exist_ok=True)
    file = path / f"part-{len(list(path.glob('part-*.parquet'))):05d}.parquet"
    columns = {"trajectory": list(rows), "logp": [row.tolist() for row in rows.values()]}
    temporary = file.with_suffix(".tmp")
    pq.write_table(pa.table(columns, schema=_SCHEMA), temporary)
    os.replace(temporary, file)
