import dataclasses

import pytest

from stair_jax.engine.request import Sampling
from stair_jax.search import growth
from tests import scripted
from tests.scripted import RandomScript, ScriptedEngine, search_config

SETTINGS = {"temperature": 0.7, "top_k": 9, "top_p": 0.6, "min_p": 0.05}


@pytest.mark.parametrize("name", SETTINGS)
def test_every_sampling_setting_reaches_every_request(name, monkeypatch):
    asked, submit = [], ScriptedEngine.submit

    def listening(engine, request):
        asked.append(request)
        submit(engine, request)

    monkeypatch.setattr(ScriptedEngine, "submit", listening)
    usual = search_config(iterations=3)
    changed = dataclasses.replace(usual, **{name: SETTINGS[name]})
    assert growth.sampling_of(usual) != growth.sampling_of(changed)
    scripted.run(RandomScript("sampling"), changed)
    names = "temperature", "top_k", "top_p", "min_p"
    want = Sampling(**{n: getattr(changed, n) for n in names})
    assert getattr(want, name) == SETTINGS[name]
    assert asked
    assert all(request.sampling == want for request in asked)


def test_log_probs_are_asked_for_where_the_prior_needs_them():
    ucb = search_config()
    pucb = dataclasses.replace(ucb, score="pucb")
    uniform = dataclasses.replace(pucb, prior="uniform")
    assert [growth.wants_logps(c) for c in (ucb, pucb, uniform)] == [False, True, False]


def test_a_forest_without_room_for_a_tree_is_refused():
    with pytest.raises(ValueError, match="trees_in_flight: 0 found"):
        scripted.run(RandomScript("none"), search_config(trees_in_flight=0))
