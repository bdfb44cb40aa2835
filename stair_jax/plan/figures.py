"""What a program needs and does on a target: compiled there, measured nowhere."""

import dataclasses
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from stair_jax.model.cache import KVPool
from stair_jax.plan import gpu_text, operations
from stair_jax.plan.gpu_text import Traffic
from stair_jax.plan.target import Target
from stair_jax.program import Program, device_bytes


@dataclasses.dataclass(frozen=True, kw_only=True)
class Figures:
    """Bytes on one device, operations of one device, and times that the data sheet allows.

    Attributes:
      name: of the program.
      stage: that runs it first.
      trains: whether its trainer does; else its engine or a reward model.
      arguments: what it is given, a pool of keys included.
      pool: that pool.
      beside: what is alive while it runs and no argument, by what it holds.
      temporaries: what it needs while it runs.
      results: that take no place of an argument.
      flops: of a call; where it decodes, of one step.
      moved: bytes that it reads and writes at least, likewise.
      traffic: what it moves between devices, likewise.
      compile_s: seconds that it took to compile here; 0 where it was not compiled.
      compiled: False where what it is given is more than a device has: the rest is not asked then.
      error: why it does not compile; "" where it does.
    """

    name: str
    stage: str
    trains: bool
    arguments: int
    pool: int
    beside: Mapping[str, int]
    temporaries: int = 0
    results: int = 0
    flops: float = 0.0
    moved: float = 0.0
    traffic: Sequence[Traffic] = ()
    compile_s: float = 0.0
    compiled: bool = True
    error: str = ""

    @property
    def total(self) -> int:
        """Bytes that a device needs."""
        return self.arguments + sum(self.beside.values()) + self.temporaries + self.results

    def fits(self, room: float | None) -> bool:
        """Returns whether it compiles, and a device has that many bytes; None: it is not known."""
        return not self.error and (room is None or self.total <= room)

    def times(self, target: Target) -> dict[str, float]:
        """Returns the seconds that products, memory and links take at best, each by itself."""
        chip, sent = target.chip, sum(t.bytes for t in self.traffic)
        rates = {
            "products": (self.flops, chip.flops),
            "memory": (self.moved, chip.bandwidth),
            "links": (sent, target.link),
        }
        return {name: amount / rate for name, (amount, rate) in rates.items() if rate}

    def roofline(self, target: Target) -> tuple[float, str] | None:
        """Returns the longest of `times` and what it is; None where no rate is known."""
        found = self.times(target)
        return max((seconds, name) for name, seconds in found.items()) if found else None


def of(program: Program, stage: str, target: Target, *, trains: bool) -> Figures:
    """Compiles a program for a target; `stage` and `trains` are those of `Figures`.

    It must be called in `target.asked()`. Where the arguments alone are more than a device has,
    nothing is compiled: that costs minutes and would say nothing else.
    """
    arguments, pool = device_bytes(program.args), _pool_bytes(program.args)
    known: dict[str, Any] = {
        "name": program.name,
        "stage": stage,
        "trains": trains,
        "arguments": arguments,
        "pool": pool,
        "beside": program.beside,
    }
    if target.room is not None and arguments + sum(program.beside.values()) > target.room:
        return Figures(**known, compiled=False)
    start = time.perf_counter()
    try:
        traced = program.traced()
        compiled = traced.lower().compile(compiler_options=target.options)
    except Exception as error:  # whatever it is, it belongs into the table
        said = (str(error).splitlines() or [""])[0][:200]
        return Figures(**known, compiled=False, error=f"{type(error).__name__}: {said}")
    seconds, memory = time.perf_counter() - start, compiled.memory_analysis()
    results = max(memory.output_size_in_bytes - memory.alias_size_in_bytes, 0)
    given = (
        memory.argument_size_in_bytes
    )  # XLA leaves out what is not read; it is alive all the same
    known["arguments"] = max(arguments, given)
    devices = 1 if program.mesh is None else program.mesh.size
    reads = pool if program.reads is None else program.reads
    return Figures(
        **known,
        temporaries=memory.temp_size_in_bytes,
        results=results,
        flops=operations.flops(traced.jaxpr.jaxpr) / devices,
        moved=float(given - pool + reads + results),
        traffic=gpu_text.traffic(gpu_text.parse(compiled.as_text())),
        compile_s=seconds,
    )


def _pool_bytes(args: Any) -> int:
    """Returns the bytes of pools of keys among arguments."""
    is_pool = lambda x: isinstance(x, KVPool)  # noqa: E731
    found = jax.tree.leaves(args, is_leaf=is_pool)
    return sum(device_bytes(x) for x in found if is_pool(x))
