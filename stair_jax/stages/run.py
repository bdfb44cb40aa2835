"""A run: its configuration, its workdir, and what every stage needs of them."""

import contextlib
import dataclasses
import errno
import fcntl
import functools
import hashlib
import os
import pathlib
import shutil
import socket
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from stair_jax import mesh as mesh_lib
from stair_jax import sections
from stair_jax.config import Config
from stair_jax.io.metrics import Metrics
from stair_jax.stages.lineage import Lineage, settings_of

_HELD = (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES)  # what flock says of a lock that is taken
_PART = 1 << 26  # bytes of an array that are hashed at once


@dataclasses.dataclass(frozen=True)
class Run:
    """What is handed to the stages."""

    config: Config
    workdir: pathlib.Path
    lineage: Lineage
    metrics: Metrics

    @functools.cached_property
    def mesh(self) -> jax.sharding.Mesh:
        """The device mesh of `config.mesh.shape`."""
        return mesh_lib.make(tuple(self.config.mesh.shape))

    def begin(self, name: str, stage: str, parents: tuple[str, ...] = ()) -> None:
        """Notes the start of an artefact; refuses settings that would mix results."""
        self.lineage.begin(name, stage, settings_of(self.config, stage), parents)

    def round_dir(self, number: int) -> pathlib.Path:
        """Returns the folder of a round, made where it is missing."""
        path = self.workdir / f"round-{number}"
        path.mkdir(parents=True, exist_ok=True)
        return path


# What the lineage calls the baselines -> the stage whose trainer they use.
_TRAINERS = {
    "baselines.start": "sft", "baselines.sft": "sft", "baselines.dpo": "dpo",
    "baselines.sacpo": "dpo", "baselines.self-rewarding": "dpo",
}  # fmt: skip


def train_config(config: Config, stage: str) -> sections.TrainConfig:
    """Returns the trainer's settings of a stage."""
    train = config[_TRAINERS.get(stage, stage)].train
    dtype = dtype_of(config.model.compute_dtype)
    made = sections.TrainConfig.of(train, compute_dtype=dtype)
    if stage in _TRAINERS and config.baselines.buckets:
        made = dataclasses.replace(made, buckets=config.baselines.buckets)
    if stage == "baselines.sft" and config.baselines.sft_lr:
        made = dataclasses.replace(made, lr=config.baselines.sft_lr)
    return made


def engine_config(config: Config) -> sections.EngineConfig:
    """Returns the engine's settings."""
    return sections.EngineConfig.of(config.engine, dtype=dtype_of(config.engine.dtype))


def dtype_of(setting: str) -> str:
    """Returns what "auto" stands for: float32 on CPUs, whose bfloat16 is slow, else bfloat16."""
    if setting != "auto":
        return setting
    return "float32" if jax.default_backend() == "cpu" else "bfloat16"


def digest_of(tree: Any) -> str:
    """Returns a hash of the content of a tree of arrays, or of a string."""
    digest = hashlib.sha256()
    if isinstance(tree, str):
        digest.update(tree.encode())
    else:
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            digest.update(jax.tree_util.keystr(path).encode())
            for part in _parts(leaf):
                digest.update(np.ascontiguousarray(part).tobytes())
    return digest.hexdigest()[:32]


def _parts(leaf: Any) -> Iterator[Any]:
    """Yields an array in parts, for a large model must not lie on the host a second time."""
    if np.ndim(leaf) == 0 or leaf.nbytes <= _PART:
        yield leaf
        return
    rows = max(1, _PART * len(leaf) // leaf.nbytes)
    for start in range(0, len(leaf), rows):
        yield leaf[start : start + rows]


def need_disk(run: Run, name: str, parameters: int, *, keep: int) -> None:
    """Refuses a training run whose checkpoints would not fit the disk.

    A checkpoint holds weights and two moments in float32; one more than are kept is written
    before the oldest goes.

    Raises:
      ValueError: with what is needed and what is free, in GB.
    """
    needed = 12 * parameters * (keep + 1)
    free = shutil.disk_usage(run.workdir).free
    if needed > free:
        raise ValueError(
            f"config.workdir: {run.workdir} has {free / 1e9:.1f} GB free, the checkpoints of"
            f" {name} need {needed / 1e9:.1f} GB (fewer with a lower train.keep)"
        )


@contextlib.contextmanager
def locked(workdir: pathlib.Path) -> Iterator[None]:
    """Holds the workdir for this process; the system lets go of it when the process ends.

    Raises:
      ValueError: where another process holds it, or where the file system has no locks.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    with open(workdir / ".lock", "a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in _HELD:
                raise ValueError(
                    f"config.workdir: {workdir} cannot be locked ({error.strerror}), so that two"
                    " runs could mix there; expected a file system with locks (flock)"
                ) from None
            file.seek(0)
            raise ValueError(
                f"config.workdir: {workdir} is in use by another run ({file.read().strip()})"
            ) from None
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield
