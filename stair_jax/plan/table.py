"""A plan as a table for people, and as JSON."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from stair_jax.plan.figures import Figures
from stair_jax.plan.gpu_text import Traffic
from stair_jax.plan.target import Target
from stair_jax.plan.whole_run import Estimate
from stair_jax.run.workdir import size_of

_COLUMNS = ("stage", "program", "given", "of it pool", "beside", "temporary", "all", "fits")
_MORE = ("TFLOP", "GB moved", "collectives", "at best")
_SHORT = {
    "all-gather": "gather",
    "all-reduce": "reduce",
    "reduce-scatter": "scatter",
    "all-to-all": "all-to-all",
    "collective-permute": "permute",
    "ragged-all-to-all": "ragged",
}


def head(target: Target) -> str:
    """Returns the first two lines of the table of programs, in Markdown."""
    room = "" if target.room is None else f", GB of {target.room / 1e9:.1f} a device"
    names = [f"all{room}" if name == "all" else name for name in (*_COLUMNS, *_MORE)]
    return f"| {' | '.join(names)} |\n|{'-|' * len(names)}"


def row(found: Figures, target: Target) -> str:
    """Returns the line of a program."""
    gb = [found.arguments, found.pool, sum(found.beside.values()), found.temporaries, found.total]
    sizes = [f"{x / 1e9:.2f}" for x in gb]
    cells = [found.stage, found.name, *sizes, "yes" if found.fits(target.room) else "NO"]
    if not found.compiled:
        return f"| {' | '.join([*cells, *['-'] * len(_MORE)])} |"
    best = found.roofline(target)
    cells += [
        f"{found.flops / 1e12:.2f}",
        f"{found.moved / 1e9:.2f}",
        ", ".join(map(_traffic, found.traffic)) or "none",
        "-" if best is None else f"{best[0] * 1e3:.1f} ms, {best[1]}",
    ]
    return f"| {' | '.join(cells)} |"


def _traffic(one: Traffic) -> str:
    return f"{one.count} {_SHORT[one.op]} {one.bytes / 1e9:.2f} GB"


def whole(estimate: Estimate, target: Target) -> str:
    """Returns what is said of the whole run: hours, disk, and what that rests on."""
    lines = ["the whole run, by assumptions:"]
    if estimate.hours:
        total = sum(estimate.hours.values())
        parts = ", ".join(f"{name} {hours:.1f}" for name, hours in estimate.hours.items())
        lines.append(f"  {total:.1f} hours, {total * target.count:.0f} GPU-hours ({parts})")
    else:
        lines.append(f"  hours: unknown, no rates of {target.chip.name} are known here")
    disk = ", ".join(f"{name} {size_of(size)}" for name, size in estimate.disk.items())
    lines.append(f"  disk: {size_of(sum(estimate.disk.values()))} ({disk or '-'})")
    rows = ", ".join(f"{count:,} {name}" for name, count in estimate.rows.items())
    lines.append(f"  of {rows}")
    facts = dataclasses.asdict(estimate.assumed)
    lines.append("  assumed: " + ", ".join(f"{k.replace('_', ' ')} {v}" for k, v in facts.items()))
    return "\n".join(lines)


def as_json(
    target: Target,
    programs: Sequence[Figures],
    estimate: Estimate,
    opened: Mapping[str, Any],
    refused: Sequence[str],
) -> dict[str, Any]:
    """Returns plan.json; sizes are bytes of one device, times seconds."""
    return {
        "target": target.name,
        "device_memory_bytes": target.chip.memory,
        "room_bytes": target.room,
        "fits": not refused,
        "programs": [_program(found, target) for found in programs],
        "chosen": dict(opened),
        "refused": list(refused),
        "run": {
            "hours": dict(estimate.hours),
            "device_hours": sum(estimate.hours.values()) * target.count,
            "rows": dict(estimate.rows),
            "disk_bytes": dict(estimate.disk),
            "assumed": dataclasses.asdict(estimate.assumed),
        },
    }


def _program(found: Figures, target: Target) -> dict[str, Any]:
    best = found.roofline(target)
    return {
        "name": f"{found.stage}: {found.name}",
        "stage": found.stage,
        "argument_bytes": found.arguments,
        "temp_bytes": found.temporaries,
        "device_bytes": found.total,
        "fits": found.fits(target.room),
        "pool_bytes": found.pool,
        "beside_bytes": dict(found.beside),
        "result_bytes": found.results,
        "compiled": found.compiled,
        "error": found.error,
        "flops": found.flops,
        "moved_bytes": found.moved,
        "collectives": [dataclasses.asdict(one) for one in found.traffic],
        "roofline_s": None if best is None else best[0],
        "bound_by": None if best is None else best[1],
        "compile_s": found.compile_s,
    }
