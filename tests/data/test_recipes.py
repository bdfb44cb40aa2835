"""Recipes: sizes, what is chosen and rejected, and that no prompt is asked twice."""

import collections
import functools
import itertools
import json
from typing import Any

import pytest

from stair_jax.config.schema import RecipeConfig
from stair_jax.data import recipe as recipe_lib
from stair_jax.data import set_card, set_rows
from stair_jax.data.formats import preference_rows, sft_rows
from stair_jax.data.recipe import Pools
from stair_jax.data.seeds import Seed


def seed(id, **fields):
    return Seed(**{"id": id, "question": f"ask {id}", "type": "safety", "source": "S"} | fields)


@functools.cache
def corpora(harmful, attacks, helpful):
    """Schema-true seeds, as the loaders make them."""
    return {
        "pku_saferlhf": [
            seed(f"p{i}", source="PKU-SafeRLHF", rejected=f"unsafe {i}") for i in range(harmful)
        ],
        "jailbreakv": [seed(f"j{i}", source="JailbreakV-28k") for i in range(attacks)],
        "ultrafeedback": [
            seed(f"u{i}", type="helpfulness", source="UF", chosen=f"good {i}", rejected=f"bad {i}")
            for i in range(helpful)
        ],
    }


def made(name, found, *, run_seed: int = 0, **sizes: Any):
    pools = Pools(found, RecipeConfig(**sizes), run_seed, lambda id, s: f"sorry {id} {s}")
    return recipe_lib.registered()[name].make(pools)


def sources(seeds):
    return collections.Counter(one.source for one in seeds)


def test_the_papers_sets_have_its_sizes_and_ask_nothing_twice():
    found = made("paper", corpora(26_000, 3_000, 26_000))
    assert len(found.preferences) == 50_000
    d = {"PKU-SafeRLHF": 22_000, "JailbreakV-28k": 3_000, "UF": 25_000}
    assert sources(found.preferences) == d
    per_round = {name: sources(seeds) for name, seeds in found.prompts.items()}
    assert per_round == {
        "cot": {"PKU-SafeRLHF": 10_000, "UF": 10_000},
        "1": {"PKU-SafeRLHF": 5_000, "UF": 5_000},
        "2": {"PKU-SafeRLHF": 5_000, "UF": 5_000, "JailbreakV-28k": 1_000},
        "3": {"PKU-SafeRLHF": 5_000, "UF": 5_000, "JailbreakV-28k": 2_000},
        "prm": {"PKU-SafeRLHF": 1_000, "UF": 1_000},
    }
    asked = [one.id for seeds in found.prompts.values() for one in seeds]
    assert len(asked) == len(set(asked)) == 20_000 + 33_000 + 2_000
    in_d = {one.id for one in found.preferences}
    beyond = collections.Counter(id[0] for id in asked if id not in in_d)
    # 25,000 harmful questions and 1,000 of the reward model's are asked, and D has 22,000.
    assert beyond == {"p": 4_000, "u": 1_000}
    # Any beginning is like the whole: 5 to 5 to 1.
    beginning = sources(found.prompts["2"][:1_100])
    assert {kind: round(count, -2) for kind, count in beginning.items()} == {
        "PKU-SafeRLHF": 500,
        "UF": 500,
        "JailbreakV-28k": 100,
    }


def test_attacks_among_the_safety_prompts_make_the_rounds_exactly_d():
    sizes = {"round_safety": (5_000, 4_000, 3_000), "prm": (0, 0)}
    found = made("paper", corpora(26_000, 3_000, 26_000), **sizes)
    asked = {one.id for seeds in found.prompts.values() for one in seeds}
    assert asked == {one.id for one in found.preferences}
    assert len(asked) == 50_000
    assert "prm" not in found.prompts


SMALL = corpora(60, 12, 60)


