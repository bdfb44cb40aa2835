"""Prompts of attackers and judges: the official ones by their hashes, ours by another name."""

import pathlib
import re

import pytest

from stair_jax.evals.attacks import prompts
from stair_jax.evals.attacks.prompts import PairPrompts, fill

DATA = pathlib.Path(__file__).parents[4] / "shared" / "data" / "prompts"
official = pytest.mark.skipif(not DATA.is_dir(), reason=f"{DATA} is not there")
NAMES = ["pair_attacker_roleplay", "pair_attacker_logical_appeal", "pair_attacker_authority"]


@official
def test_official_prompts_are_known_by_their_hashes():
    loaded = PairPrompts.load(DATA)
    assert loaded.protocol == "pair"
    assert list(loaded.attackers) == NAMES
    texts = [*loaded.attackers.values(), loaded.judge]
    assert [len(text.encode()) for text in texts] == [5662, 5454, 5364, 1066]  # as recorded
    assert all("{goal}" in text for text in texts)


@official
@pytest.mark.parametrize("name", [*NAMES, "pair_judge_system"])
def test_a_changed_official_prompt_is_named(tmp_path, name):
    for path in DATA.glob("pair_*.txt"):
        (tmp_path / path.name).write_bytes(path.read_bytes() + b" " * (path.stem == name))
    with pytest.raises(ValueError, match=rf"{name}\.txt: found sha256 \w{{64}}, expected") as error:
        PairPrompts.load(str(tmp_path))
    assert "\n" not in str(error.value)


def test_a_missing_official_prompt_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"pair_attacker_roleplay\.txt cannot be read"):
        PairPrompts.load(tmp_path)


def test_our_own_words_have_another_protocol():
    loaded = PairPrompts.load()
    assert loaded.protocol == "pair-own-words"
    assert list(loaded.attackers) == NAMES
    for text, way in zip(
        loaded.attackers.values(), ("role play", "logical appeal", "authority"), strict=True
    ):
        assert f"Use {way}" in text
        assert {"{goal}", "{target_str}"} <= set(re.findall(r"\{\w+\}", text))
        assert '{"improvement": ' in text
    assert re.findall(r"\{\w+\}", loaded.judge) == ["{goal}"]
    assert "[[number]]" in loaded.judge
    found = set(re.findall(r"\{\w+\}", prompts.pap_attacker()))
    assert found == {"{goal}", "{technique}", "{definition}"}


@official
def test_our_own_words_are_not_the_official_ones():
    theirs, ours = PairPrompts.load(DATA), PairPrompts.load()
    texts = ours.judge, *ours.attackers.values()
    sentences = {one.strip() for text in texts for one in re.split(r"[.\n]", text)} - {""}
    said = "\n".join((theirs.judge, *theirs.attackers.values()))
    shared = {one for one in sentences if len(one.split()) > 5 and one in said}
    assert shared == set()


def test_what_a_value_holds_is_no_placeholder_and_braces_stay():
    made = fill(
        '{"a": {goal}} {target_str} {other}', {"goal": "{target_str} \\1", "target_str": "S"}
    )
    assert made == '{"a": {target_str} \\1} S {other}'
