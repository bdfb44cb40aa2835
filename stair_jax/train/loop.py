"""The loop around the step: resume, feed, log, evaluate, save, stop."""

import contextlib
import dataclasses
import logging
import math
import pathlib
import threading
from collections.abc import Sequence
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import optax

from stair_jax import interrupt
from stair_jax.config.checks import validate_training
from stair_jax.config.knob import knobs_of
from stair_jax.config.schema import TrainConfig
from stair_jax.data.batches import TrainingBatch
from stair_jax.data.dataset import Dataset
from stair_jax.log import compiling, progress
from stair_jax.log.metrics import Metrics
from stair_jax.train import optimizer
from stair_jax.train import step as step_lib
from stair_jax.train.checkpoint import Checkpoints, Fingerprint
from stair_jax.train.log import NonFiniteError, StepLog
from stair_jax.train.losses import Frozen, Loss
from stair_jax.train.meter import Meter

__all__ = ["Fitted", "NonFiniteError", "fit"]
log = logging.getLogger(__name__)

FREE = tuple(name for name, knob in knobs_of(TrainConfig).items() if knob.free)
GIVEN = ("new_rows_lr",)  # whoever knows the new rows tells of it, where there are any


@dataclasses.dataclass(frozen=True)
class Fitted:
    """What a training run ends with."""

    params: Any
    step: int  # whose parameters these are: the last, or the best


def fingerprint(config: TrainConfig, loss: Loss, data: Dataset) -> dict[str, Any]:
    """Returns what must not change between the parts of one training run, by name."""
    fixed = {k: v for k, v in vars(config).items() if k not in FREE + GIVEN}
    fixed["buckets"] = list(config.buckets)  # as JSON gives it back
    settings = {k: v for k, v in vars(loss).items() if k != "scorer"}
    return {
        **{f"train.{k}": v for k, v in fixed.items()},
        **{f"{type(loss).__name__.lower()}.{k}": v for k, v in settings.items()},
        "seed": data.seed,
        "data": data.digest,
    }


def fit(
    params: Any,
    data: Dataset,
    *,
    loss: Loss,
    config: TrainConfig,
    mesh: jax.sharding.Mesh,
    folder: pathlib.Path,
    metrics: Metrics,
    stage: str,
    frozen: Frozen = None,
    more: Fingerprint | None = None,
    tx: optax.GradientTransformation | None = None,
) -> Fitted:
    """Returns the trained parameters; continues from the newest checkpoint where there is one.

    Args:
      params: weights to start from (all, or adapters), placed on the mesh; they are given away.
      data: batches by step number.
      loss: the objective.
      config: batch, rates, checkpoints.
      mesh: rows of a batch lie over its data and fsdp axes.
      folder: of the checkpoints, one sub-folder a step.
      metrics: gets one line an optimiser step.
      stage: name of the run in the metrics, the progress line and messages.
      frozen: weights that the loss reads, by name.
      more: further settings that a continued run must share, such as the parent model's hash.
      tx: the optimiser, any of optax's; None for the configuration's. The configuration's schedule
        sets a `learning_rate` injected into it; without one it follows a rate of its own.

    Raises:
      NonFiniteError: at a loss that is not finite, or one skipped step too many; the rows lie
        beside `folder`, the last checkpoint stays.
      Stopped: on SIGTERM or Ctrl-C, within a forward and backward pass and after a checkpoint.
      ValueError: for a configuration that cannot work, or a checkpoint of another one.
    """
    folder = pathlib.Path(folder)
    validate_training("train", config)
    if not data.steps_per_epoch:
        raise ValueError(f"{stage}: no row is left to train on")
    steps = optimizer.total_steps(config, data.steps_per_epoch)
    marks = fingerprint(config, loss, data) | dict(more or {})
    params = jax.tree.map(lambda x: x.astype(config.param_dtype), step_lib.on_mesh(params, mesh))
    best = config.result == "best"
    saves = Checkpoints(folder, keep=config.keep, best=best, fingerprint=marks)
    before = saves.latest or 0
    log.info("%s: %d steps of %d rows, %d are done", stage, steps, config.batch, before)
    heard, bar = interrupt.granted_by_me(), progress.line(stage, steps, "steps", done=before)
    with heard as wish, jax.set_mesh(mesh), saves, bar as show:  # the last save is waited for, too
        tx = tx or optimizer.of(config)
        run = _Fit(loss, data, config, mesh, saves, stage, frozen, tx, steps, wish, show)
        meter = Meter(loss.scorer.spec, config, reference=loss.reads_reference, mesh=mesh)
        fitted = run(params, StepLog(stage, data, metrics, folder, config, meter, show))
    if wish.is_set():  # since the last step began
        raise interrupt.Stopped(f"{stage}: stopped, step {steps} of {steps} is saved")
    return fitted


