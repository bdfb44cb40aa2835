"""Stage sft: structured chains of thought in, a model that reasons in steps out."""

import logging

from stair_jax.io import examples
from stair_jax.stages import inputs, policies, prompts, training
from stair_jax.stages.run import Run, train_config

log = logging.getLogger(__name__)


def run(run: Run) -> None:
    """Trains the base model on the teacher rows, on their responses only."""
    found = prompts.for_sft(run.config)
    run.begin("sft", "sft", inputs={"data.sft": inputs.of_rows(found)})
    base = policies.load(run, "base")
    if broken := sum(base.codec.holds_controls(row.response) for row in found):
        log.warning(
            "%d of %d answers hold special tokens, which are trained as plain text, broken up",
            broken,
            len(found),
        )
    rows = examples.sft_examples(found, base.codec)
    training.sft(run, "sft", base, rows, train_config(run.config, "sft"), in_steps=True)
