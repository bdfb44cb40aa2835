"""The smallest run, in a workdir of its own."""

from stair_jax import pipeline
from tests.support.configs import tiny

SIZE = {"L": 1, "D": 16, "N": 2, "K": 1, "H": 8, "F": 24}
TRAIN = {"batch": 4, "micro_tokens": 192, "buckets": (192,), "epochs": 1.0, "lr": 1e-2}
TOY = {
    "stages": "sft",
    "rounds": 1,
    "data__sft_rows": 8,
    **{f"model__size__{key}": value for key, value in SIZE.items()},
    **{f"sft__train__{key}": value for key, value in TRAIN.items()},
}


def toy(workdir, **changes):
    """Stage 1 of two steps on eight rows; `changes` by dotted keys, as flags give them.

    A checkpoint brings sizes of its own.
    """
    usual = {k: v for k, v in TOY.items() if not ("model__checkpoint" in changes and "size" in k)}
    return tiny("smoke", workdir=str(workdir), **usual | changes)


def run(workdir, **flags):
    """Runs with `flags` as the command line would give them."""
    return pipeline.run(toy(workdir, **flags), {key.replace("__", ".") for key in flags})
