"""The recipe of a small model: what is taught, asked and framed, and what is kept apart."""

import collections
import pathlib
import re

import pytest

from stair_jax import config
from stair_jax.config.schema import RecipeConfig
from stair_jax.data import recipe as recipe_lib
from stair_jax.data.recipe import Pools
from stair_jax.data.seeds import Seed
from stair_jax.data.teaching import framings, grammar, refusals
from stair_jax.log.metrics import Metrics
from stair_jax.run import preparing
from stair_jax.run.lineage import Lineage
from stair_jax.run.workdir import Run

ROOT = pathlib.Path(__file__).parents[2] / "../shared/data"
AGAINST = "gsm8k,harmbench,xstest_safe,xstest_unsafe,jailbreakbench,jbb_pair,jbb_gcg"
SIZES = {
    "taught": (6, 4, 2),
    "round_safety": (2, 2, 2),
    "round_helpful": (3, 3, 3),
    "round_jailbreak": (0, 4, 8),
    "prm": (1, 2),
    "lookalikes": 2,
}
LOOK = dict.fromkeys(("kind", "sense", "title", "work", "answer"), "word")


def seed(id, **fields):
    return Seed(**{"id": id, "question": f"ask {id}", "type": "safety", "source": id[0]} | fields)


def solved(i):
    fields = {"response": f"1+{i}=<<1+{i}={1 + i}>>{1 + i} apples\n#### {1 + i}"}
    return seed(f"g{i}", type="helpfulness", ground_truth=str(1 + i), **fields)


CORPORA = {
    "advbench": [seed(f"a{i}", meta={"target": "t", "turned": f"a{i}, turned"}) for i in range(60)],
    "harmbench": [
        seed(
            f"h{i}", question=f"context {i} do {i}", meta={"goal": f"do {i}", "category": "illegal"}
        )
        for i in range(9)
    ],
    "gsm8k": [solved(i) for i in range(40)],
    "lookalikes": [
        seed(
            f"l{i}",
            type="helpfulness",
            meta=LOOK | {"question": f"ask l{i}", "turned": f"l{i}, turned"},
        )
        for i in range(30)
    ],
    "jbb_templates": [seed("j0", question="optimised {request} suffix")],
}


def made(found=None, run_seed=0, **sizes):
    c = RecipeConfig(**SIZES | sizes)
    return recipe_lib.registered()["small"].make(
        Pools(found or CORPORA, c, run_seed, lambda id, s: "")
    )


def kinds(seeds):
    return collections.Counter(one.source for one in seeds)


def test_each_kind_of_row_is_taught_in_steps():
    taught = made().demonstrations
    assert kinds(taught) == {"h": 2, "a": 4, "g": 4, "l": 2}
    for one in taught:
        steps = grammar.parse(one.response)
        assert isinstance(steps, grammar.Structured)
        assert refusals.is_refusal(steps.answer) == (one.type == "safety")
        if one.source == "g":
            assert str(one.ground_truth) in steps.answer
        if one.source == "h":  # the behaviour is named, not its context
            assert "do " in steps.steps[0].text
            assert "context" not in steps.steps[0].text


def test_rounds_have_their_numbers_and_ask_nothing_that_is_taught_or_asked_before():
    sets = made()
    found = {name: kinds(some) for name, some in sets.prompts.items()}
    assert found == {
        "1": {"a": 2, "g": 3, "l": 2},
        "2": {"a": 2, "g": 3, "l": 2, "a, framed": 4, "l, framed": 2},
        "3": {"a": 2, "g": 3, "l": 2, "a, framed": 8, "l, framed": 4},
        "prm": {"a": 1, "g": 2},
    }
    asked = [one.id.split("@")[0] for some in sets.prompts.values() for one in some]
    asked += [one.id for one in sets.demonstrations]
    assert len(asked) == len(set(asked)) == 7 + 13 + 19 + 3 + 12
    for some in sets.prompts.values():
        assert not any(one.response for one in some)
        assert all((one.ground_truth is not None) == (one.source == "g") for one in some)


