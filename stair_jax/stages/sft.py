"""Stage sft: structured chains of thought in, a model that reasons in steps out."""

import logging

from stair_jax.config.stages import SFT
from stair_jax.data import examples
from stair_jax.run import inputs, known_models, models, prepared, training
from stair_jax.run import rows as rows_lib
from stair_jax.run.workdir import Run, train_config

log = logging.getLogger(__name__)


def look(run: Run) -> None:
    """Reads the teacher rows; raises as `inputs.hold`."""
    c = run.config
    if not prepared.is_awaited(run, "sft"):
        source = prepared.source_of(c, "sft")
        inputs.hold(run, SFT.artefact(), "data.sft", source, lambda: rows_lib.for_sft(c))


def run(run: Run) -> None:
    """Trains the base model on the teacher rows, on their responses only."""
    found, name = rows_lib.for_sft(run.config), SFT.artefact()
    parents = prepared.parents(run, SFT)
    run.begin(name, SFT.name, parents, inputs={"data.sft": inputs.of_rows(found)})
    base = models.load(run, known_models.base(run))
    if broken := sum(base.codec.holds_controls(row.response) for row in found):
        log.warning(
            "%d of %d answers hold special tokens, which are trained as plain text, broken up",
            broken,
            len(found),
        )
    rows = examples.sft_examples(found, base.codec)
    training.sft(run, name, base, rows, train_config(run.config, SFT.name), in_steps=True)
