"""The programs of a run, stage by stage, as engine and trainers hand them out.

Nothing is read but the configuration: batches have the shapes that their settings allow, and
packed rows what is assumed of them here (`PACKED_ROWS`, `PAIRS_A_ROW`). Left out are
programs that only copy, cast or fill (the hand-over of weights, the optimiser's start), and those
of a judge's or an attacker's own model.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np

from stair_jax.config.schema import DpoConfig, PrmConfig, SearchConfig, TrainConfig
from stair_jax.config.stages import DPO, EVALUATE, PRM, SEARCH, SFT, Stage
from stair_jax.config.strategies import parse_all
from stair_jax.config.words import split_csv
from stair_jax.data.batches import (
    ComparisonBatch,
    PairBatch,
    SftBatch,
    TrainingBatch,
    ValuedBatch,
)
from stair_jax.data.dataset import rows_and_passes
from stair_jax.engine import placing
from stair_jax.engine.device import joins
from stair_jax.engine.engine import Engine
from stair_jax.engine.likelihood import Likelihood
from stair_jax.engine.request import Sampling
from stair_jax.engine.scoring import Scoring
from stair_jax.model import reward
from stair_jax.model.layout import Layout
from stair_jax.model.spec import Spec
from stair_jax.plan.sizes import Model
from stair_jax.plan.target import Target
from stair_jax.program import Program, device_bytes, distinct
from stair_jax.run import judges, models, objectives, shapes
from stair_jax.run.workdir import Run, engine_config, train_config
from stair_jax.search import growth
from stair_jax.train import optimizer, reference
from stair_jax.train import step as step_lib
from stair_jax.train.losses import Dpo, Loss, Sft
from stair_jax.train.reward_losses import Prm

# Of packed rows: how many of the longest an SFT row or a pair takes, and pairs in one at most. How
# large a pass is does not follow from them, `train.micro_tokens` says it.
PACKED_ROWS, PAIRS_A_ROW = 0.25, 8
GREEDY = Sampling(temperature=0.0)


def trainers(run: Run, stage: Stage, model: Model) -> list[Program]:
    """Returns the programs of all trainers of a stage."""
    names = [result.name for result in stage.results if result.models(run.config)]
    return distinct(program for name in names for program in training(run, name, model))


# The engine


def engine(run: Run, stage: Stage, model: Model, target: Target) -> list[Program]:
    """Returns the programs of a stage's engine, and of the reward model beside it.

    Raises:
      ValueError: where a device has no room for the keys of one context.
    """
    if not stage.decodes(run.config):
        return []
    reader = reward_model(run, model, target) if _reads(run, stage) else None
    theirs = {} if reader is None else {"the reward model": sum(reader.device_bytes.values())}
    also = (
        [] if stage is EVALUATE and not run.config.evaluate.judged else judges.samplings(run.config)
    )
    config = SearchConfig.of(run.config.search)
    samplings = [GREEDY if stage is EVALUATE else growth.sampling_of(config), *also]
    policy = policy_engine(run, model, target, taken=sum(theirs.values()))
    logps = stage is SEARCH and growth.wants_logps(config)
    own = policy.programs(samplings, logps=logps, extends=bool(also))
    if reader is None:
        return own
    ours = {"the policy": sum(policy.device_bytes.values())}
    return [*(_with(p, theirs) for p in own), *(_with(p, ours) for p in reader.programs())]


def policy_engine(run: Run, model: Model, target: Target, *, taken: int = 0) -> Engine:
    """Returns the first replica of a policy's engine, planned; `taken` bytes are others'."""
    config, place = engine_config(run.config), models.engine_places(run)[0]
    weights = placing.planned(
        model.spec,
        place,
        dtype=config.dtype,
        joined=joins(config),
        free_bytes=_free(target, taken),
    )
    stops: dict[str, tuple[int, ...]] = {str(number): () for number in range(model.stops)}
    return Engine(model.spec, weights, config=config, stops=stops, vocab=model.words, mesh=place)


def reward_model(run: Run, model: Model, target: Target) -> Scoring:
    """Returns the run's reward model, planned: the first on its device."""
    c, config, place = run.config, engine_config(run.config), models.engine_places(run)[0]
    spec = dataclasses.replace(model.spec, L=model.spec.L + c.prm.more_layers)
    implicit = c.prm.loss == "implicit"
    spec = spec if implicit else reward.scalar(spec)
    weights = placing.planned(
        spec, place, dtype=config.dtype, scalar=not implicit, free_bytes=_free(target, 0)
    )
    return (Likelihood if implicit else Scoring)(spec, weights, config=config, mesh=place)