@dataclasses.dataclass(frozen=True)
class _Fit:
    """One training run, with everything that stays the same from step to step."""

    loss: Loss
    data: Dataset
    config: TrainConfig
    mesh: jax.sharding.Mesh
    saves: Checkpoints
    stage: str
    frozen: Frozen
    tx: optax.GradientTransformation
    steps: int
    wish: threading.Event
    show: progress.Line
    met: set[Any] = dataclasses.field(default_factory=set)  # shapes of batches, by what was called

    def __call__(self, params: Any, out: StepLog) -> Fitted:
        start = self.saves.latest or 0
        begun = _visible(params)
        stream = self.data.stream(start)
        if start:
            like = step_lib.abstract(params, self.tx, self.mesh)
            params, opt, place = self.saves.restore(start, params=like.params, opt=like.opt)
            state = step_lib.State(params, opt)
            stream.set_state(place)
        else:
            state = step_lib.init(params, self.tx, self.mesh)
        del params
        rated = optimizer.takes_rate(state.opt)
        out.rewind(start)
        if start and self._owes_a_measurement(start):
            metric = self._measure(start, state, begun, stream, out)
            self.saves.note_metric(start, metric)
        for step in range(start, self.steps):
            here = stream.get_state()
            batch = out.waited(lambda: next(stream))
            lr = optimizer.learning_rate(self.config, step, self.steps) if rated else math.nan
            try:
                with self._first("a step", [batch]):
                    state, figures = step_lib.step(
                        state,
                        step_lib.place(batch, self.mesh),
                        lr,
                        loss=self.loss,
                        tx=self.tx,
                        frozen=self.frozen,
                        stop=self.wish.is_set,
                    )
            except step_lib.GivenUp:
                self._stop(step, state, here, out)
            # The device works on this step while the host looks at the one before it.
            out.push(step, figures, lr, batch)
            last = step + 1 == self.steps
            if last or (step + 1) % self.config.save_every == 0:
                out.flush()  # a bad step must not be saved
                self._save(step + 1, state, begun, stream, out)
            if self.wish.is_set() and not last:
                self._stop(step + 1, state, stream.get_state(), out)
        return self._result(state)

    def _first(
        self, what: str, batches: Sequence[TrainingBatch]
    ) -> contextlib.AbstractContextManager:
        """Returns a block that tells of compiling, where the first batch has a new shape."""
        if not batches:
            return contextlib.nullcontext()
        passes, *rows = batches[0].tokens.shape
        if (what, passes, *rows) in self.met:
            return contextlib.nullcontext()
        self.met.add((what, passes, *rows))
        number = sum(name == what for name, *_ in self.met)
        most = len(self.config.buckets) if self.config.batching == "bucket" else 1
        size = f"{passes} x " * (passes > 1) + " x ".join(map(str, rows))
        return compiling.told(
            self.show, f"{what} of {size} tokens (shape {number} of at most {most})"
        )

    def _save(self, done: int, state: step_lib.State, begun: Any, stream: Any, out: StepLog):
        metric = self._measure(done, state, begun, stream, out)
        with self.show.doing(f"saving step {done}"):
            self.saves.save(
                done, params=state.params, opt=state.opt, data=stream.get_state(), metric=metric
            )

    def _measure(
        self, done: int, state: step_lib.State, begun: Any, stream: Any, out: StepLog
    ) -> float | None:
        """Writes what the held-out rows say; returns their loss, None where there are none."""
        held_out = self.data.eval_batches()
        try:
            with (
                self.show.doing("measuring the rows set aside"),
                self._first("a measure", held_out),
            ):
                found = step_lib.measure(
                    state.params,
                    held_out,
                    self.mesh,
                    loss=self.loss,
                    frozen=self.frozen,
                    stop=self.wish.is_set,
                )
        except step_lib.GivenUp:
            self._stop(done, state, stream.get_state(), out)
        figures = {f"eval_{name}": x for name, x in found.items()}
        out.more(done, figures | {"bf16_changed": float(_changed(begun, state.params))})
        return found.get("loss")

    def _owes_a_measurement(self, done: int) -> bool:
        """Returns whether a regular save was made unmeasured, because of a signal."""
        regular = done == self.steps or done % self.config.save_every == 0
        return regular and self.saves.metric(done) is None and bool(self.data.eval_batches())

    def _stop(self, done: int, state: step_lib.State, place: Any, out: StepLog) -> NoReturn:
        """Saves `done` steps, unmeasured, and ends the run."""
        out.flush()
        if done and self.saves.latest != done:
            self.saves.save(done, params=state.params, opt=state.opt, data=place)
        said = f"step {self.saves.latest} of {self.steps} is saved" if done else "no step was done"
        raise interrupt.Stopped(f"{self.stage}: stopped, {said}")

    def _result(self, state: step_lib.State) -> Fitted:
        """Returns the last parameters, or the best ones where those are asked for."""
        best = self.saves.best if self.config.result == "best" else None
        if best in (None, self.steps):
            return Fitted(state.params, self.steps)
        like = step_lib.abstract(state.params, self.tx, self.mesh)
        log.info("%s: the best of the checkpoints is that of step %d", self.stage, best)
        return Fitted(self.saves.restore(best, params=like.params, opt=like.opt)[0], best)


@jax.jit
def _visible(params: Any) -> Any:
    """Returns the weights as bfloat16 shows them, 2 bytes each."""
    return jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)


@jax.jit
def _changed(begun: Any, params: Any) -> jax.Array:
    """Returns the share of weights that differ from the run's start when rounded to bfloat16.

    What a small learning rate moves less than that is lost in a bfloat16 export.
    """
    moved = jax.tree.map(
        lambda a, b: jnp.sum(a != b.astype(a.dtype), dtype=jnp.float32), begun, params
    )
    share = sum(jax.tree.leaves(moved)) / sum(x.size for x in jax.tree.leaves(params))
    return jnp.asarray(share)
