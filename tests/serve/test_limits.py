"""Who is let in, what is too much, and what is given back when somebody goes."""

import concurrent.futures
import json
import socket
import time
from typing import Any

import httpx2
import openai
import pytest

from stair_jax.serve.limits import Gate, Limits
from tests.support import serving
from tests.support.serving import KEY, pages_used, wait_until

LOOP = {"model": "sft", "prompt": "loop", "max_tokens": 90}
CHAT = {"model": "sft", "messages": [{"role": "user", "content": "what can you do ?"}]}


@pytest.fixture
def model(tmp_path):
    return serving.serve_model(tmp_path)


def post(url, **what):
    return httpx2.post(url, timeout=serving.TIMEOUT_S, **what)


def slow(model, seconds):
    """Has a model's engine take its time over each chunk."""
    step = model.engine.step

    def slowly():
        time.sleep(seconds)
        step()

    model.engine.step = slowly


def test_without_its_key_nobody_learns_anything(model):
    with serving.serving([model], key=KEY) as server:
        paths = ["/v1/models", "/metrics", "/openapi.json", "/tokenizer_info"]
        said: tuple[Any, ...] = (
            {},
            {"Authorization": "Bearer wrong"},
            {"Authorization": f"Basic {KEY}"},
            {"Authorization": f"Bearer {KEY}x"},
            {"Authorization": "Bearer é".encode("latin-1")},
        )
        for headers in said:
            with httpx2.Client(base_url=server.root, headers=headers) as http:
                for path in paths:
                    assert http.get(path).status_code == 401
                answer = http.post("/v1/chat/completions", json=CHAT)
                assert answer.status_code == 401
                assert KEY not in answer.text
                assert answer.headers["www-authenticate"] == "Bearer"
                assert http.get("/health").status_code == 200
        with openai.OpenAI(base_url=server.url, api_key=KEY) as client:
            assert client.models.list().data[0].id == "sft"
        assert httpx2.get(f"{server.root}/health", headers={"Host": "x.org"}).status_code == 200


def test_a_page_of_another_site_cannot_ask_a_server_without_a_key(http, server):
    for host in ("evil.example", "127.0.0.1.evil.example:80", ""):
        assert http.get("/v1/models", headers={"Host": host}).status_code == 403
    for host in (f"localhost:{server.port}", "127.0.0.1", "[::1]:80"):
        assert http.get("/v1/models", headers={"Host": host}).status_code == 200
    plain = http.post(
        "/v1/chat/completions", content=json.dumps(CHAT), headers={"Content-Type": "text/plain"}
    )
    assert plain.status_code == 400  # a form needs no leave of the browser


def test_a_body_that_is_too_large_is_not_read(model):
    with serving.serving([model], body_bytes=2000) as server:
        big = json.dumps({**CHAT, "messages": [{"role": "user", "content": "a" * 3000}]}).encode()
        headers = {"Content-Type": "application/json"}
        url = f"{server.url}/chat/completions"
        whole = post(url, content=big, headers=headers)
        parts = post(url, content=iter([big[:1500], big[1500:]]), headers=headers)
        assert (whole.status_code, parts.status_code) == (413, 413)
        assert "larger than 2000 bytes" in whole.json()["error"]["message"]
        assert post(url, json=CHAT).status_code == 200


def test_a_body_that_does_not_come_is_not_waited_for(model):
    head = (
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
        b"Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{"
    )
    with (
        serving.serving([model], body_s=0.2) as server,
        socket.create_connection(("127.0.0.1", server.port)) as line,
    ):
        line.sendall(head)
        line.settimeout(serving.TIMEOUT_S)
        assert b" 408 " in line.recv(1000)


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[" * 100_000, b"\xff", b'{"model": NaN}', b'"sft"', b'{"a": "\\ud800"}']
)
def test_what_is_no_json_of_ours_is_refused(http, body):
    headers = {"Content-Type": "application/json"}
    answer = http.post("/v1/chat/completions", content=body, headers=headers)
    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"


def test_unknown_paths_and_methods_are_refused_in_the_same_form(http):
    assert http.get("/v2").status_code == 404
    assert http.get("/v1/completions").json()["error"]["message"] == "Method Not Allowed"


