"""One schema: what a knob says of itself is what the configuration, its checks and users meet."""

import ast
import dataclasses
import functools
import pathlib
import typing

import pytest

from stair_jax import config as config_lib
from stair_jax.config.checks import validate
from stair_jax.config.knob import Section, Under, knob, knobs_of, like
from stair_jax.config.ranges import SHARE
from stair_jax.config.schema import KNOBS, SECTIONS, TrainConfig
from tests.support.configs import keys, tiny

ROOT = pathlib.Path(config_lib.__file__).parents[1]


def test_the_configuration_has_the_keys_and_defaults_of_the_schema():
    c = config_lib.default()
    assert set(keys(c)) == set(KNOBS)
    for key, each in KNOBS.items():
        value = c
        for name in key.split("."):
            value = value[name]
        assert value == each.default, key
        assert type(value) is type(each.default), key


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pot(Section):
    """A section as a user of the module would write one."""

    colour: typing.Literal["red", "blue"] = knob("red", "of the glaze")
    fill: float = knob(0.5, "of the volume", SHARE, free=True)
    made: str  # a field that is no setting


def test_a_field_says_all_of_its_setting():
    about = knobs_of(Pot)
    assert list(about) == ["colour", "fill"]
    assert about["colour"].choices == ("red", "blue")
    assert (about["fill"].among, about["fill"].free) == (SHARE, True)
    assert Pot(made="x") == Pot(colour="red", fill=0.5, made="x")
    again = dataclasses.make_dataclass(
        "Other",
        [("fill", float, like(Pot, "fill", 0.0))],
        bases=(Section,),
        kw_only=True,
        frozen=True,
    )
    assert knobs_of(again)["fill"].default == 0.0
    assert knobs_of(again)["fill"].meaning == "of the volume"


def test_a_section_takes_every_setting_from_the_configuration_and_no_other():
    assert Pot.of({"colour": "blue", "fill": 1.0}, made="x").colour == "blue"
    with pytest.raises(TypeError, match="fill"):
        Pot.of({"colour": "blue"}, made="x")  # its default is no silent answer
    with pytest.raises(TypeError, match="size"):
        Pot.of({"colour": "blue", "fill": 1.0}, made="x", size=3)


def test_trainers_differ_from_the_shared_one_where_they_say_so():
    shared = knobs_of(TrainConfig)
    narrower = {
        key
        for key, each in KNOBS.items()
        if ".train." in key and each != shared[key.rpartition(".")[2]]
    }
    assert narrower == {
        *(f"{stage}.train.batching" for stage in ("sft", "dpo", "prm")),
        *(f"sft.train.{name}" for name in ("epochs", "lr", "new_rows_lr")),
        *(f"prm.train.{name}" for name in ("batch", "lr", "head_chunk")),
    }


CHOICES = [key for key, each in KNOBS.items() if each.choices]
LISTS = [key for key, each in KNOBS.items() if each.words]


@pytest.mark.parametrize("key", CHOICES + LISTS)
def test_a_word_that_is_none_of_the_choices_is_refused_by_name(key):
    assert KNOBS[key].default in KNOBS[key].choices or key in LISTS
    with pytest.raises(ValueError, match=rf"^config\.{key}: .*'odd'.* not (one of|in) \["):
        validate(tiny(workdir="x", **{key.replace(".", "__"): "odd"}))


def conditions():
    return {id(u): u for each in KNOBS.values() for u in each.under}


def test_what_a_setting_needs_is_said_with_names_of_settings_that_there_are():
    assert len(conditions()) > 30
    for under in conditions().values():
        assert isinstance(under, Under)
        for word in under.needs.format(section="sft.train").replace(",", " ").split():
            key = word.removeprefix("config.").partition("=")[0].rstrip(":")
            assert not word.startswith("config.") or key in KNOBS, under.needs


SCHEMA = {"run_sections", "recipe_section", "training_sections", "search_sections", "conditions"}


@functools.cache
def reads():
    """Every name that the package reads as an attribute or a text, but for the schema itself."""
    return frozenset(_read())


def _read():
    for path in ROOT.rglob("*.py"):
        if path.stem in SCHEMA:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute):
                yield node.attr
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value


@pytest.mark.parametrize("section", SECTIONS)
def test_every_setting_is_read_somewhere(section):
    names = set(knobs_of(SECTIONS[section]))
    assert names - reads() == set()
