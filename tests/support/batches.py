"""Rows of numbers, and the data sets of SFT and DPO over them."""

from stair_jax import config as config_lib
from stair_jax.config.schema import DpoConfig, TrainConfig
from stair_jax.data.examples import PairExample, SftExample
from stair_jax.data.pair_batches import DpoData
from stair_jax.data.sft_batches import SftData

PAD = 0
ROW = SftExample(id="a", prompt=(5, 6), response=(7, 8, 9))


def train(**change):
    c = config_lib.default()
    c.sft.train.update({"batch": 2, "buckets": (6, 9), "micro_tokens": 10_000} | change)
    return TrainConfig.of(c.sft.train, compute_dtype="float32")


def loss(**change):
    c = config_lib.default()
    c.dpo.update(change)
    return DpoConfig.of(c.dpo)


def pair(i=0, **change):
    values = {
        "id": f"p{i}",
        "prompt": (5, 6),
        "prefix": (7,),
        "chosen": (8, 9, 10 + i),
        "rejected": (11,),
        "depth": 3,
    }
    return PairExample(**(values | change))


def sft(examples, shards=1, seed=0, **change):
    return SftData(examples, train(**change), seed=seed, pad_id=PAD, row_shards=shards)


def dpo(pairs, anchors=(), shards=1, per_pair=0.0, seed=0, more=None, **change):
    change = {"buckets": (7, 9)} | change
    options = loss(anchors_per_pair=per_pair, **(more or {}))
    return DpoData(
        pairs, anchors, train(**change), options, seed=seed, pad_id=PAD, row_shards=shards
    )
