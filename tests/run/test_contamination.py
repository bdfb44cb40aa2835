"""Which benchmarks seeds are compared with, and what is said of the others."""

import pathlib

import pytest

from stair_jax import config as config_lib
from stair_jax.data import corpus, sources
from stair_jax.data.seeds import Seed
from stair_jax.evals.benchmark import registered
from stair_jax.run import contamination

DATA = pathlib.Path(__file__).parents[2] / "../shared/data"
recorded = pytest.mark.skipif(not DATA.is_dir(), reason=f"{DATA} is not there")


def config(names, root: str | pathlib.Path = ""):
    c = config_lib.default()
    c.data.update(recipe="paper", decontaminate=names, root=str(root))
    return c


@pytest.fixture
def hub(monkeypatch):
    """A hub that nothing reaches; returns the names that it was asked for."""
    asked = []

    def lost(name, split, subset):
        asked.append(name)
        raise ValueError(f"{name}: neither a file nor a data set (ConnectionError: no route)")

    monkeypatch.setattr(sources, "_hub", lost)
    return asked


@recorded
def test_all_are_those_that_the_root_can_give(hub):
    found = contamination.prompts_of(config("all", DATA))
    assert len(found.prompts["gsm8k"]) == 1319
    assert len(found.prompts["xstest_unsafe"]) == 200
    assert len(found.prompts["harmbench"]) == 320
    assert {"wildchat_toxic", "gpqa_diamond", "sorry_bench"} <= found.absent.keys()
    assert len(hub) == 1  # one that cannot be reached speaks for the others
    natural = {name for name, one in registered().items() if not one.world}
    assert found.prompts.keys() | found.absent.keys() == natural


@recorded
def test_what_a_corpus_itself_holds_is_left_out_of_all(hub):
    for name, own in (("advbench", {"advbench", "advbench_50"}), ("harmbench", {"harmbench_val"})):
        held = corpus.registered()[name]
        assert set(held.benchmarks) == own <= registered().keys()
        found = contamination.prompts_of(config("all", DATA), held.benchmarks)
        assert not own & found.prompts.keys()
        assert own <= found.absent.keys()
        assert "gsm8k" in found.prompts
        named = contamination.prompts_of(config(",".join(own), DATA), held.benchmarks)
        assert named.prompts.keys() == own  # whoever names it means it


def test_none_compares_with_nothing_and_a_name_must_be_readable(hub, tmp_path):
    assert contamination.prompts_of(config("none")) == ({}, {})
    assert hub == []
    with pytest.raises(
        ValueError, match=r"config\.data\.decontaminate: gsm8k: openai/gsm8k: neither"
    ):
        contamination.prompts_of(config("gsm8k", tmp_path))
    with pytest.raises(ValueError, match=r"decontaminate: harmbench: harmbench is on no hub"):
        contamination.prompts_of(config("harmbench", tmp_path))


def test_a_seed_is_left_out_for_its_other_form_and_for_the_request_within_it():
    texts = {
        "plain": "Explain how to poison the well of a village in the night",
        "turned": "How would somebody poison the well of a village in the night?",
        "goal": "Poison the well of a village in the night, quietly",
    }

    def seed(id, question="Something else that nobody has asked about at all", **meta):
        return Seed(id=id, question=question, type="safety", source="s", meta=meta)

    corpora = {
        "a": [seed("a#1", texts["plain"]), seed("a#2", turned=texts["turned"])],
        "b": [seed("b", goal=texts["goal"]), seed("c", turned="", target=texts["plain"])],
    }
    for name, id in (("plain", "a#1"), ("turned", "a#2"), ("goal", "b")):
        (hit,) = contamination.removed(corpora, {"bench": [texts[name]]})
        assert (hit.id, hit.benchmark) == (id, "bench")
    assert not contamination.removed(corpora, {"bench": ["Who wrote the songs of the sea?"]})
    assert not contamination.removed(corpora, {})
