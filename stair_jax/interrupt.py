"""SIGTERM: a wish that a trainer grants between two steps, and everything else at once."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator

_wish, _granting = threading.Event(), threading.Event()


class Stopped(Exception):
    """A trainer has saved and stopped because it was asked to; the message says where."""


def install() -> None:
    """Takes over SIGTERM and Ctrl-C, for a program whose files are whole at any moment."""
    signal.signal(signal.SIGINT, _leave)
    signal.signal(signal.SIGTERM, _wanted)


@contextlib.contextmanager
def granted_by_me() -> Iterator[threading.Event]:
    """Yields an event that SIGTERM sets while the block runs: the block saves and stops itself."""
    _wish.clear()
    _granting.set()
    try:
        yield _wish
    finally:
        _granting.clear()


def _wanted(number: int, frame: object) -> None:
    if _granting.is_set():
        _wish.set()
    else:
        _leave(number, frame)


def _leave(number: int, _: object) -> None:
    """Ends the process at once, with 128 + the signal's number as shells do.

    An exception would be lost where it falls into a callback of XLA or of Python's collector, and
    XLA's threads, still at work, crash an orderly exit.
    """
    print("\nstopped; the same command goes on from here", file=sys.stderr, flush=True)
    os._exit(128 + number)
