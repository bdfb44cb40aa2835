"""A trace of some of the work, for TensorBoard's profile plugin or Perfetto."""

import contextlib
import logging
import pathlib
from collections.abc import Callable, Iterator

import jax

log = logging.getLogger(__name__)

EVENTS = 20  # that a trace spans: the first one of a stage starts it, so that it is warm


@contextlib.contextmanager
def some(folder: pathlib.Path | None, events: int = EVENTS) -> Iterator[Callable[[], None]]:
    """Yields a function to call at every event; the trace runs from the first for `events` more.

    Args:
      folder: where the trace is written; None for no trace.
    """
    count = 0

    def event() -> None:
        nonlocal count
        count += 1
        if folder is None:
            return
        if count == 1:
            jax.profiler.start_trace(folder, create_perfetto_trace=True)
        elif count == 1 + events:
            _stop(folder)

    try:
        yield event
    finally:
        if folder is not None and 1 <= count <= events:
            _stop(folder)


def _stop(folder: pathlib.Path) -> None:
    jax.profiler.stop_trace()
    log.info("profile: a trace lies in %s", folder)
