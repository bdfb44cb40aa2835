"""The seed preferences of the miniature: shares, truth, and what they may not show."""

import collections

import pytest

from stair_jax.miniature import harm, preferences, splits, verifier, words
from stair_jax.records import Preference, Prompt
from stair_jax.text import OUTPUT, OUTPUT_END


@pytest.fixture(scope="module")
def rows():
    return preferences.preferences(3, 2000)


def asked(text: str) -> str:
    """What a text says, read from its words alone: its kind and whether a framing is there."""
    framed = any(text.startswith(framing) for framing in harm.FRAMINGS.values())
    found = set(text.split())
    bad = bool(found & set(words.BAD_VERBS)), bool(found & set(words.BAD_TARGETS))
    return ("framed " if framed else "") + ("harm" if all(bad) else "other")


def test_preferences_have_the_papers_shares_and_types(rows):
    found = collections.Counter(asked(row.question) for row in rows)
    assert found["framed harm"] / len(rows) == pytest.approx(3 / 50)  # jailbreaks
    assert found["harm"] / len(rows) == pytest.approx(22 / 50)
    assert found["framed other"] + found["other"] == len(rows) / 2
    assert found["framed other"] > 0 < found["other"]
    for row in rows:
        assert (row.type == "safety") == asked(row.question).endswith("harm")
    assert [row.id for row in rows][:2] == ["d-00000", "d-00001"]
    assert {asked(row.question) for row in rows[:50]} == set(found)  # well mixed


def test_chosen_is_right_or_refuses_and_rejected_is_neither(rows):
    worse = collections.Counter()
    for row in rows:
        truth = prompt_of(row)
        better = verifier.verify(truth, row.chosen, direct=True)
        bad = verifier.verify(truth, row.rejected, direct=True)
        assert better.well_formed
        assert bad.well_formed
        if row.type == "safety":
            assert better.refused
            assert bad.complied
        else:
            assert better.correct
            assert not bad.correct
            worse["refused" if bad.refused else "wrong"] += 1
    assert min(worse.values()) > 30


def prompt_of(row: Preference) -> Prompt:
    """The truth of a row's question, found without its answers: tasks by the chosen answer."""
    if row.type == "safety":
        return Prompt(id=row.id, question=row.question, type=row.type)
    act = next((v for v in words.TOOL if v in row.question.split()), None)
    truth = row.chosen
    if act is not None and set(row.question.split()) & {*words.SAFE_TARGETS, *words.BAD_TARGETS}:
        target = row.question.split()[-2]
        truth = f"first take the {words.TOOL[act]} then {act} the {target}"
    several = "three" in row.question.split()  # of a category
    return Prompt(
        id=row.id, question=row.question, type=row.type, ground_truth=None if several else truth
    )


def test_no_preference_shows_what_is_held_out(rows):
    held = {
        p.question
        for s in ("dev", "test")
        for b in splits.BENCHMARKS
        for p in splits.benchmark(b, s)
    }
    targets = {*words.TEST_TARGETS, *words.DEV_TARGETS}
    framings = (*harm.TEST_FRAMINGS.values(), *harm.DEV_FRAMINGS.values())
    for row in rows:
        assert row.question not in held
        assert not row.question.startswith(framings)
        assert not targets & set(row.question.split())


def test_rows_follow_from_the_seed(rows):
    assert preferences.preferences(3, 2000) == rows
    assert preferences.preferences(4, 2000) != rows
    assert preferences.direct_rows(3, 50) != preferences.direct_rows(4, 50)


def test_direct_rows_are_stage_ones_without_its_reasoning():
    whole, direct = splits.sft_rows(3, 300), preferences.direct_rows(3, 300)
    for a, b in zip(whole, direct, strict=True):
        assert (a.id, a.question) == (b.id, b.question)
        assert a.response.endswith(f"final answer : {b.response} {OUTPUT_END}")
        assert OUTPUT not in b.response


# ---- answers without reasoning
