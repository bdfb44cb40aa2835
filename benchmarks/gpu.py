"""What one GPU makes of the engine and the trainers, beside transformers and PyTorch, in 8 minutes.

python -m benchmarks.gpu --out FILE.json                    on a machine with one GPU
python -m benchmarks.gpu --out FILE.json --only decode      one step, by name
python -m benchmarks.gpu --out FILE.json --tiny             all steps at toy sizes, on any device

Steps come in the order of what they tell; right comes before fast. Each runs in a process of its
own with a budget: one that fails, crashes or hangs costs itself alone. FILE.json is written anew
whenever there is news. Exits with 1 where a step failed, whatever the claims say.
"""

import argparse
import concurrent.futures
import dataclasses
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from benchmarks import harness
from benchmarks.harness import Claim

MINUTES = 460 / 60  # eight minutes hold them and the start
ROOT = pathlib.Path(__file__).parents[1]
CACHE = ROOT / "runs" / "gpu_cache"  # of compiled programs, where JAX was not told of one
TRITON_OFF = "--xla_gpu_enable_triton_gemm=false"
LONGER = 1.5  # times its budget that a step may take, if the time is there,
LEAST = 60  # and so many seconds in any case: a machine's first start is slow
HERE = "benchmarks.on_gpu"


@dataclasses.dataclass(frozen=True)
class Step:
    """A step: functions that run in processes of their own, those of a round side by side."""

    name: str
    seconds: float  # its budget
    rounds: tuple[tuple[str, ...], ...]  # of "module:function"
    alone: bool = True  # it is timed: nobody else may use the device meanwhile
    least: float = 0.0  # seconds that must be left beside the budget


STEPS = (
    Step("facts", 5, ((f"{HERE}.machine:facts",),)),
    Step("ceilings", 20, ((f"{HERE}.machine:ceilings",),)),
    Step("kernels", 45, ((f"{HERE}.kernels:right",),), alone=False),
    Step(
        "engine",
        45,
        (
            (f"{HERE}.engine:right", f"{HERE}.engine:trees", f"{HERE}.engine:fresh"),
            (f"{HERE}.engine:again", f"{HERE}.peers:right"),
        ),
        alone=False,
    ),
    Step("decode", 110, ((f"{HERE}.engine:decode",),)),
    Step("prefill", 30, ((f"{HERE}.engine:prefill",),)),
    Step("training", 100, ((f"{HERE}.training:ours",), (f"{HERE}.peers:training",))),
    Step("search", 70, ((f"{HERE}.engine:search",), (f"{HERE}.peers:generate",))),
    Step("plans", 35, ((f"{HERE}.kernels:plans",),)),
    Step("large_search", 60, ((f"{HERE}.engine:large_search",),), least=20),
)
ALWAYS = ("facts",)  # whatever --only says: a file must name the card


def main(argv: list[str] | None = None) -> None:
    """Measures, writes and prints."""
    options = _options(argv)
    run = Run(options)
    run.measure()
    print(table(run.figures))
    print(harness.claims_table(claims_of(run.figures)))
    sys.exit(1 if run.figures["failed"] else 0)


def _options(argv: list[str] | None) -> argparse.Namespace:
    parser = harness.parser_of(__doc__ or "")
    parser.add_argument("--tiny", action="store_true", help="toy sizes, to try the program out")
    parser.add_argument(
        "--minutes",
        type=float,
        default=MINUTES,
        help="what may take longer is not begun (default: %(default).2g)",
    )
    parser.add_argument(
        "--only",
        default="",
        metavar="NAME[,NAME]",
        help=f"of {', '.join(step.name for step in STEPS)}",
    )
    options = harness.parse(parser, argv)
    options.only = [name.strip() for name in options.only.split(",") if name.strip()]
    if unknown := [name for name in options.only if name not in {step.name for step in STEPS}]:
        parser.error(f"--only: {unknown} not in {[step.name for step in STEPS]}")
    return options


