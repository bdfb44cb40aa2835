"""The figures of a run, one JSON object a line; on request in trackers besides."""

import json
import os
import pathlib
import secrets
import time
from collections.abc import Mapping, Sequence
from typing import Any

from stair_jax import jsonl
from stair_jax.log import trackers as trackers_lib
from stair_jax.log.trackers import Tracker


class Metrics:
    """Appends to `metrics.jsonl` in the workdir; a torn last line is dropped at the first write.

    Nothing is touched before that, so that a reader can be made beside a run that is writing.

    Args:
      workdir: of the run.
      trackers: names of `config.TRACKERS`, which get the same figures.
      project: that they file the run under, where they have projects.
      settings: of the run, which they show.

    Raises:
      ValueError: for a tracker that is not installed.
    """

    def __init__(
        self,
        workdir: str | os.PathLike,
        *,
        trackers: Sequence[str] = (),
        project: str = "",
        settings: Mapping[str, Any] | None = None,
    ):
        trackers_lib.check(trackers)
        self.folder = pathlib.Path(workdir)
        self.path = self.folder / "metrics.jsonl"
        self._mended = False
        self._names, self._about = tuple(trackers), (project, settings or {})
        self._trackers: dict[str, Tracker] = {}
        self._sent = _Sent(self.folder / "trackers.json")

    def __enter__(self) -> "Metrics":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def log(self, stage: str, step: int, values: Mapping[str, float | int]) -> None:
        """Appends one line {"stage", "step", ..., "time"} (unix seconds)."""
        values = {name: float(x) for name, x in values.items()}
        line = {"stage": stage, "step": step, **values, "time": time.time()}
        if not self._mended:
            self.folder.mkdir(parents=True, exist_ok=True)
            jsonl.mend_jsonl(self.path)
            self._mended = True
        with open(self.path, "ab", buffering=0) as file:
            jsonl.append(file, json.dumps(line).encode() + b"\n")
        for name in self._names:
            if step > self._sent.upto(name, stage):
                self._tracker(name).log(stage, step, values)

    def rewind(self, stage: str, step: int) -> dict[str, float]:
        """Drops what `stage` logged after `step`: a resumed run writes those lines again.

        Trackers cannot take a step back; they do not get it a second time. Returns the newest
        value of each figure that stays, for those that count on.
        """
        if not self.path.exists():
            return {}
        lines = jsonl.read_json_lines(self.path)
        kept = [x for x in lines if x["stage"] != stage or x["step"] <= step]
        if len(kept) < len(lines):
            self._sent.keep(stage, max(x["step"] for x in lines if x["stage"] == stage))
            jsonl.write_text(self.path, "".join(json.dumps(x) + "\n" for x in kept))
        last: dict[str, Any] = {}
        for line in kept:
            last |= line if line["stage"] == stage else {}
        return {name: x for name, x in last.items() if name not in ("stage", "step", "time")}

    def close(self) -> None:
        """Closes the trackers."""
        for tracker in self._trackers.values():
            tracker.close()
        self._trackers.clear()

    def _tracker(self, name: str) -> Tracker:
        if name not in self._trackers:
            self._trackers[name] = trackers_lib.make(
                name, self.folder, *self._about, lambda stage: self._sent.id_of(name, stage)
            )
        return self._trackers[name]


class _Sent:
    """What trackers have of each stage: the id of its run there, and steps not to be sent again."""

    def __init__(self, path: pathlib.Path):
        self._path = path
        self._read: dict[str, dict[str, dict[str, Any]]] | None = None

    @property
    def _found(self) -> dict[str, dict[str, dict[str, Any]]]:
        """By tracker and stage: {"id", "upto"}."""
        if self._read is None:
            exists = self._path.exists()
            found = json.loads(self._path.read_text(encoding="utf-8")) if exists else {}
            self._read = found
            return found
        return self._read

    def upto(self, tracker: str, stage: str) -> int:
        """Returns the last step that a tracker has from before a rewind; 0 where there is none."""
        return self._entry(tracker, stage)["upto"]

    def id_of(self, tracker: str, stage: str) -> str:
        """Returns the id of a stage's run, the same for ever."""
        return self._entry(tracker, stage)["id"]

    def keep(self, stage: str, step: int) -> None:
        """Notes that every tracker which knows `stage` has its steps up to `step`."""
        entries = [stages[stage] for stages in self._found.values() if stage in stages]
        for entry in entries:
            entry["upto"] = max(entry["upto"], step)
        if entries:
            self._write()

    def _entry(self, tracker: str, stage: str) -> dict[str, Any]:
        stages = self._found.setdefault(tracker, {})
        if stage not in stages:
            stages[stage] = {"id": secrets.token_hex(4), "upto": 0}
            self._write()
        return stages[stage]

    def _write(self) -> None:
        jsonl.write_text(self._path, json.dumps(self._found, indent=1) + "\n")