def test_refusals_are_chosen_on_harmful_questions_and_attacks_wait_for_the_model():
    found = made("paper", SMALL, run_seed=7, scale=0.001)
    assert sources(found.preferences) == {"PKU-SafeRLHF": 22, "JailbreakV-28k": 3, "UF": 25}
    for one in found.preferences:
        if one.source == "UF":
            assert (one.chosen, one.rejected) == (f"good {one.id[1:]}", f"bad {one.id[1:]}")
        else:
            assert one.chosen == f"sorry {one.id} 7"
            assert one.rejected == (f"unsafe {one.id[1:]}" if one.id[0] == "p" else "")


def test_the_seed_draws_others_and_more_seeds_keep_the_order():
    first, same = (made("paper", SMALL, scale=0.001) for _ in range(2))
    assert first == same
    other = made("paper", SMALL, run_seed=1, scale=0.001)
    assert first.prompts["1"] != other.prompts["1"]
    order = recipe_lib.in_drawn_order(SMALL["ultrafeedback"], 0)
    fewer = recipe_lib.in_drawn_order(SMALL["ultrafeedback"][:30], 0)
    assert [one for one in order if one in fewer] == fewer
    assert order != SMALL["ultrafeedback"]


SIZES = [
    ("safety", 9, lambda sets: sources(sets.preferences)["PKU-SafeRLHF"], 9),
    ("jailbreak", 4, lambda sets: sources(sets.preferences)["JailbreakV-28k"], 4),
    ("helpful", 8, lambda sets: sources(sets.preferences)["UF"], 8),
    ("cot", (2, 3), lambda sets: sources(sets.prompts["cot"]), {"PKU-SafeRLHF": 2, "UF": 3}),
    ("round_safety", (3, 2), lambda sets: sources(sets.prompts["1"])["PKU-SafeRLHF"], 3),
    ("round_helpful", (3, 2), lambda sets: sources(sets.prompts["2"])["UF"], 2),
    ("round_jailbreak", (3, 2), lambda sets: sources(sets.prompts["1"])["JailbreakV-28k"], 3),
    ("prm", (4, 5), lambda sets: sources(sets.prompts["prm"]), {"PKU-SafeRLHF": 4, "UF": 5}),
    ("scale", 0.5, lambda sets: len(sets.preferences), 7),  # 2.5, 2.5 and 3, rounded
]
FEW = {
    "safety": 5,
    "jailbreak": 5,
    "helpful": 6,
    "cot": (1, 1),
    "round_safety": (1, 1),
    "round_helpful": (1, 1),
    "round_jailbreak": (0, 1),
    "prm": (1, 1),
}


@pytest.mark.parametrize(("key", "value", "read", "expected"), SIZES, ids=[x[0] for x in SIZES])
def test_every_size_reaches_its_set(key, value, read, expected):
    assert read(made("paper", SMALL, **FEW)) != expected
    assert read(made("paper", SMALL, **FEW | {key: value})) == expected


def test_too_few_seeds_are_refused_with_the_way_out():
    with pytest.raises(
        ValueError, match=r"config\.recipe\.safety: 22000 seeds of pku_saferlhf .* 60 can be used"
    ):
        made("paper", SMALL)
    with pytest.raises(
        ValueError, match=r"config\.recipe\.round_jailbreak: 13 seeds of jailbreakv"
    ):
        made("paper", SMALL, run_seed=0, **FEW | {"round_jailbreak": (9, 4)})


def test_what_is_published_is_shared_out_over_the_rounds():
    steps = [seed(f"s{i}", response="r", question=f"q{i}") for i in range(10)]
    kinds = itertools.cycle(["safety", "helpfulness"])
    asked = [seed(f"a{i}", question=f"q{i}", type=next(kinds)) for i in range(90)]
    found = made("published", {"stair_sft": steps, "stair_prompts": asked}, prm=(1_000, 1_000))
    assert len(found.demonstrations) == 10
    assert not found.preferences
    # 40 safety prompts as 5,000 to 6,000 to 7,000 to 1,000; the first ten are answered already.
    safety = {k: sum(one.type == "safety" for one in v) for k, v in found.prompts.items()}
    assert safety == {"1": 11, "2": 12, "3": 15, "prm": 2}
    every = [one.id for seeds in found.prompts.values() for one in seeds]
    assert sorted(every) == sorted(f"a{i}" for i in range(10, 90))
    half = made("published", {"stair_sft": steps, "stair_prompts": asked}, scale=0.5)
    assert len(half.demonstrations) == 5
    assert sum(map(len, half.prompts.values())) == 42


