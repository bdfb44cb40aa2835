"""Stage dpo: preference pairs of a round in, the round's model out."""

from stair_jax import jsonl
from stair_jax.config.schema import DpoConfig
from stair_jax.config.stages import DPO, PAIRS
from stair_jax.config.words import split_csv
from stair_jax.data import examples
from stair_jax.records import Pair, Response
from stair_jax.run import known_models, models, training
from stair_jax.run.workdir import Run, train_config
from stair_jax.stages.pairs import NO_PAIR


def run(run: Run, number: int) -> None:
    """Trains the round's model; the model before it is both its start and its reference."""
    name, compared = DPO.artefact(number), PAIRS.artefact(number)
    parent = known_models.parent_of_round(run, number)
    run.lineage.verify(compared, split_csv(run.config.edited))
    run.begin(name, DPO.name, (*parent.parents, compared))
    folder = run.round_dir(number) / "pairs"
    pairs = jsonl.read_jsonl(folder / "pairs.jsonl", Pair)
    anchors = jsonl.read_jsonl(folder / "responses.jsonl", Response)
    if not pairs:
        why = run.lineage.entries[compared].get(NO_PAIR, "there are no trees")
        raise ValueError(
            f"{name}: round {number} has no pair to train on: {why}; --config.redo=pairs, or"
            " search, makes them again"
        )
    policy = models.load(run, parent)
    training.dpo(
        run,
        name,
        policy,
        examples.pair_examples(pairs, policy.codec),
        examples.response_examples(anchors, policy.codec),
        train_config(run.config, DPO.name),
        DpoConfig.of(run.config.dpo),
        seed=run.config.seed + number,
    )
