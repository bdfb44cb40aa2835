"""Checkpoints on Orbax: parameters, optimiser moments and a page of metadata, apart from another.

    <folder>/<step>/{params, opt, meta}

A step's folder appears whole or not at all, and goes the same way; what a killed save or removal
left behind is cleared at the next start. Parameters restore alone, for the stage after this one.
"""

import json
import logging
import math
import os
import pathlib
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from stair_jax import jsonl
from stair_jax.log import progress
from stair_jax.model import finite

log = logging.getLogger(__name__)

UNFINISHED = ".orbax-checkpoint-tmp"  # how Orbax names a step until it is complete
_REMOVED = ".removed"  # how we name one that is on its way out
_META = pathlib.Path("meta", "metadata")  # the last item of a step, as Orbax names it
_PARTS = (_META, pathlib.Path("params", "_METADATA"), pathlib.Path("opt", "_METADATA"))
_TIMEOUT_S = 6 * 3600  # of one save; 8B parameters and moments on a slow disk are no failure

Fingerprint = Mapping[str, Any]  # of JSON values


class Checkpoints:
    """The checkpoints of one training run: the newest `keep` of them, on request the best too.

    A save copies the state to the host and returns; a thread writes it. Whatever fails there is
    raised by the next call that waits for it: every method and property here does.

    Args:
      folder: holds one sub-folder a step.
      keep: how many of the newest stay.
      fingerprint: settings that a continued run must share; kept beside every checkpoint.
      best: also keep the checkpoint with the lowest metric.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        *,
        keep: int,
        fingerprint: Fingerprint,
        best: bool = False,
    ):
        self.folder = pathlib.Path(folder).absolute()
        self._keep, self._keep_best = keep, best
        self._fingerprint = json.loads(json.dumps(dict(fingerprint)))  # as it is read back
        self._pending: int | None = None
        self.folder.mkdir(parents=True, exist_ok=True)
        self._clear()
        self._prune()
        self._saver = ocp.AsyncCheckpointer(
            ocp.CompositeCheckpointHandler(), timeout_secs=_TIMEOUT_S
        )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        try:
            self.close()
        except OSError as failure:
            if error is None:
                raise
            log.error("%s", failure)  # what ended the run goes first

    @property
    def latest(self) -> int | None:
        """The newest complete step; None where there is none."""
        self.wait()
        return max(saved_steps(self.folder), default=None)

    @property
    def best(self) -> int | None:
        """The complete step with the lowest metric; None where none has a metric."""
        self.wait()
        return best_step(self.folder)

    def metric(self, step: int) -> float | None:
        """Returns the metric of a complete step; None where nothing was measured."""
        self.wait()
        return _meta(_chosen(self.folder, step))["metric"]

    def note_metric(self, step: int, metric: float | None) -> None:
        """Adds the metric of a complete step that was saved before it was measured."""
        self.wait()
        where = _chosen(self.folder, step)
        jsonl.write_json(where / _META, {**_meta(where), "metric": metric})

    def save(
        self,
        step: int,
        *,
        params: Any,
        opt: Any,
        data: Mapping[str, Any],
        metric: float | None = None,
    ) -> None:
        """Begins to write a checkpoint of `step`; its arrays may be donated right after.

        Args:
          step: must not be saved yet.
          params: arrays, of any tree.
          opt: arrays, numpy arrays and numbers, of any tree.
          data: where the order of the rows stands, as JSON values.
          metric: lower is better; None where nothing was measured.

        Raises:
          OSError: where this save cannot begin, or the one before it failed.
          ValueError: where the step is there already, or a parameter is not finite.
        """
        self.wait()
        where = self.folder / str(step)
        if where.exists():
            raise ValueError(f"{where}: this step is saved already")
        if wrong := finite.complaint(params):
            raise ValueError(f"{where}: not written, {wrong}; {self._newest()}")
        meta = {"step": step, "fingerprint": self._fingerprint, "data": data, "metric": metric}
        self._pending = step
        try:
            self._saver.save(
                where,
                args=ocp.args.Composite(
                    params=ocp.args.StandardSave(jax.tree.map(_leaf, params)),
                    opt=ocp.args.StandardSave(jax.tree.map(_leaf, opt)),
                    meta=ocp.args.JsonSave(json.loads(json.dumps(meta))),
                ),
            )
        except Exception as error:  # Orbax's, tensorstore's and OS errors
            raise self._failure(error) from error

    def restore(self, step: int, *, params: Any, opt: Any) -> tuple[Any, Any, dict[str, Any]]:
        """Returns parameters, moments and `data` as saved at `step`, on the devices of the trees.

        Args:
          step: a complete step.
          params: `ShapeDtypeStruct`s with shardings; other meshes than the saved one are fine.
          opt: likewise; numpy arrays and numbers stand for themselves.

        Raises:
          ValueError: where a setting of the fingerprint has changed, naming it, where `opt` was
            saved in another layout, or where there is no such checkpoint, it does not fit the
            trees or a parameter is not finite.
        """
        self.wait()
        where = self.folder / str(step)
        meta = _meta(_chosen(self.folder, step))
        self._check(where, meta["fingerprint"])
        self._check_layout(where, opt)
        try:
            found = self._saver.restore(
                where,
                args=ocp.args.Composite(
                    params=ocp.args.StandardRestore(jax.tree.map(_leaf, params)),
                    opt=ocp.args.StandardRestore(jax.tree.map(_leaf, opt)),
                ),
            )
        except Exception as error:  # Orbax's, tensorstore's and OS errors
            raise _unreadable(where, error) from error
        params = _checked(found["params"], where)
        return params, jax.tree.map(_like, opt, found["opt"]), meta["data"]

    def wait(self) -> None:
        """Waits for the save under way, then removes what is not kept.

        Raises:
          OSError: where that save failed.
        """
        if self._pending is None:
            return
        try:
            self._saver.wait_until_finished()
        except Exception as error:  # see `save`
            raise self._failure(error) from error
        self._pending = None
        self._prune()

    def close(self) -> None:
        """Waits as `wait` does, and lets go of the threads."""
        try:
            self.wait()
        finally:
            self._saver.close()

    def _failure(self, error: Exception) -> OSError:
        """Returns what to raise for a failed save, and clears away what it wrote."""
        where, self._pending = self.folder / str(self._pending), None
        self._clear()
        return OSError(f"{where}: the checkpoint was not written: {_line(error)}; {self._newest()}")

    def _newest(self) -> str:
        """Returns in words which checkpoint there is to go back to."""
        return f"the last one is {max(saved_steps(self.folder), default='none')}"

    def _clear(self) -> None:
        """Removes what unfinished saves and removals have left, and steps that lack a part."""
        whole = saved_steps(self.folder)
        for path in self.folder.glob("[0-9]*"):
            torn = path.name.isdigit() and int(path.name) not in whole
            if torn:
                log.warning("%s is no whole checkpoint, removed", path)
            if torn or UNFINISHED in path.name or _REMOVED in path.name:
                shutil.rmtree(path, ignore_errors=True)

    def _prune(self) -> None:
        """Removes the checkpoints that are not kept; each vanishes by a rename, then for good."""
        steps = sorted(saved_steps(self.folder))
        kept = {*steps[-self._keep :], *([best_step(self.folder)] if self._keep_best else ())}
        for step in steps:
            if step not in kept:
                gone = self.folder / f"{step}{_REMOVED}"
                (self.folder / str(step)).rename(gone)
                shutil.rmtree(gone, ignore_errors=True)

    def _check(self, where: pathlib.Path, saved: dict[str, Any]) -> None:
        """Raises ValueError where a setting is not what it was."""
        now = self._fingerprint
        for key in sorted(saved.keys() | now.keys()):
            if saved.get(key) != now.get(key):
                raise ValueError(
                    f"{where}: {key} was {saved.get(key)!r} when this was saved and is "
                    f"{now.get(key)!r} now; restore the setting or use another workdir"
                )

    def _check_layout(self, where: pathlib.Path, opt: Any) -> None:
        """Raises ValueError where another kind of optimiser's state was saved."""
        try:
            with ocp.StandardCheckpointer() as reader:
                saved = reader.metadata(where / "opt").item_metadata.tree
        except Exception as error:  # as in `restore`
            raise _unreadable(where, error) from error
        if ocp.tree.to_flat_dict(saved).keys() != ocp.tree.to_flat_dict(opt).keys():
            raise ValueError(
                f"{where}: another version of stair_jax, or another optimiser, began this training:"
                " the optimiser's state has another layout; finish it with what began it, or"
                f" remove {self.folder} to train from the start"
            )


