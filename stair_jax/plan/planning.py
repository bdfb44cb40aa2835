"""`config.plan`: what a run would need on a machine that is not here, and whether it fits."""

import dataclasses
import functools
import math
import os
import pathlib
import sys
from collections.abc import Iterator, Sequence
from concurrent import futures
from typing import Any

import jax

from stair_jax import jsonl, startup, xla_flags
from stair_jax import mesh as mesh_lib
from stair_jax.config import Config, with_values
from stair_jax.config.stages import STAGES, Stage
from stair_jax.config.words import split_csv
from stair_jax.engine import placing
from stair_jax.engine.device import attention_of, joins
from stair_jax.log.metrics import Metrics
from stair_jax.model.footprint import keys_a_token
from stair_jax.plan import advice, figures, programs, sizes, table, whole_run
from stair_jax.plan.figures import Figures
from stair_jax.plan.sizes import Model
from stair_jax.plan.target import NO_TUNING, Target, need_plugin
from stair_jax.program import Program, device_bytes
from stair_jax.run import models
from stair_jax.run.lineage import Lineage
from stair_jax.run.workdir import Run, dtype_of, engine_config

FILE = "plan.json"
FITS, REFUSED, NO_PLAN = 0, 1, 2  # exit codes
ENGINE = "engine"  # in place of its programs, where it has no room
_AT_ONCE = 2  # programs compiled at once
_OPEN_SHAPE = (1, mesh_lib.REST, 1)  # of a mesh that is larger than the target


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a plan found.

    Attributes:
      target: the machine.
      programs: as compiled.
      estimate: of the whole run.
      chosen: values of what the configuration leaves open, by key.
      refused: why it cannot run as configured, a line a reason; empty where it can.
    """

    target: Target
    programs: Sequence[Figures]
    estimate: whole_run.Estimate
    chosen: dict[str, Any]
    refused: Sequence[str]


def main(config: Config) -> int:
    """Plans a run, prints the plan and writes it; returns the exit code.

    It must come before JAX starts its backend. The file is plan.json in the workdir, or in the
    current folder where none is set.
    """
    try:
        target = Target.parse(config.plan)
        prepare(config, target)
        found = make(config, target)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return NO_PLAN
    folder = pathlib.Path(config.workdir or ".")
    folder.mkdir(parents=True, exist_ok=True)
    saved = table.as_json(target, found.programs, found.estimate, found.chosen, found.refused)
    jsonl.write_json(folder / FILE, saved)
    print(table.whole(found.estimate, target))
    print("what is left open: " + ", ".join(f"{k} {v}" for k, v in found.chosen.items()))
    for line in found.refused:
        print(f"does not fit: {line}")
    if not found.refused:
        print(f"all {len(found.programs)} programs fit {target.name}")
    print(f"written to {folder / FILE}", flush=True)
    return REFUSED if found.refused else FITS


def prepare(config: Config, target: Target) -> None:
    """Has JAX use CPUs and compile as a run on the target would.

    Raises:
      ValueError: where nothing here compiles for the target.
    """
    if not target.on_cpu:
        need_plugin()
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", target.count if target.on_cpu else 1)
    if not target.on_cpu:
        kept = bool(config.compile_cache or startup.kept_in())
        flags = xla_flags.of(target.count, deterministic=config.deterministic, kept=kept)
        given = os.environ.get("XLA_FLAGS", "")
        os.environ["XLA_FLAGS"] = " ".join([*flags, *given.split(), NO_TUNING])


def make(config: Config, target: Target) -> Plan:
    """Compiles the programs of a run for a target, and prints the table as it grows.

    Raises:
      ValueError: for a configuration that says too little to plan it.
    """
    devices, refused = target.devices(), []
    config, too_large = _with_mesh(config, target)
    refused += too_large
    workdir = pathlib.Path(config.workdir or ".")
    run = Run(config, workdir, Lineage(workdir / "lineage.json"), Metrics(workdir), devices=devices)
    with target.asked():
        model = sizes.of(run)
        shape = tuple(run.mesh.shape.values())
        print(f"{target.name}: a mesh of {shape}, {model.source}, jax {jax.__version__}")
        if run.mesh.size < target.count:
            print(f"{target.count - run.mesh.size} of {target.count} devices stay idle")
        print(table.head(target), flush=True)
        found = []
        for one in _figures(run, model, target):
            found.append(one)
            print(table.row(one, target), flush=True)
        estimate = whole_run.estimate(run, model, target)
        refused += _refusals(run, found, model, target)
        chosen = _chosen(run, model, target)
    return Plan(target, found, estimate, chosen, refused)


def _with_mesh(config: Config, target: Target) -> tuple[Config, list[str]]:
    """Returns a configuration with a mesh of the target, and what is said if it had another."""
    shape = tuple(config.mesh.shape)
    wanted = math.prod(n for n in shape if n != mesh_lib.REST)
    if wanted <= target.count and target.count % wanted * (mesh_lib.REST in shape) == 0:
        return config, []
    said = (
        f"config.mesh.shape={shape} wants {wanted} devices, {target.name} has {target.count};"
        f" planned with {_OPEN_SHAPE}, which the run must be given, too"
    )
    return with_values(config, {"mesh.shape": _OPEN_SHAPE, "mesh.replicas": 0}), [said]


def _figures(run: Run, model: Model, target: Target) -> Iterator[Figures]:
    """Yields what the stages' programs need, in their order; equal programs are compiled once."""
    wanted, seen = split_csv(run.config.stages), set()
    for stage in (stage for stage in STAGES if stage.name in wanted):
        some: list[tuple[Program, bool]] = []
        try:
            some += [(program, False) for program in programs.engine(run, stage, model, target)]
        except ValueError as error:  # no room for a context
            yield _no_engine(run, stage, model, target, str(error))
        some += [(program, True) for program in programs.trainers(run, stage, model)]
        new = [(program, trains) for program, trains in some if program.key not in seen]
        seen |= {program.key for program, _ in new}
        compiled = functools.partial(_compiled, stage=stage.name, target=target)
        with futures.ThreadPoolExecutor(min(_AT_ONCE, mesh_lib.cores())) as pool:
            yield from pool.map(compiled, new)


