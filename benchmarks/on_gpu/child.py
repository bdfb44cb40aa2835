"""The process that runs one part of a step of `benchmarks.gpu`.

python -m benchmarks.on_gpu.child MODULE:FUNCTION RESULT.json

It imports the module, waits for a line of JSON (a `Job`) on its standard input, runs the function,
and keeps RESULT.json up to date meanwhile, so that nothing is lost when it is killed. Imports are
over by then and no device is in use: the next child can wait like this beside a running one.
"""

import dataclasses
import faulthandler
import importlib
import json
import os
import pathlib
import sys
import time
import traceback
from typing import Any, Literal

from benchmarks.on_gpu import sizes
from benchmarks.on_gpu.sizes import Sizes


class LeftOut(Exception):
    """A part has nothing to run on: a library or a device is missing. That is no failure."""


class Wrong(Exception):
    """A result is not what it must be."""


@dataclasses.dataclass
class Job:
    """What a child is told, and what it tells."""

    tiny: bool
    share: float  # of the sizes: 1, or less after running out of memory
    attention: Literal["auto", "xla"]  # of the engine: "auto", or "xla" where the kernel has failed
    seconds: float  # that the part may take
    folder: str  # what parts of a step hand on to each other
    known: dict[str, float]  # figures of earlier steps: the machine's ceilings
    flags: str = ""  # that XLA gets beside its own
    alone: bool = True  # nobody else uses the device meanwhile
    cached: bool = True  # compiled programs are kept on disk
    result: str = ""  # the file

    def __post_init__(self):
        self._start = time.perf_counter()
        self.figures: dict[str, Any] = {}
        self.state: dict[str, Any] = {"figures": self.figures}
        self.compiling = Compiling()

    @property
    def sizes(self) -> Sizes:
        """Sizes of what is run."""
        return sizes.TINY if self.tiny else sizes.FULL

    @property
    def path(self) -> pathlib.Path:
        """The folder that the parts of a step share."""
        return pathlib.Path(self.folder)

    def some(self, count: int) -> int:
        """Returns the share of `count` that this job may use."""
        return max(1, int(count * self.share))

    def left(self) -> float:
        """Returns the seconds that the part still has."""
        return self.seconds - (time.perf_counter() - self._start)

    def report(self, **figures: Any) -> None:
        """Files figures, prints them and writes the result."""
        self.figures.update(figures)
        self._say("", figures)

    def row(self, section: str, label: str, **figures: Any) -> None:
        """Files one row of a table of figures, prints it and writes the result."""
        self.figures.setdefault(section, {})[label] = figures
        self._say(f"{section} {label}: ", figures)

    def leave_out(self, what: str) -> None:
        """Files what the part did not measure, and why."""
        self.figures.setdefault("left_out", []).append(what)
        self._say("left out: ", {"": what})

    def _say(self, label: str, figures: dict[str, Any]) -> None:
        text = " ".join(f"{k}={_brief(v)}" for k, v in figures.items())
        print(f"  {label}{text}", file=sys.stderr, flush=True)
        self.write()

    def write(self) -> None:
        """Writes the result as it stands."""
        text = json.dumps(
            self.state | {"compile_s": self.compiling.seconds, "cache_hits": self.compiling.hits}
        )
        new = pathlib.Path(f"{self.result}.new")
        new.write_text(text, encoding="utf-8")
        new.replace(self.result)


class Compiling:
    """Seconds that JAX spends on compiling, from `listen` on."""

    def __init__(self):
        self.seconds, self.hits = 0.0, 0

    def listen(self) -> None:
        """Has JAX tell; call it once."""
        import jax

        def took(event: str, duration_secs: float, **_: Any) -> None:
            if event.endswith("backend_compile_duration"):
                self.seconds += duration_secs

        def happened(event: str, **_: Any) -> None:
            self.hits += event.endswith("/cache_hits")

        jax.monitoring.register_event_duration_secs_listener(took)
        jax.monitoring.register_event_listener(happened)


def _brief(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _prepare(job: Job) -> None:
    """Sets what must stand before JAX starts its device."""
    if not job.alone:  # take what is needed, not nearly all
        os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
    if job.flags:
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {job.flags}".strip()
    if "jax" in sys.modules:
        if not job.cached:
            sys.modules["jax"].config.update("jax_enable_compilation_cache", False)
        job.compiling.listen()


def run(name: str, job: Job) -> None:
    """Runs a part; what came of it is in the result, an error included."""
    module, function = name.split(":")
    call = getattr(importlib.import_module(module), function)
    _prepare(job)
    faulthandler.dump_traceback_later(max(1.0, job.seconds - 2))  # says where it hangs
    try:
        call(job)
    except LeftOut as why:
        job.leave_out(str(why))
    except Exception as error:  # anything: the parent decides what to do about it
        traceback.print_exc()
        job.state["error"] = f"{type(error).__name__}: {error}"[:2000]
    else:
        job.state["done"] = True
    faulthandler.cancel_dump_traceback_later()
    job.write()


def main() -> None:
    """Imports, waits, runs."""
    name, result = sys.argv[1:]
    importlib.import_module(name.split(":")[0])
    line = sys.stdin.readline()
    if line:  # else nobody wants this part any more
        run(name, Job(**json.loads(line), result=result))


if __name__ == "__main__":
    # By its name: the steps raise that module's exceptions, not those of `__main__`.
    importlib.import_module("benchmarks.on_gpu.child").main()
