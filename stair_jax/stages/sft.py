"""Stage sft: structured chains of thought in, a model that reasons in steps out."""

from stair_jax.io import examples
from stair_jax.stages import inputs, policies, prompts, training
from stair_jax.stages.run import Run, train_config


def run(run: Run) -> None:
    """Trains the base model on the teacher rows, on their responses only."""
    found = prompts.for_sft(run.config)
    run.begin("sft", "sft", inputs={"data.sft": inputs.of_rows(found)})
    base = policies.load(run, "base")
    rows = examples.sft_examples(found, base.codec)
    training.sft(run, "sft", base, rows, train_config(run.config, "sft"))
