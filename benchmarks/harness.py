"""What all benchmarks share: the command line, alternating repetitions, claims, tables, JSON.

Imports JAX only where it is used: the parent of `benchmarks.gpu` must not hold a device.
"""

import argparse
import dataclasses
import json
import operator
import os
import pathlib
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import metadata
from typing import Any

OPERATORS = {">=": operator.ge, "<=": operator.le, "==": operator.eq}
DISTURBED = 0.05  # of the CPUs in other hands, from which on a timing is not to be trusted
# Of glibc, as in launch/demo.sh: large pages, and memory that is kept between steps.
TUNABLES = (
    "glibc.malloc.hugetlb=1:glibc.malloc.arena_max=1:glibc.malloc.mmap_max=0"
    ":glibc.malloc.trim_threshold=8589934592:glibc.malloc.top_pad=268435456"
)
_STAT = pathlib.Path("/proc/stat")

Figures = Mapping[str, float]  # of one run of one side, by name
Round = Mapping[str, Figures]  # of one repetition, by side


@dataclasses.dataclass(frozen=True)
class Claim:
    """A figure and what it is meant to reach."""

    value: float
    op: str  # a key of OPERATORS
    target: float

    @property
    def holds(self) -> bool:
        """Whether the figure reaches its target."""
        return bool(OPERATORS[self.op](self.value, self.target))


def parser_of(description: str) -> argparse.ArgumentParser:
    """Returns a command line with `--out`; the rest of `description`'s first line is its help."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument(
        "--out",
        type=pathlib.Path,
        required=True,
        metavar="FILE.json",
        help="where every figure is written",
    )
    return parser


def parse(parser: argparse.ArgumentParser, argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Returns the options; ends with status 2 where FILE.json could not be written in the end.

    Minutes of measuring must not be lost to a misspelt folder.
    """
    options = parser.parse_args(argv)
    out, folder = options.out, options.out.absolute().parent
    if out.is_dir():
        parser.error(f"--out: {out} is a folder, expected a file")
    if not folder.is_dir():
        parser.error(f"--out: there is no folder {folder}")
    if not os.access(out if out.exists() else folder, os.W_OK):
        parser.error(f"--out: {out} cannot be written")
    return options


def machine(*packages: str) -> dict[str, Any]:
    """Returns what a reader must know of the machine; versions of JAX and of `packages`."""
    import jax

    devices = jax.devices()
    names = ("jax", "jaxlib", "numpy", *packages)
    return {
        "cpus": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "architecture": platform.machine(),
        "python": platform.python_version(),
        "device_kind": devices[0].device_kind,
        "devices": len(devices),
        "versions": {name: metadata.version(name) for name in names},
    }


class Watch:
    """Times a block of work, and what other processes took of the CPUs meanwhile.

    Threads that spin while they wait are slowed many times over by a neighbour: a ratio of two
    timings says nothing then, and may flatter either side.
    """

    def __enter__(self) -> "Watch":
        self._busy, self._own = _busy_s(), time.process_time()
        self._start = time.perf_counter()
        return self

    @property
    def elapsed(self) -> float:
        """Seconds so far."""
        return time.perf_counter() - self._start

    def __exit__(self, *error: object) -> None:
        self.seconds = self.elapsed
        own, busy = time.process_time() - self._own, _busy_s()
        self.others = 0.0  # share of all CPUs; 0 where the system does not say
        if busy is not None and self._busy is not None:
            total = self.seconds * (os.cpu_count() or 1)
            self.others = max(0.0, (busy - self._busy - own) / total)


def _busy_s() -> float | None:
    """Returns the seconds that all CPUs together have worked, by the kernel's count."""
    if not _STAT.exists():
        return None
    user, nice, system, _, _, irq, softirq, steal = map(int, _STAT.read_text().split()[1:9])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def alternate(
    sides: Mapping[str, Callable[[int], Figures]],
    repetitions: int,
    *,
    seconds: float = float("inf"),
) -> list[Round]:
    """Returns the figures of all sides, measured in turns (A B C A B C ...), a round each.

    So what drifts on the machine drifts under all sides alike. A side whose figure `others` says
    that it was disturbed is measured once more, and the quieter of the two counts. A round that
    would probably end after `seconds` is not begun, the first one excepted; nothing is measured
    once more after half of them.
    """
    start = time.perf_counter()
    rounds: list[Round] = []
    for turn in range(repetitions):
        elapsed = time.perf_counter() - start
        if rounds and elapsed * (turn + 1) / turn > seconds:
            say(f"{turn} rounds of {repetitions} took {elapsed:.0f} s, no time for another")
            break
        found: dict[str, Figures] = {}
        for side, measure in sides.items():
            found[side] = measure(turn)
            late = time.perf_counter() - start > seconds / 2
            if found[side].get("others", 0.0) > DISTURBED and not late:
                say(f"{side}: other processes worked, once more")
                found[side] = min(found[side], measure(turn), key=lambda one: one["others"])
            say(f"round {turn + 1} of {repetitions}: {side} {brief(found[side])}")
        rounds.append(found)
    return rounds


def median(rounds: Sequence[Round], side: str, figure: str) -> float:
    """Returns the median of a figure over the rounds."""
    return statistics.median(one[side][figure] for one in rounds)


def ratio(rounds: Sequence[Round], figure: str, over: str, under: str) -> float:
    """Returns the median of the rounds' own ratios of a figure, side `over` to side `under`."""
    return statistics.median(one[over][figure] / one[under][figure] for one in rounds)


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Returns a table as text: the first column to the left, figures to the right."""
    cells = [list(columns), *([text_of(cell) for cell in row] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(columns))]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in cells
    ]
    return "\n".join(["", title, lines[0], "  ".join("-" * width for width in widths), *lines[1:]])


def text_of(cell: Any) -> str:
    """Returns a cell as text: four significant digits of a float, thousands apart."""
    if cell is None:
        return ""
    if not isinstance(cell, float):
        return str(cell)
    if abs(cell) >= 1000:
        return f"{cell:,.0f}"
    return f"{cell:.4g}"


def brief(figures: Mapping[str, Any]) -> str:
    """Returns figures on one line."""
    return " ".join(f"{name}={text_of(value)}" for name, value in figures.items())


def claims_table(claims: Mapping[str, Claim]) -> str:
    """Returns the claims as a table."""
    rows = [
        (name, float(claim.value), f"{claim.op} {claim.target:g}", "yes" if claim.holds else "NO")
        for name, claim in claims.items()
    ]
    return table("Claims", ("claim", "value", "target", "holds"), rows)


def run(
    options: argparse.Namespace,
    measure: Callable[[argparse.Namespace], tuple[dict[str, Any], dict[str, Claim]]],
    tables: Callable[[Mapping[str, Any]], str],
) -> None:
    """Measures, prints the tables and claims, and writes every figure; ends on bad input."""
    try:
        figures, claims = measure(options)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    print(tables(figures))
    print(claims_table(claims))
    write(options.out, figures, claims)


def write(path: pathlib.Path, figures: Mapping[str, Any], claims: Mapping[str, Claim]) -> None:
    """Writes all figures and claims; a NaN or an infinity is an error, not a figure."""
    told = {
        name: {"value": c.value, "target": c.target, "op": c.op, "holds": c.holds}
        for name, c in claims.items()
    }
    text = json.dumps({**figures, "claims": told}, indent=1, allow_nan=False)
    path.write_text(text + "\n", encoding="utf-8")


def say(line: str) -> None:
    """Prints a line of progress."""
    print(line, file=sys.stderr, flush=True)
