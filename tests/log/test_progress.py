"""How far long work has come: what a log says and when, and bars on a terminal."""

import io
import logging
import math
import os
import threading

import pytest
from rich import console

from stair_jax.log import bars, progress


class Clock:
    """A clock that is set by hand."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def said(caplog):
    """What was said since it was last asked for."""
    caplog.set_level(logging.INFO, logger="stair_jax.log.progress")

    def take():
        texts = [record.getMessage() for record in caplog.records]
        caplog.clear()
        return texts

    return take


@pytest.fixture
def board(clock, monkeypatch):
    monkeypatch.setattr(progress, "_LOOK_S", 1e6)  # its thread sleeps: the tests look themselves
    return progress.Board(clock)


def at(board, clock, seconds):
    """Lets the time come to so many seconds after the start."""
    clock.now = 1000.0 + seconds
    board.tick()


def test_a_line_comes_soon_and_then_once_a_minute(board, clock, said):
    with board.line("sft", 40, "steps") as show:
        times = []
        for second in range(1, 200):
            if second % 10 == 0:
                show(second // 10, "loss 2.5")
            at(board, clock, second)
            times += [second] * len(said())
    first, every = progress.FIRST_S, progress.EVERY_S
    assert (first, every) == (15, 60)
    assert times == [first, first + every, first + 2 * every, first + 3 * every]


def test_a_line_says_done_total_rate_time_left_and_the_note(board, clock, said):
    with board.line("sft", 40, "steps") as show:
        for step in range(1, 7):
            clock.now += 5
            show(step, f"loss {step / 2}")
        board.tick()
    assert said() == [
        "sft: 6 of 40 steps (15%), 12/min, 2 min 50 s left, loss 3.0",
        "sft: 6 of 40 steps (15%), in 30 s, loss 3.0",
    ]


def test_short_work_says_nothing(board, clock, said):
    with board.line("sft", 3, "steps") as show:
        show(3)
        at(board, clock, progress.FIRST_S - 1)
    assert said() == []


def test_work_that_does_not_move_is_told_all_the_same(board, clock, said):
    with board.line("round-1/trees", 4, "trees"):
        at(board, clock, 15)
        at(board, clock, 75)
    assert said()[:2] == [
        "round-1/trees: 0 of 4 trees (0%), for 15 s",
        "round-1/trees: 0 of 4 trees (0%), for 1 min 15 s",
    ]


def test_what_an_earlier_start_did_counts_as_done_but_not_in_the_rate(board, clock, said):
    with board.line("sft", 1000, "steps", done=900) as show:
        clock.now += 20
        show(910)
        board.tick()
        assert said() == ["sft: 910 of 1,000 steps (91%), 30/min, 3 min left"]


def test_the_rate_is_that_of_late(board, clock):
    with board.line("sft", 10_000, "steps") as show:
        for _ in range(100):  # an hour of slow items
            clock.now += 36
            show(show.done + 1)
        slow = show.left(clock.now)
        for _ in range(1000):  # then fast ones, for longer than what counts
            clock.now += 0.5
            show(show.done + 1)
        fast = show.left(clock.now)
    assert slow == pytest.approx(9900 * 36, rel=0.05)
    assert fast == pytest.approx(8900 * 0.5, rel=0.05)
    assert progress.RECENT_S == 300


def test_items_that_take_longer_than_what_counts_still_give_a_rate(board, clock):
    with board.line("sft", 10, "steps") as show:
        for _ in range(6):
            clock.now += 3 * progress.RECENT_S
            show(show.done + 1)
        assert show.left(clock.now) == pytest.approx(4 * 3 * progress.RECENT_S)
        # Half way through the next one nothing speaks against the pace so far.
        assert show.left(clock.now + 1.5 * progress.RECENT_S) == pytest.approx(
            4 * 3 * progress.RECENT_S
        )
        # A stall does.
        assert show.left(clock.now + 100 * progress.RECENT_S) > 8 * 3 * progress.RECENT_S


def test_a_time_left_is_never_nonsense(board, clock, said):
    with board.line("pairs", 0, "trees") as show:  # no item at all
        show(0)
        at(board, clock, 15)
    with board.line("pairs", 5, "trees") as show:
        show(7)  # more than was thought, and in no time
        assert show.left(clock.now) in (None, 0)
        clock.now += 30
        board.tick()
        show(2)  # an item was taken back
        clock.now += 1e9
        board.tick()
        assert show.left(clock.now) is None or 0 <= show.left(clock.now) < math.inf
    texts = said()
    assert texts[0] == "pairs: 0 of 0 trees, for 15 s"
    assert not any(word in text for text in texts for word in ("inf", "nan", "-")), texts


def test_a_time_left_beyond_all_bounds_is_said_so(board, clock, said):
    with board.line("sft", 10**9, "steps") as show:
        clock.now += 60
        show(1)
        board.tick()
        assert said() == ["sft: 1 of 1,000,000,000 steps (0%), 1/min, more than 100 days left"]


def test_compiling_is_told_and_is_no_part_of_the_rate(board, clock, said):
    with board.line("sft", 11, "steps") as show:
        with show.doing("compiling a step", apart=True):
            at(board, clock, 15)
            at(board, clock, 134)
        show(1)  # the pace is measured from here on
        assert show.left(clock.now) is None
        clock.now += 10
        show(2)
        assert show.left(clock.now) == pytest.approx(90)
    assert said()[:2] == [
        "sft: 0 of 11 steps (0%), compiling a step, for 15 s",
        "sft: 0 of 11 steps (0%), compiling a step, for 2 min 14 s",
    ]


def test_what_is_done_beside_the_items_counts_where_it_comes_again(board, clock):
    with board.line("sft", 10, "steps") as show:
        for step in range(1, 5):
            clock.now += 10
            show(step)
            with show.doing("saving"):
                clock.now += 10
        clock.now += 10
        show(5)
        assert show.left(clock.now) == pytest.approx(5 * 18)


def test_only_the_innermost_line_is_said_with_the_work_around_it(board, clock, said):
    with board.line("sft"):
        at(board, clock, 15)
        assert said() == ["sft: for 15 s"]
        with board.line("hashing weights", 2.5, "GB") as show:
            clock.now += 20
            show(0.5)
            board.tick()
            assert said() == [
                "sft, hashing weights: 0.50 of 2.50 GB (20%), 1.5/min, 1 min 20 s left"
            ]
        assert said() == ["sft, hashing weights: 0.50 of 2.50 GB (20%), in 20 s"]
        at(board, clock, 80)
        assert said() == []  # the inner line has just spoken
        at(board, clock, 95)
        assert said() == ["sft: for 1 min 35 s"]
        with board.line("sft", 3, "steps"):  # named in full already
            at(board, clock, 110)
            assert said() == ["sft: 0 of 3 steps (0%), for 15 s"]


def test_many_short_pieces_of_work_are_not_silent_together(board, clock, said):
    with board.line("prm"):
        for second in range(0, 120, 2):
            with board.line(f"part {second}"):
                at(board, clock, second + 1)
    assert said() == [
        "prm, part 14: for 2 s",
        "prm, part 14: done, in 2 s",
        "prm, part 74: for 2 s",
        "prm, part 74: done, in 2 s",
    ]  # that a stage is done, the pipeline says


def test_lines_of_two_threads_do_not_nest(board, clock, said):
    with board.line("engine"):
        inside, ready = threading.Event(), threading.Event()

        def work():
            with board.line("compiling on cpu:1", 2, "programs"):
                ready.set()
                inside.wait(10)

        thread = threading.Thread(target=work)
        thread.start()
        assert ready.wait(10)
        at(board, clock, 15)
        inside.set()
        thread.join(10)
    assert "compiling on cpu:1: 0 of 2 programs (0%), for 15 s" in said()


def test_a_failure_takes_the_line_away_and_is_no_end(board, clock, said):
    def fail():
        with board.line("sft", 3, "steps"):
            at(board, clock, 15)
            raise OSError("disk")

    with pytest.raises(OSError, match="disk"):
        fail()
    at(board, clock, 1000)
    assert len(said()) == 1


def test_the_thread_looks_at_the_clock_and_ends_with_the_work(clock, said, monkeypatch):
    monkeypatch.setattr(progress, "_LOOK_S", 0.001)
    before = threading.enumerate()
    board, spoke = progress.Board(clock), threading.Event()

    class Hear(logging.Handler):
        def emit(self, record):
            spoke.set()

    hear = Hear()
    logging.getLogger("stair_jax.log.progress").addHandler(hear)
    try:
        with board.line("sft", 3, "steps"):
            (watch,) = [t for t in threading.enumerate() if t not in before]
            clock.now += progress.FIRST_S
            assert spoke.wait(10)
        watch.join(10)
    finally:
        logging.getLogger("stair_jax.log.progress").removeHandler(hear)
    assert not watch.is_alive()


def test_over_counts_what_was_dealt_with(board, clock, said, monkeypatch):
    monkeypatch.setattr(progress, "_BOARD", board)
    with progress.over("abc", "pairs", 3, "trees") as items:
        for item in items:
            clock.now += 20
            if item == "c":
                board.tick()
    assert said()[0] == "pairs: 2 of 3 trees (67%), 3/min, 20 s left"


def test_items_that_failed_leave_no_line_to_later_work(board, clock, said, monkeypatch):
    monkeypatch.setattr(progress, "_BOARD", board)

    def fail():
        with progress.over("abc", "reading weights", 3, "kinds") as items:
            for _ in items:
                raise OSError("disk")

    with pytest.raises(OSError, match="disk") as failure:  # its traceback holds the loop
        fail()
    with progress.over("abc", "compiling", 3, "programs") as items:
        next(items)
        at(board, clock, progress.FIRST_S)
    assert said()[0] == "compiling: 0 of 3 programs (0%), for 15 s"
    assert failure.value.args == ("disk",)


def test_durations_in_words():
    texts = {0: "0 s", 59.6: "1 min", 75: "1 min 15 s", 734: "12 min", -3: "0 s"}
    texts |= {3600: "1 h 0 min", 12_000: "3 h 20 min", 187_200: "2 d 4 h"}
    assert {seconds: progress.duration(seconds) for seconds in texts} == texts


@pytest.mark.parametrize(
    ("rate", "text"),
    [
        (1234.5, "1,234/s"),
        (2.5, "2.5/s"),
        (0.25, "15/min"),
        (0.001, "3.6/h"),
        (1e-9, "less than 0.01/h"),
    ],
)
def test_rates_in_the_smallest_unit_of_time_that_has_an_item(rate, text):
    assert progress._rate(rate) == text


def test_a_terminal_has_bars_and_no_lines(board, clock, said):
    file = io.StringIO()
    out = console.Console(file=file, force_terminal=True, width=100)
    board.view = bars.Bars(out)
    with board.line("sft"), board.line("sft", 4, "steps") as show:
        with show.doing("compiling a step", apart=True):
            board.view._bars.refresh()
        show(3, "loss 2.5")
        at(board, clock, 1000)
        board.view._bars.refresh()
    shown = file.getvalue()
    assert "compiling a step" in shown
    assert "3/4" in shown
    assert "loss 2.5" in shown
    assert said() == []


def test_a_log_has_no_bars_of_libraries(monkeypatch):
    monkeypatch.delenv("HF_DATASETS_DISABLE_PROGRESS_BARS", raising=False)
    bars.libraries.enable_progress_bar()
    try:
        bars.hub.enable_progress_bars()
        bars.quiet_libraries()
        assert not bars.libraries.is_progress_bar_enabled()
        assert bars.hub.are_progress_bars_disabled()
        assert os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] == "1"
    finally:
        bars.hub.enable_progress_bars()
        bars.libraries.enable_progress_bar()