class Run:
    """All steps of a run, and the file of its figures."""

    def __init__(self, options: argparse.Namespace):
        self._options, self._start = options, time.monotonic()
        self._lock = threading.Lock()
        self._attention = "auto"  # of the engines, until the kernel fails
        self._flags = ""  # of XLA, until a program does not compile without them
        self._waiting: dict[str, Child] = {}  # started ahead, by function
        self.figures: dict[str, Any] = {
            "benchmark": "gpu",
            "settings": {"tiny": options.tiny, "minutes": options.minutes, "only": options.only},
            "machine": {},
            "steps": {},
            "failed": [],
            "left_out": [],
        }

    def left(self) -> float:
        """Returns the seconds until no step may run any more."""
        return 60 * self._options.minutes - (time.monotonic() - self._start)

    def measure(self) -> None:
        """Runs the steps, as far as the time reaches."""
        wanted = [s for s in STEPS if not self._options.only or s.name in self._options.only]
        wanted = [s for s in STEPS if s in wanted or s.name in ALWAYS]
        groups = list(_groups(wanted))
        with tempfile.TemporaryDirectory() as folder:
            self._folder = pathlib.Path(folder)
            try:
                for group, later in zip(groups, [*groups[1:], []], strict=True):
                    self._group(group, later)
                    if "facts" in self.figures["failed"]:
                        break  # there is no GPU
            finally:
                for child in self._waiting.values():
                    child.end()
        self.figures["seconds"] = time.monotonic() - self._start
        self._write()

    def _group(self, group: Sequence[Step], later: Sequence[Step]) -> None:
        """Runs steps that may share the device side by side, or the one that may not."""
        ready = []
        for step in group:
            if step.seconds + step.least > self.left():
                self.figures["left_out"].append(f"{step.name}: {self.left():.0f} s were left")
                harness.say(f"{step.name} left out: it may take {step.seconds:.0f} s")
            else:
                ready.append(step)
        with concurrent.futures.ThreadPoolExecutor(max(1, len(ready))) as pool:
            running = [pool.submit(self._step, step) for step in ready]
            self._ahead([f for step in later[:1] for f in step.rounds[0]])
            for future in running:
                future.result()

    def _ahead(self, functions: Sequence[str]) -> None:
        """Starts processes that import what they will need, and wait."""
        for function in functions:
            if function not in self._waiting:
                self._waiting[function] = Child(function, self._folder)

    def _step(self, step: Step) -> None:
        """Runs a step's parts and files what came of them."""
        start = time.monotonic()
        told: dict[str, Any] = {"ok": False, "compile_s": 0.0, "figures": {}, "notes": []}
        with self._lock:
            self.figures["steps"][step.name] = told
        errors, folder = list[str](), self._folder / step.name
        folder.mkdir()
        until = start + self.left()
        if not self._options.tiny:
            until = min(until, start + max(LEAST, LONGER * step.seconds))
        for number, functions in enumerate(step.rounds):
            self._ahead([f for more in step.rounds[number + 1 :][:1] for f in more])
            with concurrent.futures.ThreadPoolExecutor(len(functions)) as pool:
                parts = [
                    pool.submit(self._part, step, function, told, folder, until)
                    for function in functions
                ]
                errors += [error for part in parts if (error := part.result())]
        told |= {"ok": not errors, "seconds": time.monotonic() - start}
        if errors:
            told["errors"] = errors
        with self._lock:
            if errors:
                self.figures["failed"].append(step.name)
            if step.name == "facts":
                self.figures["machine"] = told["figures"]
        self._write()
        state = "ok" if told["ok"] else "FAIL"
        flat = {k: v for k, v in told["figures"].items() if isinstance(v, int | float | str)}
        line = f"{step.name} {state} {told['seconds']:.1f} s, compiling {told['compile_s']:.1f} s"
        print(f"{line}  {harness.brief(flat)}", *errors, sep="\n    ", flush=True)

    def _part(
        self, step: Step, function: str, told: dict[str, Any], folder: pathlib.Path, until: float
    ) -> str:
        """Runs a part, once more with another setting where that may help; returns its error."""
        share, tried = 1.0, set()
        while True:
            with self._lock:
                child = self._waiting.pop(function, None) or Child(function, self._folder)
            attention, flags = self._attention, self._flags
            job = {
                "tiny": self._options.tiny,
                "share": share,
                "attention": attention,
                "seconds": max(1.0, until - time.monotonic()),
                "folder": str(folder),
                "known": self._known(),
                "flags": flags,
                "alone": step.alone,
                "cached": not function.endswith(":fresh"),
            }
            found = child.run(job, until, lambda now: self._take(told, now))
            self._take(told, found)
            told["compile_s"] += found.get("compile_s", 0.0)
            error = found.get("error", "")
            if step.name == "kernels" and found.get("figures", {}).get("kernel_ok") != 1:
                self._without_kernel(told)
            if not error:
                return ""
            share = self._other_way(error, function, share, told, tried)
            if not share or time.monotonic() + step.seconds / 3 > until:
                return f"{function.split('.')[-1]}: {error}"

    def _other_way(
        self, error: str, function: str, share: float, told: dict[str, Any], tried: set[str]
    ) -> float:
        """Changes what may help against an error; returns the share of the sizes, 0 to give up."""
        way = way_around(error)
        if not way or way in tried or function.startswith(f"{HERE}.kernels"):
            return 0.0
        tried.add(way)
        if way == "half":
            self._note(told, f"out of memory: {function} once more at half of the sizes")
            return share / 2
        if way == "flags":
            self._note(told, f"did not compile: {function} once more with {TRITON_OFF}")
            self._flags = TRITON_OFF
        elif self._attention == "auto":
            self._without_kernel(told)
        return share

    def _without_kernel(self, told: dict[str, Any]) -> None:
        if self._attention != "xla":
            self._attention = "xla"
            self._note(told, "THE KERNEL FAILED: attention=xla in all later steps")

    def _note(self, told: dict[str, Any], line: str) -> None:
        told["notes"].append(line)
        print(line, flush=True)

    def _known(self) -> dict[str, float]:
        """Returns the ceilings, once they are measured."""
        found = self.figures["steps"].get("ceilings", {}).get("figures", {})
        return {name: x for name, x in found.items() if isinstance(x, float)}

    def _take(self, told: dict[str, Any], found: Mapping[str, Any]) -> None:
        """Files what a part has told so far."""
        with self._lock:
            for name, value in found.get("figures", {}).items():
                if name == "left_out":
                    told["notes"] += [x for x in value if x not in told["notes"]]
                else:
                    told["figures"][name] = value
        self._write()

    def _write(self) -> None:
        with self._lock:
            harness.write(self._options.out, self.figures, claims_of(self.figures))


