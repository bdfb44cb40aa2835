"""How far long work has come: a line a minute in a log, or a bar on a terminal.

Whatever may take long opens a `line` and says what is done. One thread looks at the clock, so that
a log is never silent, whatever the work waits for. Lines nest; only innermost ones are said.
"""

import collections
import contextlib
import logging
import math
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Protocol, TypeVar, runtime_checkable

log = logging.getLogger(__name__)

T = TypeVar("T")
Clock = Callable[[], float]  # seconds since some moment
Amount = int | float  # of items

FIRST_S = 15.0  # seconds until work that goes on says its first line
EVERY_S = 60.0  # seconds between two lines from then on
RECENT_S = 300.0  # seconds of work that a rate is taken from
_LOOK_S = 1.0  # seconds between two looks at the clock
_LEAST = 4  # times that a rate is taken from where items take longer than `RECENT_S`
_DENSE_S = 2.0  # seconds between two times that are kept
_LEAST_RATE = 0.01  # items an hour that are still said as a number
_FAR_S = 100 * 86_400.0  # a time left beyond this says no more than that it is long


class Pace:
    """How fast work goes, from what was done of late: items may be uneven."""

    def __init__(self, now: float, done: Amount):
        self._start: tuple[float, Amount] | None = (now, done)
        self._times: collections.deque[tuple[float, Amount]] = collections.deque()
        self._last = (now, done)

    def begin_anew(self) -> None:
        """Forgets the past: the next item that is done is what the pace is measured from."""
        self._start = None
        self._times.clear()

    def note(self, now: float, done: Amount) -> None:
        """Takes down how much is done."""
        if done == self._last[1]:
            return
        self._last = now, done
        if self._start is None:
            self._start = self._last
        elif not self._times or now - self._times[-1][0] >= _DENSE_S:
            self._times.append(self._last)
        while len(self._times) > _LEAST and now - self._times[0][0] > RECENT_S:
            self._start = self._times.popleft()

    def rate(self, now: float) -> float | None:
        """Returns the items a second; None while none was done.

        An item is under way, which has taken its time already where it takes longer than others.
        """
        if self._start is None or self._last[1] <= self._start[1]:
            return None
        items = self._last[1] - self._start[1]
        waited = (now - self._start[0]) * items / (items + 1)
        seconds = max(self._last[0] - self._start[0], waited)
        return items / seconds if seconds > 0 else None


class Line:
    """One piece of work: call it with what is done of `total`."""

    def __init__(
        self,
        board: "Board",
        parent: "Line | None",
        label: str,
        total: Amount | None,
        unit: str,
        done: Amount,
    ):
        self._board, self.parent = board, parent
        self.label = _joined(parent.label, label) if parent else label
        self.total, self.unit, self.done, self.note, self.task = total, unit, done, "", ""
        self.begun = self._task_begun = board.clock()
        self.due = min(self.begun + FIRST_S, parent.due if parent else math.inf)
        self.said = False
        self._pace = Pace(self.begun, done)

    def __call__(self, done: Amount, note: str = "") -> None:
        """Notes that `done` items are done, what an earlier start did among them."""
        with self._board.lock:
            self.done, self.note = done, note
            self._pace.note(self._board.clock(), done)
        self._board.moved(self)

    @contextlib.contextmanager
    def doing(self, task: str, *, apart: bool = False) -> Iterator[None]:
        """Says that something else is done meanwhile, such as compiling.

        Args:
          task: a description of it.
          apart: whether it comes once, so that its time says nothing of the items to come.
        """
        before = self.task, self._task_begun
        self._set_task(task, self._board.clock())
        try:
            yield
        finally:
            self._set_task(*before)
            if apart:
                with self._board.lock:
                    self._pace.begin_anew()

    def _set_task(self, task: str, begun: float) -> None:
        with self._board.lock:
            self.task, self._task_begun = task, begun
        self._board.moved(self)

    def left(self, now: float) -> float | None:
        """Returns the seconds until all is done; None where that is unknown."""
        rate = self._pace.rate(now)
        if rate is None or self.total is None:
            return None
        return float(max(self.total - self.done, 0) / rate)

    def text(self, now: float) -> str:
        """Returns the line."""
        parts = [self._count()] if self.total is not None else []
        if self.task:
            return self._with(parts, f"{self.task}, for {duration(now - self._task_begun)}")
        rate, left = self._pace.rate(now), self.left(now)
        if rate is None:
            parts.append(f"for {duration(now - self.begun)}")
        else:
            parts.append(_rate(rate))
        if left is not None:
            parts.append(f"{duration(left) if left < _FAR_S else 'more than 100 days'} left")
        return self._with(parts, self.note)

    def end(self, now: float) -> str:
        """Returns what is said of work that is done."""
        what = "done" if self.total is None else self._count()
        return self._with([what, f"in {duration(now - self.begun)}"], self.note)

    def _with(self, parts: list[str], more: str) -> str:
        return f"{self.label}: {', '.join([*parts, more] if more else parts)}"

    def _count(self) -> str:
        assert self.total is not None
        share = f" ({self.done / self.total:.0%})" if self.total else ""
        return f"{_number(self.done)} of {_number(self.total)} {self.unit}".rstrip() + share


