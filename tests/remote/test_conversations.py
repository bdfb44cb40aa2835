"""Whole conversations and seeds behind an endpoint: what is sent, and what is the same question."""

import collections
import contextlib
import queue

from stair_jax import config as config_lib
from stair_jax.config.schema import JudgeConfig
from stair_jax.remote.client import EndpointClient
from stair_jax.remote.reply_cache import key_of
from tests.support.openai_server import FAULTS, OpenAIServer, error
from tests.support.remote import _direct

__all__ = ["_direct"]  # a fixture that every test here uses, too

BEFORE = (("system", "s"), ("user", "a \ud800"), ("assistant", "b"))


def config(url):
    c = config_lib.default().judge
    c.update(endpoint=url, model="m", retries=0)
    return JudgeConfig.of(c)


def ask(server, folder, *asked):
    """The replies to (question, before, seed), one after another."""
    found, counts = [], collections.Counter()
    with contextlib.closing(EndpointClient(config(server.url), folder)) as line:
        for question, before, seed in asked:
            came = queue.SimpleQueue()
            line.ask(question, 1, counts, came.put, before=before, seed=seed)
            found += came.get(timeout=5)
    return found, counts


def test_all_turns_and_the_seed_are_sent(tmp_path):
    with OpenAIServer(lambda text: f"re {text}") as server:
        found, _ = ask(server, tmp_path, ("q", BEFORE, 17), ("q", (), None))
    assert found == ["re q", "re q"]
    (_, first, _), (_, second, _) = server.asked
    assert [(one["role"], one["content"]) for one in first["messages"]] == [
        ("system", "s"),
        ("user", "a ?"),
        ("assistant", "b"),
        ("user", "q"),
    ]
    assert first["seed"] == 17
    assert "seed" not in second
    assert [one["role"] for one in second["messages"]] == ["user"]


def test_another_seed_or_other_turns_are_another_question(tmp_path):
    asked = [
        ("q", BEFORE, 1),
        ("q", BEFORE, 2),
        ("q", BEFORE[:1], 1),
        ("q", (), 1),
        ("q", (), None),
    ]
    with OpenAIServer(lambda text: "r") as server:
        _, counts = ask(server, tmp_path, *asked, *asked)
        assert (len(server.asked), counts["cached"]) == (5, 5)
        _, counts = ask(server, tmp_path, *asked)  # as after a restart
        assert (len(server.asked), counts["cached"]) == (5, 5)
    c = config("http://h/v1")
    assert key_of(c, "q", 0) == key_of(c, "q", 0, before=(), seed=None)  # as files of before


def test_a_seed_that_the_server_does_not_take_is_left_out(tmp_path, caplog, monkeypatch):
    unknown = error("Unsupported parameter: 'seed'", param="seed")
    monkeypatch.setitem(FAULTS, "unknown", lambda h, s, t: h.plain(400, unknown))
    with OpenAIServer(lambda text: "r") as server:
        plain = server.begin

        def begin(text, request, headers):
            plain(text, request, headers)
            return "unknown" if "seed" in request else ""

        server.begin = begin
        found, _ = ask(server, tmp_path, ("q", (), 1), ("q2", (), 2))
    assert found == ["r", "r"]
    assert ["seed" in request for _, request, _ in server.asked] == [True, False, False]
    assert "seed is left out" in caplog.text
    assert "config.judge.seed" not in caplog.text