def _groups(steps: Sequence[Step]) -> Iterator[list[Step]]:
    """Yields neighbours that may share the device together, the others one by one."""
    group: list[Step] = []
    for step in steps:
        if step.alone and group:
            yield group
            group = []
        group.append(step)
        if step.alone:
            yield group
            group = []
    if group:
        yield group


def way_around(error: str) -> str:
    """Returns what may help against an error: "half" of the sizes, other "flags", no "kernel"."""
    ways = {
        "half": r"RESOURCE_EXHAUSTED|[Oo]ut of memory|OutOfMemory",
        "flags": r"gemm_fusion|No supported config|[Aa]utotun",
        "kernel": r"[Tt]riton|[Pp]allas|paged_attention|ptxas|PTX|by signal",
    }
    return next((way for way, pattern in ways.items() if re.search(pattern, error)), "")


class Child:
    """A process for one part: it imports at once, and runs when it is told to."""

    def __init__(self, function: str, folder: pathlib.Path):
        self._result = folder / f"{function.replace(':', '.')}-{time.monotonic_ns()}.json"
        self._process = subprocess.Popen(
            [sys.executable, "-m", f"{HERE}.child", function, str(self._result)],
            stdin=subprocess.PIPE,
            stdout=sys.stderr,
            env=_environment(),
            text=True,
            cwd=ROOT,
            start_new_session=True,
        )

    def run(self, job: Mapping[str, Any], until: float, on_news: Any) -> dict[str, Any]:
        """Tells the process its job, and returns what came of it; an `error` is among it.

        Args:
          until: when the process is ended, by `time.monotonic`.
          on_news: is given each new state of the result.
        """
        assert self._process.stdin
        try:
            self._process.stdin.write(json.dumps(job) + "\n")
            self._process.stdin.close()
        except OSError:  # it has died already
            pass
        seen, over = "", False
        while self._process.poll() is None:
            if over := time.monotonic() > until:
                self.end()
                break
            time.sleep(0.1)
            if (text := self._text()) != seen:
                seen = text
                on_news(json.loads(text))
        code = self._process.wait()
        found: dict[str, Any] = json.loads(self._text() or "{}")
        if over:
            found["error"] = f"ended after {job['seconds']:.0f} s, its time was over"
        elif code < 0:
            found["error"] = f"ended by signal {-code} ({signal.Signals(-code).name})"
        elif code or not (found.get("error") or found.get("done") or found.get("figures")):
            found.setdefault("error", f"ended with status {code}")
        return found

    def _text(self) -> str:
        return self._result.read_text(encoding="utf-8") if self._result.exists() else ""

    def end(self) -> None:
        """Ends the process and what it has started."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        if self._process.stdin and not self._process.stdin.closed:
            self._process.stdin.close()


def _environment() -> dict[str, str]:
    """Returns the environment of the steps: what is not set yet is set for them."""
    own = {
        "XLA_PYTHON_CLIENT_MEM_FRACTION": ".92",
        "JAX_COMPILATION_CACHE_DIR": str(CACHE),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "PYTHONUNBUFFERED": "1",
    }
    return own | os.environ


# What is told of it


def claims_of(figures: Mapping[str, Any]) -> dict[str, Claim]:
    """Returns what is claimed of the figures that are there."""
    of = Found(figures)
    torch = of.ratio("training sft_tokens_per_s", "training torch_sft_tokens_per_s")
    generate = of.ratio("search tokens_per_s", "search generate_tokens_per_s")
    trees = [of(f"engine trees_equal_{how}") for how in ("in_flight", "restarted")]
    claims = {
        "kernel_error": (of("kernels kernel_error"), "<=", 2e-2),
        "draws_equal": (of("kernels draws_equal"), "==", 1),
        "trees_equal": (None if None in trees else min(trees), "==", 1),
        "decode_share": (of("decode decode_share"), ">=", 0.60),
        "extend_mfu": (of("prefill extend_fresh_mfu"), ">=", 0.45),
        "sft_mfu": (of("training sft_mfu"), ">=", 0.40),
        "sft_vs_torch": (torch, ">=", 1),
        "search_vs_generate": (generate, ">=", 3),
        "host_share": (of("search host_share"), "<=", 0.15),
    }
    return {name: Claim(*what) for name, what in claims.items() if what[0] is not None}


class Found:
    """Figures of steps by "step figure"; None where there is none."""

    def __init__(self, figures: Mapping[str, Any]):
        self._steps = figures["steps"]

    def __call__(self, name: str) -> Any:
        """Returns a figure."""
        step, figure = name.split(" ")
        return self._steps.get(step, {}).get("figures", {}).get(figure)

    def ratio(self, over: str, under: str) -> float | None:
        """Returns one figure over another; None where one of them is missing."""
        a, b = self(over), self(under)
        return a / b if a is not None and b else None


LINES = (  # label, figures
    ("copy, GB/s", "ceilings copy_GB_s"),
    (
        "product bf16 to f32, to bf16, f32, TFLOP/s",
        "ceilings bf16_f32_TFLOP_s",
        "ceilings bf16_TFLOP_s",
        "ceilings f32_TFLOP_s",
    ),
    ("loop turn with a look at the device, us", "ceilings sync_us"),
    (
        "kernel error; equal draws top-k, all",
        "kernels kernel_error",
        "kernels draws_equal_top_k",
        "kernels draws_equal_all",
    ),
    (
        "trees equal: in flight, restarted, no cache",
        "engine trees_equal_in_flight",
        "engine trees_equal_restarted",
        "engine trees_equal_without_cache",
    ),
    (
        "against transformers: logits apart, equal tokens",
        "engine logits_apart",
        "engine greedy_tokens_equal",
    ),
    (
        "decode: ms a step, tokens/s, share",
        "decode decode_step_ms",
        "decode decode_tokens_per_s",
        "decode decode_share",
    ),
    (
        "  drawing from all, unused sharing, ms more",
        "decode ms_of_drawing_from_all",
        "decode ms_of_sharing_unused",
    ),
    (
        "extend fresh: tokens/s, MFU",
        "prefill extend_fresh_tokens_per_s",
        "prefill extend_fresh_mfu",
    ),
    (
        "extend later: tokens/s, MFU",
        "prefill extend_later_tokens_per_s",
        "prefill extend_later_mfu",
    ),
    ("SFT: tokens/s, MFU", "training sft_tokens_per_s", "training sft_mfu"),
    ("  torch: tokens/s", "training torch_sft_tokens_per_s"),
    (
        "  float32 products: times slower, losses apart",
        "training float32_products_slower",
        "training losses_apart",
    ),
    (
        "search: trees/h, tokens/s, busy",
        "search trees_per_hour",
        "search tokens_per_s",
        "search busy",
    ),
    (
        "  host share, computed per unique, compiled",
        "search host_share",
        "search computed_per_unique_token",
        "search recompiles",
    ),
    (
        "  generate: tokens/s, four times as wide",
        "search generate_tokens_per_s",
        "search generate_wide_tokens_per_s",
    ),
    (
        "large search: trees/h, tokens/s, busy",
        "large_search trees_per_hour",
        "large_search tokens_per_s",
        "large_search busy",
    ),
    (
        "plans: best, its share, times faster",
        "plans best_plan",
        "plans best_plan_share",
        "plans best_plan_speedup",
    ),
    ("draws of 256 rows: top-k, all, us", "plans draw_top_k_us", "plans draw_all_us"),
)


def table(figures: Mapping[str, Any]) -> str:
    """Returns what matters in at most 25 lines."""
    of = Found(figures)
    kind = figures["machine"].get("device_kind", "no device")
    lines = [f"\n{kind}, {figures.get('seconds', 0.0):.0f} s in all"]
    for label, *names in LINES:
        cells = [of(name) for name in names]
        if any(cell is not None for cell in cells):
            told = "  ".join("-" if x is None else harness.text_of(x) for x in cells)
            lines.append(f"{label:<50}{told}")
    if figures["left_out"]:
        lines.append("left out: " + "; ".join(figures["left_out"]))
    if figures["failed"]:
        lines.append("FAILED: " + ", ".join(figures["failed"]))
    return "\n".join(lines)


if __name__ == "__main__":
    main()