def load_params(folder: str | os.PathLike, abstract: Any, step: int | None = None) -> Any:
    """Returns the parameters of a training run's newest checkpoint, or of `step`.

    Args:
      folder: what `Checkpoints` was given.
      abstract: `ShapeDtypeStruct`s with shardings.
      step: of the checkpoint; None for the newest.

    Raises:
      ValueError: where there is no such checkpoint, or a parameter is not finite.
    """
    where = _chosen(pathlib.Path(folder).absolute(), step)
    line = progress.line(f"reading {where}")
    with line, ocp.StandardCheckpointer() as checkpointer:
        return _checked(checkpointer.restore(where / "params", abstract), where)


def load_leaf(
    folder: str | os.PathLike, path: Sequence[str], abstract: Any, step: int | None = None
) -> Any:
    """Returns one of the parameters of a checkpoint; nothing else of it is read.

    Args:
      folder: what `Checkpoints` was given.
      path: keys of the parameter in the tree.
      abstract: its `ShapeDtypeStruct`, with a sharding; the values are cast to its dtype.
      step: of the checkpoint; None for the newest.

    Raises:
      ValueError: where there is no such checkpoint, or the parameter is not finite.
    """
    where = _chosen(pathlib.Path(folder).absolute(), step)
    item: Any = abstract
    for key in reversed(path):
        item = {key: item}
    how = ocp.args.PyTreeRestore(
        item=item,
        restore_args=ocp.checkpoint_utils.construct_restore_args(item),
        partial_restore=True,
    )
    with ocp.PyTreeCheckpointer() as checkpointer:
        found = _checked(checkpointer.restore(where / "params", args=how), where)
    (leaf,) = jax.tree.leaves(found)
    return leaf


