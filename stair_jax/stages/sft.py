"""Stage sft: structured chains of thought in, a model that reasons in steps out."""

import logging

from stair_jax.io import data
from stair_jax.stages import policies, prompts
from stair_jax.stages.run import Run, digest_of, need_disk, train_config
from stair_jax.train import loop
from stair_jax.train.logprobs import Scorer
from stair_jax.train.losses import Sft

log = logging.getLogger(__name__)


def run(run: Run) -> None:
    """Trains the base model on the teacher rows, on their responses only."""
    run.begin("sft", "sft")
    base, config = policies.load(run, "base"), train_config(run.config, "sft")
    need_disk(run, "sft", base.spec.parameters)
    rows = data.sft_examples(prompts.for_sft(run.config), base.codec)
    batches = data.SftData(
        rows, buckets=config.buckets, batch=config.batch, seed=run.config.seed,
        pad_id=base.codec.pad_id,
    )  # fmt: skip
    report_dropped("sft", batches.dropped, len(rows))
    params = loop.fit(
        base.params, batches, loss=Sft(Scorer.of(base.spec, config)), config=config, mesh=run.mesh,
        folder=policies.folder_of(run, "sft"), metrics=run.metrics, stage="sft",
    )  # fmt: skip
    run.lineage.finish("sft", digest_of(params), rows=len(batches.examples))


def report_dropped(stage: str, dropped: dict[str, list[str]], count: int) -> None:
    """Says how many rows were left out, why, and which."""
    for reason, ids in dropped.items():
        log.warning("%s: %d of %d rows left out, %s: %s", stage, len(ids), count, reason,
                    ", ".join(ids[:10]) + (" ..." if len(ids) > 10 else ""))  # fmt: skip
