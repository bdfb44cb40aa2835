"""Lines of `progress` as bars on a terminal; no bars of libraries elsewhere."""

import logging
import os
import sys

from huggingface_hub import utils as hub
from rich import console, progress
from transformers.utils import logging as libraries

from stair_jax.log.progress import Line


class Bars:
    """The bars of all work that is under way; a piece of work hides the one around it."""

    def __init__(self, out: console.Console | None = None):
        columns = (
            progress.TextColumn("{task.description}"),
            progress.BarColumn(),
            progress.MofNCompleteColumn(),
            progress.TextColumn("{task.fields[note]}"),
            progress.TimeElapsedColumn(),
            progress.TimeRemainingColumn(),
        )
        self._bars = progress.Progress(*columns, console=out or console.Console(stderr=True))
        self._tasks: dict[Line, progress.TaskID] = {}

    def opened(self, line: Line) -> None:
        """Shows a line, and hides its parent."""
        if not self._tasks:
            self._bars.start()
        self._tasks[line] = self._bars.add_task(line.label, total=line.total, note="")
        self._bars.update(self._tasks[line], completed=line.done)
        if line.parent:
            self._bars.update(self._tasks[line.parent], visible=False)

    def moved(self, line: Line) -> None:
        """Shows what is done, and what is being done."""
        if line in self._tasks:
            note = line.task or line.note
            self._bars.update(self._tasks[line], completed=line.done, note=note)

    def closed(self, line: Line) -> None:
        """Takes a line away, and shows its parent."""
        self._bars.remove_task(self._tasks.pop(line))
        if line.parent:
            self._bars.update(self._tasks[line.parent], visible=True)
        if not self._tasks:
            self._bars.stop()


class StderrHandler(logging.StreamHandler):
    """Writes to what is standard error at the time: bars take it over, and move for a line."""

    def emit(self, record: logging.LogRecord) -> None:
        """Writes a record."""
        self.stream = sys.stderr
        super().emit(record)


def quiet_libraries() -> None:
    """Keeps the libraries' bars out of a log; `datasets` must not have been imported yet."""
    hub.disable_progress_bars()
    libraries.disable_progress_bar()
    os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"
