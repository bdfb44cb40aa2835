"""Sizes of models that are planned without their files."""

import pytest

from stair_jax.config import default
from stair_jax.plan import sizes


@pytest.mark.parametrize(
    ("name", "parameters"),  # as the models' cards on the hub have them
    [
        ("meta-llama/Llama-3.2-1B", 1_235_814_400),
        ("meta-llama/Llama-3.2-3B", 3_212_749_824),
        ("meta-llama/Llama-3.1-8B", 8_030_261_248),
        ("meta-llama/Llama-3.1-70B", 70_553_706_496),
        ("Qwen/Qwen2-7B", 7_615_616_512),
        ("Qwen/Qwen2.5-0.5B", 494_032_768),
        ("Qwen/Qwen2.5-7B", 7_615_616_512),
        ("Qwen/Qwen3-8B", 8_190_735_360),
    ],
)
def test_known_sizes_have_the_published_number_of_parameters(name, parameters):
    assert sizes._SIZES[name].parameters == parameters


def test_stairs_tags_grow_a_full_table_and_take_spare_rows():
    llama = sizes._known("meta-llama/Llama-3.1-8B-Instruct")
    assert llama.new_rows == (128_256, 128_257, 128_258, 128_259)
    assert (llama.spec.vocab, llama.spec.V, llama.words) == (128_260, 128_264, 128_260)
    qwen = sizes._known("Qwen/Qwen2-7B-Instruct")
    assert qwen.new_rows == (151_646, 151_647, 151_648, 151_649)
    assert (qwen.spec.vocab, qwen.spec.V, qwen.words) == (152_064, 152_064, 151_650)


def test_only_named_checkpoints_are_known():
    c = default()
    for name, known in (("Qwen/Qwen2-7B-Instruct", True), ("Qwen/Qwen9", False), ("", False)):
        c.model.checkpoint = name
        assert sizes.is_known(c) is known