@runtime_checkable
class View(Protocol):
    """Shows lines on a terminal, as `log.bars` does."""

    def opened(self, line: Line) -> None:
        """Shows a line, and hides its parent."""
        ...

    def moved(self, line: Line) -> None:
        """Shows what has become of a line."""
        ...

    def closed(self, line: Line) -> None:
        """Takes a line away, and shows its parent."""
        ...


class Board:
    """All lines of a process. In a log each is said when it is due; a view shows them at once."""

    def __init__(self, clock: Clock = time.monotonic):
        self.clock, self.lock = clock, threading.RLock()
        self.view: View | None = None
        self._open: list[Line] = []
        self._mine = threading.local()  # the innermost line of each thread
        self._stop: threading.Event | None = None

    @contextlib.contextmanager
    def line(
        self, label: str, total: Amount | None = None, unit: str = "", *, done: Amount = 0
    ) -> Iterator[Line]:
        """Yields a line for the time of a block; see `progress.line`."""
        parent = getattr(self._mine, "line", None)
        line = self._mine.line = Line(self, parent, label, total, unit, done)
        self._begin(line)
        try:
            yield line
            if line.said and (parent or line.total is not None):
                log.info("%s", line.end(self.clock()))
        finally:
            self._mine.line = parent
            self._end(line)

    def _begin(self, line: Line) -> None:
        with self.lock:
            self._open.append(line)
            if self.view is None and self._stop is None:
                self._stop = threading.Event()
                threading.Thread(target=self._watch, args=(self._stop,), daemon=True).start()
        if self.view:
            self.view.opened(line)

    def _end(self, line: Line) -> None:
        with self.lock:
            self._open.remove(line)
            if line.parent and line.said:  # it need not say the same again at once
                line.parent.due, line.parent.said = max(line.parent.due, line.due), True
            if not self._open and self._stop is not None:
                self._stop.set()
                self._stop = None
        if self.view:
            self.view.closed(line)

    def moved(self, line: Line) -> None:
        """Shows a line's news at once, where there is a view."""
        if self.view:
            self.view.moved(line)

    def tick(self) -> None:
        """Says the innermost lines that are due."""
        if self.view:
            return
        with self.lock:
            now, outer = self.clock(), [line.parent for line in self._open]
            due = [line for line in self._open if line not in outer and now >= line.due]
            texts = []
            for line in due:
                texts.append(line.text(now))
                line.due, line.said = now + EVERY_S, True
        for text in texts:  # a log may be slow: nobody who works must wait for it
            log.info("%s", text)

    def _watch(self, stop: threading.Event) -> None:
        while not stop.wait(_LOOK_S):
            self.tick()


_BOARD = Board()


def line(
    label: str, total: Amount | None = None, unit: str = "", *, done: Amount = 0
) -> contextlib.AbstractContextManager[Line]:
    """Returns a block's line, which is called with what is done, and perhaps a note.

    Args:
      label: what the work is; that of the work around it is put before it.
      total: items that there are; None where that is not known.
      unit: what the items are, in the plural.
      done: items that were done before; they count as done, but not in the rate.
    """
    return _BOARD.line(label, total, unit, done=done)


@contextlib.contextmanager
def over(
    items: Iterable[T], label: str, total: Amount | None = None, unit: str = ""
) -> Iterator[Iterator[T]]:
    """Gives a block the items one by one, and says how many it has dealt with; see `line`.

    A generator alone would not do: its line would stay open for as long as a traceback holds the
    loop that failed.
    """
    with line(label, total, unit) as show:
        yield _counted(items, show)


def _counted(items: Iterable[T], show: Line) -> Iterator[T]:
    for number, item in enumerate(items, start=1):
        yield item
        show(number)


def show_on(view: View | None) -> None:
    """Has lines shown on a terminal instead of in the log; None for the log again."""
    _BOARD.view = view


def duration(seconds: Amount) -> str:
    """Returns a duration as text, in its two largest units."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        minutes, rest = divmod(whole, 60)
        return f"{minutes} min" + (f" {rest} s" if rest and minutes < 10 else "")
    if whole < 86_400:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 86_400} d {whole % 86_400 // 3600} h"


def _rate(rate: float) -> str:
    """Returns a rate in the smallest unit of time that has one item or more."""
    units = ((1, "s"), (60, "min"), (3600, "h"))
    seconds, unit = next((u for u in units if rate * u[0] >= 1), units[-1])
    count = rate * seconds
    if count < _LEAST_RATE:
        return f"less than {_LEAST_RATE}/{unit}"
    return f"{count:,.0f}/{unit}" if count >= 100 else f"{count:.3g}/{unit}"


def _number(x: Amount) -> str:
    return f"{x:,}" if isinstance(x, int) else f"{x:,.2f}"


def _joined(outer: str, inner: str) -> str:
    return inner if inner.startswith(outer) else f"{outer}, {inner}"
