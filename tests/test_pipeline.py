"""The run as a whole, on settings so small that the model learns next to nothing."""

import json
import logging
import pathlib

import pytest

from stair_jax import chat, pipeline, records
from stair_jax.records import Answer, Pair, Tree
from stair_jax.stages import policies
from stair_jax.stages.lineage import Lineage
from stair_jax.stages.run import locked
from tests.test_config import tiny

pytestmark = pytest.mark.slow


def small(workdir, **changes):
    """The pipeline with every number as small as it goes; the format is learned all the same."""
    c = tiny(
        workdir=str(workdir), rounds=2, evaluate__split="dev", tensorboard=True,
        data__sft_rows=1280, data__round_prompts=10, sft__train__max_steps=60,
        sft__train__save_every=20, search__iterations=8, search__trees_in_flight=6,
        engine__slots=16, pairs__min_visits=1, dpo__train__save_every=2,
        evaluate__benchmarks="harmful,harmless",
    )  # fmt: skip
    for key, value in changes.items():
        *parents, leaf = key.split("__")
        section = c
        for name in parents:
            section = section[name]
        section[leaf] = value
    return c
