"""A function that runs in a thread of its own, but only while somebody waits for it: a coroutine.

So code that was written to drive an engine alone can share it with others: where it would let the
engine work, it pauses, and whoever holds the baton lets the engine work for everybody. At any
moment one of the two runs, never both, so that they need no locks.
"""

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Dropped(BaseException):
    """Raised in a pause of what is not to go on; no `Exception`, so that nothing takes it up."""


class Baton(Generic[T]):
    """A function that is to run in turns.

    Args:
      function: takes `pause`, which returns when the next turn begins.
      name: of its thread.
    """

    def __init__(self, function: Callable[[Callable[[], None]], T], name: str = "baton"):
        self._function = function
        self._mine, self._yours = threading.Semaphore(0), threading.Semaphore(0)
        self._drop = self.done = False
        self._result: list[T] = []
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()  # and waits

    def advance(self) -> bool:
        """Lets the function run up to its next pause or its end; returns whether it has ended."""
        if not self.done:
            self._mine.release()
            self._yours.acquire()
        return self.done

    @property
    def result(self) -> T:
        """What the function returned; raises what it raised."""
        if self._error is not None:
            raise self._error
        (found,) = self._result
        return found

    def drop(self) -> None:
        """Ends the function where it pauses, by `Dropped`; returns when its thread has ended."""
        self._drop = True
        while not self.advance():  # it may let an engine work while it tidies up
            pass
        self._thread.join()

    def _run(self) -> None:
        self._mine.acquire()
        try:
            if not self._drop:
                self._result.append(self._function(self.pause))
        except BaseException as error:
            self._error = error
        finally:
            self.done = True
            self._yours.release()

    def pause(self) -> None:
        """Returns when the function's next turn begins; raises `Dropped` where there is none."""
        self._yours.release()
        self._mine.acquire()
        if self._drop:
            raise Dropped