def test_a_twin_has_the_framing_of_an_attack():
    for name in ("2", "3"):
        framed = [one for one in made().prompts[name] if "framing" in one.meta]
        of = {
            kind: [one.meta["framing"] for one in framed if one.type == kind]
            for kind in ("safety", "helpfulness")
        }
        assert len(of["helpfulness"]) == len(of["safety"]) / 2
        assert not collections.Counter(of["helpfulness"]) - collections.Counter(of["safety"])
        for one in framed:
            assert one.question != f"ask {one.id.split('@')[0]}"
            assert one.id.endswith(f"@{one.meta['framing']}")


def families(sets):
    found = [one for some in sets.prompts.values() for one in some if "framing" in one.meta]
    return {one.meta["framing"].split("/")[0] for one in found}


def test_a_family_that_is_held_out_frames_nothing():
    many = {"round_jailbreak": (0, 0, 30), "twins": 0.0}
    every = families(made(**many, held_out=""))
    assert every == {*framings.FAMILIES, "random_search"}
    assert families(made(**many)) == every - {"fiction", "encoded"}
    kept = {"role_play"}
    assert families(made(**many, held_out=",".join(every - kept))) == kept


@pytest.mark.parametrize("held_out", ["poems", ",".join([*framings.FAMILIES, "random_search"])])
def test_unknown_families_and_all_of_them_are_refused(held_out):
    with pytest.raises(ValueError, match=r"config\.recipe\.held_out: .*expected some of"):
        made(held_out=held_out)


def turned(some):
    """How many of harmful rows and of look-alikes are asked in the other form, and in all."""
    found = collections.Counter((one.source[0], "turned" in one.question) for one in some)
    return {kind: (found[kind, True], found[kind, False] + found[kind, True]) for kind in "alg"}


def test_a_share_of_demonstrations_and_of_prompts_is_asked_in_the_other_form():
    many = {"taught": (20, 4, 9), "round_safety": (20, 0, 0), "lookalikes": 5}
    none = made(**many, turned=(0.0, 0.0))
    assert turned([*none.demonstrations, *none.prompts["1"], *none.prompts["3"]])["a"][0] == 0
    taught = made(**many, turned=(1.0, 0.0))
    assert turned(taught.demonstrations) == {"a": (14, 14), "l": (9, 9), "g": (0, 4)}
    assert turned(taught.prompts["1"])["a"] == (0, 20)
    asked = made(**many, turned=(0.0, 1.0))
    assert turned(asked.demonstrations)["a"] == (0, 14)
    assert turned(asked.prompts["1"]) == {"a": (20, 20), "l": (5, 5), "g": (0, 3)}
    framed = [one for one in asked.prompts["3"] if "framing" in one.meta]
    spelled = [one for one in framed if framings_plain(one)]
    assert spelled
    assert all("turned" in one.question for one in spelled)
    half = made(**many, turned=(0.5, 0.5))
    some, every = turned(half.prompts["1"])["a"]
    assert 0 < some < every == 20


def framings_plain(one):
    """Whether a framing leaves the request as it is, and does not encode it."""
    return one.meta["framing"].split("/")[0] not in ("encoded", "assembled")


def test_a_turned_row_is_answered_in_the_form_in_which_it_is_asked():
    rows = made(taught=(20, 4, 9), turned=(1.0, 0.0)).demonstrations
    refused = next(one for one in rows if one.source[0] == "a")
    assert refused.question in refused.response
    assert refused.question == f"{refused.id}, turned"


WORTH = [
    ("taught", (3, 4, 2), lambda sets: kinds(sets.demonstrations)["h"], 1),
    ("taught", (6, 5, 2), lambda sets: kinds(sets.demonstrations)["g"], 5),
    ("taught", (6, 4, 1), lambda sets: kinds(sets.demonstrations)["l"], 1),
    ("lookalikes", 1, lambda sets: kinds(sets.prompts["1"])["l"], 1),
    ("twins", 1.0, lambda sets: kinds(sets.prompts["2"])["l, framed"], 4),
    ("twins", 0.0, lambda sets: kinds(sets.prompts["3"])["l, framed"], 0),
    ("scale", 0.5, lambda sets: len(sets.demonstrations), 6),
]


