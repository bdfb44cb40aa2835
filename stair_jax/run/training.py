"""What the stages that train share: a model and rows in, a trained model in the lineage out."""

import dataclasses
import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import optax

from stair_jax.config.schema import DpoConfig, PrmConfig, TrainConfig
from stair_jax.data import preview
from stair_jax.data.batches import ValuedBatch
from stair_jax.data.dataset import Dataset
from stair_jax.data.examples import PairExample, SftExample
from stair_jax.data.pair_batches import DpoData
from stair_jax.data.reward_batches import ComparisonData, ComparisonTrees, ValuedData
from stair_jax.data.sft_batches import SftData
from stair_jax.model import reward
from stair_jax.run import models, objectives, standing
from stair_jax.run.hashes import digest_of
from stair_jax.run.models import Policy
from stair_jax.run.workdir import Run, need_disk, need_room
from stair_jax.train import loop, optimizer, probe, reference
from stair_jax.train import step as step_lib
from stair_jax.train.losses import Dpo, Loss
from stair_jax.train.reward_losses import Prm
from stair_jax.train.values import Ratios, Values

log = logging.getLogger(__name__)

Score = Callable[[ValuedBatch], np.ndarray]  # returns raw scores [A, m, R]
RewardData = ComparisonData | ComparisonTrees | ValuedData | DpoData
# Gets the frozen weights as well; returns more facts for the lineage.
After = Callable[[loop.Fitted, Mapping[str, Any]], Mapping[str, Any]]


def sft(
    run: Run,
    name: str,
    policy: Policy,
    examples: Sequence[SftExample],
    config: TrainConfig,
    *,
    in_steps: bool = False,
    **facts: Any,
) -> None:
    """Trains a model on the responses of `examples`, and finishes its artefact.

    Args:
      run: the caller has begun the artefact.
      name: of the artefact, under which its checkpoints lie in the workdir.
      policy: to start from; its weights are given away.
      examples: prompts and responses.
      config: of the trainer.
      in_steps: whether STAIR's format is to be learned; then what came of that is measured.
      facts: more for the lineage.
    """
    data = SftData(examples, config, seed=run.config.seed, **dataset_arguments(run, policy))
    _report_dropped(name, data.dropped, len(examples))
    loss = objectives.sft(policy.spec, config, models.new_rows(run))

    def after(fitted: loop.Fitted, frozen: Mapping[str, Any]) -> Mapping[str, Any]:
        return standing.measure(
            run,
            name,
            policy.codec,
            data.teacher_rows,
            scorer=loss.scorer,
            params=fitted.params,
            base=frozen.get("base"),
            config=config,
            step=fitted.step,
        )

    facts |= {"rows": len(data.examples)}
    _train(run, name, policy, data, loss, config, facts, after if in_steps else None)


def dpo(
    run: Run,
    name: str,
    policy: Policy,
    pairs: Sequence[PairExample],
    anchors: Sequence[SftExample],
    config: TrainConfig,
    loss: DpoConfig,
    *,
    seed: int,
    **facts: Any,
) -> None:
    """Trains a model on preferences, and finishes its artefact; see `sft`.

    Args:
      run: the caller has begun the artefact.
      name: of the artefact.
      policy: start and reference.
      pairs: what is compared.
      anchors: good responses for the SFT term.
      config: of the trainer.
      loss: of the objective.
      seed: of the order of the rows.
      facts: more for the lineage.

    Raises:
      ValueError: where no pair is left.
    """
    data = DpoData(pairs, anchors, config, loss, seed=seed, **dataset_arguments(run, policy))
    _report_dropped(name, data.dropped, len(pairs) + len(anchors))
    if not data.pairs:
        raise ValueError(
            f"{name}: none of {len(pairs)} pairs is left to train on:"
            f" {', '.join(f'{len(ids)} {reason}' for reason, ids in data.dropped.items())}; the"
            f" longest bucket of its trainer has {config.buckets[-1]} tokens"
        )
    objective = objectives.dpo(policy.spec, config, models.new_rows(run), loss)
    if loss.reference == "precomputed":
        positions = sum(len(response) for _, response in data.trajectories().values())
        need_room(run, f"the reference's log-probs for {name}", 4 * positions)
        scorer = objectives.reference(objective)
        key = reference.key_of(
            scorer, weights=models.digest(run, policy.model), words=policy.codec.digest
        )
        table = reference.table(
            scorer,
            policy.params,
            data.trajectories(),
            config=config,
            mesh=run.mesh,
            folder=run.workdir / name / "reference",
            key=key,
            pad_id=policy.codec.pad_id,
        )
        data = data.with_reference(table)
    _train(run, name, policy, data, objective, config, facts | {"pairs": data.pairs})


