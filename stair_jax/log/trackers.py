"""Where a run's figures can be watched besides `metrics.jsonl`: TensorBoard, W&B, trackio.

Every stage is a run of its own there, so that metrics keep their plain names and steps start at 1.
"""

import importlib
import importlib.util
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

_PACKAGES = {"tensorboard": "tensorboardX", "wandb": "wandb", "trackio": "trackio"}  # to import


@runtime_checkable
class Tracker(Protocol):
    """What `Metrics` needs to know of a tracker."""

    def log(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        """Takes the figures of a step; steps of a stage rise, some come in several parts."""
        ...

    def close(self) -> None:
        """Hands over what is still held back."""
        ...


def check(names: Sequence[str]) -> None:
    """Refuses trackers that are not installed.

    Raises:
      ValueError: naming the tracker, and the extra that brings it.
    """
    for name in names:
        found = importlib.util.find_spec(_PACKAGES[name])
        if found is None or found.origin is None:  # a mere folder of that name has no origin
            raise ValueError(
                f"config.trackers: {name} is not installed; pip install 'stair-jax[{name}]'"
            )


def make(
    name: str,
    folder: pathlib.Path,
    project: str,
    settings: Mapping[str, Any],
    id_of: Callable[[str], str],
) -> Tracker:
    """Returns a tracker; its package is imported here and nowhere before.

    Args:
      name: of `config.TRACKERS`.
      folder: the workdir, whose name groups the runs of its stages.
      project: that W&B and trackio file the run under.
      settings: of the run, shown beside its figures.
      id_of: the run's id in the tracker, of a stage; the same again after a restart.
    """
    package = importlib.import_module(_PACKAGES[name])
    if name == "tensorboard":
        return TensorBoard(package, folder / "tensorboard")
    about = {"project": project, "group": folder.absolute().name, "config": dict(settings)}
    return {"wandb": Wandb, "trackio": Trackio}[name](package, folder, about, id_of)


class TensorBoard:
    """Event files, a folder a stage."""

    def __init__(self, package: Any, folder: pathlib.Path):
        self._package, self._folder = package, folder
        self._writers: dict[str, Any] = {}

    def log(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        """Appends one event a figure."""
        if stage not in self._writers:
            # Files are named by the second: two of a quick restart must not be one.
            self._writers[stage] = self._package.SummaryWriter(
                str(self._folder / stage), filename_suffix=f".{step}"
            )
        for name, x in values.items():
            self._writers[stage].add_scalar(name, x, step)

    def close(self) -> None:
        """Closes the event files."""
        for writer in self._writers.values():
            writer.close()
        self._writers.clear()


class _OneRun:
    """A tracker with one open run at a time, that of the stage which logs."""

    def __init__(
        self,
        package: Any,
        folder: pathlib.Path,
        about: Mapping[str, Any],
        id_of: Callable[[str], str],
    ):
        self._package, self._folder, self._about, self._id_of = package, folder, about, id_of
        self._stage, self._run = "", None

    def log(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        """Sends the figures to the stage's run, which is opened or continued."""
        if self._run is None or stage != self._stage:
            self.close()
            self._stage, self._run = stage, self._open(stage, self._id_of(stage))
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        """Finishes the open run; it can be continued."""
        run, self._run = self._run, None
        if run is not None:
            run.finish()

    def _open(self, stage: str, run_id: str) -> Any:
        raise NotImplementedError


class Wandb(_OneRun):
    """Weights & Biases. WANDB_MODE=offline keeps the figures in the workdir."""

    def _open(self, stage: str, run_id: str) -> Any:
        name = f"{self._about['group']}/{stage}"
        try:
            return self._package.init(
                **self._about, name=name, id=run_id, resume="allow", dir=os.fspath(self._folder)
            )
        except self._package.Error as error:  # no login, mostly
            raise ValueError(f"config.trackers: wandb: {error}") from error


class Trackio(_OneRun):
    """trackio, on this machine; it knows a run by its name."""

    def _open(self, stage: str, run_id: str) -> Any:
        name = f"{self._about['group']}-{stage.replace('/', '-')}-{run_id}"
        return self._package.init(
            **self._about,
            name=name,
            resume="allow",
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )
