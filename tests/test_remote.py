"""Raters behind an endpoint, against a real server on 127.0.0.1 that fails in every way."""

import contextlib
import json
import socket
import threading
import time

import pytest

from stair_jax.records import Prompt
from stair_jax.rewards import endpoint, judgements, remote
from stair_jax.rewards.endpoint import LONGEST_WAIT, Refused, seconds_of, wait_of
from stair_jax.rewards.judges import OPEN, Rater
from stair_jax.rewards.remote import Line, RemoteRater, Unavailable
from stair_jax.rewards.rubrics import Rubric
from stair_jax.sections import JudgeConfig
from stair_jax.validate import validate
from tests.openai_server import DECLINED, REFUSED, TROUBLE, OpenAIServer
from tests.test_config import tiny

HELP = Rubric("helpfulness", "How helpful? {question} / {answer}")
SAFE = Rubric("safety", "How safe? {question} / {answer}")
PROMPT = Prompt(id="p", question="why", type="safety")
TEXT = "How helpful? why / because"
SLOW = ("hang", "trickle")  # what only the clock ends


@pytest.fixture(autouse=True)
def _direct(monkeypatch):
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def config(url="http://127.0.0.1:9/v1", **changes):
    values = {
        "safety": "remote", "helpfulness": "remote", "scope": "all", "refusal_rule": False,
        "samples": 1, "temperature": 0.25, "top_p": 0.75, "max_tokens": 99, "templates": "",
        "endpoint": url, "model": "judge-1", "concurrency": 4, "timeout": 10.0, "retries": 2,
        "cache": "", "reward_model": "",
    }  # fmt: skip
    return JudgeConfig(**(values | changes))


def collected(rater, count, seconds=20.0):
    """Waits for so many ratings."""
    found, end = [], time.monotonic() + seconds
    while len(found) < count:
        assert time.monotonic() < end, f"only {found} came"
        time.sleep(0.002)
        found += rater.collect()
    return dict(found)


def rate(folder, url, answers=("because",), *, rubric=HELP, **changes):
    """Rates answers on a line of their own; returns the ratings and what was counted."""
    with contextlib.closing(Line(config(url, **changes), folder, pause_s=0.001)) as line:
        rater = RemoteRater(rubric, line)
        assert isinstance(rater, Rater)
        for i, answer in enumerate(answers):
            rater.submit(i, PROMPT, answer)
        found = collected(rater, len(answers))
        return [found[i] for i in range(len(answers))], rater.counters


def four(text):
    """A reply that rates everything 4."""
    del text
    return "It says why.\nConclusion: 4"


def test_a_reply_becomes_a_rating_and_the_settings_reach_the_request(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-mine")
    with OpenAIServer(four) as server:
        found, counts = rate(tmp_path, server.url)
        assert found == [0.5]
        [(text, request, headers)] = server.asked
    assert text == TEXT == HELP.fill("why", "because")
    assert request == {
        "model": "judge-1", "messages": [{"role": "user", "content": TEXT}], "temperature": 0.25,
        "top_p": 0.75, "max_tokens": 99,
    }  # fmt: skip
    assert headers["authorization"] == "Bearer sk-mine"
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
def test_a_whole_answer_without_a_reply_is_missing_and_stays_so(tmp_path, fault):
    with OpenAIServer(four, lambda text, attempt: fault) as server:
        found, counts = rate(tmp_path, server.url)
        assert server.attempts[TEXT] == 2  # once more than once
    assert found == [None]
    assert (counts["declined"], counts["declined_requests"], counts["open"]) == (1, 2, 0)
    with OpenAIServer(four) as server:
        assert rate(tmp_path, server.url)[0] == [None]
        assert not server.asked


def test_an_answer_that_was_cut_once_may_be_whole_the_next_time(tmp_path):
    with OpenAIServer(four, lambda text, attempt: "" if attempt else "length") as server:
        assert rate(tmp_path, server.url)[0] == [0.5]


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


def test_pauses_grow_at_random_up_to_a_limit(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(remote.random, "uniform", lambda low, high: asked.append((low, high)) or 0)
    with OpenAIServer(four, lambda text, attempt: "500") as server:
        line = Line(config(server.url, retries=5), tmp_path, pause_s=16.0)
        with contextlib.closing(line):
            rater = RemoteRater(HELP, line)
            rater.submit(0, PROMPT, "because")
            assert collected(rater, 1) == {0: OPEN}
    assert asked == [(0, 16), (0, 32), (0, 60), (0, 60), (0, 60)]
    assert remote.PAUSE_S == 1.0


def test_the_clock_is_the_configurations(tmp_path):
    for timeout in (0.2, 0.6):
        with OpenAIServer(four, lambda text, attempt: "trickle") as server:
            start = time.monotonic()
            rate(tmp_path, server.url, timeout=timeout, retries=0)
            assert timeout <= time.monotonic() - start < timeout + 5


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
        ({"url": ""}, "judge.endpoint: empty"),
        ({"url": "localhost:80"}, "judge.endpoint: 'localhost:80', expected http"),
        ({"model": ""}, "judge.model: empty"),
    ],
)
def test_an_address_that_is_none_is_refused(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        Line(config(**changes), tmp_path)


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
    path = tmp_path / judgements.FILE
    with OpenAIServer(four) as server:
        rate(tmp_path, server.url, ["a", "b", "c"], concurrency=1)
        path.write_bytes(path.read_bytes()[:-20])
        for torn in (1, 2):  # the torn line stays, and so does what was appended behind it
            rate(tmp_path, server.url, ["a", "b", "c", f"d{torn}"])
            assert len(server.asked) == 4 + torn
    assert "1 broken lines passed over" in caplog.text
    path.write_bytes(b'\n[1]\n{"key": 3}\n{"key": "k"}\n{"key": "k", "reply": 1}\n\xff\n')
    memory = judgements.Judgements(tmp_path)
    assert "k" not in memory
    memory.close()


def test_two_runs_may_write_to_one_memory(tmp_path):
    one, two = judgements.Judgements(tmp_path), judgements.Judgements(tmp_path)
    for i in range(5):
        one.add(f"one {i}", "m", "r\n" * i)
        two.add(f"two {i}", "m", None)
    one.close()
    two.close()
    rows = [json.loads(line) for line in (tmp_path / judgements.FILE).read_text().splitlines()]
    assert len(rows) == 10
    again = judgements.Judgements(tmp_path)
    assert again["one 3"] == "r\n" * 3
    assert again["two 4"] is None
    again.close()


def test_half_a_surrogate_pair_is_asked_about_too(tmp_path):
    with OpenAIServer(four) as server:
        assert rate(tmp_path, server.url, ["a \ud800 b"])[0] == [0.5]


def test_closing_waits_for_what_is_on_the_wire_and_forgets_the_rest(tmp_path):
    before = threading.active_count()
    with OpenAIServer(four, think_s=0.3) as server:
        line = Line(config(server.url, concurrency=2), tmp_path)
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
    monkeypatch.setattr(Line, "_once", lambda self, *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        rate(tmp_path, "http://127.0.0.1:9/v1")