def saved_steps(folder: str | os.PathLike) -> list[int]:
    """Returns the steps of all complete checkpoints in `folder`, in order; others do not count."""
    path = pathlib.Path(folder).absolute()
    steps = [int(p.name) for p in path.glob("[0-9]*") if p.name.isdigit()]
    return sorted(n for n in steps if all((path / str(n) / part).is_file() for part in _PARTS))


def best_step(folder: str | os.PathLike) -> int | None:
    """Returns the complete step with the lowest metric, the earlier of equals; None without one."""
    path = pathlib.Path(folder).absolute()
    found = {step: _meta(path / str(step))["metric"] for step in saved_steps(path)}
    measured = {step: x for step, x in found.items() if x is not None and math.isfinite(x)}
    return min(measured, key=lambda step: (measured[step], step), default=None)


def _chosen(folder: pathlib.Path, step: int | None) -> pathlib.Path:
    """Returns the folder of a step, None for the newest; ValueError where there is none."""
    steps = saved_steps(folder)
    if not steps or (step is not None and step not in steps):
        named = "" if step is None else f" {step}"
        raise ValueError(f"{folder}: no checkpoint{named}, has {steps}")
    return folder / str(steps[-1] if step is None else step)


def _checked(params: Any, where: pathlib.Path) -> Any:
    """Returns parameters that were read; ValueError where one is not finite."""
    if wrong := finite.complaint(params):
        raise ValueError(f"{where}: {wrong}")
    return params


def _meta(where: pathlib.Path) -> dict[str, Any]:
    return json.loads((where / _META).read_text(encoding="utf-8"))


def _leaf(x: Any) -> Any:
    """Returns a leaf that Orbax takes: it knows numpy's arrays but not its numbers."""
    return np.asarray(x) if isinstance(x, np.generic) else x


def _like(given: Any, found: Any) -> Any:
    """Returns a restored leaf with the type of the one given: a numpy number is one again."""
    return found[()] if isinstance(given, np.generic) else found


def _unreadable(where: pathlib.Path, error: Exception) -> ValueError:
    """Returns what to raise for a checkpoint that cannot be read."""
    return ValueError(f"{where}: cannot be restored: {_line(error)}")


def _line(error: Exception) -> str:
    """Returns the first line of an error with its kind."""
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
