"""A codec of whole words, with the tags of a model."""

from stair_jax import text
from stair_jax.text import Codec

EOS, OUTPUT_END, STEP_END, OTHER_END, PAD = 1, 2, 3, 4, 0


class PlainCodec(Codec):
    """Words are numbers, and a prompt is as long as its question says."""

    def __init__(self):
        self.eos_id, self.pad_id = EOS, PAD
        self.end_ids = frozenset({EOS, OTHER_END})
        self.end_stop = frozenset({EOS, OTHER_END, OUTPUT_END})

    def prompt_ids(self, question, before=()):
        return [*(len(content) for _, content in before), 10 + len(question), 11]

    def response_ids(self, response):
        tags = {text.OUTPUT_END: OUTPUT_END, text.STEP_END: STEP_END}
        return [tags.get(word) or int(word) for word in response.split()]


CODEC = PlainCodec()