def test_rows_of_ones_own_go_where_their_columns_say():
    rows = [seed("r", response="a"), seed("c", chosen="a", rejected="b"), seed("q")]
    found = made("own", {"columns": rows})
    assert [one.id for one in found.demonstrations] == ["r"]
    assert [one.id for one in found.preferences] == ["c"]
    assert sorted(one.id for some in found.prompts.values() for one in some) == ["c", "q"]


def test_a_teacher_gets_its_part_of_the_prompts_of_ones_own():
    rows = [seed(f"{type}{i}", type=type) for type in ("safety", "helpfulness") for i in range(60)]
    sizes: dict[str, Any] = {
        "round_safety": (1, 1),
        "round_helpful": (2, 0),
        "round_jailbreak": (0, 1),
        "prm": (1, 1),
        "cot": (2, 3),
    }
    without = made("own", {"columns": rows}, **sizes).prompts
    assert "cot" not in without
    found = made("own", {"columns": rows}, teacher="self", **sizes).prompts
    types = {name: collections.Counter(one.type for one in some) for name, some in found.items()}
    assert types["cot"] == {"safety": 20, "helpfulness": 30}
    assert types["1"] == {"safety": 10, "helpfulness": 20}
    ids = [one.id for some in found.values() for one in some]
    assert len(ids) == len(set(ids)) == 120


# ---- as rows on disk


TURNS = (("system", "S"), ("user", "U"), ("assistant", "A"))


@pytest.mark.parametrize("before", [(), TURNS])
def test_the_rows_are_read_back_as_they_were(tmp_path, before):
    rows = [
        seed("a", response="<|Output|>x<|/Output|>", chosen="c", rejected="r", before=before),
        seed("b", response="<|Output|>y<|/Output|>", chosen="c", rejected="r", type="helpfulness"),
    ]
    sets = recipe_lib.Sets(rows, rows, {"1": rows})
    written = set_rows.of_sets(sets, ("s.jsonl", "p.jsonl", "q-{round}.jsonl"))
    assert list(written) == ["s.jsonl", "p.jsonl", "q-1.jsonl"]
    for name, some in written.items():
        lines = "".join(json.dumps(row) + "\n" for row in some)
        (tmp_path / name).write_text(lines, encoding="utf-8")
    taught = sft_rows(str(tmp_path / "s.jsonl")).rows
    assert [(x.id, x.before, x.question, x.response) for x in taught] == [
        ("a", before, "ask a", "<|Output|>x<|/Output|>"),
        ("b", (), "ask b", "<|Output|>y<|/Output|>"),
    ]
    compared = preference_rows(str(tmp_path / "p.jsonl")).rows
    assert [(x.id, x.before, x.question, x.type) for x in compared] == [
        ("a", before, "ask a", "safety"),
        ("b", (), "ask b", "helpfulness"),
    ]
    assert [(x.chosen, x.rejected) for x in compared] == [("c", "r")] * 2


def test_the_facts_of_a_set_are_its_own():
    rows = [seed("a", response="four"), seed("b", response="a b", type="helpfulness")]
    words = lambda texts: [len(text.split()) for text in texts]  # noqa: E731
    facts = set_card.facts(rows, ("prompt", "response"), words)
    assert facts["rows"] == 2
    assert facts["types"] == {"helpfulness": 1, "safety": 1}
    assert facts["lengths"]["response"] == {
        "characters": {"least": 3, "median": 3.5, "most": 4},
        "tokens": {"least": 1, "median": 1.5, "most": 2},
        "tokens_of": 2,
    }
    assert facts["lengths"]["prompt"]["characters"]["most"] == 5
