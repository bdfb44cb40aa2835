"""Checkpoints on Orbax: parameters, optimiser moments and a page of metadata, apart from another.

    <folder>/<step>/{params, opt, meta}

A step's folder appears whole or not at all; what a killed save left behind is removed at the next
start. Parameters restore alone, for the stage after this one.
"""

import os
import pathlib
import shutil
from collections.abc import Mapping
from typing import Any

import orbax.checkpoint as ocp

_UNFINISHED = ".orbax-checkpoint-tmp"  # how Orbax names a step until it is complete
Fingerprint = Mapping[str, str | int | float | bool | list]


class Checkpoints:
    """The checkpoints of one training run, newest `keep` of them.

    Args:
      folder: holds one sub-folder a step.
      keep: how many stay.
      fingerprint: settings that a continued run must share; kept beside every checkpoint.
    """

    def __init__(self, folder: str | os.PathLike, *, keep: int, fingerprint: Fingerprint):
        self.folder = pathlib.Path(folder).absolute()
        self._fingerprint = dict(fingerprint)
        # Orbax's own cleaning passes over a save that was killed before it wrote any metadata.
        for leftover in self.folder.glob("*" + _UNFINISHED):
            shutil.rmtree(leftover)
        self._manager = ocp.CheckpointManager(
            self.folder,
            options=ocp.CheckpointManagerOptions(
                max_to_keep=keep, enable_async_checkpointing=False
            ),
        )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_) -> None:
        self._manager.close()

    @property
    def latest(self) -> int | None:
        """The newest complete step; None where there is none."""
        return self._manager.latest_step()

    def save(self, step: int, *, params: Any, opt: Any) -> None:
        """Writes a checkpoint of `step` and removes those beyond `keep`."""
        self._manager.save(
            step,
            args=ocp.args.Composite(
                params=ocp.args.StandardSave(params),
                opt=ocp.args.StandardSave(opt),
                meta=ocp.args.JsonSave({"step": step, "fingerprint": self._fingerprint}),
            ),
        )

    def restore(self, step: int, *, params: Any, opt: Any) -> tuple[Any, Any]:
        """Returns parameters and moments as saved at `step`, on the devices that the trees name.

        Args:
          step: a complete step.
          params: `ShapeDtypeStruct`s with shardings; other meshes than the saved one are fine.
          opt: likewise.

        Raises:
          ValueError: where a setting of the fingerprint has changed, naming it.
        """
        self._check(step)
        found = self._manager.restore(
            step,
            args=ocp.args.Composite(
                params=ocp.args.StandardRestore(params), opt=ocp.args.StandardRestore(opt)
            ),
        )
        return found["params"], found["opt"]

    def _check(self, step: int) -> None:
        meta = self._manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))
        saved, now = meta["meta"]["fingerprint"], self._fingerprint
        for key in sorted(saved.keys() | now.keys()):
            if saved.get(key) != now.get(key):
                raise ValueError(
                    f"{self.folder / str(step)}: {key} was {saved.get(key)!r} when this was saved "
                    f"and is {now.get(key)!r} now; restore the setting or use another workdir"
                )


def load_params(folder: str | os.PathLike, abstract: Any, step: int | None = None) -> Any:
    """Returns the parameters of a training run's newest checkpoint, or of `step`.

    Args:
      folder: what `Checkpoints` was given.
      abstract: `ShapeDtypeStruct`s with shardings.
      step: of the checkpoint; None for the newest.

    Raises:
      ValueError: where there is no such checkpoint.
    """
    path = pathlib.Path(folder).absolute()
    steps = sorted(saved_steps(path))
    if not steps or (step is not None and step not in steps):
        raise ValueError(f"{path}: no checkpoint{'' if step is None else f' {step}'}, has {steps}")
    with ocp.StandardCheckpointer() as checkpointer:
        return checkpointer.restore(
            path / str(steps[-1] if step is None else step) / "params", abstract
        )


def saved_steps(folder: str | os.PathLike) -> list[int]:
    """Returns the steps of all complete checkpoints in `folder`; unfinished ones do not count."""
    path = pathlib.Path(folder).absolute()
    return list(ocp.utils.checkpoint_steps(path)) if path.is_dir() else []