def _reads(run: Run, stage: Stage) -> bool:
    strategies = parse_all(split_csv(run.config.evaluate.search))
    return stage is EVALUATE and any(strategy.of.reads for strategy in strategies)


def _free(target: Target, taken: int) -> int | None:
    return None if target.room is None else int(target.room) - taken


def _with(program: Program, beside: dict[str, int]) -> Program:
    return dataclasses.replace(program, beside={**program.beside, **beside})


# Trainers


def training(run: Run, result: str, model: Model) -> Iterator[Program]:
    """Yields the programs of the trainer that makes a kind of result."""
    config = train_config(run.config, result)
    loss, spec = objective(run, result, model, config)
    rows = len(model.new_rows)
    weights = objectives.planned_weights(loss, spec, config, rows, run.mesh)
    tx = optimizer.of(config, model.new_rows, {})
    state = step_lib.abstract(weights.trained, tx, run.mesh)
    started = device_bytes(shapes.cast(state.params, "bfloat16"))
    how: dict[str, Any] = {
        "loss": loss,
        "mesh": run.mesh,
        "frozen": weights.frozen,
        "beside": {"the start, to compare": started},
    }
    shards = run.mesh.shape["data"] * run.mesh.shape["fsdp"]
    batches = list(batches_of(loss, config, shards))
    for number, batch in enumerate(batches):
        for program in step_lib.programs(state, batch, tx=tx, **how):
            # The same for every shape of a batch but for the counts in it.
            if number == 0 or program.name.startswith(("step", "pass")):
                yield program
    if config.eval_rows:
        yield step_lib.measuring(state, batches[0], **how)
    if isinstance(loss, Dpo) and loss.reference == "precomputed":
        yield from _reference(run, loss, spec, config, shards)


def objective(run: Run, result: str, model: Model, config: TrainConfig) -> tuple[Loss, Spec]:
    """Returns what a trainer minimises, and the sizes of what it trains."""
    c, spec = run.config, model.spec
    if result == PRM.name:
        settings = PrmConfig.of(c.prm)
        spec = dataclasses.replace(spec, L=spec.L + settings.more_layers)
        loss = objectives.prm(spec, config, model.new_rows, settings, c)
        return loss, (reward.scalar(spec) if isinstance(loss, Prm) else spec)
    if result == SFT.name or result in ("baselines.start", "baselines.sft"):
        return objectives.sft(spec, config, model.new_rows), spec
    settings = DpoConfig.of(c.dpo, scope="response") if result != DPO.name else DpoConfig.of(c.dpo)
    return objectives.dpo(spec, config, model.new_rows, settings), spec


def batches_of(loss: Loss, config: TrainConfig, shards: int) -> Iterator[TrainingBatch]:
    """Yields a batch of every shape that a trainer may meet, the longest first, without rows."""
    widths = config.buckets[::-1] if config.batching == "bucket" else config.buckets[-1:]
    for width in widths:
        yield _batch(loss, config, width, shards)


def _batch(loss: Loss, config: TrainConfig, width: int, shards: int) -> TrainingBatch:
    packed, two = config.batching != "bucket", not isinstance(loss, Sft)
    by_value = isinstance(loss, Prm) and loss.loss in ("bce", "mse")
    sides = 2 if two and not packed and not by_value else 1
    rows = max(1, round(config.batch * PACKED_ROWS)) if packed else config.batch
    passes, micro = rows_and_passes(rows, width * sides, config.micro_tokens, shards)
    ids = np.zeros((passes, micro, *([2] if sides == 2 else []), width), np.int32)
    layout = Layout(ids, ids, ids) if packed else None
    if isinstance(loss, Sft):
        return SftBatch.empty(ids, layout)
    if by_value:
        return ValuedBatch.empty(ids, PAIRS_A_ROW)
    pairs = PAIRS_A_ROW if packed else 0
    if isinstance(loss, Prm):
        return ComparisonBatch.empty(ids, layout, pairs=pairs)
    known = isinstance(loss, Dpo) and loss.reference == "precomputed"
    return PairBatch.empty(ids, layout, pairs=pairs, reference=known)


def _reference(
    run: Run, loss: Dpo, spec: Spec, config: TrainConfig, shards: int
) -> Iterator[Program]:
    """Yields the forward passes over a reference's rows, as many as one pass takes."""
    scorer, params = objectives.reference(loss), shapes.weights(spec, run.mesh)
    for width in config.buckets[::-1]:
        many = config.batch * config.micro_tokens  # more than one pass of any length
        _, rows = rows_and_passes(many, width, config.micro_tokens, shards)
        yield reference.planned(scorer, params, rows, width, run.mesh)
