"""A run: its configuration, its workdir, and what every stage needs of them."""

import contextlib
import dataclasses
import errno
import fcntl
import functools
import os
import pathlib
import shutil
import socket
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax

from stair_jax import mesh as mesh_lib
from stair_jax.config import Config, schema, with_values
from stair_jax.config.stages import BASELINES, RESULTS, SFT, stage_of
from stair_jax.hf import metadata
from stair_jax.log.metrics import Metrics
from stair_jax.run import hashes
from stair_jax.run.lineage import Lineage, settings_of
from stair_jax.train import checkpoint

CHECKPOINT = "model.checkpoint"  # the setting whose content is hashed wherever a model counts
_HELD = (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES)  # what flock says of a lock that is taken


@dataclasses.dataclass(frozen=True)
class Run:
    """What is handed to the stages."""

    config: Config
    workdir: pathlib.Path
    lineage: Lineage
    metrics: Metrics
    flags: frozenset[str] = frozenset()  # dotted keys that the command line set
    devices: Sequence[Any] | None = None  # of a plan; None for those that JAX has

    @functools.cached_property
    def mesh(self) -> jax.sharding.Mesh:
        """The device mesh of `config.mesh.shape`."""
        return mesh_lib.make(tuple(self.config.mesh.shape), self.devices)

    @functools.cached_property
    def checkpoint(self) -> str:
        """A hash of the files of `config.model.checkpoint`; empty where there is none."""
        path = self.origin.model.checkpoint
        known = self.workdir / "checkpoint_files.json"
        return hashes.of_checkpoint(metadata.resolve(path), known) if path else ""

    @property
    def origin(self) -> Config:
        """The configuration with the model, words and seed that what is here was begun with.

        It is today's as long as there is nothing yet.
        """
        entries = self.lineage.entries
        for name in sorted(entries, key=lambda name: name != SFT.artefact()):
            knows = {CHECKPOINT, "seed"} <= entries[name]["settings"].keys()
            if knows and self.lineage.binds(name):
                return self.made_with(name)
        return self.config

    def made_with(self, name: str) -> Config:
        """Returns the configuration that an artefact was made with, where it depends on it."""
        return with_values(self.config, self.lineage.entries[name]["settings"])

    def begin(
        self,
        name: str,
        stage: str,
        parents: tuple[str, ...] = (),
        inputs: Mapping[str, str] | None = None,
    ) -> None:
        """Notes the start of an artefact; refuses what would mix results.

        Args:
          name: of the artefact.
          stage: that makes it.
          parents: artefacts that it is made from.
          inputs: hashes of the rows that it reads, by the setting that names them.
        """
        settings, inputs = settings_of(self.config, stage), dict(inputs or {})
        if self.checkpoint and CHECKPOINT in settings:
            inputs[CHECKPOINT] = self.checkpoint
        self.lineage.begin(name, stage, settings, parents, flags=self.flags, inputs=inputs)

    def round_dir(self, number: int) -> pathlib.Path:
        """Returns the folder of a round, made where it is missing."""
        path = self.workdir / f"round-{number}"
        path.mkdir(parents=True, exist_ok=True)
        return path


def train_config(config: Config, result: str) -> schema.TrainConfig:
    """Returns the settings of the trainer that makes a kind of result."""
    dtype = dtype_of(config.model.compute_dtype)
    made = schema.TrainConfig.of(config[RESULTS[result].trainer].train, compute_dtype=dtype)
    if stage_of(result) == BASELINES.name and config.baselines.buckets:
        made = dataclasses.replace(made, buckets=config.baselines.buckets)
    if result == "baselines.sft" and config.baselines.sft_lr:
        made = dataclasses.replace(made, lr=config.baselines.sft_lr)
    return made


def engine_config(config: Config) -> schema.EngineConfig:
    """Returns the engine's settings."""
    return schema.EngineConfig.of(config.engine, dtype=dtype_of(config.engine.dtype))


def dtype_of(setting: str) -> str:
    """Returns what "auto" stands for: float32 on CPUs, whose bfloat16 is slow, else bfloat16."""
    if setting != "auto":
        return setting
    return "float32" if jax.default_backend() == "cpu" else "bfloat16"


def need_disk(run: Run, name: str, parameters: int, *, keep: int, saves: int) -> None:
    """Refuses a training run of which what is still to be written would not fit the disk.

    A checkpoint holds weights and two moments in float32; one more than are kept is written
    before the oldest goes. Those that are there already need no room any more.

    Args:
      run: of the artefact.
      name: of the artefact.
      parameters: that are trained.
      keep: checkpoints that stay.
      saves: checkpoints of the whole training run.

    Raises:
      ValueError: with what is needed and what is free.
    """
    there = checkpoint.saved_steps(run.workdir / name / "checkpoints")
    states = max(min(keep + 1, saves) - len(there), 1 if len(there) < saves else 0)
    needed = 12 * parameters * states
    free = shutil.disk_usage(run.workdir).free
    if needed > free:
        raise ValueError(
            f"config.workdir: {run.workdir} has {size_of(free)} free, what is still to be"
            f" written of {name} needs {size_of(needed)}: {states} checkpoints of"
            f" {size_of(12 * parameters)} (fewer with a lower train.keep)"
        )


def need_room(run: Run, what: str, needed: int) -> None:
    """Refuses work whose rows would not fit the disk.

    Raises:
      ValueError: with what is needed and what is free.
    """
    free = shutil.disk_usage(run.workdir).free
    if needed > free:
        raise ValueError(
            f"config.workdir: {run.workdir} has {size_of(free)} free, {what} need about"
            f" {size_of(needed)}"
        )


def size_of(bytes_: int | float) -> str:
    """Returns a size in words."""
    return f"{bytes_ / 1e9:.1f} GB" if bytes_ >= 0.1e9 else f"{bytes_ / 1e6:.1f} MB"


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
