"""What a training run says of itself: one line a step, and the guards that read it."""

import logging
import math
import pathlib
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
import numpy as np

from stair_jax import jsonl
from stair_jax.config.schema import TrainConfig
from stair_jax.data.batches import PairBatch, TrainingBatch
from stair_jax.data.dataset import Dataset
from stair_jax.log import progress
from stair_jax.log.metrics import Metrics
from stair_jax.train.meter import Meter

log = logging.getLogger(__name__)

Got = TypeVar("Got")
# A policy is its own reference at first. But their log-probs come from two programs of different
# shapes, and XLA rounds where it likes between two products, so they differ by rounding. This much
# of a mean may stay however many tokens there are, in nats a token; an H100 was seen .0006 apart.
STEP_ZERO = {"float32": 1e-4, "bfloat16": 5e-3}
# The rest averages out: the standard deviation of a token's difference, in nats. SmolLM2-135M's
# log-probs in bfloat16 were .045 off from those in float32 (1,418 tokens of pairs from trees, two
# CPU cores), and two programs that round apart are up to sqrt(2) times as far from each other: the
# same weights in a training step and in a forward pass were .0062 apart in the mean of 180 tokens.
# At three first steps on an H200, means over 256 to 319 tokens had .051. float32 has 16 bits more.
TOKEN_NOISE = {"float32": 0.064 * 2**-16, "bfloat16": 0.064}
DEVIATIONS = 4.0  # of the noise, beyond which a difference is none of it


def rounding(dtype: str, tokens: int) -> float:
    """Returns the nats a token by which a policy may seem to differ from itself.

    Args:
      dtype: what log-probs are computed in.
      tokens: that the difference is a mean over.
    """
    return max(STEP_ZERO[dtype], DEVIATIONS * TOKEN_NOISE[dtype] / math.sqrt(max(tokens, 1)))


class NonFiniteError(RuntimeError):
    """Loss or gradient were not finite; the message says where the rows and the weights are."""


class StepLog:
    """Writes the step before, so that the host never waits for the step just dispatched."""

    def __init__(
        self,
        stage: str,
        data: Dataset,
        metrics: Metrics,
        folder: pathlib.Path,
        config: TrainConfig,
        meter: Meter,
        show: progress.Line,
    ):
        self.stage, self.data, self.metrics, self.folder = stage, data, metrics, folder
        self.config, self.meter, self.show = config, meter, show
        self.skipped = 0
        self._waiting: tuple[int, Any, float, TrainingBatch, float] | None = None
        self._waited = 0.0
        self._clock = time.perf_counter()

    def rewind(self, step: int) -> None:
        """Drops what an earlier process logged after `step`, and counts on from what it counted."""
        last = self.metrics.rewind(self.stage, step)
        self.skipped = int(last.get("skipped_steps", 0))
        self.meter.tokens = int(last.get("num_tokens", 0))

    def waited(self, what: Callable[[], Got]) -> Got:
        """Returns `what()`, whose time counts as waiting for data."""
        start = time.perf_counter()
        got = what()
        self._waited += time.perf_counter() - start
        return got

    def push(self, step: int, out: Any, lr: float, batch: TrainingBatch) -> None:
        """Takes a dispatched step and writes the one before it."""
        before, self._waiting = self._waiting, (step, out, lr, batch, self._waited)
        self._waited = 0.0
        self._write(before)

    def flush(self) -> None:
        """Writes the step that is still waiting."""
        before, self._waiting = self._waiting, None
        self._write(before)

    def more(self, step: int, values: Mapping[str, float]) -> None:
        """Writes figures that are not of every step; `step` counts from 1."""
        self.metrics.log(self.stage, step, values)
        self._clock = time.perf_counter()  # evaluation and saving are no part of a step

    def _write(self, entry: Any) -> None:
        if entry is None:
            return
        step, out, lr, batch, waited = entry
        found = {name: float(x) for name, x in jax.device_get(out).items()}
        if found.pop("skipped"):
            self._skip(step, found)
        found["learning_rate"] = lr
        # A mean over nothing is no figure: a batch without a pair of depth 3, say.
        found = {name: x for name, x in found.items() if not math.isnan(x)}
        if step == 0:
            self._check_start(found, batch)
        now = time.perf_counter()
        speed = self.meter.figures(batch, seconds=now - self._clock)
        self._clock = now
        more = {
            "epoch": (step + 1) / self.data.steps_per_epoch,
            "data_wait_ms": 1e3 * waited,
            "skipped_steps": self.skipped,
        }
        self.metrics.log(self.stage, step + 1, found | more | speed)
        self.show(
            step + 1,
            f"loss {found['loss']:.4f}, {speed['tokens_per_s']:,.0f} tokens/s"
            if "loss" in found
            else "skipped",
        )

    def _check_start(self, found: Mapping[str, float], batch: TrainingBatch) -> None:
        """Warns where the policy of the first step is not the reference."""
        if not isinstance(batch, PairBatch) or "kl_per_token" not in found:
            return
        tokens = int(np.sum(batch.weight * batch.step_mask[..., 0, :].sum(axis=-1)))
        apart, most = abs(found["kl_per_token"]), rounding(self.config.compute_dtype, tokens)
        if apart > most:
            log.warning(
                "%s: at the first step policy and reference differ by %.2g nats a token over %d"
                " tokens, expected 0 (%s rounds by %.2g at most): the reference's log-probs are of"
                " other weights, another template or precision",
                self.stage,
                apart,
                tokens,
                self.config.compute_dtype,
                most,
            )

    def _skip(self, step: int, found: Mapping[str, float]) -> None:
        """Writes the rows of a bad batch; raises where it is one too many, or the loss is bad."""
        self.skipped += 1
        path = self.folder.parent / f"nonfinite-{step + 1}.jsonl"
        jsonl.write_jsonl(path, self.data.rows_at(step))
        what = (
            f"{self.stage} step {step + 1}: loss {found['loss']}, grad_norm {found['grad_norm']},"
            f" expected finite numbers; the batch's rows are in {path}"
        )
        most = self.config.max_skipped
        if math.isfinite(found["loss"]) and self.skipped <= most:
            log.warning("%s, skipped (%d of at most %d)", what, self.skipped, most)
            return
        raise NonFiniteError(f"{what}, the last good weights in {self.folder}")
