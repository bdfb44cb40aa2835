"""Codecs of bytes, and text as a model has spoken it."""

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from stair_jax import text

EXTRA = [
    "<|begin_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|endoftext|>",
    "<|pad|>",
]


def bytewise(*, without=(), pad="<|pad|>", eos="<|eot_id|>"):
    """A tokenizer of single characters with the special tokens of both families."""
    letters = [chr(i) for i in range(32, 127)] + ["\n", "<unk>"]
    backend = Tokenizer(models.WordLevel({c: i for i, c in enumerate(letters)}, "<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token="<unk>",
        bos_token="<|begin_of_text|>",
        eos_token=eos,
        pad_token=pad,
    )
    specials = [t for t in (*EXTRA, *text.TAGS) if t not in without]
    tokenizer.add_special_tokens({"additional_special_tokens": specials})
    return tokenizer


def spoken(codec, ids):
    return "".join(codec.tokenizer.convert_ids_to_tokens(ids))
