"""What JAX is told before a run, and what of a start is compiled, kept and said."""

import dataclasses
import json
import logging
import os
import pathlib
import subprocess
import sys
import threading

import jax
import numpy as np
import pytest

from stair_jax import config as config_lib
from stair_jax import startup
from stair_jax.config.schema import EngineConfig
from stair_jax.engine import decode, prefill
from stair_jax.engine.device import Device, Wanted
from stair_jax.engine.replicas import Replicas
from stair_jax.engine.request import GREEDY
from stair_jax.log import progress
from tests.support.placing import CONFIG, SPEC, stacked

ROOT = pathlib.Path(__file__).parents[1]


def test_a_gpus_memory_is_claimed_unless_the_environment_says_how_much(monkeypatch):
    for name in startup._SHARES:
        monkeypatch.delenv(name, raising=False)
    startup.claim_memory()
    assert os.environ["XLA_PYTHON_CLIENT_MEM_FRACTION"] == "0.9"
    for name in startup._SHARES:
        for other in startup._SHARES:
            monkeypatch.delenv(other, raising=False)
        monkeypatch.setenv(name, "0.33")
        startup.claim_memory()
        assert [os.environ.get(other) for other in startup._SHARES].count("0.33") == 1
        assert sum(other in os.environ for other in startup._SHARES) == 1


@pytest.fixture
def cache_settings():
    """Puts JAX's settings back."""
    names = [
        "jax_compilation_cache_dir",
        "jax_persistent_cache_min_compile_time_secs",
        "jax_persistent_cache_min_entry_size_bytes",
    ]
    before = {name: getattr(jax.config, name) for name in names}
    jax.config.update("jax_compilation_cache_dir", None)
    yield
    for name, value in before.items():
        jax.config.update(name, value)


def test_where_programs_are_kept(tmp_path, monkeypatch, cache_settings):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    assert startup.keep_programs("") is None
    assert startup.keep_programs("auto") is None  # on a CPU
    assert startup.kept_in() is None
    with monkeypatch.context() as patch:
        patch.setattr(jax, "default_backend", lambda: "gpu")
        assert startup.keep_programs("auto") == tmp_path / "home" / "stair_jax"
    assert startup.kept_in() == str(tmp_path / "home" / "stair_jax")
    assert startup.keep_programs(str(tmp_path / "other")) == tmp_path / "home" / "stair_jax"
    jax.config.update("jax_compilation_cache_dir", None)
    assert startup.keep_programs(str(tmp_path / "other")) == tmp_path / "other"
    jax.config.update("jax_compilation_cache_dir", None)
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"^config\.compile_cache: .*file cannot be made \("):
        startup.keep_programs(str(tmp_path / "file"))


STARTED = """
import collections, json, sys
import jax
import jax.monitoring
jax.config.update("jax_platforms", "cpu")
from stair_jax import startup
from stair_jax.engine.engine import Engine
from stair_jax.engine.request import GREEDY
from tests.engine.test_placing import CONFIG, SPEC, STOPS, stacked
startup.keep_programs(sys.argv[1])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
params, events = stacked(), collections.Counter()
jax.monitoring.register_event_listener(lambda name, **_: events.update([name.split("/")[-1]]))
engine = Engine(SPEC, params, config=CONFIG, stops=STOPS, vocab=31)
engine.compile([GREEDY])
print(json.dumps([events["cache_hits"], events["cache_misses"], engine.counters["compiles"]]))
"""


def test_the_second_start_reads_what_the_first_has_compiled(tmp_path):
    runs = [
        subprocess.run(
            [sys.executable, "-c", STARTED, str(tmp_path / "programs")],
            cwd=ROOT,
            check=True,
            capture_output=True,
            text=True,
        )
        for _ in range(2)
    ]
    (hits, misses, programs), second = (json.loads(run.stdout.splitlines()[-1]) for run in runs)
    assert programs > 3
    assert misses >= programs > hits
    assert second == [hits + misses, 0, programs]


@pytest.mark.parametrize(
    ("backend", "kept", "alone"),
    [("gpu", True, True), ("gpu", False, False), ("cpu", True, False)],
)
def test_the_first_replica_compiles_alone_where_the_others_can_read_what_it_has_kept(
    monkeypatch, cache_settings, tmp_path, backend, kept, alone
):
    begun, together = [], threading.Barrier(2 if alone else 3, timeout=60)
    clocks = []

    class Part:
        def __init__(self, number):
            self.number = number

        def compile(self, samplings, **wanted):
            begun.append((self.number, samplings, wanted))
            if self.number or not alone:
                together.wait()  # for the others, which are at work at the same time

        def start_clock(self):
            clocks.append((self.number, len(begun)))

    engine = object.__new__(Replicas)
    monkeypatch.setattr(engine, "_engines", [Part(i) for i in range(3)], raising=False)
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    jax.config.update("jax_compilation_cache_dir", str(tmp_path) if kept else None)
    engine.compile([GREEDY], extends=True)
    assert clocks == [(0, 3), (1, 3), (2, 3)]  # compiling is no work of the host between chunks
    assert sorted(number for number, *_ in begun) == [0, 1, 2]
    for _, samplings, wanted in begun:
        assert (samplings, wanted) == ([GREEDY], {"logps": False, "extends": True})
    assert not alone or begun[0][0] == 0


