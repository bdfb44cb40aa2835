"""Sizes and shares of a recipe that no set can have are refused by their key."""

import pytest

from stair_jax import config
from stair_jax.config.recipe_checks import validate_recipe


def small(**recipe):
    c = config.default()
    c.data.recipe = "small"
    c.recipe.update(recipe)
    return c


def test_the_defaults_are_taken():
    validate_recipe(small())


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("taught", (1, 2), "expected three: refusals, solutions, look-alikes"),
        ("taught", (1, 2, -3), "expected whole numbers, 0 or more"),
        ("taught", (1, 2, 3.5), "expected whole numbers, 0 or more"),
        ("round_helpful", (1, 2, -1), "expected whole numbers, 0 or more"),
        ("cot", (1, 2, 3), "expected two: safety, helpful"),
        ("prm", (1,), "expected two: safety, helpful"),
        ("turned", (0.5,), "expected two shares from 0 to 1"),
        ("turned", (0.5, 1.01), "expected two shares from 0 to 1"),
        ("turned", (-0.5, 0.5), "expected two shares from 0 to 1"),
    ],
)
def test_a_size_or_share_that_cannot_be(key, value, expected):
    with pytest.raises(ValueError, match=rf"config\.recipe\.{key}: .*{expected}"):
        validate_recipe(small(**{key: value}))


def test_every_kind_has_a_number_a_round():
    with pytest.raises(ValueError, match=r"config\.recipe: .*expected as many numbers of each"):
        validate_recipe(small(round_safety=(1, 2)))


def test_rounds_without_prompts():
    c = small()
    c.data.prompts, c.rounds = "prepared", 4
    with pytest.raises(ValueError, match=r"config\.rounds: 4, but .* has prompts for 3"):
        validate_recipe(c)


def test_a_stage_without_a_recipe():
    c = config.default()
    c.stages = "prepare,sft"
    with pytest.raises(ValueError, match=r"config\.data\.recipe: empty"):
        validate_recipe(c)
