"""Raters behind an endpoint, against a real server on 127.0.0.1 that fails in every way."""

import contextlib
import json
import socket
import threading
import time

import pytest

from stair_jax.config.checks import validate
from stair_jax.judges.remote import RemoteRater
from stair_jax.remote import client, reply_cache
from stair_jax.remote.client import EndpointClient, Unavailable
from stair_jax.remote.open import OPEN
from tests.support.configs import tiny
from tests.support.openai_server import BROKEN, DECLINED, TROUBLE, UNCLEAR, OpenAIServer
from tests.support.remote import (
    HELP,
    PROMPT,
    SAFE,
    SLOW,
    _direct,
    collected,
    config,
    four,
    kept,
    rate,
)

__all__ = ["_direct"]
TEXT = "How helpful? why / because"


def test_a_reply_becomes_a_rating_and_the_settings_reach_the_request(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-mine")
    with OpenAIServer(four) as server:
        found, counts = rate(tmp_path, server.url)
        assert found == [0.5]
        [(text, request, headers)] = server.asked
    assert text == TEXT == HELP.fill("why", "because")
    assert request == {
        "model": "judge-1",
        "messages": [{"role": "user", "content": TEXT}],
        "temperature": 0.25,
        "top_p": 0.75,
        "max_tokens": 99,
    }
    assert headers["authorization"] == "Bearer sk-mine"
    assert headers["accept-encoding"] == "identity"  # a compressed reply has no known size
    assert {name: n for name, n in counts.items() if n} == {"parsed": 1, "requests": 1}
    for path in tmp_path.rglob("*"):
        assert "sk-mine" not in path.read_text()


@pytest.mark.parametrize("fault", TROUBLE)
def test_what_is_not_whole_is_asked_again_and_never_taken(tmp_path, fault):
    def answer(text):
        return f"Conclusion: {1 if server.attempts[text] <= 2 else 4}"

    server = OpenAIServer(answer, lambda text, attempt: fault if attempt < 2 else "")
    with server:
        found, counts = rate(tmp_path, server.url, timeout=0.5 if fault in SLOW else 10.0)
        # Only a machine that stood still for the time of a request asks once more.
        assert server.attempts[TEXT] == 3 or fault in SLOW
    assert found == [0.5] or (fault in SLOW and found == [OPEN])
    assert counts["failed_requests"] >= 2


@pytest.mark.parametrize("fault", ["500", "hang", "trickle", "cut_body", "stream"])
def test_after_all_retries_a_rating_is_open_and_the_next_start_asks_again(tmp_path, fault, caplog):
    with OpenAIServer(lambda text: "Conclusion: 1", lambda text, attempt: fault) as server:
        found, counts = rate(tmp_path, server.url, timeout=0.2 if fault in SLOW else 10.0)
        assert server.attempts[TEXT] == 3
    assert found == [OPEN]
    assert counts["open"] == 1
    assert counts["requests"] == counts["failed_requests"] == 3
    assert "a question is left open" in caplog.text
    with OpenAIServer(four) as server:
        assert rate(tmp_path, server.url)[0] == [0.5]


@pytest.mark.parametrize("retries", [0, 4])
def test_retries_are_as_many_as_are_set(tmp_path, retries):
    with OpenAIServer(four, lambda text, attempt: "500") as server:
        assert rate(tmp_path, server.url, retries=retries)[0] == [OPEN]
        assert server.attempts[TEXT] == retries + 1


@pytest.mark.parametrize("fault", DECLINED)
def test_a_whole_answer_without_a_reply_is_missing_and_stays_so(tmp_path, fault, caplog):
    with OpenAIServer(four, lambda text, attempt: fault) as server:
        found, counts = rate(tmp_path, server.url)
        assert server.attempts[TEXT] == 2  # once more than once
    assert found == [None]
    assert (counts["declined"], counts["declined_requests"], counts["open"]) == (1, 2, 0)
    [row] = kept(tmp_path)
    assert row["reply"] is None
    assert row["why"]
    assert f"a question is missing: {row['why']}" in caplog.text
    with OpenAIServer(four) as server:
        assert rate(tmp_path, server.url)[0] == [None]
        assert not server.asked


@pytest.mark.parametrize("fault", BROKEN)
def test_what_a_broken_server_said_is_missing_until_it_is_mended(tmp_path, fault, caplog):
    with OpenAIServer(four, lambda text, attempt: fault * ("/ b" in text)) as server:
        # The search asks a second time: this session knows already.
        found, counts = rate(tmp_path, server.url, ["good", "bad", "bad"], concurrency=1)
        assert server.attempts["How helpful? why / bad"] == 2
    assert found == [0.5, None, None]
    assert (counts["declined"], counts["cached"] + counts["repeated"]) == (2, 1)
    assert len(kept(tmp_path)) == 1
    assert "a question is missing: the reply" in caplog.text
    with OpenAIServer(lambda text: "Conclusion: 1") as server:
        assert rate(tmp_path, server.url, ["good", "bad"])[0] == [0.5, -1.0]
        assert len(server.asked) == 1


def test_one_session_asks_once_for_what_a_broken_server_has_no_text_for(tmp_path):
    with OpenAIServer(four, lambda text, attempt: "null_text") as server:
        line = EndpointClient(config(server.url), tmp_path, pause_s=0.001)
        with contextlib.closing(line):
            rater = RemoteRater(HELP, line)
            for number in range(3):  # one after the other
                rater.submit(number, PROMPT, "because")
                assert collected(rater, 1) == {number: None}
        assert server.attempts[TEXT] == 2
    assert rater.counters["cached"] == 2


def test_a_server_whose_replies_become_empty_ends_the_run_and_nothing_is_kept(tmp_path):
    answers = [str(i) for i in range(30)]
    with (
        OpenAIServer(four, lambda text, attempt: "null_text" * ("/ 0" not in text)) as server,
        pytest.raises(Unavailable, match=r"8 answers in a row.*the reply has no text"),
    ):
        rate(tmp_path, server.url, answers, concurrency=1)
    assert [row["reply"] for row in kept(tmp_path)] == [four("")]
    with OpenAIServer(four) as server:
        assert rate(tmp_path, server.url, answers)[0] == [0.5] * 30


@pytest.mark.parametrize("fault", UNCLEAR)
def test_a_question_that_is_turned_down_in_unknown_words_is_missing(tmp_path, fault):
    with OpenAIServer(four, lambda text, attempt: fault) as server:
        assert rate(tmp_path, server.url)[0] == [None]  # the endpoint may be what is wrong
    with OpenAIServer(four, lambda text, attempt: fault * ("/ b" in text)) as server:
        found, counts = rate(tmp_path, server.url, ["a", "because", "c"], concurrency=1)
    assert found == [0.5, None, 0.5]
    assert (counts["declined"], counts["parsed"]) == (1, 2)
    [row] = [row for row in kept(tmp_path) if row["reply"] is None]
    assert row["why"].startswith("HTTP ")
    with OpenAIServer(four) as server:
        assert rate(tmp_path, server.url)[0] == [None]
        assert not server.asked


@pytest.mark.parametrize("retries", [0, 1])
def test_a_question_that_is_turned_down_is_missing_though_no_try_is_left(tmp_path, retries):
    def fault(text, attempt):
        return "500" if attempt < retries else "tgi"

    with OpenAIServer(four, fault) as server:
        assert rate(tmp_path, server.url, retries=retries)[0] == [None]
        assert server.attempts[TEXT] == retries + 1


def test_many_questions_in_a_row_that_are_turned_down_are_said_and_the_rest_is_asked(
    tmp_path, caplog
):
    answers = [
        "first",
        *(f"long {i}" for i in range(20)),
        "last",
        *map("long a{}".format, range(7)),
    ]
    with OpenAIServer(four, lambda text, attempt: "422" * ("long" in text)) as server:
        found, _ = rate(tmp_path, server.url, answers, concurrency=1)
    assert found == [0.5, *[None] * 20, 0.5, *[None] * 7]
    said = [text for text in caplog.messages if "in a row" in text]
    assert [text.split(": ")[1][:20] for text in said] == [
        "8 questions in a row",
        "16 questions in a ro",
    ]
    assert all(text.endswith("the last one: HTTP 422: temperature too high") for text in said)


def test_an_answer_that_was_cut_once_may_be_whole_the_next_time(tmp_path):
    with OpenAIServer(four, lambda text, attempt: "" if attempt else "length") as server:
        assert rate(tmp_path, server.url)[0] == [0.5]


def test_what_cannot_be_parsed_is_missing_and_paid_for_once(tmp_path):
    with OpenAIServer(lambda text: "Conclusion: 4/5 or so, or SAFE") as server:
        found, counts = rate(tmp_path, server.url)
        again, later = rate(tmp_path, server.url)
        assert len(server.asked) == 1
    assert found == again == [None]
    assert (counts["unparsed"], counts["requests"], counts["cached"]) == (1, 1, 0)
    assert (later["unparsed"], later["requests"], later["cached"]) == (1, 0, 1)


# ---- limits


def test_no_more_requests_are_open_than_allowed(tmp_path):
    most = {}
    for concurrency in (1, 3):
        with OpenAIServer(four, think_s=0.03) as server:
            answers = [f"{concurrency} {i}" for i in range(9)]
            assert set(rate(tmp_path, server.url, answers, concurrency=concurrency)[0]) == {0.5}
            most[concurrency] = server.most_open
    assert most == {1: 1, 3: 3}


def test_pauses_grow_at_random_up_to_a_limit(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(client.random, "uniform", lambda low, high: asked.append((low, high)) or 0)
    with OpenAIServer(four, lambda text, attempt: "500") as server:
        line = EndpointClient(config(server.url, retries=5), tmp_path, pause_s=16.0)
        with contextlib.closing(line):
            rater = RemoteRater(HELP, line)
            rater.submit(0, PROMPT, "because")
            assert collected(rater, 1) == {0: OPEN}
    assert asked == [(0, 16), (0, 32), (0, 60), (0, 60), (0, 60)]
    assert client.PAUSE_S == 1.0


# ---- an endpoint that is not there


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_where_nobody_listens_a_rating_is_open(tmp_path):
    port = free_port()
    found, counts = rate(tmp_path, f"http://127.0.0.1:{port}/v1")
    assert found == [OPEN]
    assert counts["failed_requests"] == 3
    with OpenAIServer(four, port=port) as server:
        assert rate(tmp_path, server.url)[0] == [0.5]


@pytest.mark.parametrize(("concurrency", "failed"), [(2, 8), (11, 11)])
def test_a_dead_endpoint_is_given_up_before_everything_was_tried(tmp_path, concurrency, failed):
    answers = [str(i) for i in range(60)]
    with OpenAIServer(four, lambda text, attempt: "500") as server:
        with pytest.raises(Unavailable, match=rf"no judgement on {failed} answers in a row.*500"):
            rate(tmp_path, server.url, answers, concurrency=concurrency)
        assert failed * 3 <= len(server.asked) <= (failed + concurrency) * 3


def test_an_endpoint_that_never_replies_is_given_up_but_not_for_some_questions(tmp_path):
    answers = [str(i) for i in range(30)]
    with (
        OpenAIServer(four, lambda text, attempt: "length") as server,
        pytest.raises(Unavailable, match=r"cut at config\.judge\.max_tokens"),
    ):
        rate(tmp_path / "all", server.url, answers)
    with OpenAIServer(four, lambda text, attempt: "length" * ("/ 0" not in text)) as server:
        found, _ = rate(tmp_path / "some", server.url, answers, concurrency=1)
    assert found == [0.5] + [None] * 29


def test_a_reply_in_between_keeps_the_breaker_closed(tmp_path):
    answers = [str(i) for i in range(30)]
    with OpenAIServer(four, lambda text, attempt: "" if text[-1] in "05" else "500") as server:
        found, _ = rate(tmp_path, server.url, answers, concurrency=1, retries=0)
    assert found.count(0.5) == 6
    assert found.count(OPEN) == 24


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, None),
        ({"endpoint": ""}, "needs the base URL"),
        ({"endpoint": "localhost"}, "needs the base URL"),
        ({"model": ""}, "the name of its model"),
        ({"concurrency": 0}, "1 or more"),
        ({"timeout": 0.0}, "above 0"),
        ({"retries": -1}, "0 or more"),
        ({"safety": "rule", "helpfulness": "none"}, "would be ignored, it needs 'remote'"),
    ],
    ids=str,
)
def test_settings_of_a_remote_judge_are_checked_before_the_run(changes, message):
    c = tiny(workdir="x")
    c.judge.update(safety="remote", helpfulness="remote", endpoint="http://h/v1", model="m")
    c.judge.update(changes)
    with pytest.raises(ValueError, match=message) if message else contextlib.nullcontext():
        validate(c)


