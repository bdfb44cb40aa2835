"""SIGTERM and Ctrl-C: a trainer saves after the current pass; other stages exit at once."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator

_wish, _granting = threading.Event(), threading.Event()
_heard: list[int] = [signal.SIGTERM]  # the signal that was heard last


class Stopped(Exception):
    """A trainer has saved and stopped because it was asked to; the message says where."""

    @property
    def status(self) -> int:
        """What the process exits with, as shells have it: 128 and the signal's number."""
        return 128 + _heard[-1]


def install() -> None:
    """Takes over SIGTERM and Ctrl-C, for a program whose files are whole at any moment."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _wanted)


@contextlib.contextmanager
def granted_by_me() -> Iterator[threading.Event]:
    """Yields an event that a signal sets while the block runs: the block saves and stops itself."""
    _wish.clear()
    _granting.set()
    try:
        yield _wish
    finally:
        _granting.clear()


def _wanted(number: int, frame: object) -> None:
    if not _granting.is_set():
        _leave(number, "stopped; the same command goes on from here")
    if _wish.is_set():
        _leave(number, "stopped at once; the same command goes on from the last checkpoint")
    _heard.append(number)
    _wish.set()
    _say(
        "stopping: the forward and backward pass in hand ends, then a checkpoint is written; once"
        " more ends it at once"
    )


def _leave(number: int, message: str) -> None:
    """Ends the process at once, with 128 + the signal's number as shells do.

    An exception would be lost where it falls into a callback of XLA or of Python's collector, and
    XLA's threads, still at work, crash an orderly exit.
    """
    _say(message)
    os._exit(128 + number)


def _say(message: str) -> None:
    # A print that the signal fell into cannot be entered a second time.
    os.write(2, f"\n{message}\n".encode())
