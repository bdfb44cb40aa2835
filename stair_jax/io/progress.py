"""A progress line for long work, on a terminal; nothing elsewhere."""

import contextlib
from collections.abc import Callable, Iterator

from rich import console, progress

Show = Callable[[int, str], None]


@contextlib.contextmanager
def line(label: str, total: int) -> Iterator[Show]:
    """Yields `show(done, note)`, which moves the line: count, note, time that is left."""
    out = console.Console(stderr=True)
    columns = (
        progress.TextColumn("{task.description}"), progress.BarColumn(),
        progress.MofNCompleteColumn(), progress.TextColumn("{task.fields[note]}"),
        progress.TimeRemainingColumn(),
    )  # fmt: skip
    with progress.Progress(*columns, console=out, disable=not out.is_terminal) as bar:
        task = bar.add_task(label, total=total, note="")
        yield lambda done, note: bar.update(task, completed=done, note=note)