def test_a_server_that_is_full_says_when_to_come_back(model):
    slow(model, 0.02)
    with serving.serving([model], queue=2) as server:
        pool = concurrent.futures.ThreadPoolExecutor(12)
        ask = lambda _: post(f"{server.url}/completions", json=LOOP)  # noqa: E731
        answers = list(pool.map(ask, range(12)))
        full = [answer for answer in answers if answer.status_code == 429]
        assert sorted({answer.status_code for answer in answers}) == [200, 429]
        assert len(answers) - len(full) >= 6  # four slots, two that wait
        for answer in full:
            assert 1 <= int(answer.headers["retry-after"]) <= 60
            assert answer.json()["error"]["code"] == "rate_limit_exceeded"
        assert ask(0).status_code == 200
        many = post(f"{server.url}/completions", json={**LOOP, "prompt": ["loop"] * 7})
        assert many.status_code == 400  # there is never room for it
        assert (server.desk.gate.inside, pages_used(model)) == (0, 0)


def test_the_wait_that_is_named_grows_with_the_line_and_is_bounded():
    gate = Gate(Limits(slots=2, queue=1000))
    assert gate.retry_after == 1
    for _ in range(200):
        gate.enter(1)
        gate.leave(1, 3.0)
    gate.enter(10)
    assert gate.retry_after == 12  # four rounds of three seconds
    gate.enter(900)
    assert gate.retry_after == 60


def test_an_answer_that_takes_too_long_is_given_up(model):
    slow(model, 0.1)
    with serving.serving([model], timeout_s=0.3) as server:
        answer = post(f"{server.url}/completions", json=LOOP)
        assert answer.status_code == 504
        assert answer.json()["error"]["code"] == "timeout"
        stream = post(f"{server.url}/completions", json={**LOOP, "stream": True})
        assert stream.status_code == 200
        assert "not done within 0.3 s" in stream.text
        assert "[DONE]" not in stream.text
        wait_until(lambda: (server.desk.gate.inside, pages_used(model)) == (0, 0))


@pytest.mark.parametrize("body", [LOOP, LOOP | {"stream": True}, CHAT | {"search": "best_of_n"}])
def test_a_client_that_hangs_up_gives_its_pages_back(tmp_path, body):
    model = serving.serve_model(tmp_path, search=True)
    slow(model, 0.05)
    path = "chat/completions" if "messages" in body else "completions"
    with serving.serving([model]) as server:
        asked = json.dumps(body).encode()
        lines = []
        for _ in range(3):
            line = socket.create_connection(("127.0.0.1", server.port))
            line.sendall(
                f"POST /v1/{path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                f"Content-Length: {len(asked)}\r\n\r\n".encode()
                + asked
            )
            lines.append(line)
        wait_until(lambda: pages_used(model) > 0)
        assert server.desk.gate.inside >= 3
        for line in lines:
            line.close()
        wait_until(lambda: (server.desk.gate.inside, pages_used(model)) == (0, 0))
        wait_until(lambda: not serving.pages_held(model) and model.engine.idle)
        if "prompt" in body:
            assert model.engine.counters["delivered"] == 0  # none was drawn to its end
        whole = post(f"{server.url}/chat/completions", json=CHAT)
        assert whole.json()["choices"][0]["message"]["content"] == serving.CONTENT


def test_a_reader_that_takes_nothing_is_left_alone_after_the_limit(tmp_path, monkeypatch):
    monkeypatch.setattr("stair_jax.serve.desk._GRACE_S", 0.0)
    model = serving.serve_model(tmp_path)
    slow(model, 0.05)
    with serving.serving([model], timeout_s=0.5) as server:
        asked = json.dumps({**LOOP, "stream": True}).encode()
        with socket.create_connection(("127.0.0.1", server.port)) as line:
            line.sendall(
                b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n"
                b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%s"
                % (len(asked), asked)
            )
            wait_until(lambda: pages_used(model) > 0)
            wait_until(lambda: (server.desk.gate.inside, pages_used(model)) == (0, 0))