def prm(
    run: Run,
    name: str,
    policy: Policy,
    data: RewardData,
    config: TrainConfig,
    loss: PrmConfig,
    *,
    measure: Callable[[Score, int], None],
    **facts: Any,
) -> None:
    """Trains a reward model on the weights of a policy, and finishes its artefact; see `sft`.

    Args:
      run: the caller has begun the artefact.
      name: of the artefact.
      policy: whose body the reward model starts from; its weights are given away.
      data: trajectories with an order or with values.
      config: of the trainer.
      loss: of the objective.
      measure: called with the trained model's scores and its step, before the artefact is finished.
      facts: more for the lineage.
    """
    left_out = sum(len(ids) for ids in data.dropped.values())
    _report_dropped(name, data.dropped, len(data.examples) + len(data.eval_examples) + left_out)
    start = models.deepened(run, policy, loss.more_layers)
    rows = models.new_rows(run)
    trained: Loss = objectives.prm(start.spec, config, rows, loss, run.config)
    scorer: Any = trained.scorer
    implicit = isinstance(trained, Dpo)
    if isinstance(trained, Dpo):
        scorer = Ratios(scorer=trained.scorer, beta=loss.beta)
    else:
        everywhere = jax.sharding.NamedSharding(run.mesh, jax.sharding.PartitionSpec())
        head = jax.device_put(jax.random.key(run.config.seed), everywhere)
        spec = reward.scalar(start.spec)
        start = dataclasses.replace(start, spec=spec, params=reward.from_policy(start.params, head))

    def after(fitted: loop.Fitted, frozen: Mapping[str, Any]) -> Mapping[str, Any]:
        under = frozen.get("reference" if implicit else "base")

        def score(batch: ValuedBatch) -> np.ndarray:
            on_mesh = step_lib.place(batch, run.mesh)
            with jax.set_mesh(run.mesh):
                return np.asarray(_raw(fitted.params, under, on_mesh, scorer=scorer))

        measure(score, fitted.step)
        return {}

    facts |= {"rows": len(data.examples)}
    _train(run, name, start, data, trained, config, facts, after)


def dataset_arguments(run: Run, policy: Policy) -> dict[str, int]:
    """Returns what data must know of the model and the mesh."""
    shards = run.mesh.shape["data"] * run.mesh.shape["fsdp"]
    return {"pad_id": policy.codec.pad_id, "row_shards": shards}


def _train(
    run: Run,
    name: str,
    policy: Policy,
    data: Dataset,
    loss: Loss,
    config: TrainConfig,
    facts: Mapping[str, Any],
    after: After | None = None,
) -> None:
    """Fits, lets `after` see the result, and notes it in the lineage."""
    folder = run.workdir / name
    if config.batching != "bucket":
        probe.check_packing(policy.spec, config.compute_dtype)
    preview.show(data, policy.codec, folder / "preview.txt")
    params, frozen = policy.params, {}
    tx, new = _optimizer(run, policy, config)
    if config.lora_rank:
        frozen["base"] = _shown(params, config.compute_dtype)
        factors = models.fresh_adapters(run, policy, config)
        params = reward.adapted(params, factors) if isinstance(loss, Prm) else factors
    elif isinstance(loss, Dpo) and loss.reference == "on_the_fly":
        frozen["reference"] = _shown(params, config.compute_dtype)
    kept = config.keep + (config.result == "best")
    saves = -(-optimizer.total_steps(config, data.steps_per_epoch) // config.save_every)
    size = sum(x.size for x in jax.tree.leaves(params))
    need_disk(run, name, size, keep=kept, saves=saves)
    parents = run.lineage.entries[name]["parents"]
    fitted = loop.fit(
        params,
        data,
        loss=loss,
        config=config,
        mesh=run.mesh,
        folder=folder / "checkpoints",
        metrics=run.metrics,
        stage=name,
        frozen=frozen or None,
        more={f"parent {parent}": digest for parent, digest in parents.items()} | new,
        tx=tx,
    )
    made: dict[str, Any] = {"step": fitted.step}
    if after:
        made |= after(fitted, frozen)
    if config.lora_rank:
        made |= {"adapters_of": policy.model.name, "new_rows": list(models.new_rows(run))}
    run.lineage.finish(name, digest_of(fitted.params), **facts, **made)


def _optimizer(
    run: Run, policy: Policy, config: TrainConfig
) -> tuple[optax.GradientTransformation, dict[str, Any]]:
    """Returns the optimiser, and what a continued run must share where it has new tags to train.

    That is so where their rows have a rate of their own, or lie beside adapters.
    """
    rows = models.new_rows(run)
    if not rows or not (config.new_rows_lr or config.lora_rank):
        return optimizer.of(config), {}
    tx = optimizer.of(config, rows, optimizer.spreads_of(policy.params))
    return tx, {"new rows": list(rows), "train.new_rows_lr": config.new_rows_lr}


@functools.partial(jax.jit, static_argnames="scorer")
def _raw(params: Any, base: Any, batch: ValuedBatch, *, scorer: Values | Ratios) -> Any:
    """Returns raw scores [A, m, R], one micro-batch after another."""
    return jax.lax.map(lambda one: scorer.of_batch(params, one, base=base), batch)


def _shown(params: Any, dtype: str) -> Any:
    """Returns a copy of the weights in the dtype that they are computed in."""
    return jax.jit(lambda tree: jax.tree.map(lambda x: x.astype(dtype) + 0, tree))(params)


def _report_dropped(stage: str, dropped: Mapping[str, Sequence[str]], count: int) -> None:
    """Says how many rows were left out, why, and which."""
    for reason, ids in dropped.items():
        log.warning(
            "%s: %d of %d rows left out, %s: %s",
            stage,
            len(ids),
            count,
            reason,
            ", ".join(ids[:10]) + (" ..." if len(ids) > 10 else ""),
        )
