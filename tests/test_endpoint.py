"""What one endpoint says: refusals, names of settings, waiting times; its address and clock."""

import time

import pytest

from stair_jax.rewards import endpoint
from stair_jax.rewards.endpoint import LONGEST_WAIT, Refused, seconds_of, wait_of
from stair_jax.rewards.remote import Line
from tests.openai_server import REFUSED, OpenAIServer
from tests.test_remote import _direct, config, four, rate

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
    assert words.get(fault, "") in said
    assert "sk-secret" not in said
    assert "\n" not in said


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
                "x-ratelimit-reset-requests": "6m0s", "x-ratelimit-remaining-requests": "9",
                "x-ratelimit-reset-tokens": "2s", "x-ratelimit-remaining-tokens": "0",
            },
            True,
            2,
        ),
        ({"x-ratelimit-reset-tokens": "2s"}, False, 0),
        ({"x-ratelimit-reset-tokens": "2s", "x-ratelimit-remaining-tokens": "0"}, False, 2),
        ({"retry-after": "5", "x-ratelimit-reset-requests": "9s"}, True, 5),
    ],
)  # fmt: skip
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
        Line(config(**changes), tmp_path)
