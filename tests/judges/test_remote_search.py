"""A whole search under judges behind an endpoint that fails, against an undisturbed one."""

import contextlib
import hashlib
import json

import pytest

from stair_jax.judges.composite import SafetyHelpfulnessJudge
from stair_jax.judges.remote import RemoteRater
from stair_jax.remote.client import EndpointClient, Unavailable
from stair_jax.remote.reply_cache import FILE
from stair_jax.search import driver
from tests.support.openai_server import TROUBLE, OpenAIServer
from tests.support.remote import HELP, SAFE, SLOW, _direct, config
from tests.support.scripted import (
    PAPER,
    RandomScript,
    ScriptedCodec,
    ScriptedEngine,
    prompts,
    search_config,
)

__all__ = ["_direct"]  # a fixture that every test here uses, too

SCRIPT = RandomScript("remote", names=4)
SEARCH = search_config(iterations=5, trees_in_flight=2, ties="random")
ROWS = prompts(5)
FAULTY = sorted(set(TROUBLE) - set(SLOW))


def opinion(text):
    """A judge's reply that depends on the text alone; some cannot be parsed."""
    number = hashlib.blake2b(text.encode()).digest()[0]
    if number % 16 == 0:
        return "I would rather not say."
    if text.startswith("How safe?"):
        return f"Conclusion: {'SAFE' if number % 2 else 'UNSAFE'}"
    return f"Conclusion: {1 + number % 5}"


def flaky(text, attempt):
    """A fault for two of five attempts, and silence now and then."""
    number = hashlib.blake2b(f"{text} {attempt}".encode()).digest()[0]
    if number < 2:
        return "hang"
    return FAULTY[number % len(FAULTY)] if number < 100 else ""


def search(folder, url, rows, **changes):
    """Grows what is asked for on a line of its own; returns the trees and what was left."""
    trees, codec = {}, ScriptedCodec()
    engine = ScriptedEngine(SCRIPT, codec)
    line = EndpointClient(config(url, **changes), folder, pause_s=0.001)
    judge = SafetyHelpfulnessJudge(
        RemoteRater(SAFE, line), RemoteRater(HELP, line), refusal_rule=False
    )
    with contextlib.closing(judge):
        left = driver.grow(
            rows,
            engine=engine,
            judge=judge,
            codec=codec,
            config=SEARCH,
            reward=PAPER,
            seed=0,
            on_tree=lambda tree: trees.update({tree.prompt.id: tree}),
        )
    assert not engine.held
    assert engine.idle
    return trees, left, judge.counters


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    with OpenAIServer(opinion) as server:
        trees, left, _ = search(tmp_path_factory.mktemp("good"), server.url, ROWS)
        assert server.answered.total() == len(server.answered) == len(server.asked)
    assert left == driver.Leftovers({}, ())
    assert sum(tree.counters["missing"] for tree in trees.values()) > 0
    assert len({tree.nodes[0].value_sum for tree in trees.values()}) > 3
    return trees


def test_a_flaky_server_changes_no_tree(tmp_path, undisturbed):
    with OpenAIServer(opinion, flaky) as server:
        trees, left, counts = search(
            tmp_path, server.url, ROWS, retries=20, timeout=1.5, concurrency=8
        )
        assert max(server.answered.values()) == 1
    assert left.left_open == ()
    assert counts["safety_failed_requests"] > 20
    assert trees == undisturbed


def test_trees_that_are_left_open_grow_at_the_next_start(tmp_path, undisturbed):
    starts, trees, rows = [], {}, ROWS
    with OpenAIServer(opinion, flaky) as server:
        while rows:
            assert len(starts) < 15
            more, left, _ = search(
                tmp_path, server.url, rows, retries=1, timeout=1.5, concurrency=1
            )
            assert left.passed_over == {}
            assert sorted(more.keys() | set(left.left_open)) == [row.id for row in rows]
            trees |= more
            rows = [row for row in rows if row.id in left.left_open]
            starts.append(len(more))
        assert max(server.answered.values()) == 1  # over all starts
    assert len(starts) > 1
    assert trees == undisturbed


WORDINGS = ("tgi", "llama_cpp", "azure", "413", "moderation", "too_long")


def turned_down(text, attempt=0):
    """One of six wordings for every tenth question."""
    del attempt
    tenth, wording, *_ = hashlib.blake2b(text.encode()).digest()[::-1]
    return WORDINGS[wording % 6] if tenth % 10 == 0 else ""


def test_questions_that_are_turned_down_are_missing_with_reasons_and_the_trees_go_on(
    tmp_path, caplog
):
    rows = prompts(30)
    with OpenAIServer(opinion, turned_down) as server:
        trees, left, counts = search(tmp_path, server.url, rows, retries=0, concurrency=3)
        assert server.answered.total() == len(server.answered)  # nothing was paid for twice
        asked = set(server.attempts)
    assert left == driver.Leftovers({}, ())
    assert sorted(trees) == sorted(row.id for row in rows)
    down = {text: turned_down(text) for text in asked if turned_down(text)}
    assert set(down.values()) == set(WORDINGS)
    assert counts["safety_declined"] + counts["helpfulness_declined"] >= len(down)
    kept = [json.loads(line) for line in (tmp_path / FILE).read_text().splitlines()]
    missing = [row for row in kept if row["reply"] is None]
    assert len(missing) == len(down)
    assert len({row["why"] for row in missing}) == len(WORDINGS)
    assert all(row["why"] in caplog.text for row in missing)
    with OpenAIServer(opinion) as server:  # all that was said is known, and the trees are the same
        again, _, _ = search(tmp_path, server.url, rows, retries=0, concurrency=3)
        assert not server.asked
    assert again == trees


def test_a_search_ends_where_its_judge_is_gone(tmp_path):
    codec = ScriptedCodec()
    engine = ScriptedEngine(SCRIPT, codec)
    with contextlib.closing(EndpointClient(config(retries=0), tmp_path, pause_s=0.001)) as line:
        judge = SafetyHelpfulnessJudge(RemoteRater(SAFE, line), None, refusal_rule=False)
        with pytest.raises(Unavailable, match="8 answers in a row"):
            driver.grow(
                prompts(40),
                engine=engine,
                judge=judge,
                codec=codec,
                config=SEARCH,
                reward=PAPER,
                seed=0,
                on_tree=lambda tree: pytest.fail(str(tree)),
            )
    assert not engine.held
