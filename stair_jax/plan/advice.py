"""What to change where a run does not fit a target: settings, each with what it would take.

The figures are those of `model.footprint`, which compiles nothing; the plan of the changed
configuration says whether it holds.
"""

import dataclasses
from collections.abc import Iterator

from stair_jax.config.schema import TrainConfig
from stair_jax.config.stages import DPO, PRM, SFT
from stair_jax.model import footprint
from stair_jax.model.footprint import ITEM, Split
from stair_jax.plan.figures import Figures
from stair_jax.plan.sizes import Model
from stair_jax.plan.target import Target
from stair_jax.run import needs
from stair_jax.run.workdir import Run, engine_config, size_of, train_config

_REMAT = ("none", "attention", "products", "full")
_RANK = 16  # of adapters that are proposed
_SURE = 0.95  # of a device's bytes, for estimates are within a twentieth or so of what XLA takes
_MORE = (2, 4, 8, 16, 32, 64)  # times the devices
_TRAINERS = {SFT.name: 1, DPO.name: 2, PRM.name: 2}  # rows of an example


def reason(figures: Figures, room: float | None) -> str:
    """Returns why a program cannot run on a target; "" where it can."""
    if figures.error:
        return figures.error
    if room is None or figures.total <= room:
        return ""
    given = figures.arguments + sum(figures.beside.values())
    others = "".join(f", {name} {size_of(size)}" for name, size in figures.beside.items())
    kept = f"what is kept there (arguments {size_of(figures.arguments)}{others})"
    if given > room:
        return f"{kept} alone is more than the {size_of(room)} of a device"
    return (
        f"{kept} leaves {size_of(room - given)} of {size_of(room)}, what it computes takes"
        f" {size_of(figures.temporaries + figures.results)}"
    )


def changes(run: Run, stage: str, model: Model, target: Target, *, trains: bool) -> list[str]:
    """Returns what would make a stage fit, the least change first; [] where nothing here does.

    Args:
      run: of the plan.
      stage: that does not fit.
      model: of the run.
      target: of the plan.
      trains: whether it is a trainer that does not fit; else it is an engine.
    """
    if target.room is None:
        return []
    found = _of_trainer(run, stage, model, target) if trains else _of_engine(run, model, target)
    return list(found)


def training_bytes(run: Run, stage: str, model: Model, config: TrainConfig, split: Split) -> float:
    """Returns about what a trainer takes on a device."""
    c, spec, rows = run.config, model.spec, len(model.new_rows)
    scalar = stage == PRM.name and c.prm.loss != "implicit"
    reads = stage == DPO.name and c.dpo.reference == "on_the_fly"
    copy = spec.parameters * ITEM[config.compute_dtype]
    found = footprint.training(
        spec,
        config,
        trained=needs.trained_of(spec, config, rows),
        frozen=float(copy if config.lora_rank or reads else 0),
        sides=1 if config.batching != "bucket" else _TRAINERS.get(stage, 2),
        head=not scalar,
        split=split,
        fused=config.compute_dtype == "bfloat16",
        new_rows=rows,
    )
    return sum(found.values())


def _of_trainer(run: Run, stage: str, model: Model, target: Target) -> Iterator[str]:
    room, split = (target.room or 0.0) * _SURE, Split(**run.mesh.shape)
    config, key = train_config(run.config, stage), f"config.{stage}.train"

    def takes(changed: TrainConfig, over: Split = split) -> float:
        return training_bytes(run, stage, model, changed, over)

    def said(changed: TrainConfig) -> str:
        pairs = [
            f"{key}.{name}={getattr(changed, name)}"
            for name in ("remat", "micro_tokens", "lora_rank")
            if getattr(changed, name) != getattr(config, name)
        ]
        return f"{' and '.join(pairs)} (about {size_of(takes(changed))} a device)"

    least = config.buckets[-1] * split.rows * _TRAINERS.get(stage, 2)
    smaller = min(config.micro_tokens, least)
    lighter = [
        dataclasses.replace(config, remat=remat, micro_tokens=micro)
        for micro in dict.fromkeys((config.micro_tokens, smaller))
        for remat in _REMAT[_REMAT.index(config.remat) :]
    ]
    fitting = [said(one) for one in lighter if one != config and takes(one) <= room]
    yield from fitting[:1]
    if not config.lora_rank:
        adapted = [dataclasses.replace(one, lora_rank=_RANK) for one in lighter]
        yield from [said(one) for one in adapted if takes(one) <= room][:1]
    frugal = lighter[-1]
    for times in () if fitting else _MORE:
        wider = dataclasses.replace(split, fsdp=split.fsdp * times)
        rows = dataclasses.replace(frugal, micro_tokens=frugal.micro_tokens * times)
        if takes(rows, wider) <= room:
            shape = wider.data, wider.fsdp, wider.tensor
            size = size_of(takes(rows, wider))
            yield f"{times} times the devices, config.mesh.shape={shape} (about {size} a device)"
            return


def _of_engine(run: Run, model: Model, target: Target) -> Iterator[str]:
    spec, config, room = model.spec, engine_config(run.config), target.room or 0.0
    tensor, weights = run.mesh.shape["tensor"], spec.parameters * ITEM[config.dtype]
    context = config.max_context * footprint.keys_a_token(spec, config.dtype)
    for ways in (tensor * times for times in _MORE):
        if spec.N % ways or ways > target.count:
            continue
        if weights / ways + context < room * 0.8:
            left = run.mesh.size // ways
            yield (
                f"config.mesh.shape=(1, {max(left, 1)}, {ways}) (weights of"
                f" {size_of(weights / ways)} a device, {max(left, 1)} replicas)"
            )
            break
    if config.pool_bytes:
        yield "a lower config.engine.pool_bytes, or 0, which takes what is left"
    if context > room - weights / tensor > 0:
        yield "a lower config.engine.max_context"