# ---- what is paid for


def test_nothing_is_asked_twice_at_a_time_or_later(tmp_path):
    with OpenAIServer(four, think_s=0.05) as server:
        found, counts = rate(tmp_path, server.url, ["same"] * 6 + ["other"])
        assert found == [0.5] * 7
        assert len(server.asked) == 2
        assert (counts["repeated"], counts["requests"]) == (5, 2)
    with OpenAIServer(lambda text: "Conclusion: 1") as server:  # elsewhere, and of another mind
        found, counts = rate(tmp_path, server.url, ["same", "other"])
        assert not server.asked
    assert found == [0.5, 0.5]
    assert counts["cached"] == 2


@pytest.mark.parametrize(
    "changes",
    [{"model": "judge-2"}, {"temperature": 0.5}, {"top_p": 0.5}, {"max_tokens": 98}],
    ids=str,
)
def test_another_request_is_another_judgement(tmp_path, changes):
    with OpenAIServer(four) as server:
        rate(tmp_path, server.url)
        rate(tmp_path, server.url, concurrency=9, retries=7, timeout=9.0)
        assert len(server.asked) == 1
        rate(tmp_path, server.url, **changes)
        assert len(server.asked) == 2
        rate(tmp_path, server.url, rubric=SAFE)
        assert len(server.asked) == 3


