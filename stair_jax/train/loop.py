"""The loop around the step: resume, feed, log, save, stop."""

import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np

from stair_jax import records
from stair_jax.config import TrainConfig
from stair_jax.io import progress
from stair_jax.io.checkpoint import Checkpoints, Fingerprint
from stair_jax.io.metrics import Metrics
from stair_jax.train import optimizer
from stair_jax.train import step as step_lib
from stair_jax.train.losses import Loss
from stair_jax.train.optimizer import AdamW

# Settings that a continued run may change: they move no result but for rounding.
FREE = ("micro_batch", "remat", "save_every", "keep")


@runtime_checkable
class Data(Protocol):
    """What the loop needs to know of the data: `io.data.SftData`, `io.data.DpoData`."""

    seed: int
    digest: str

    @property
    def steps_per_epoch(self) -> int:
        """Batches that an epoch takes."""
        ...

    def batch_at(self, step: int) -> Mapping[str, np.ndarray]:
        """Arrays of the batch of 0-based `step`."""
        ...

    def rows_at(self, step: int) -> Sequence[Any]:
        """Examples of that batch, each with an `id`."""
        ...


class NonFiniteError(RuntimeError):
    """Loss or gradient were not finite; the message says where the rows and the weights are."""


def fingerprint(config: TrainConfig, loss: Loss, data: Data) -> dict[str, Any]:
    """Returns what must not change between the parts of one training run, by name."""
    fixed = {k: v for k, v in vars(config).items() if k not in FREE}
    fixed["buckets"] = list(config.buckets)  # as JSON gives it back
    settings = {k: v for k, v in vars(loss).items() if k != "scorer"}
    return {
        **{f"train.{k}": v for k, v in fixed.items()},
        **{f"{type(loss).__name__.lower()}.{k}": v for k, v in settings.items()},
        "seed": data.seed, "data": data.digest,
    }  # fmt: skip


def fit(
    params: Any,
    data: Data,
    *,
    loss: Loss,
    config: TrainConfig,
    mesh: jax.sharding.Mesh,
    folder: pathlib.Path,
    metrics: Metrics,
    stage: str,
    more: Fingerprint | None = None,
) -> Any:
    """Returns the trained parameters; continues from the newest checkpoint where there is one.

    Args:
      params: float32 weights to start from, placed on the mesh; they stay valid.
      data: batches by step number.
      loss: the objective.
      config: batch, rates, checkpoints.
      mesh: rows of a batch lie over its data and fsdp axes.
      folder: of the checkpoints, one sub-folder a step.
      metrics: gets one line an optimiser step.
      stage: name of the run in the metrics, the progress line and messages.
      more: further settings that a continued run must share, such as the parent model's hash.

    Raises:
      NonFiniteError: at the first loss or gradient that is not finite; the rows of that batch lie
        beside `folder`, the last checkpoint stays.
      ValueError: for a configuration that cannot work, or a checkpoint of another one.
    """
    folder = pathlib.Path(folder)
    optimizer.check(config, row_shards=mesh.shape["data"] * mesh.shape["fsdp"])
    if not data.steps_per_epoch:
        raise ValueError(f"{stage}: no row is left to train on")
    steps = optimizer.total_steps(config, data.steps_per_epoch)
    tx, marks = AdamW.of(config), fingerprint(config, loss, data) | dict(more or {})
    params = step_lib.on_mesh(params, mesh)
    saves = Checkpoints(folder, keep=config.keep, fingerprint=marks)
    with jax.set_mesh(mesh), saves, progress.line(stage, steps) as show:
        start = saves.latest or 0
        if start:
            state = _restore(saves, start, step_lib.abstract(params, tx, mesh))
        else:
            state = step_lib.init(params, tx, mesh)
        metrics.rewind(stage, start)
        log = _Log(stage, data, metrics, folder, show)
        for step in range(start, steps):
            batch = data.batch_at(step)
            lr = optimizer.learning_rate(config, step, steps)
            placed = step_lib.place(batch, config.micro_batch, mesh)
            state, out = step_lib.step(state, placed, lr, loss=loss, tx=tx)
            # The device works on this step while the host looks at the one before it.
            log.push(step, out, {"lr": lr, "epoch": (step + 1) / data.steps_per_epoch}, batch)
            if (step + 1) % config.save_every == 0 or step + 1 == steps:
                log.flush()  # a bad step must not be saved
                saves.save(step + 1, params=state.params, opt=state.opt)
    return state.params


def _restore(saves: Checkpoints, step: int, like: step_lib.State) -> step_lib.State:
    """Returns the state as saved; the step number is the checkpoint's name."""
    params, opt = saves.restore(step, params=like.params, opt=like.opt)
    return step_lib.State(jax.device_put(np.int32(step), like.step.sharding), params, opt)


class _Log:
    """Metrics of the step before, so that the host never waits for the step just dispatched."""

    def __init__(self, stage: str, data: Data, metrics: Metrics, folder: pathlib.Path,
                 show: progress.Show):  # fmt: skip
        self.stage, self.data, self.metrics, self.folder = stage, data, metrics, folder
        self.show = show
        self._waiting: tuple[int, Any, dict[str, float], int] | None = None
        self._clock = time.perf_counter()

    def push(self, step: int, out: Any, more: dict[str, float], batch: Mapping) -> None:
        """Takes a dispatched step and writes the one before it."""
        before, self._waiting = self._waiting, (step, out, more, batch["tokens"].size)
        self._write(before)

    def flush(self) -> None:
        """Writes the step that is still waiting."""
        before, self._waiting = self._waiting, None
        self._write(before)

    def _write(self, entry: tuple[int, Any, dict[str, float], int] | None) -> None:
        if entry is None:
            return
        step, out, more, positions = entry
        out = {name: float(x) for name, x in jax.device_get(out).items()}
        if out.pop("skipped"):
            self._stop(step, out)
        now = time.perf_counter()
        speed = {"positions_per_s": positions / (now - self._clock)}
        self._clock = now
        self.metrics.log(self.stage, step + 1, out | more | speed)
        self.show(step + 1, f"loss {out['loss']:.4f}")

    def _stop(self, step: int, out: dict[str, float]) -> None:
        """Writes the rows of a bad batch and raises."""
        path = self.folder.parent / f"nonfinite-{step + 1}.jsonl"
        records.write_jsonl(path, self.data.rows_at(step))
        raise NonFiniteError(
            f"{self.stage} step {step + 1}: loss {out['loss']}, grad_norm {out['grad_norm']}, "
            f"expected finite numbers; the batch's rows are in {path}, the last good weights in "
            f"{self.folder}"
        )