def plain_config():
    """The engine's settings of the paper's main run, but for the dtype."""
    return EngineConfig.of(config_lib.default().engine, dtype="bfloat16")


def counted(shapes, config):
    """Returns how many programs decode with two samplers, and how many extend anything."""
    context = -(-config.max_context // config.page_size)
    widths = {shapes.width_of(pages, context) for pages in range(1, context + 1)}
    return 2 * len(widths), len(shapes.blocks) * (1 + len(widths))


def test_an_accelerator_compiles_fewer_programs_than_a_cpu():
    cpu, other = prefill.SHAPES["cpu"], prefill.SHAPES[""]
    assert counted(cpu, plain_config()) == (10, 30)
    assert counted(other, plain_config()) == (6, 12)
    for shapes in (cpu, other):
        for tokens in (1, 33, 64, 65, 129, 256):
            assert tokens <= shapes.block_of(tokens) <= 4 * max(tokens, 8)
        assert shapes.block_of(999) == 256
        assert [shapes.width_of(n, 90) for n in (1, 16, 65, 90)] == [16, 16, 90, 90]
    assert (cpu.width_of(17, 90), other.width_of(17, 90)) == (32, 64)


def device(**change):
    config = dataclasses.replace(CONFIG, attention="xla", share_prefix="off", **change)
    stops = np.zeros((1, SPEC.V), bool)
    return Device(SPEC, stacked(), config=config, stops=stops, vocab=31, mesh=None)


class Seen:
    """A view that notes how lines move."""

    def __init__(self):
        self.done = []

    def opened(self, line):
        pass

    def moved(self, line):
        self.done.append((line.label, line.done, line.total))

    def closed(self, line):
        pass


def test_what_is_compiled_is_counted_and_said(monkeypatch, caplog):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    made = device(page_size=1)
    kinds = [Wanted.of([GREEDY], logps=logps, vocab=31) for logps in (False, True)]
    assert made.widths == [16, 40]  # 64 would be more than a context
    before, seen = decode.compiled(), Seen()
    monkeypatch.setattr(progress._BOARD, "view", seen)
    with caplog.at_level(logging.INFO, "stair_jax.engine.device"):
        made.compile(kinds)
    said = [record.getMessage() for record in caplog.records]
    assert decode.compiled() - before == 2 + 1 + 2 * 2  # prompts, copy, decode
    assert seen.done == [(f"compiling for {jax.devices()[0]}", n, 9) for n in range(1, 10)]
    assert len(said) == 1
    assert "compiled all 9 programs in " in said[0]
    made.compile(kinds)
    assert decode.compiled() - before == 7


def test_the_pool_says_how_large_it_is_and_why(caplog, monkeypatch):
    page = prefill.page_bytes(SPEC, CONFIG)
    with caplog.at_level(logging.INFO, "stair_jax.engine.prefill"):
        device()
        device(pool_bytes=33 * page)
        monkeypatch.setattr(Device, "_free_bytes", lambda _: 100 * page)
        device()
    said = [record.getMessage() for record in caplog.records]
    assert said[0].endswith("200 pages, 800 tokens: four contexts a slot")
    assert said[1].endswith("33 pages, 132 tokens: engine.pool_bytes")
    assert said[2].endswith("85 pages, 340 tokens: 85% of the 0.00 GB that are free")


def test_a_device_that_keeps_no_count_is_said_aloud(caplog, monkeypatch):
    class Silent:
        platform = "gpu"

        def __str__(self):
            return "cuda:0"

    made = device()
    monkeypatch.setattr("stair_jax.engine.placing.first_device", lambda _: Silent())
    monkeypatch.setattr(Device, "_free_bytes", lambda _: None)
    with caplog.at_level(logging.WARNING, "stair_jax.engine.prefill"):
        made._page_count(0.5)
    (said,) = [record.getMessage() for record in caplog.records]
    assert "cuda:0 does not say what memory it has" in said
    assert "engine.pool_bytes" in said


def test_a_start_without_torch_says_nothing_of_it():
    code = "import sys; sys.modules['torch'] = None; import stair_jax.log.bars"
    bare = {k: v for k, v in os.environ.items() if k != "TRANSFORMERS_NO_ADVISORY_WARNINGS"}
    done = subprocess.run([sys.executable, "-c", code], env=bare, capture_output=True, text=True)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
