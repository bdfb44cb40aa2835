"""Programs that are compiled together."""

import threading
from typing import Any

import jax
import pytest

from stair_jax.engine import ahead
from stair_jax.engine.ahead import Early
from tests.support.engines import GREEDY, PROMPTS, ask, make, params

__all__ = ["params"]

WAIT_S = 60.0  # until a test that would hang fails instead


class Lowered:
    """Stands for a lowered program: notes when it is compiled, and may wait or fail."""

    def __init__(self, name, log, *, wait: Any = None, error=None):
        self.name, self.log, self.wait, self.error = name, log, wait, error

    def compile(self):
        self.log.append(f"{self.name} begins")
        if self.wait:
            self.wait(WAIT_S)
        if self.error:
            raise self.error
        self.log.append(f"{self.name} ends")


def program(key, lowered: Any):
    return Early(key, lambda: lowered)


def test_programs_that_share_no_product_compile_at_the_same_time():
    log, both = [], threading.Barrier(2)
    programs = [program((n,), Lowered(n, log, wait=both.wait)) for n in (256, 1024)]
    done = []
    ahead.compile_together(programs, done.append, threads=2)  # one by one neither would end
    assert done == [1, 2]
    assert sorted(log) == ["1024 begins", "1024 ends", "256 begins", "256 ends"]


def test_the_first_of_those_that_share_a_product_compiles_before_the_others():
    log, last, all_in = [], threading.Barrier(2), threading.Event()
    programs = [
        program((256, "extend", 16), Lowered("extend", log, wait=all_in.wait)),
        program((256, "decode", 16), Lowered("decode", log)),
        program((256, "decode", 64), Lowered("wider", log, wait=last.wait)),
        program((256, "decode", 80), Lowered("widest", log, wait=last.wait)),
    ]

    def lower_last():
        all_in.set()  # what is handed in to idle threads could have begun by now
        return Lowered("other", [])

    programs.append(Early((1024,), lower_last))
    ahead.compile_together(programs, lambda _: None, threads=4)
    assert log[:4] == ["extend begins", "extend ends", "decode begins", "decode ends"]
    assert set(log[4:6]) == {"wider begins", "widest begins"}  # they share what is chosen by now


@pytest.mark.parametrize("threads", [1, 3])
def test_a_program_that_fails_beside_others_is_left_to_its_first_call(threads, caplog):
    log: list[str] = []
    full = RuntimeError("RESOURCE_EXHAUSTED: out of memory\nand more")
    programs = [
        program((256, 16), Lowered("a", log, error=full)),
        program((256, 64), Lowered("b", log)),
        program((1024,), Lowered("c", log)),
    ]
    ahead.compile_together(programs, lambda _: None, threads=threads)
    assert {"b ends", "c ends"} <= set(log)
    (line,) = [r.getMessage() for r in caplog.records]
    assert line.endswith("it is tried again alone: RESOURCE_EXHAUSTED: out of memory")


def test_a_program_that_cannot_be_lowered_ends_the_compiling_with_its_own_error():
    def lower():
        raise ValueError("attention 'pallas' cannot run here")

    log: list[str] = []
    programs = [program((1,), Lowered("a", log)), Early((2,), lower)]
    with pytest.raises(ValueError, match="cannot run here"):
        ahead.compile_together(programs, lambda _: None, threads=2)
    assert log in ([], ["a begins", "a ends"])  # no thread is left at work


@pytest.mark.parametrize(
    ("cores", "threads"), [({0}, 1), ({0, 1}, 1), (set(range(5)), 2), (set(range(64)), 8)]
)
def test_half_of_the_cores_compile_and_two_cores_go_one_by_one(monkeypatch, cores, threads):
    monkeypatch.setattr(ahead.os, "sched_getaffinity", lambda _: cores)
    assert ahead.workers() == threads


@pytest.fixture
def compiled():
    """The programs of the engine that XLA has compiled since, as often as it did."""
    count = []

    def listen(event: str, duration_secs: float, **_: Any) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            count.append(duration_secs)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield count
    jax.monitoring.unregister_event_duration_listener(listen)


@pytest.mark.parametrize("attention", ["xla", "views"])
def test_what_threads_compile_is_what_calls_run_and_nothing_is_compiled_twice(
    params,
    attention,
    monkeypatch,
    compiled,
):
    counts, results = {}, {}
    for threads in (1, 3):
        jax.clear_caches()
        monkeypatch.setattr(ahead, "workers", lambda threads=threads: threads)
        engine = make(params, attention=attention)
        compiled.clear()
        engine.compile([GREEDY], logps=True)
        counts[threads] = len(compiled), engine.counters["compiles"]
        results[threads] = [
            (result.ids, result.logps, result.finish)
            for result in engine.generate([ask(engine, p, i) for i, p in enumerate(PROMPTS)])
        ]
        assert engine.counters["compiles"] == counts[threads][1]
    assert counts[1] == counts[3]
    events, programs = counts[1]
    assert events >= programs > 4  # what makes empty views is compiled, too
    assert results[1] == results[3]


def test_a_program_that_did_not_compile_beside_others_is_compiled_by_its_call(
    params,
    monkeypatch,
    caplog,
):
    real, failed = jax.stages.Lowered.compile, []

    def fails(self: Any) -> Any:
        if not failed:
            failed.append(self)
            raise RuntimeError("RESOURCE_EXHAUSTED: out of memory while trying algorithms")
        return real(self)

    monkeypatch.setattr(jax.stages.Lowered, "compile", fails)
    monkeypatch.setattr(ahead, "workers", lambda: 2)
    jax.clear_caches()
    engine = make(params, attention="xla")
    engine.compile([GREEDY])
    assert failed
    assert "it is tried again alone: RESOURCE_EXHAUSTED" in caplog.text
    assert len(engine.generate([ask(engine, [1, 2, 3])])) == 1
