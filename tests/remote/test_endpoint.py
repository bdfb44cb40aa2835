"""What one endpoint says: refusals, names of settings, waiting times; its address and clock."""

import collections
import contextlib
import json
import queue
import threading
import time
from typing import Any

import pytest

from stair_jax.config.schema import JudgeConfig
from stair_jax.remote import complaints, endpoint
from stair_jax.remote.client import EndpointClient
from stair_jax.remote.complaints import (
    Complaint,
    Declined,
    Refused,
    Trouble,
    complaint_of,
    exception_of,
)
from stair_jax.remote.endpoint import LONGEST_WAIT, seconds_of, wait_of
from stair_jax.remote.open import OPEN
from stair_jax.remote.reply_cache import key_of
from tests.support.openai_server import NOT_TAKEN, REFUSED, OpenAIServer, completion
from tests.support.remote import _direct, config, four, kept, rate

__all__ = ["_direct"]  # a fixture that every test here uses, too


@pytest.mark.parametrize("fault", REFUSED)
def test_an_endpoint_that_refuses_ends_the_search_at_once(tmp_path, fault, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    with OpenAIServer(four, lambda text, attempt: fault) as server:
        with pytest.raises(Refused) as caught:
            rate(tmp_path, server.url, concurrency=1, answers=[str(i) for i in range(5)])
        assert len(server.asked) == 1
        said = str(caught.value)
        assert said.startswith(f"config.judge.endpoint: {server.url} refuses config.judge.model")
    assert "judge-1" in said
    words = {"401": "Incorrect key", "404_detail": "Not Found", "quota": "money"}
    words |= {"redirect": "another host, http://localhost:9", "402": "Insufficient Balance"}
    assert words.get(fault, "") in said
    assert "sk-secret" not in said
    assert "\n" not in said


def test_a_system_turn_comes_before_the_question_and_has_a_place_of_its_own_on_disk(tmp_path):
    said: queue.SimpleQueue[Any] = queue.SimpleQueue()
    with OpenAIServer(four) as server:
        for system in ("", "You judge.", "You judge.", "Judge!"):
            line = EndpointClient(config(server.url), tmp_path, system=system)
            with contextlib.closing(line):
                line.ask("why?", 1, collections.Counter(), said.put)
                assert said.get(timeout=10.0) == [four("why?")]
        turns = [request["messages"] for _, request, _ in server.asked]
    plain = {"role": "user", "content": "why?"}
    before = [[], *([{"role": "system", "content": text}] for text in ("You judge.", "Judge!"))]
    assert turns == [[*some, plain] for some in before]


def test_questions_without_a_system_turn_are_called_as_they_always_were():
    # As the version before system turns called it.
    found = key_of(JudgeConfig(endpoint="e", model="m"), "why?", 0)
    assert found == "a8e60c644c5d67a88316ad0015bd72d8"


def test_a_newer_server_is_told_the_limit_by_its_newer_name(tmp_path):
    def fault(text, attempt):
        del text, attempt
        return "newer_name" if "max_tokens" in server.asked[-1][1] else ""

    server = OpenAIServer(four, fault)
    with server:
        assert rate(tmp_path, server.url, answers=["a", "b"], concurrency=1)[0] == [0.5, 0.5]
        limits = [{k: v for k, v in r.items() if k.startswith("max")} for _, r, _ in server.asked]
    assert limits == [{"max_tokens": 99}, *[{"max_completion_tokens": 99}] * 2]


@pytest.mark.parametrize(
    ("fault", "least"),
    [("retry_after", 0.3), ("retry_after_ms", 0.3), ("reset", 0.3), ("retry_at", 0.5)],
)
def test_a_server_that_asks_for_a_pause_gets_it_from_all(tmp_path, fault, least):
    server = OpenAIServer(four, lambda text, attempt: fault if len(server.asked) == 1 else "")
    with server:
        rate(tmp_path, server.url, answers=["a", "b", "c"], concurrency=1, timeout=30.0)
        assert len(server.times) == 4
        assert server.times[1] - server.times[0] >= least
    server = OpenAIServer(four, lambda text, attempt: "500" if len(server.asked) == 1 else "")
    with server:
        rate(tmp_path / "500", server.url, answers=["a", "b", "c"], concurrency=1)
        assert len(server.times) == 4
        assert server.times[1] - server.times[0] < least


def test_an_allowance_that_is_used_up_is_waited_for(tmp_path):
    gaps = []
    for left in ("0", "7"):
        headers = {"x-ratelimit-remaining-requests": left, "x-ratelimit-reset-requests": "0.4s"}
        with OpenAIServer(four, headers=headers) as server:
            rate(tmp_path / left, server.url, answers=["a", "b"], concurrency=1)
            gaps.append(server.times[1] - server.times[0])
    assert gaps[0] >= 0.4
    assert gaps[1] < 0.4


@pytest.mark.parametrize(
    ("headers", "limited", "seconds"),
    [
        ({}, True, 0),
        ({"retry-after": "7"}, True, 7),
        ({"retry-after": "7"}, False, 0),
        ({"retry-after": "86400"}, True, LONGEST_WAIT),
        ({"retry-after": "soon"}, True, 0),
        ({"retry-after": "-3"}, True, 0),
        ({"retry-after": "nan"}, True, 0),
        ({"retry-after-ms": "1500"}, True, 1.5),
        ({"x-ratelimit-reset-requests": "1m30.5s"}, True, 90.5),
        ({"x-ratelimit-reset-requests": "1s", "x-ratelimit-reset-tokens": "120ms"}, True, 1),
        # Only what is used up counts, where that is said.
        (
            {
                "x-ratelimit-reset-requests": "6m0s",
                "x-ratelimit-remaining-requests": "9",
                "x-ratelimit-reset-tokens": "2s",
                "x-ratelimit-remaining-tokens": "0",
            },
            True,
            2,
        ),
        ({"x-ratelimit-reset-tokens": "2s"}, False, 0),
        ({"x-ratelimit-reset-tokens": "2s", "x-ratelimit-remaining-tokens": "0"}, False, 2),
        ({"retry-after": "5", "x-ratelimit-reset-requests": "9s"}, True, 5),
    ],
)
def test_the_headers_of_a_limit(headers, limited, seconds):
    assert wait_of(headers, limited=limited) == pytest.approx(seconds)


def test_a_moment_is_a_wait_until_then(monkeypatch):
    monkeypatch.setattr(endpoint.time, "time", lambda: 1_800_000_000.0)
    assert seconds_of("1800000090") == 90
    assert seconds_of("Fri, 15 Jan 2027 08:00:30 GMT") == 30
    assert seconds_of("Fri, 15 Jan 2027 08:00:30 -0000") == 30
    assert seconds_of("Thu, 14 Jan 2027 08:00:30 GMT") == 0
    assert seconds_of("1h1m1s") == 3661
    assert seconds_of("2d") == 172_800
    assert seconds_of("1s and a bit") is None


def test_the_clock_is_the_configurations(tmp_path):
    for timeout in (0.2, 0.6):
        with OpenAIServer(four, lambda text, attempt: "trickle") as server:
            start = time.monotonic()
            rate(tmp_path, server.url, timeout=timeout, retries=0)
            assert timeout <= time.monotonic() - start < timeout + 5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"url": ""}, "judge.endpoint: empty"),
        ({"url": "localhost:80"}, "judge.endpoint: 'localhost:80', expected http"),
        ({"model": ""}, "judge.model: empty"),
    ],
)
def test_an_address_that_is_none_is_refused(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        EndpointClient(config(**changes), tmp_path)


# ---- one question, or all


LONG = "How helpful? why / Is the api key of model gpt-9 not found, or my credit balance too low?"


@pytest.mark.parametrize(
    ("status", "message", "question", "answered", "about"),
    [
        (400, "credit balance too low", "a", True, Refused),
        (400, "credit balance too low", LONG, True, Declined),  # it repeats the question
        (400, "wrong api key", "a", False, Refused),
        (400, "blocked: it holds an api key", "a", True, Declined),  # the key was good before
        (400, "bad model gpt-9 not found in: ", LONG, False, Declined),
        (403, "forbidden", "a", True, Refused),
        (403, "blocked by our safety filter", "a", False, Declined),
        (429, "slow down", "a", False, Trouble),
        (429, "the request is too large", "a", False, Declined),
        (529, "overloaded", "a", False, Trouble),
        (500, "maximum context length is 9", "a", False, Declined),
        (401, "this prompt was flagged", "a", True, Refused),
        (404, "no", "a", True, Refused),
        (301, "no", "a", True, Refused),
        (418, "no", "a", True, Declined),
        (400, "model m: that context length is not supported", "a", False, Declined),
        (407, "no", "a", True, Refused),
        (410, "no", "a", True, Refused),
        (425, "no", "a", True, Trouble),
        (400, "Your account is overdue", "a", True, Refused),
        (400, "quota exceeded", "a", True, Refused),
        (400, "unauthorized", "a", False, Refused),
        (403, "against our policies", "a", True, Declined),
        (500, "responsible AI", "a", True, Declined),
        (503, "please retry: prompt too long", "a", True, Trouble),
        (400, "please retry: prompt too long", "a", False, Declined),
    ],
)
def test_what_an_error_is_about(status, message, question, answered, about):
    complaint = complaint_of(status, json.dumps({"error": {"message": message}}).encode())
    assert type(exception_of(complaint, question, answered=answered)) is about


@pytest.mark.parametrize(
    "code",
    [
        "insufficient_quota",
        "exceeded_current_quota_error",
        "insufficient_balance",
        "Arrearage",
        "billing_not_active",
        "billing_hard_limit_reached",
        "payment_required",
        "invalid_api_key",
        "account_deactivated",
        "authentication_error",
        "model_not_found",
        "unknown_model",
    ],
)
@pytest.mark.parametrize("key", ["code", "type"])
def test_codes_of_key_model_and_quota_are_about_every_question(code, key):
    for status in (200, 400, 429, 500):
        body = json.dumps({"error": {"message": "no", key: code}}).encode()
        found = exception_of(complaint_of(status, body), "a", answered=True)
        assert isinstance(found, Refused)
        odd = body.replace(code.encode(), code.encode() + b"s")
        assert not isinstance(exception_of(complaint_of(400, odd), "a", answered=True), Refused)


def test_a_servers_words_are_cut_where_they_are_kept(tmp_path):
    with OpenAIServer(four, lambda text, attempt: "wordy") as server:
        rate(tmp_path, server.url)
    [row] = kept(tmp_path)
    assert row["why"] == ("HTTP 400: context length " + "x" * 1000)[:300]
    assert complaints.LONGEST_REASON == 300


@pytest.mark.parametrize(
    ("body", "message", "codes", "parameter"),
    [
        ({"error": {"message": "a\nb", "code": "X", "type": "y", "param": "p"}}, "a b", "x y", "p"),
        ({"error": "no", "error_type": "validation"}, "no", "validation", ""),
        ({"object": "error", "message": "no", "type": "Bad", "code": 400}, "no", "bad", ""),
        ({"detail": "Not Found"}, "Not Found", "", ""),
        ({"detail": [{"loc": ["body", 1], "msg": "bad", "type": "t"}]}, "body.1: bad", "t", ""),
        ([{"error": {"code": 400, "message": "no", "status": "INVALID"}}], "no", "invalid", ""),
        ({"error": {"message": "m", "innererror": {"code": "Filter"}}}, "m", "filter", ""),
        ({"error": {"message": None}}, '{"error": {"message": null}}', "", ""),
        ({"error": {"message": {"deep": [1]}}}, '{"deep": [1]}', "", ""),
        ("text", "text", "", ""),
        ([], "[]", "", ""),
        (None, "null", "", ""),
    ],
)
def test_every_form_of_an_error_is_read(body, message, codes, parameter):
    found = complaint_of(400, json.dumps(body).encode())
    assert found == Complaint(400, f"HTTP 400: {message}", tuple(codes.split()), parameter)


# ---- what the server does not take


@pytest.mark.parametrize("fault", NOT_TAKEN)
def test_what_the_server_names_is_left_out_from_then_on(tmp_path, fault, caplog):
    name, _ = NOT_TAKEN[fault]
    newer = "max_completion_tokens" if name == "max_tokens" else ""

    def refuses(text, attempt):
        del text, attempt
        return fault if name in server.asked[-1][1] else ""

    server = OpenAIServer(four, refuses)
    with server:
        assert rate(tmp_path, server.url, answers=["a", "b"], concurrency=1)[0] == [0.5, 0.5]
        sent = [set(r) - {"model", "messages"} for _, r, _ in server.asked]
    every = {"temperature", "top_p", "max_tokens"}
    assert sent == [every, *[every - {name} | ({newer} if newer else set())] * 2]
    assert caplog.text.count(f"config.judge.{name} is left out") == (not newer)


@pytest.mark.parametrize(
    ("message", "named"),
    [
        ("Unknown parameter: 'top_p'.", "top_p"),
        ("top_p is not a valid parameter", "top_p"),
        ("Additional properties are not allowed ('top_p' was unexpected)", "top_p"),
        ("temperature and others are fixed at 1", "temperature"),
        ("`temperature` may only be set to 1 here", "temperature"),
        ("temperature cannot be changed for this model", "temperature"),
        ("temperature must be between 0 and 2", ""),  # a value, not the parameter
        ("my_temperature is not supported", ""),
        ("unsupported parameter", ""),
        ("top_p: the prompt is too long, which is not allowed", ""),
    ],
)
@pytest.mark.parametrize("status", [400, 422, 500])
def test_what_a_server_does_not_take_is_found_in_its_words(message, named, status):
    complaint = complaint_of(status, message.encode())
    found = [x for x in ("temperature", "top_p", "max_tokens") if complaint.names(x, "why")]
    assert found == ([named] if named and status != 500 else [])
    if named:  # else it may be the question's word
        quoted = f"'{named}'" in message or f"`{named}`" in message
        assert complaint.names(named, f"of {named} or so") == (quoted and status != 500)
        assert not complaint.names(named, f"of '{named}' or `{named}` or so")


def test_a_limit_that_goes_by_no_name_is_left_out(tmp_path, caplog):
    def refuses(text, attempt):
        del text, attempt
        request = server.asked[-1][1]
        named = [name for name in ("max_tokens", "max_completion_tokens") if name in request]
        return (
            {"max_tokens": "no_limit", "max_completion_tokens": "no_newer"}[named[0]]
            if named
            else ""
        )

    server = OpenAIServer(four, refuses)
    with server:
        assert rate(tmp_path, server.url)[0] == [0.5]
        assert set(server.asked[-1][1]) == {"model", "messages", "temperature", "top_p"}
    assert "config.judge.max_tokens is left out" in caplog.text


def test_many_that_ask_at_once_learn_it_together(tmp_path):
    """None of those under way may be turned down for what another one learned meanwhile."""
    together = threading.Barrier(4, timeout=10)

    def refuses(text, attempt):
        del attempt
        with contextlib.suppress(threading.BrokenBarrierError):
            together.wait()
        asked = [r for question, r, _ in server.asked if question == text][-1]
        return "newer_name" if "max_tokens" in asked else "named_only" if "top_p" in asked else ""

    server = OpenAIServer(four, refuses)
    with server:
        answers = ["a", "b", "c", "d"]
        assert rate(tmp_path, server.url, answers, concurrency=4)[0] == [0.5] * 4
        assert set(server.asked[-1][1]) == {
            "model",
            "messages",
            "temperature",
            "max_completion_tokens",
        }


def test_a_question_that_is_too_long_changes_nothing_for_others(tmp_path):
    with OpenAIServer(four, lambda text, attempt: "long_limit" * ("/ b" in text)) as server:
        assert rate(tmp_path, server.url, ["a", "b", "c"], concurrency=1)[0] == [0.5, None, 0.5]
        assert all({"temperature", "top_p", "max_tokens"} < set(r) for _, r, _ in server.asked)


@pytest.mark.parametrize("name", ["temperature", "top_p", "max_tokens"])
def test_what_is_set_is_left_out_and_no_part_of_the_request(tmp_path, name):
    other = {"temperature": 1.0, "top_p": 1.0, "max_tokens": 7}
    changes: dict[str, Any] = {"leave_out": f" {name} ", name: other[name]}
    with OpenAIServer(four) as server:
        rate(tmp_path, server.url, leave_out=name)
        [(_, request, _)] = server.asked
        assert set(other) - set(request) == {name}
        rate(tmp_path, server.url, **changes)
        assert len(server.asked) == 1  # the same request, paid for once
        rate(tmp_path, server.url)
        assert len(server.asked) == 2


# ---- what is read


@pytest.mark.parametrize(
    ("content", "rating"),
    [
        ([{"type": "text", "text": "Conclusion: 4"}], 0.5),
        (["It is good.\nConclusion:", " 5"], 1.0),
        ([{"type": "output_text", "text": "Concl"}, {"text": "usion: 2"}], -0.5),
        ([{"type": "thinking", "text": "Conclusion: 1"}, {"text": "Conclusion: 4"}], 0.5),
        ([{"type": "image_url", "image_url": {}}, 7, {"text": "Conclusion: 4"}], 0.5),
        ([{"type": "text", "text": None}], None),
        ([{"type": "text", "text": "Conclusion: 4"}, {"type": "refusal", "refusal": "no"}], None),
    ],
)
def test_a_reply_may_come_in_parts(tmp_path, content, rating):
    with OpenAIServer(lambda text: content) as server:
        assert rate(tmp_path, server.url)[0] == [rating]


@pytest.mark.parametrize("fault", ["", "huge"])
def test_a_reply_has_a_largest_size(tmp_path, monkeypatch, caplog, fault):
    whole = 10_000 if fault else len(json.dumps(completion(four(""))))
    with OpenAIServer(four, lambda text, attempt: fault) as server:
        monkeypatch.setattr(endpoint, "LARGEST_REPLY", whole - 1)
        assert rate(tmp_path, server.url, retries=0)[0] == [OPEN]
        assert caplog.text.count(f"is larger than {whole - 1} bytes") == 1
        monkeypatch.setattr(endpoint, "LARGEST_REPLY", whole)
        assert rate(tmp_path, server.url, retries=0)[0] == [OPEN if fault else 0.5]
        assert "HTTP 500: xxx" in caplog.text if fault else True


def test_an_endless_reply_is_given_up_at_that_size(tmp_path, caplog):
    with OpenAIServer(four, lambda text, attempt: "endless") as server:
        start = time.monotonic()
        assert rate(tmp_path, server.url, retries=0, timeout=60.0)[0] == [OPEN]
        assert time.monotonic() - start < 30
    assert "the reply is larger than 8388608 bytes" in caplog.text


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_question_is_not_sent_on_to_another_host(tmp_path, status):
    with OpenAIServer(four) as other, OpenAIServer(four, lambda text, attempt: status) as server:
        server.elsewhere = other.url.replace("127.0.0.1", "localhost")
        with pytest.raises(
            Refused, match=rf"HTTP {status}: it sends the question on to another host"
        ):
            rate(tmp_path / "host", server.url)
        server.elsewhere = other.url  # another port is another server
        with pytest.raises(Refused, match=f"another host, {other.url[:-3]}"):
            rate(tmp_path / "port", server.url)
        assert not other.asked


def test_a_redirect_on_the_same_host_is_followed(tmp_path):
    with OpenAIServer(four, lambda text, attempt: 307 if attempt == 0 else "") as server:
        server.elsewhere = server.url
        assert rate(tmp_path, server.url)[0] == [0.5]
