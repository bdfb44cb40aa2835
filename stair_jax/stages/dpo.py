"""Stage dpo: preference pairs of a round in, the round's model out."""

from stair_jax import records
from stair_jax.config import DpoConfig
from stair_jax.io import data
from stair_jax.records import Pair, Response
from stair_jax.stages import policies
from stair_jax.stages.run import Run, digest_of, need_disk, train_config
from stair_jax.stages.sft import report_dropped
from stair_jax.train import logprobs, loop
from stair_jax.train.logprobs import Scorer
from stair_jax.train.losses import Dpo


def run(run: Run, number: int) -> None:
    """Trains the round's model; the model before it is both its start and its reference."""
    name, parent = f"round-{number}/dpo", policies.parent_of_round(run, number)
    above = policies.artefact_of(parent)
    run.begin(name, "dpo", (*((above,) if above else ()), f"round-{number}/pairs"))
    policy, config = policies.load(run, parent), train_config(run.config, "dpo")
    need_disk(run, "dpo", policy.spec.parameters)
    loss_config, stage = DpoConfig.of(run.config.dpo), f"round-{number}/dpo"
    folder = run.round_dir(number) / "pairs"
    pairs = records.read_jsonl(folder / "pairs.jsonl", Pair)
    anchors = records.read_jsonl(folder / "responses.jsonl", Response)
    batches = data.DpoData(
        data.pair_examples(pairs, policy.codec), data.response_examples(anchors, policy.codec),
        anchors_per_pair=loss_config.anchors_per_pair, buckets=config.buckets,
        batch=config.batch, seed=run.config.seed + number, pad_id=policy.codec.pad_id,
    )  # fmt: skip
    report_dropped(stage, batches.dropped, len(pairs) + len(anchors))
    if not batches.pairs:
        raise ValueError(
            f"{folder / 'pairs.jsonl'}: no pair is left to train on; lower"
            " config.pairs.min_value_gap, or grow more trees"
        )
    scorer = Scorer.of(policy.spec, config)
    reference = logprobs.reference(
        scorer, policy.params, batches.pair_batches(config.micro_batch), pairs=batches.pairs,
        mesh=run.mesh,
    )  # fmt: skip
    loss = Dpo.of(scorer, loss_config)
    params = loop.fit(
        policy.params, batches.with_reference(reference), loss=loss, config=config, mesh=run.mesh,
        folder=policies.folder_of(run, f"dpo-{number}"), metrics=run.metrics, stage=stage,
    )  # fmt: skip
    run.lineage.finish(name, digest_of(params), pairs=batches.pairs)