@pytest.mark.parametrize(("key", "value", "read", "expected"), WORTH)
def test_every_size_reaches_its_set(key, value, read, expected):
    assert read(made()) != expected
    assert read(made(**{key: value})) == expected


def test_the_seed_of_the_run_draws_other_rows_and_other_words():
    assert made() == made()
    first, other = (
        {one.id: one.response for one in made(run_seed=n).demonstrations} for n in (0, 1)
    )
    assert set(first) != set(other)
    both = set(first) & set(other)
    assert any(first[id] != other[id] for id in both)


def test_it_goes_without_harmbench_and_templates():
    found = {name: CORPORA[name] for name in ("advbench", "gsm8k", "lookalikes")}
    sets = made(found, held_out="", round_jailbreak=(0, 0, 30), twins=0.0)
    assert kinds(sets.demonstrations) == {"a": 6, "g": 4, "l": 2}
    assert families(sets) == set(framings.FAMILIES)


def test_too_few_look_alikes_are_refused_by_the_name_of_their_setting():
    few = {**CORPORA, "lookalikes": CORPORA["lookalikes"][:13]}
    with pytest.raises(ValueError, match=r"config\.recipe\.twins: 14 seeds .* 13 can"):
        made(few)


def real(root, **recipe):
    c = config.default()
    c.data.update(recipe="small", root=str(root), decontaminate=AGAINST)
    c.recipe.update(round_safety=(60, 40, 40), round_helpful=(60, 60, 60), prm=(10, 10))
    c.recipe.update(round_jailbreak=(0, 20, 40), **recipe)
    return c


def test_files_that_are_no_must_may_be_absent(tmp_path, caplog):
    (tmp_path / "advbench").mkdir()
    (tmp_path / "advbench/harmful_behaviors.csv").touch()
    places = preparing.places_of(real(tmp_path), recipe_lib.registered()["small"])
    assert [place.corpus.name for place in places] == ["advbench", "gsm8k", "lookalikes"]
    assert places[1].files == ()  # on the hub
    assert "small goes without HarmBench" in caplog.text
    assert "templates of random search" in caplog.text


@pytest.mark.slow
@pytest.mark.skipif(not ROOT.is_dir(), reason="the real data sets are not here")
def test_real_rows_become_sets_that_no_benchmark_asks(tmp_path):
    found = preparing.read(real(ROOT))
    usable = {name: len(one.seeds) for name, one in found.loaded.items()}
    assert usable == {
        "advbench": 520,
        "gsm8k": 7_473,
        "lookalikes": 122,
        "harmbench": 80,
        "jbb_templates": 66,
    }
    run = Run(real(ROOT), tmp_path, Lineage(tmp_path / "lineage.json"), Metrics(tmp_path))
    made = preparing.make(run.config, found)
    by_goals = [
        one
        for one in made.removed
        if one.source == "AdvBench" and one.benchmark == "jailbreakbench"
    ]
    assert sum(one.question == one.prompt for one in by_goals) == 11
    goals = {words(text) for some in found.against.prompts.values() for text in some}
    assert len(goals) > 2_500
    asked = [one for some in made.sets.prompts.values() for one in some]
    for one in (*made.sets.demonstrations, *asked):
        assert words(one.question) not in goals
    assert len(made.sets.demonstrations) == 590
    assert len(asked) == (60 + 60 + 8) + (40 + 60 + 8 + 30) + (40 + 60 + 8 + 60) + 20
    for one in made.sets.demonstrations:
        assert isinstance(grammar.parse(one.response), grammar.Structured)


def words(text):
    return " ".join(re.findall(r"\w+", text.lower()))