def test_samples_are_asked_for_one_by_one_and_averaged(tmp_path):
    def answer(text):
        return f"Conclusion: {server.attempts[text]}" if server.attempts[text] != 2 else "what?"

    server = OpenAIServer(answer)
    with server:
        assert rate(tmp_path, server.url, samples=1)[0] == [-1.0]
        found, counts = rate(tmp_path, server.url, samples=4, concurrency=1)
        assert server.attempts[TEXT] == 4
    assert found == [pytest.approx(((1 + 3 + 4) / 3 - 3) / 2)]
    assert (counts["cached"], counts["parsed"], counts["unparsed"]) == (1, 3, 1)


def test_a_rating_is_open_as_long_as_one_of_its_samples_is(tmp_path):
    with OpenAIServer(four, lambda text, attempt: "500" * (attempt in (1, 2, 3))) as server:
        assert rate(tmp_path, server.url, samples=3, concurrency=1)[0] == [OPEN]
        assert server.answered[TEXT] == 2
        assert rate(tmp_path, server.url, samples=3)[0] == [0.5]
        assert server.answered[TEXT] == 3


def test_a_torn_line_costs_its_own_judgement_only(tmp_path, caplog):
    path = tmp_path / reply_cache.FILE
    with OpenAIServer(four) as server:
        rate(tmp_path, server.url, ["a", "b", "c"], concurrency=1)
        path.write_bytes(path.read_bytes()[:-20])
        for torn in (1, 2):  # the torn line stays, and so does what was appended behind it
            rate(tmp_path, server.url, ["a", "b", "c", f"d{torn}"])
            assert len(server.asked) == 4 + torn
    assert "1 broken lines passed over" in caplog.text
    path.write_bytes(b'\n[1]\n{"key": 3}\n{"key": "k"}\n{"key": "k", "reply": 1}\n\xff\n')
    memory = reply_cache.ReplyCache(tmp_path)
    assert "k" not in memory
    memory.close()