def test_what_is_under_way_ends_before_the_server_does(model):
    slow(model, 0.05)
    with serving.serving([model]) as server, concurrent.futures.ThreadPoolExecutor(8) as pool:
        bodies = [LOOP, LOOP | {"stream": True}] * 3
        asked = [pool.submit(post, f"{server.url}/completions", json=body) for body in bodies]
        wait_until(lambda: server.desk.gate.inside == len(bodies))  # more than there are slots
        server.stop()
        for body, answer in zip(bodies, asked, strict=True):
            answer = answer.result()
            assert answer.status_code == 200
            if "stream" in body:
                assert answer.text.endswith("data: [DONE]\n\n")
            else:
                assert answer.json()["usage"]["completion_tokens"] == 90
        with pytest.raises(httpx2.ConnectError):
            httpx2.get(f"{server.root}/health")
        assert server.failed is False
    assert pages_used(model) == 0


def test_the_first_signal_drains_and_the_second_one_does_not(model):
    slow(model, 0.3)
    with serving.serving([model], drain_s=60.0) as server:
        pool = concurrent.futures.ThreadPoolExecutor(1)
        answer = pool.submit(post, f"{server.url}/completions", json=LOOP)
        wait_until(lambda: server.desk.gate.inside == 1)
        server.tell(server.server.told_to_stop)
        assert (server.server.should_exit, server.server.force_exit) == (True, False)
        server.tell(server.server.told_to_stop)
        server.stop()
        with pytest.raises(httpx2.HTTPError):
            answer.result().raise_for_status()
    assert pages_used(model) == 0


def test_what_does_not_end_in_time_is_given_up(model):
    slow(model, 0.3)
    with serving.serving([model], drain_s=1.0) as server:
        pool = concurrent.futures.ThreadPoolExecutor(1)
        answer = pool.submit(post, f"{server.url}/completions", json=LOOP)
        wait_until(lambda: server.desk.gate.inside == 1)
        server.stop()
        with pytest.raises(httpx2.HTTPError):
            answer.result().raise_for_status()
    assert pages_used(model) == 0


def test_an_engine_that_fails_ends_the_server_and_every_request(model, caplog):
    def fail():
        raise RuntimeError("out of memory")

    model.engine.step = fail
    with serving.serving([model]) as server:
        answer = post(f"{server.url}/completions", json=LOOP)
        assert answer.status_code == 500
        assert "the engine has failed" in answer.json()["error"]["message"]
        assert "out of memory" not in answer.text
        wait_until(lambda: server.failed is not None)
        assert server.failed
    assert "out of memory" in caplog.text


def test_a_limit_of_the_server_on_answers_is_told(model):
    with serving.serving([model], max_tokens=5) as server:
        answer = post(f"{server.url}/completions", json=LOOP)
        assert "there is room for 5 (the server's limit" in answer.json()["error"]["message"]
        free = post(f"{server.url}/chat/completions", json=CHAT)
        assert free.json()["usage"]["completion_tokens"] == 5


def test_models_of_a_run_answer_by_their_names(client):
    cards = client.models.list().data
    assert [card.id for card in cards] == ["sft", "plain", "random"]
    assert [card.reasons for card in cards] == [True, False, True]
    assert client.models.retrieve("random").max_model_len == 96
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt")


def test_figures_count_what_was_done(http, server):
    def figures():
        text = http.get("/metrics").raise_for_status().text
        rows = [line.rpartition(" ") for line in text.splitlines() if not line.startswith("#")]
        return {name: float(value) for name, _, value in rows}

    before = figures()
    http.post("/v1/completions", json=LOOP | {"stream": True})
    http.post("/v1/completions", json=LOOP | {"foo": 1})
    http.get("/etc/passwd")
    wait_until(lambda: server.desk.gate.inside == 0)
    after = figures()

    def more(name):
        return after[f"stair_jax_{name}"] - before.get(f"stair_jax_{name}", 0.0)

    assert more('tokens_total{model="sft",kind="completion"}') == 90
    assert more('tokens_total{model="sft",kind="prompt"}') == 1
    assert more('requests_total{path="/v1/completions",status="200"}') == 1
    assert more('requests_total{path="/v1/completions",status="400"}') == 1
    assert more('requests_total{path="other",status="404"}') == 1
    assert more("first_token_seconds_count") == more("request_seconds_count") == 1
    assert more('request_seconds_bucket{le="+Inf"}') == 1
    assert more('engine_decoded_total{model="sft"}') == 90
    assert after['stair_jax_engine_slots{model="random"}'] == 4
    assert after['stair_jax_engine_pages_used{model="sft"}'] == 0
