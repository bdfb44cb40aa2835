"""Hugging Face folders of small models, and ways to break them."""

import dataclasses
import functools
import json

import jax
import numpy as np
import pytest
import safetensors.numpy
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from stair_jax.hf import exporter, importer, metadata
from stair_jax.model import transformer
from stair_jax.model.spec import RopeScaling
from tests.support import specs

END = "<|endoftext|>"  # a qwen2 folder gets this token from transformers, listed or not
TINY = specs.llama(
    L=3,
    D=12,
    N=4,
    K=2,
    H=8,
    F=7,
    V=271,
    rope_scaling=RopeScaling(factor=8.0, low=1.0, high=4.0, original=32),
)
TIED = dataclasses.replace(TINY, tied=True)


def make_tokenizer():
    """Returns one token per byte, and one that ends a turn: 257 in all."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate([*alphabet, END])}
    raw = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=raw, eos_token=END)
    tokenizer.chat_template = "{{ messages[0]['content'] }}"
    return tokenizer


@functools.cache
def weights(spec):
    shapes = jax.eval_shape(functools.partial(transformer.init, spec), jax.random.key(0))
    random = np.random.default_rng(0)
    return jax.tree.map(lambda x: random.normal(size=x.shape).astype(np.float32), shapes)


def save(path, spec=TINY, **options):
    defaults = {"end_ids": [256], "dtype": "float32"}
    tokenizer = options.pop("tokenizer", None) or make_tokenizer()
    exporter.save(path, spec, weights(spec), tokenizer, **(defaults | options))
    return path


def load(path):
    """Returns all that a run reads of a folder: sizes, parameters, tokenizer."""
    return *importer.load_onto(path), metadata.load_spec_and_tokenizer(path)[1]


@pytest.fixture
def folder(tmp_path):
    return save(tmp_path / "model")


def edit_json(file, **change):
    file.write_text(json.dumps(json.loads(file.read_text()) | change))


def edit_tensors(folder, change):
    file = folder / metadata.WEIGHTS
    tensors = safetensors.numpy.load_file(file)
    change(tensors)
    safetensors.numpy.save_file(tensors, file, metadata={"format": "pt"})