def test_a_reply_that_is_missing_without_a_reason_is_asked_for_again(tmp_path):
    """Versions before this one kept no reason, whatever a broken server said."""
    for why, asked in (("it was cut", 0), ("", 1), ("", 0)):
        with OpenAIServer(four) as server:
            if asked or why:
                key = reply_cache.key_of(config(server.url), TEXT, 0)
                (tmp_path / why).mkdir(exist_ok=True)
                memory = reply_cache.ReplyCache(tmp_path / why)
                memory.add(key, "judge-1", None, why)
                memory.close()
            assert rate(tmp_path / why, server.url)[0] == [None if why else 0.5]
            assert len(server.asked) == asked


def test_two_runs_may_write_to_one_memory(tmp_path):
    one, two = reply_cache.ReplyCache(tmp_path), reply_cache.ReplyCache(tmp_path)
    for i in range(5):
        one.add(f"one {i}", "m", "r\n" * i)
        two.add(f"two {i}", "m", None)
    one.close()
    two.close()
    rows = [json.loads(line) for line in (tmp_path / reply_cache.FILE).read_text().splitlines()]
    assert len(rows) == 10
    again = reply_cache.ReplyCache(tmp_path)
    assert again["one 3"] == "r\n" * 3
    assert again["two 4"] is None
    again.close()


def test_half_a_surrogate_pair_is_asked_about_too(tmp_path):
    with OpenAIServer(four) as server:
        assert rate(tmp_path, server.url, ["a \ud800 b"])[0] == [0.5]


def test_closing_waits_for_what_is_on_the_wire_and_forgets_the_rest(tmp_path):
    before = threading.active_count()
    with OpenAIServer(four, think_s=0.3) as server:
        line = EndpointClient(config(server.url, concurrency=2), tmp_path)
        raters = RemoteRater(HELP, line), RemoteRater(SAFE, line)
        for i in range(5):
            raters[0].submit(i, PROMPT, f"answer {i}")
        while server.open < 2:
            time.sleep(0.002)
        for rater in raters:
            rater.close()
        assert server.answered.total() == len(server.asked) == 2
        with OpenAIServer(four) as other:
            assert rate(tmp_path, other.url, [f"answer {i}" for i in range(5)])[0] == [0.5] * 5
            assert len(other.asked) == 3
    assert threading.active_count() == before


def test_a_mistake_of_ours_does_not_hang_the_search(tmp_path, monkeypatch):
    monkeypatch.setattr(EndpointClient, "_once", lambda self, *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        rate(tmp_path, "http://127.0.0.1:9/v1")
