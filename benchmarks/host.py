"""The host of a search on eight GPUs: all is real but the devices, which only take time.

The engine, its replicas, the trees' driver, the log of results and the search's arrays are the
product's own. A fake device draws tokens by hashing the request's key, and its chunk is ready after
chunk x step seconds of a virtual clock. That clock counts the CPU time of this process, less what
the fake devices themselves take, and skips what is slept. So the figures are those of a machine
whose one thread runs as fast as this one's, and neighbours on this machine hardly move them.

Left out: prefill takes no time, nothing is tokenized, a hash judges, and the call that starts a
real program (some 0.2 ms with 300 parameters) is not made.
"""

import argparse
import contextlib
import dataclasses
import gc
import pathlib
import statistics
import tempfile
import time
import zlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any
from unittest import mock

import numpy as np

from benchmarks import harness
from benchmarks.harness import Claim
from stair_jax import config as config_lib
from stair_jax.config.schema import EngineConfig, RewardConfig, SearchConfig
from stair_jax.engine import counters, decode, replicas
from stair_jax.engine import engine as engine_lib
from stair_jax.engine.batch import COLUMNS
from stair_jax.engine.pages import Pages
from stair_jax.engine.replicas import Replicas
from stair_jax.engine.sequences import Held, Store
from stair_jax.judges.base import FunctionJudge, Score
from stair_jax.model.spec import Spec
from stair_jax.records import Prompt
from stair_jax.search import driver, result_log
from stair_jax.search.growth import Tools
from stair_jax.search.replay import ReplayEngine
from stair_jax.search.reward import Reward
from stair_jax.text import Turn

