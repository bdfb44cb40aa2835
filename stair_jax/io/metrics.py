"""The figures of a run, one JSON object a line; TensorBoard event files on request."""

import json
import os
import pathlib
import time
from collections.abc import Mapping
from typing import Any

from stair_jax import records


class Metrics:
    """Appends to `metrics.jsonl` in the workdir; a torn last line is dropped at the first write.

    Nothing is touched before that, so that a reader can be made beside a run that is writing.
    """

    def __init__(self, workdir: str | os.PathLike, *, tensorboard: bool = False):
        self.folder = pathlib.Path(workdir)
        self.path = self.folder / "metrics.jsonl"
        self._mended = False
        self._tensorboard = tensorboard
        self._writers: dict[str, Any] = {}  # one event folder a stage

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
            records.mend_jsonl(self.path)
            self._mended = True
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        if self._tensorboard:
            writer = self._writer(stage, step)
            for name, x in values.items():
                writer.add_scalar(name, x, step)

    def rewind(self, stage: str, step: int) -> None:
        """Drops what `stage` logged after `step`: a resumed run writes those lines again."""
        if not self.path.exists():
            return
        lines = records.read_json_lines(self.path)
        kept = [x for x in lines if x["stage"] != stage or x["step"] <= step]
        if len(kept) < len(lines):
            records.write_text(self.path, "".join(json.dumps(x) + "\n" for x in kept))

    def close(self) -> None:
        """Closes the event files."""
        for writer in self._writers.values():
            writer.close()
        self._writers.clear()

    def _writer(self, stage: str, step: int):
        if stage not in self._writers:
            import tensorboardX  # only where it is asked for

            # Event files cannot be cut; purge_step hides what an earlier run wrote from here on.
            self._writers[stage] = tensorboardX.SummaryWriter(
                str(self.folder / "tensorboard" / stage), purge_step=step
            )
        return self._writers[stage]
