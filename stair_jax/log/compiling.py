"""What XLA compiles: said while it takes long, and how long it took.

JAX compiles a program within the first call that needs it; what is said of a call here counts only
what JAX itself reports of compiling.
"""

import contextlib
import functools
import logging
from collections.abc import Iterator
from typing import Any

import jax

from stair_jax.log.progress import Line, duration

log = logging.getLogger(__name__)

LEAST_S = 1.0  # of compiling that is said
_SECONDS, _HIT = "/jax/core/compile/backend_compile_duration", "/jax/compilation_cache/cache_hits"
_totals: dict[str, float] = {_SECONDS: 0.0, _HIT: 0.0}  # of this process


@contextlib.contextmanager
def told(line: Line, what: str) -> Iterator[None]:
    """Says on a line that `what` is compiled in this block, and afterwards how long it took.

    That time is no part of the line's rate.
    """
    _listen()
    before = _totals.copy()
    with line.doing(f"compiling {what}", apart=True):
        yield
    seconds = _totals[_SECONDS] - before[_SECONDS]
    if seconds < LEAST_S:
        return
    read = " (read from the programs kept on disk)" if _totals[_HIT] > before[_HIT] else ""
    log.info("%s: compiled %s in %s%s", line.label, what, duration(seconds), read)


@functools.cache
def _listen() -> None:
    jax.monitoring.register_event_duration_secs_listener(_took)
    jax.monitoring.register_event_listener(_happened)


def _took(event: str, duration_secs: float, **_: Any) -> None:
    if event == _SECONDS:
        _totals[event] += duration_secs


def _happened(event: str, **_: Any) -> None:
    if event == _HIT:
        _totals[event] += 1
