"""Stage dpo: preference pairs of a round in, the round's model out."""

from stair_jax import records
from stair_jax.io import examples
from stair_jax.records import Pair, Response
from stair_jax.sections import DpoConfig, words
from stair_jax.stages import policies, training
from stair_jax.stages.pairs import NO_PAIR
from stair_jax.stages.run import Run, train_config


def run(run: Run, number: int) -> None:
    """Trains the round's model; the model before it is both its start and its reference."""
    name, parent = f"round-{number}/dpo", policies.parent_of_round(run, number)
    above = policies.artefact_of(parent)
    run.lineage.verify(f"round-{number}/pairs", words(run.config.edited))
    run.begin(name, "dpo", (*((above,) if above else ()), f"round-{number}/pairs"))
    folder = run.round_dir(number) / "pairs"
    pairs = records.read_jsonl(folder / "pairs.jsonl", Pair)
    anchors = records.read_jsonl(folder / "responses.jsonl", Response)
    if not pairs:
        why = run.lineage.entries[f"round-{number}/pairs"].get(NO_PAIR, "there are no trees")
        raise ValueError(
            f"{name}: round {number} has no pair to train on: {why}; --config.redo=pairs, or"
            " search, makes them again"
        )
    policy = policies.load(run, parent)
    training.dpo(
        run, name, policy, examples.pair_examples(pairs, policy.codec),
        examples.response_examples(anchors, policy.codec), train_config(run.config, "dpo"),
        DpoConfig.of(run.config.dpo), seed=run.config.seed + number,
    )  # fmt: skip
