"""How the paged kernel cuts its work on a kind of GPU: a table, what a sweep found, a run's copy.

A plan decides the order of sums, so another plan gives other rounding. It is therefore read once a
process, and a run keeps the plans that it began with (`keep`), whatever is tuned later.
"""

import dataclasses
import functools
import itertools
import json
import logging
import math
import os
import pathlib
from collections.abc import Mapping
from typing import Any

log = logging.getLogger(__name__)

Plans = Mapping[str, Mapping[str, "Plan"]]  # by the device's kind, then by `case_of`


@dataclasses.dataclass(frozen=True)
class Plan:
    """How the kernel cuts its work; 0 leaves a choice to it. Only rounding depends on it."""

    block: int = 0  # tokens a step of the loop, a power of two from 16
    splits: int = 0  # programs that share one row's tokens
    share: int = 256  # tokens a split takes at least: below, it costs more than it wins
    warps: int = 4
    stages: int = 3  # steps of the loop whose loads are in flight
    body: str = "triton"  # of `paged_attention.BODIES`


DEFAULT = Plan()
WORTH = 0.98  # of the default's time: a plan that takes more is not worth another rounding
# Of kinds that a sweep has been run on, the plans that win more than that over DEFAULT. On an H100
# none of 27 does: DEFAULT is within 1 % of the fastest.
KNOWN: dict[str, dict[str, Plan]] = {}

_of_run: dict[str, dict[str, Plan]] = {}  # what `keep` has set


def case_of(*, queries: int, columns: int, itemsize: int) -> str:
    """Returns the name of what a plan is tuned for.

    Args:
        queries: of one program, padded: 16, 32 or 64.
        columns: the head dim, padded.
        itemsize: bytes of a key's element.
    """
    return f"{queries} queries, head {columns}, {itemsize} bytes"


def tuned_path() -> pathlib.Path:
    """Returns the file that `choose` writes, one a user: below XDG_CACHE_HOME, else ~/.cache."""
    home = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(home) / "stair_jax" / "paged_attention.json"


@functools.cache
def plan_for(kind: str, case: str) -> Plan:
    """Returns the plan of a kind of device: the run's, else the tuned one, the table's or DEFAULT.

    It is looked up once a process and logged.

    Raises:
        ValueError: a tuned file that cannot be read.
    """
    path = tuned_path()
    sources: dict[str, Plans] = {"this run's": _of_run}
    if kind not in _of_run:
        sources = {f"tuned, {path}": _read(path), "the table's": KNOWN}
    found = {
        where: plans[kind][case] for where, plans in sources.items() if case in plans.get(kind, {})
    } | {"the default": DEFAULT}
    where, plan = next(iter(found.items()))
    log.info("paged attention on %s, %s: %s (%s)", kind, case, plan, where)
    return plan


def keep(path: pathlib.Path, kind: str) -> None:
    """Makes this process use the plans for a kind that a run has written to `path`.

    A new run, or a run that moved to another kind, first writes those that hold now.

    Raises:
        ValueError: a file that cannot be read.
    """
    kept = _read(path)
    if kind not in kept:
        kept = {**kept, kind: {**KNOWN.get(kind, {}), **_read(tuned_path()).get(kind, {})}}
        _write(path, kept)
    _of_run[kind] = dict(kept[kind])
    plan_for.cache_clear()


def candidates() -> list[Plan]:
    """Returns the plans of a sweep: the default, and 27 of blocks, warps and loads in flight."""
    grid = itertools.product((32, 64, 128), (2, 4, 8), (2, 3, 4))
    return [DEFAULT, *(Plan(block=b, warps=w, stages=s) for b, w, s in grid)]


def choose(kind: str, case: str, seconds: Mapping[Plan, float]) -> Plan:
    """Returns the fastest of plans that were measured, and writes it to the user's file.

    The default stays where the fastest wins less than clocks vary (`WORTH`). A process that has
    begun keeps its plan; so does a run that has begun, see `keep`.

    Args:
        kind: of the device, as JAX calls it.
        case: of `case_of`.
        seconds: of a call under each plan that works, on this kind.

    Raises:
        ValueError: no plan works, or the file cannot be read.
    """
    path = tuned_path()
    if not seconds:
        raise ValueError(f"no plan for {case} works on {kind}")
    best, others = min(seconds, key=lambda plan: seconds[plan]), _read(path)
    if seconds.get(DEFAULT, math.inf) * WORTH <= seconds[best]:
        best = DEFAULT
    _write(path, {**others, kind: {**others.get(kind, {}), case: best}})
    log.info("paged attention on %s, %s: %s is the fastest, kept in %s", kind, case, best, path)
    return best


def _read(path: pathlib.Path) -> dict[str, dict[str, Plan]]:
    """Returns what a file holds; nothing where there is none.

    A broken file is an error: going on with another plan would change results without a word.
    """
    if not path.exists():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return {
            kind: {case: _plan(fields) for case, fields in cases.items()}
            for kind, cases in found.items()
        }
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path}: {error}; expected plans of the paged kernel by device and case; remove the"
            " file to go on with the table's"
        ) from None


def _plan(fields: Any) -> Plan:
    """Returns the plan of a JSON object; every field is there and of its type."""
    expected = {field.name: type(field.default) for field in dataclasses.fields(Plan)}
    found = {name: type(value) for name, value in fields.items()}
    if found != expected:
        raise ValueError(f"a plan has the fields {fields}")
    return Plan(**fields)


def _write(path: pathlib.Path, plans: Plans) -> None:
    """Writes plans for people to read; the file appears whole or not at all."""
    rows = {
        kind: {case: dataclasses.asdict(plan) for case, plan in cases.items()}
        for kind, cases in plans.items()
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    temporary.replace(path)
