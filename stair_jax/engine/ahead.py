"""Programs that are compiled before they are called, several at a time.

XLA holds no lock of Python's while it compiles, so threads help. What is compiled here is found by
the first call: JAX keeps what it has lowered, and an executable with it.

On a GPU XLA tries several algorithms for a product and keeps the fastest, for the programs that it
compiles later, too. Two programs that meet the same product at the same time would each make a
choice of their own, and a request's tokens could depend on which of them served it. So of all that
share a product the first one is compiled before the others.
"""

import logging
import os
import threading
from collections.abc import Callable, Hashable, Sequence
from concurrent import futures
from typing import Any, NamedTuple

log = logging.getLogger(__name__)

MOST_WORKERS = 8
_AT_ONCE = threading.BoundedSemaphore(MOST_WORKERS)  # of all replicas' programs together

Key = tuple[Hashable, ...]


class Early(NamedTuple):
    """A program that can be lowered before any has run.

    Attributes:
      key: what its products depend on, the coarsest first. Programs whose keys begin alike share
        products.
      lower: returns it lowered, `jax.stages.Lowered`.
    """

    key: Key
    lower: Callable[[], Any]


def workers() -> int:
    """Returns how many programs are compiled at a time: XLA has threads of its own in each.

    It costs memory: on a CPU eleven programs of six layers took 194 MB of the host one by one, and
    481 MB four at a time.
    """
    return max(1, min(MOST_WORKERS, len(os.sched_getaffinity(0)) // 2))


def compile_together(
    programs: Sequence[Early], show: Callable[[int], None], *, threads: int
) -> None:
    """Compiles programs; one that fails is left to its first call.

    That call finds the machine for itself alone, so a lack of memory among several that compile is
    the end of none. It also raises what is really wrong.

    Args:
      programs: in the order in which they would be compiled one by one.
      show: gets the number of those that are done, whenever one is.
      threads: that compile.
    """
    first: dict[Key, futures.Future[None]] = {}
    under_way: list[futures.Future[None]] = []
    pool = futures.ThreadPoolExecutor(threads, "compile")
    try:
        for program in programs:
            begins = [program.key[:n] for n in range(1, len(program.key) + 1)]
            # Those were handed in before, so a thread never waits for one that has none.
            before = {first[begin] for begin in begins if begin in first}
            future = pool.submit(_compile, program.lower(), before)
            for begin in begins:
                first.setdefault(begin, future)
            under_way.append(future)
        for done, future in enumerate(futures.as_completed(under_way), start=1):
            if (error := future.exception()) is not None:
                log.warning(
                    "a program did not compile beside others, it is tried again alone: %s",
                    str(error).partition("\n")[0],
                )
            show(done)
    finally:
        pool.shutdown(cancel_futures=True)


def _compile(lowered: Any, before: set[futures.Future[None]]) -> None:
    futures.wait(before)
    with _AT_ONCE:
        lowered.compile()