SPEC = Spec(
    L=32,
    D=4096,
    N=32,
    K=8,
    H=128,
    F=14336,
    V=128256,
    vocab=128256,
    eps=1e-5,
    theta=5e5,
    rope_scaling=None,
    qkv_bias=False,
    qk_norm=False,
    tied=False,
    family="llama",
)
PROMPTS = 100_000  # there are always more
STEP_END, END = 1, 2  # token ids; others are drawn from [FIRST, V)
FIRST = 10
STEP_TOKENS, ROLLOUT_TOKENS = 110, 170  # in the mean
_AT = {name: column for column, name in enumerate(COLUMNS)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Size:
    """What is measured."""

    replicas: int = 8
    slots: int = 256
    chunk: int = 8
    page_size: int = 16
    pool_tokens: int = 150_000  # of a replica; a run of this length fills it, and evicts
    context: int = 4096
    prompt: int = 200  # tokens
    iterations: int = 200
    warm_tokens: int = 1_200_000  # decoded before the figures begin
    tokens: int = 1_500_000  # decoded while they are taken
    steps_ms: tuple[float, ...] = (14.0, 30.0)  # a decode step on an H100, on an A800
    held: tuple[int, ...] = (1_000, 5_000, 20_000, 50_000)  # sequences


TINY = Size(
    replicas=2,
    slots=6,
    chunk=4,
    page_size=4,
    pool_tokens=2200,
    context=2100,
    prompt=9,
    iterations=5,
    warm_tokens=800,
    tokens=2000,
    held=(50, 200),
)


class Clock:
    """Virtual time, in place of the module `time` where the product reads it."""

    def __init__(self) -> None:
        self.free = 0.0  # CPU seconds that count as none
        self.ready: list[float] = []  # when the chunks under way are
        self._skipped = 0.0

    def perf_counter(self) -> float:
        """Returns seconds."""
        return time.process_time() - self.free + self._skipped

    def sleep(self, seconds: float) -> None:
        """Goes on to when the next chunk is ready; to the end of the pause where none runs."""
        now = self.perf_counter()
        self.until(min(self.ready, default=now + seconds))

    def until(self, at: float) -> None:
        """Goes on to a time, unless it is over."""
        self._skipped += max(0.0, at - self.perf_counter())


class Steps:
    """The number of steps of a chunk under way: asking for it waits."""

    def __init__(self, clock: Clock, steps: int, at: float):
        self._clock, self._steps, self._at = clock, steps, at
        clock.ready.append(at)

    def is_ready(self) -> bool:
        """True once the device is done."""
        return self._clock.perf_counter() >= self._at

    def __array__(self, *_: object, **__: object) -> np.ndarray:
        self._clock.until(self._at)
        self._clock.ready.remove(self._at)
        return np.asarray(self._steps, np.int32)


class FakeDevice:
    """Takes the place of `engine.device.Device`: as with the kernel, all that is at hand runs."""

    attention, shares, waiting_rows = "pallas", True, 0

    def __init__(self, size: Size, clock: Clock, step_s: float):
        self._given_s = self._until = 0.0  # seconds of chunks so far, and when the last ends
        self.pages = size.pool_tokens // size.page_size
        self.context_pages = -(-size.context // size.page_size)
        self.group_counts, self.width = [size.slots], 0
        self._clock, self._chunk, self._step_s = clock, size.chunk, step_s

    @property
    def busy_s(self) -> float:
        """Seconds that the device has worked."""
        return self._given_s - max(0.0, self._until - self._clock.perf_counter())

    def bucket(self, pages: int) -> int:
        """Returns the width of a table, as `PagedModel.bucket`."""
        return min(self.context_pages, max(16, 1 << (pages - 1).bit_length()))

    def extend(self, *_: object) -> None:
        """Computes nothing."""

    copy = load = extend

    def widen(self, pages: int, *, idle: bool) -> bool:
        """Makes room for requests of `pages` pages."""
        width = self.bucket(pages)
        self.width = width if width > self.width or idle else self.width
        return False

    def decode(
        self, packed: np.ndarray, table: np.ndarray, siblings: object, wanted: object
    ) -> decode.Chunk:
        """Starts a chunk; see `Device.decode`. What a request draws follows from its key alone."""
        del table, siblings, wanted
        began = time.process_time()
        active, made = packed[:, _AT["active"]] > 0, packed[:, _AT["made"]]
        whole = packed[:, _AT["stop"]] == 1  # a rollout: only the end stops it
        key = packed[:, [_AT["key0"], _AT["key1"]]].view(np.uint32).astype(np.uint64)
        seed = (key[:, 0] << np.uint64(32)) | key[:, 1]
        bits = _mixed(seed[:, None] + (made[:, None] + np.arange(self._chunk)).astype(np.uint64))
        chance = (bits >> np.uint64(40)) / 2**24
        share = np.where(whole, 1 / ROLLOUT_TOKENS, 1 / STEP_TOKENS)[:, None]
        falls = chance < share  # a stop token; of a step's, one in five ends the response
        first = np.where(falls.any(1), falls.argmax(1) + 1, self._chunk + 1)
        left = packed[:, _AT["limit"]] - made
        count = np.where(active, np.minimum(np.minimum(first, left), self._chunk), 0)
        tokens = (FIRST + bits % np.uint64(SPEC.V - FIRST)).astype(np.int32)
        ends = np.where(whole[:, None] | (chance < share / 5), END, STEP_END)
        tokens = np.where(falls, ends, tokens).astype(np.int32)
        tokens[np.arange(self._chunk) >= count[:, None]] = decode.NO_TOKEN
        going = active & (first > count) & (count < left)
        row = np.where(going, np.arange(len(packed)), decode.NO_ROW).astype(np.int32)
        self._clock.free += time.process_time() - began
        self._given_s += self._chunk * self._step_s
        self._until = self._clock.perf_counter() + self._chunk * self._step_s
        steps: Any = Steps(self._clock, self._chunk, self._until)
        return decode.Chunk(tokens, np.zeros(tokens.shape, np.float32), row, steps)


def _mixed(x: np.ndarray) -> np.ndarray:
    """Returns well mixed bits [..] uint64. Source: splitmix64 (Steele et al. 2014)."""
    with np.errstate(over="ignore"):
        x = x * np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


class Ids:
    """A codec whose questions are seeds of random prompts, and whose texts are numbers."""

    stops: Mapping[str, Collection[int]] = {"step": {STEP_END, END}, "end": {END}}
    end_stop = frozenset({END})

    def __init__(self, prompt: int):
        self._prompt = prompt

    def prompt_ids(self, question: str, before: Sequence[Turn] = ()) -> list[int]:
        """Returns random ids, the same for the same question."""
        return np.random.default_rng(int(question)).integers(FIRST, SPEC.V, self._prompt).tolist()

    def decode(self, ids: Sequence[int]) -> str:
        """Returns the ids as text."""
        return " ".join(map(str, ids))


def _score(prompt: Prompt, response: str) -> Score:
    code = zlib.crc32(f"{prompt.id} {response[-400:]}".encode())
    return Score(safety=code % 201 / 100 - 1, helpfulness=code // 201 % 201 / 100 - 1)


@dataclasses.dataclass
class Machine:
    """A search over fake devices, with as many trees in flight as the stage would have."""

    size: Size
    step_ms: float
    folder: pathlib.Path  # of the log of results

    def __post_init__(self) -> None:
        size, defaults = self.size, config_lib.default()
        self.clock = Clock()
        self.devices: list[FakeDevice] = []
        config = EngineConfig(
            slots=size.slots,
            page_size=size.page_size,
            pool_bytes=0,
            max_context=size.context,
            chunk=size.chunk,
            prefill_rows=8,
            dtype="bfloat16",
        )
        codec = Ids(size.prompt)

        def device(*_: object, **__: object) -> FakeDevice:
            self.devices.append(FakeDevice(size, self.clock, self.step_ms / 1e3))
            return self.devices[-1]

        with mock.patch.object(engine_lib, "Device", device):
            meshes: Any = [None] * size.replicas
            self.engine = Replicas(
                SPEC,
                [None] * len(meshes),
                config=config,
                stops=codec.stops,
                vocab=SPEC.V,
                meshes=meshes,
            )
        defaults.search.update(
            iterations=size.iterations, trees_in_flight=2 * size.slots * size.replicas
        )
        search = SearchConfig.of(defaults.search)
        reward = Reward(search.reward, RewardConfig.of(defaults.reward))
        ids = [str(i) for i in range(PROMPTS)]
        self.results = result_log.ResultLog(self.folder / result_log.FILE, ids)
        tools = Tools(
            engine=ReplayEngine(self.engine, self.results),
            judge=FunctionJudge(_score),
            codec=codec,
            config=search,
            reward=reward,
            seed=0,
        )
        prompts = (Prompt(id=id, question=id, type="safety") for id in ids)
        self.scheduler = driver.TreeScheduler(prompts, tools)
        self.trees = 0

    def run(self, tokens: int) -> None:
        """Grows trees until so many tokens were decoded in all."""
        with contextlib.ExitStack() as stack:
            for module in (engine_lib, replicas, driver):
                stack.enter_context(mock.patch.object(module, "time", self.clock))
            while self.engine.counters["decoded"] < tokens:
                for tree in self.scheduler.tick():
                    self.results.drop(tree.prompt.id)
                    self.trees += 1

    def close(self) -> None:
        """Ends the search, and closes its log."""
        self.scheduler.close()
        self.results.close()

    def seconds(self) -> dict[str, float]:
        """Returns the clocks: virtual seconds, CPU seconds of the host, those of all devices."""
        return {
            "virtual_s": self.clock.perf_counter(),
            "host_cpu_s": time.process_time() - self.clock.free,
            "devices_s": sum(device.busy_s for device in self.devices),
        }


def search(size: Size, step_ms: float) -> dict[str, float]:
    """Returns what the host of a search does, and how busy it keeps the devices.

    `busy` is the share of the time that the devices decode, `busy_slots` the share of their
    slot-steps that draw a token; `tokens_per_s` counts what all devices decode.
    """
    with tempfile.TemporaryDirectory() as folder:
        return _measured(Machine(size, step_ms, pathlib.Path(folder)))


def _measured(machine: Machine) -> dict[str, float]:
    size = machine.size
    machine.run(size.warm_tokens)
    before, clocks = dict(machine.engine.counters), machine.seconds()
    machine.run(size.warm_tokens + size.tokens)
    done = {name: x - before[name] for name, x in machine.engine.counters.items()}
    passed = {name: x - clocks[name] for name, x in machine.seconds().items()}
    found = {
        "busy": passed["devices_s"] / (size.replicas * passed["virtual_s"]),
        "busy_slots": counters.shares(done)["busy_share"],
        "us_a_token": 1e6 * passed["host_cpu_s"] / done["decoded"],
        "ms_a_chunk": 1e3 * passed["host_cpu_s"] / done["chunks"],
        "tokens_per_s": done["decoded"] / passed["virtual_s"],
        "host_share": passed["host_cpu_s"] / passed["virtual_s"],
        "trees_grown": float(machine.trees),
        **passed,
        **{name: float(done[name]) for name in ("decoded", "chunks", "evicted", "preempted")},
    }
    machine.close()
    return found


def eviction_us(held: int, *, repeats: int = 3) -> float:
    """Returns CPU microseconds that a page takes which an idle sequence must give up."""
    took = []
    for _ in range(repeats):
        store = Store(Pages(held), 16)
        for _ in range(held):
            store.hold(Held(range(17)), store.take(1))
        count = min(200, held // 2)
        began = time.process_time()
        for _ in range(count):
            store.take(1)
        took.append(1e6 * (time.process_time() - began) / count)
    return statistics.median(took)


def measure(options: argparse.Namespace) -> tuple[dict[str, Any], dict[str, Claim]]:
    """Returns all figures, and the claims."""
    size = TINY if options.tiny else Size()
    searches = {}
    for step_ms in size.steps_ms:
        searches[f"{step_ms:g}ms"] = found = search(size, step_ms)
        harness.say(f"steps of {step_ms:g} ms: {harness.brief(found)}")
        gc.collect()
    eviction = {str(held): eviction_us(held) for held in size.held}
    least, *_, most = eviction.values()
    targets = {"14ms": 0.95, "30ms": 0.97}
    claims = {
        **{f"busy_{name}": Claim(searches[name]["busy"], ">=", x) for name, x in targets.items()},
        "eviction_most_held_vs_least": Claim(most / least, "<=", 2.0),
    }
    facts = {"machine": harness.machine(), "size": dataclasses.asdict(size)}
    return {**facts, "searches": searches, "eviction_us": eviction}, claims


def tables(figures: Mapping[str, Any]) -> str:
    """Returns the figures as tables."""
    size, searches = figures["size"], figures["searches"]
    columns = (
        "busy",
        "busy_slots",
        "us_a_token",
        "ms_a_chunk",
        "tokens_per_s",
        "host_share",
        "evicted",
        "preempted",
        "trees_grown",
    )
    title = f"{size['replicas']} devices of {size['slots']} slots, one thread"
    rows = [(name, *(found[column] for column in columns)) for name, found in searches.items()]
    evictions = harness.table(
        "An eviction", ("sequences held", "us"), list(figures["eviction_us"].items())
    )
    return harness.table(title, ("a step", *columns), rows) + "\n" + evictions


def main(argv: Sequence[str] | None = None) -> None:
    """Measures, prints the tables and the claims, writes every figure."""
    parser = harness.parser_of(__doc__ or "")
    parser.add_argument("--tiny", action="store_true", help="tries it out in seconds")
    harness.run(harness.parse(parser, argv), measure, tables)


if __name__ == "__main__":
    main()