def _compiled(one: tuple[Program, bool], *, stage: str, target: Target) -> Figures:
    program, trains = one
    return figures.of(program, stage, target, trains=trains)


def _no_engine(run: Run, stage: Stage, model: Model, target: Target, said: str) -> Figures:
    """Returns what stands for an engine that has no room for its pool, as it said itself."""
    config = engine_config(run.config)
    weights = placing.planned(
        model.spec, models.engine_places(run)[0], dtype=config.dtype, joined=joins(config)
    )
    found = Figures(
        name=ENGINE,
        stage=stage.name,
        trains=False,
        arguments=device_bytes(weights.tree),
        pool=0,
        beside={"the keys of one context": run.config.engine.max_context * _keys(run, model)},
        compiled=False,
    )
    # Where the weights alone are too large, that says it better.
    return dataclasses.replace(found, error=said) if found.fits(target.room) else found


def _keys(run: Run, model: Model) -> int:
    """Returns the bytes of a token's keys on a device."""
    ways = run.mesh.shape["tensor"]
    own = keys_a_token(model.spec, engine_config(run.config).dtype)
    return own // ways if model.spec.K % ways == 0 else own


def _refusals(run: Run, found: Sequence[Figures], model: Model, target: Target) -> list[str]:
    """Returns why stages cannot run, the program that needs most of each, and what to change."""
    worst: dict[tuple[str, bool], Figures] = {}
    for one in found:
        if not one.fits(target.room):
            key = one.stage, one.trains
            if key not in worst or one.total > worst[key].total:
                worst[key] = one
    lines = []
    for (stage, trains), one in worst.items():
        others = advice.changes(run, stage, model, target, trains=trains)
        change = "; or ".join(others) or "a larger machine"
        why = advice.reason(one, target.room)
        lines.append(f"{stage}, {one.name}: {why}; change: {change}")
    return lines


def _chosen(run: Run, model: Model, target: Target) -> dict[str, Any]:
    """Returns the values of what the configuration leaves open, by key."""
    c, config = run.config, engine_config(run.config)
    found: dict[str, Any] = {
        "config.mesh.shape": tuple(run.mesh.shape.values()),
        "config.mesh.replicas": len(models.engine_places(run)),
        "config.engine.dtype": config.dtype,
        "config.engine.attention": attention_of(config.attention),
        "config.model.compute_dtype": dtype_of(c.model.compute_dtype),
    }
    try:
        pool = programs.policy_engine(run, model, target).device_bytes["pool"]
    except ValueError:  # said with the programs
        return found
    ways = run.mesh.shape["tensor"] if model.spec.K % run.mesh.shape["tensor"] == 0 else 1
    return found | {"config.engine.pool_bytes": pool * ways}
