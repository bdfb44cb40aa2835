"""Sizes of models that a run can be planned with although their files are not here.

A checkpoint that is a folder, or lies in the hub's cache, is read. The sizes of the others are
facts of their public `config.json` on the Hugging Face hub, the number of words of their tokenizers
of `tokenizer.json` there.
"""

import dataclasses
import functools
import logging
import pathlib

import huggingface_hub

from stair_jax.config import Config
from stair_jax.hf import tags
from stair_jax.hf.metadata import CONFIG
from stair_jax.model.spec import RopeScaling, Spec
from stair_jax.run import models
from stair_jax.run.workdir import Run
from stair_jax.text import TAGS

log = logging.getLogger(__name__)

_STRETCH = functools.partial(RopeScaling, low=1.0, high=4.0, original=8192)
_LLAMA = functools.partial(
    Spec,
    V=128_256,
    vocab=128_256,
    eps=1e-5,
    theta=5e5,
    qkv_bias=False,
    qk_norm=False,
    family="llama",
)
_QWEN2 = functools.partial(
    Spec,
    eps=1e-6,
    theta=1e6,
    rope_scaling=None,
    qkv_bias=True,
    qk_norm=False,
    family="qwen2",
)
_SIZES = {  # by the name on the hub, "-Instruct" left out
    "meta-llama/Llama-3.2-1B": _LLAMA(
        L=16, D=2048, N=32, K=8, H=64, F=8192, tied=True, rope_scaling=_STRETCH(factor=32.0)
    ),
    "meta-llama/Llama-3.2-3B": _LLAMA(
        L=28, D=3072, N=24, K=8, H=128, F=8192, tied=True, rope_scaling=_STRETCH(factor=32.0)
    ),
    "meta-llama/Llama-3.1-8B": _LLAMA(
        L=32, D=4096, N=32, K=8, H=128, F=14_336, tied=False, rope_scaling=_STRETCH(factor=8.0)
    ),
    "meta-llama/Llama-3.1-70B": _LLAMA(
        L=80, D=8192, N=64, K=8, H=128, F=28_672, tied=False, rope_scaling=_STRETCH(factor=8.0)
    ),
    "Qwen/Qwen2-7B": _QWEN2(
        L=28, D=3584, N=28, K=4, H=128, F=18_944, V=152_064, vocab=152_064, tied=False
    ),
    "Qwen/Qwen2.5-0.5B": _QWEN2(
        L=24, D=896, N=14, K=2, H=64, F=4864, V=151_936, vocab=151_936, tied=True
    ),
    "Qwen/Qwen2.5-7B": _QWEN2(
        L=28, D=3584, N=28, K=4, H=128, F=18_944, V=152_064, vocab=152_064, tied=False
    ),
    "Qwen/Qwen3-8B": Spec(
        L=36,
        D=4096,
        N=32,
        K=8,
        H=128,
        F=12_288,
        V=151_936,
        vocab=151_936,
        eps=1e-6,
        theta=1e6,
        rope_scaling=None,
        qkv_bias=False,
        qk_norm=True,
        tied=False,
        family="qwen3",
    ),
}
_WORDS = {  # of the tokenizer, by the beginning of the name
    "meta-llama/Llama-3": 128_256,
    "Qwen/Qwen2-": 151_646,
    "Qwen/Qwen2.5-": 151_665,
    "Qwen/Qwen3-": 151_669,
}


@dataclasses.dataclass(frozen=True)
class Model:
    """What a plan must know of the run's model.

    Attributes:
      spec: sizes, STAIR's tags included.
      new_rows: ids of the tags that the checkpoint does not know.
      words: tokens that may be drawn.
      stops: stop sets.
      source: where that comes from.
    """

    spec: Spec
    new_rows: tuple[int, ...]
    words: int
    stops: int
    source: str


def of(run: Run) -> Model:
    """Returns the sizes of a run's model.

    Raises:
      ValueError: where its files are neither here nor at the hub, and its sizes are not known.
    """
    name = run.config.model.checkpoint
    if not name or _is_here(name) or _plain(name) not in _SIZES:
        spec, codec = models.spec_and_codec(run)
        source = name or "config.model.size"
        return Model(spec, models.new_rows(run), codec.size, len(codec.stops), source)
    return _known(name)


def _known(name: str) -> Model:
    spec = _SIZES[_plain(name)]
    words = next(count for start, count in _WORDS.items() if name.startswith(start))
    rows = tuple(range(words, words + len(TAGS)))
    spec = tags.grown(spec, rows)
    return Model(spec, rows, rows[-1] + 1, 2, f"the known sizes of {_plain(name)}")


def is_known(c: Config) -> bool:
    """Returns whether a run's model can be planned although its files are not here."""
    return _plain(c.model.checkpoint) in _SIZES


def _plain(name: str) -> str:
    return name.removesuffix("-Instruct")


def _is_here(name: str) -> bool:
    """Returns whether a checkpoint is a folder, or lies in the hub's cache with its tokenizer."""
    if pathlib.Path(name).expanduser().is_dir():
        return True
    files = (CONFIG, "tokenizer.json")
    return all(
        isinstance(huggingface_hub.try_to_load_from_cache(name, file), str) for file in files
    )
