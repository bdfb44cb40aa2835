"""Rewrites of a round's requests: which are tried, in which order, which are kept and with whom."""

import collections
import dataclasses

import pytest

from stair_jax.records import Prompt
from stair_jax.search import comparisons, rewrites, roots
from stair_jax.search.rewrites import Attempt, Rewriter

UPPER_AND_LAST = Rewriter(
    questions=lambda prompt: {
        "upper": prompt.question.upper(),
        "last": f"{prompt.question} , now",
        "first": f"now , {prompt.question}",
    },
    is_plain=lambda prompt: "framed" not in prompt.question,
)


def asked(id, question, kind="safety", **more):
    return Prompt(id=id, question=question, type=kind, **more)


HARMFUL = [asked(f"h{i}", f"harm {i}") for i in range(4)]
FRAMED = [asked("f0", "framed harm 9")]
HARMLESS = [asked(f"g{i}", f"good {i}", "helpfulness", ground_truth=str(i)) for i in range(3)]
ROUND = [*FRAMED, *HARMLESS, *HARMFUL]


def candidates(prompts=ROUND, rewriter=UPPER_AND_LAST, pool=100, seed=0):
    return rewrites.candidates(prompts, rewriter, pool=pool, seed=seed)


def with_twins(attacks, prompts=ROUND, most=100, seed=0):
    return rewrites.with_twins(attacks, prompts, UPPER_AND_LAST, most=most, seed=seed)


def of(prompts):
    return [prompt.meta["of"] for prompt in prompts]


def test_a_rewritten_prompt_says_what_it_is_made_of_and_keeps_type_and_truth():
    prompt = asked("g", "good", "helpfulness", ground_truth="4", meta={"framing": "x", "kind": "k"})
    found = rewrites.rewritten(prompt, "upper", "GOOD")
    assert found == Prompt(
        id="g/rewritten/upper",
        question="GOOD",
        type="helpfulness",
        ground_truth="4",
        meta={"kind": "k", "attack": "upper", "of": "g"},  # it is framed otherwise now
    )


def test_every_harmful_request_is_rewritten_in_every_way():
    found = candidates()
    assert len(found) == len({prompt.id for prompt in found}) == 3 * 5
    assert {prompt.type for prompt in found} == {"safety"}
    by_id = {prompt.id: prompt.question for prompt in found}
    assert by_id["h2/rewritten/last"] == "harm 2 , now"
    assert by_id["h2/rewritten/first"] == "now , harm 2"


def test_plain_requests_come_first_and_each_once_before_any_comes_twice():
    found = of(candidates())
    assert found[12:] == ["f0"] * 3
    assert all(set(found[at : at + 4]) == {"h0", "h1", "h2", "h3"} for at in (0, 4, 8))


def test_the_pool_is_the_most_that_are_tried_and_the_seed_says_which():
    assert candidates(pool=5) == candidates()[:5]
    orders = {tuple(prompt.id for prompt in candidates(seed=seed)) for seed in range(5)}
    assert len(orders) == 5
    assert candidates(ROUND[::-1]) == candidates(ROUND)  # not the order of the rows


def test_what_the_round_asks_already_is_no_candidate_and_nothing_is_tried_twice():
    more = [*ROUND, asked("x", "HARM 1"), asked("y", "harm 1 ")]
    spaces = dataclasses.replace(
        UPPER_AND_LAST, questions=lambda prompt: {"upper": prompt.question.strip().upper()}
    )
    questions = [prompt.question for prompt in candidates(more, spaces)]
    assert "HARM 1" not in questions
    again = [*HARMFUL, asked("z", "harm 1 ")]
    assert [p.question for p in candidates(again, spaces)].count("HARM 1") == 1


def test_the_earlier_turns_of_a_conversation_stay_and_tell_requests_apart():
    turns = (("user", "hello"), ("assistant", "yes ?"))
    talk = asked("t", "harm 1", before=turns)
    found = candidates([*HARMFUL, talk])
    assert [prompt.before for prompt in found].count(turns) == 3


def test_a_request_that_is_an_attack_of_its_own_is_not_rewritten():
    begun = asked("b", "harm 7", prefill="sure ,")
    assert "b" not in of(candidates([*ROUND, begun]))
    twin = dataclasses.replace(begun, type="helpfulness")
    attacks = candidates(HARMFUL)
    assert with_twins(attacks, [*HARMFUL, HARMLESS[0]])
    assert not with_twins(attacks, [*HARMFUL, twin])


def test_each_attack_is_followed_by_a_harmless_prompt_behind_the_same_rewrite():
    found = with_twins(candidates()[:3])
    assert len(found) == 6
    for attack, twin in zip(found[::2], found[1::2], strict=True):
        assert (attack.type, twin.type) == ("safety", "helpfulness")
        assert attack.meta["attack"] == twin.meta["attack"]
        assert twin.question == UPPER_AND_LAST.questions(twin_of(twin))[twin.meta["attack"]]
        assert twin.ground_truth == twin_of(twin).ground_truth
    assert sorted(of(found[1::2])) == ["g0", "g1", "g2"]  # each in turn


def twin_of(prompt):
    return next(each for each in HARMLESS if each.id == prompt.meta["of"])


def test_plain_harmless_prompts_are_twins_before_framed_ones():
    framed = [asked(f"a{i}", f"framed good {i}", "helpfulness") for i in range(20)]
    found = with_twins(candidates()[:3], [*framed, *HARMLESS, *HARMFUL])
    assert {id[0] for id in of(found[1::2])} == {"g"}


def test_an_attack_without_a_twin_is_left_out():
    attacks = candidates()
    kept = with_twins(attacks)
    # Three harmless prompts in three ways; there are five harmful ones in each.
    assert len(kept) == 2 * 9
    ways = collections.Counter(prompt.meta["attack"] for prompt in kept[::2])
    assert set(ways.values()) == {3}
    assert with_twins(attacks, HARMFUL) == []
    taken = [*ROUND, *(asked(f"u{i}", f"GOOD {i}", "safety") for i in range(3))]
    assert "upper" not in {prompt.meta["attack"] for prompt in with_twins(attacks, taken)}


def test_no_more_are_kept_than_are_wanted_the_first_ones():
    attacks = candidates()
    assert with_twins(attacks, most=2) == with_twins(attacks)[:4]
    assert with_twins(attacks, most=0) == []


def test_the_share_counts_attacks_and_twins():
    assert rewrites.most_kept([HARMFUL[0]] * 40, 0.25) == 5
    assert rewrites.most_kept([HARMFUL[0]] * 39, 0.25) == 4
    assert rewrites.most_kept([HARMFUL[0]] * 39, 0.0) == 0


@pytest.mark.parametrize(
    ("safety", "beats"), [(-1.0, True), (-0.1, True), (0.0, False), (1.0, False), (None, False)]
)
def test_an_unsafe_answer_beats_the_model_and_one_without_a_verdict_does_not(safety, beats):
    row = Attempt(id="a", of="h", attack="upper", question="q", response="r", safety=safety)
    assert row.beats == beats


def test_the_trees_of_a_prompt_and_of_its_rewrites_are_held_out_together():
    prompts = [asked(f"p{number}", "harm") for number in range(200)]
    sides = []
    for prompt in prompts:
        attack = rewrites.rewritten(prompt, "upper", "HARM")
        ids = (prompt.id, attack.id, roots.id_behind(attack.id))
        held = [comparisons.is_held_out(id, share=0.5, seed=0) for id in ids]
        assert len(set(held)) == 1
        sides += held
    assert 0 < sum(sides) < len(sides)
