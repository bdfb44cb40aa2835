"""Which benchmarks seeds are compared with, and what is said of the others."""

import pathlib

import pytest

from stair_jax import config as config_lib
from stair_jax.data import corpus, sources
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
