"""What a reward model in training says of the trees that are set aside."""

import dataclasses
from collections.abc import Mapping, Sequence

from stair_jax.config.schema import PrmConfig, TrainConfig
from stair_jax.data import examples as examples_lib
from stair_jax.data.reward_batches import ValuedData
from stair_jax.evals.reward_models import Scored
from stair_jax.log import progress
from stair_jax.model.reward import Readout
from stair_jax.records import Tree
from stair_jax.run.training import Score
from stair_jax.search import comparisons
from stair_jax.text import Codec


def scored(
    trees: Sequence[Tree],
    codec: Codec,
    config: PrmConfig,
    readout: Readout,
    train: TrainConfig,
    frame: Mapping[str, int],
    score: Score,
) -> list[Scored]:
    """Returns the trees with the model's scores of their nodes; what is too long has none."""
    out = [Scored(tree, {}, {}) for tree in trees]
    every = [
        (at, row)
        for at, tree in zip(out, trees, strict=True)
        for row in comparisons.values_of(tree, config)[0]
    ]
    # Prompts may come back in other rounds: the row's number is the name that is its own.
    named = [dataclasses.replace(row, id=str(i)) for i, (_, row) in enumerate(every)]
    examples = examples_lib.valued_examples(named, codec, readout)
    data = ValuedData(examples, dataclasses.replace(train, eval_rows=0), **frame)
    batches, count = data.in_order(), -(-len(examples) // train.batch)
    with progress.over(batches, "trees set aside", count, "batches") as counted:
        for members, batch in counted:
            raw = score(batch).reshape(-1, batch.read.shape[-1])
            for example, scores in zip(members, raw, strict=False):  # what follows is padding
                at, row = every[int(example.id)]
                for label, x in zip(row.labels, scores.tolist(), strict=False):
                    at.raw[label.tag], at.tokens[label.tag] = x, label.tokens
    return out
