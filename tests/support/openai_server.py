"""A small server that speaks the OpenAI chat completions protocol, and every way of failing at it.

Real sockets on 127.0.0.1. `answer(text)` is what the model says; `fault(text, attempt)` names how
the server treats the attempt (from 0) to ask `text`, one of `FAULTS`, the status of a redirect, or
"" for as it should be.
"""

import collections
import contextlib
import email.utils
import gzip
import http.server
import json
import threading
import time

SLOW_S = 20.0  # more than any test waits


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, format, *args):
        pass

    def do_POST(self):
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        *before, message = request["messages"]
        assert "system" not in [turn["role"] for turn in before[1:]]
        assert self.path == "/v1/chat/completions"
        assert message["role"] == "user"
        assert isinstance(self.server, Sockets)
        server, text = self.server.owner, message["content"]
        fault = server.begin(text, request, self.headers)
        try:
            if not fault:  # counted before the client can know
                time.sleep(server.think_s)
                server.answered[text] += 1
                reply = server.answer(text)
                if request.get("stream"):
                    return self.stream(reply)
                return self.plain(200, completion(reply), server.headers)
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                if isinstance(fault, int):
                    return self.redirect(server, fault)
                FAULTS[fault](self, server, server.answer(text))
        finally:
            server.end()

    def plain(self, status, body, headers=(), length=None):
        body = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body) if length is None else length))
        for name, value in dict(headers).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def stream(self, text, pieces=None, finish=True):
        """Server-sent events, in HTTP chunks: the text by halves, the end, [DONE]."""
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        half = len(text) // 2
        events = [
            {"choices": [{"index": 0, "delta": {"content": piece}, "finish_reason": None}]}
            for piece in (text[:half], text[half:])
        ]
        events.append({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
        lines = [f"data: {json.dumps(event)}\n\n" for event in events] + ["data: [DONE]\n\n"]
        for line in lines[:pieces]:
            self.wfile.write(f"{len(line):x}\r\n{line}\r\n".encode())
        if finish:
            self.wfile.write(b"0\r\n\r\n")
        else:
            self.close_connection = True

    def cut(self, body, length):
        """Sends `body` under a length that is not its own, and hangs up."""
        self.plain(200, body, length=length)
        self.close_connection = True

    def chunks(self, body):
        """Begins a chunked body and hangs up before its end."""
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.wfile.write(f"{len(body):x}\r\n".encode() + body + b"\r\n")
        self.close_connection = True

    def to_the_end(self, body):
        """Sends a body without a length, which only hanging up ends."""
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)
        self.close_connection = True

    def trickle(self, server, body):
        """Sends a byte now and then, for ever."""
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(10**6))
        self.end_headers()
        for byte in body + b" " * 10**6:
            self.wfile.write(bytes([byte]))
            self.wfile.flush()
            if server.closing.wait(0.02):
                break
        self.close_connection = True

    def endless(self, server):
        """Sends as fast as it goes, for ever."""
        self.send_response(200)
        self.send_header("Connection", "close")
        self.end_headers()
        while not server.closing.is_set():
            self.wfile.write(b" " * 65_536)

    def redirect(self, server, status):
        """Sends the client to where the test says."""
        self.plain(status, b"", {"Location": f"{server.elsewhere}/chat/completions"})

    def hang(self, server):
        server.closing.wait(SLOW_S)
        self.close_connection = True


def completion(text, finish: str | None = "stop", **message):
    """The body of a whole reply."""
    message = {"role": "assistant", "content": text} | message
    choice = {"index": 0, "message": message, "finish_reason": finish}
    return {"id": "1", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]}


def error(message, code=None, param=None):
    return {"error": {"message": message, "type": "e", "code": code, "param": param}}


def _bytes(text, **changes):
    return json.dumps(completion(text, **changes)).encode()


def _without(name):
    def fail(handler, server, text):
        body = completion(text)
        del body["choices"][0][name]
        handler.plain(200, body)

    return fail


def _status(status, code=None, message="no", param=None, **headers):
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda h, s, t: h.plain(status, error(message, code, param), names)


def _date(seconds):
    return email.utils.formatdate(time.time() + seconds, usegmt=True)


GZIP = {"Content-Encoding": "gzip"}
INPUTS = "Input validation error: `inputs` must have less than 1024 tokens. Given: 1500"
# What never holds a whole reply. Text and all is sent where it can be, so that it could be taken.
TROUBLE = {
    "429": _status(429, message="slow down"),
    "500": _status(500, message="sorry"),
    "503_html": lambda h, s, t: h.plain(503, b"<html>Conclusion: 5</html>"),
    "408": _status(408),
    "409": _status(409),
    "hang": lambda h, s, t: h.hang(s),
    "drop": lambda h, s, t: setattr(h, "close_connection", True),
    "trickle": lambda h, s, t: h.trickle(s, _bytes(t)),
    "cut_body": lambda h, s, t: h.cut(_bytes(t)[:-30], len(_bytes(t))),
    "cut_chunks": lambda h, s, t: h.chunks(_bytes(t)[:-30]),
    "whole_but_no_last_chunk": lambda h, s, t: h.chunks(_bytes(t)),
    "cut_without_length": lambda h, s, t: h.to_the_end(_bytes(t)[:-30]),
    "length_too_short": lambda h, s, t: h.cut(_bytes(t), len(_bytes(t)) - 30),
    "length_too_long": lambda h, s, t: h.cut(_bytes(t), len(_bytes(t)) + 30),
    "length_is_none": lambda h, s, t: h.cut(_bytes(t), "many"),
    "empty": lambda h, s, t: h.plain(200, b""),
    "html": lambda h, s, t: h.plain(200, f"<html>{t}</html>".encode()),
    "text": lambda h, s, t: h.plain(200, t.encode()),
    "json_string": lambda h, s, t: h.plain(200, json.dumps(t).encode()),
    "deep": lambda h, s, t: h.plain(200, b"[" * 100_000),
    "error_as_200": lambda h, s, t: h.plain(200, error(t)),
    "502_in_200": lambda h, s, t: h.plain(200, {"error": {"code": 502, "message": t}}),
    "broken_off": lambda h, s, t: h.plain(200, completion(t, "error")),
    "busy": _status(503, message="The request queue is too long, try again later"),
    "took_too_long": _status(504, message="The request took too long"),
    "rate": _status(429, message="Number of request tokens exceeds your per-minute rate limit"),
    "compressed": lambda h, s, t: h.plain(200, gzip.compress(_bytes(t)), GZIP),
    "no_choices": lambda h, s, t: h.plain(200, completion(t) | {"choices": []}),
    "two_choices": lambda h, s, t: h.plain(200, {"choices": completion(t)["choices"] * 2}),
    "no_finish": _without("finish_reason"),
    "null_finish": lambda h, s, t: h.plain(200, _bytes(t, finish=None)),
    "no_message": _without("message"),
    "stream": lambda h, s, t: h.stream(t),  # nobody asked for one
    "cut_stream": lambda h, s, t: h.stream(t, pieces=2, finish=False),
}
# What is whole and still no reply.
DECLINED = {
    "length": lambda h, s, t: h.plain(200, completion(t, "length")),
    "content_filter": lambda h, s, t: h.plain(200, completion(t, "content_filter")),
    "refusal": lambda h, s, t: h.plain(200, completion(t, refusal="I will not")),
    "tool": lambda h, s, t: h.plain(200, completion(t, "tool_calls", tool_calls=[{"id": "1"}])),
    "tool_and_stop": lambda h, s, t: h.plain(200, completion(t, tool_calls=[{"id": "1"}])),
    "filtered_question": _status(400, "content_filter"),
    "too_long": _status(400, message="This model's maximum context length is 9 tokens."),
    "llama_cpp": _status(400, message="the request exceeds the available context size. try more"),
    "tgi": lambda h, s, t: h.plain(422, {"error": INPUTS, "error_type": "validation"}),
    "azure": _status(400, "content_filter", "The response was filtered by the policy"),
    "413": lambda h, s, t: h.plain(413, b"<html><h1>413 Request Entity Too Large</h1></html>"),
    "moderation": _status(403, message="Your input was flagged: harassment"),
    "429_too_large": _status(429, "rate_limit_exceeded", "Request too large on tokens per min"),
    "500_too_long": _status(500, message="the prompt is longer than the context size"),
    "detail": lambda h, s, t: h.plain(400, {"detail": "Prompt has 9000 tokens: context length 9"}),
    "in_200": lambda h, s, t: h.plain(200, {"error": {"code": 400, "message": "prompt too long"}}),
}
# What a server turns down in unknown words: a question, or all of them.
UNCLEAR = {
    "400": _status(400, message="unknown field"),
    "422": _status(422, message="temperature too high"),
    "text_400": lambda h, s, t: h.plain(400, b"bad"),
    "empty_422": lambda h, s, t: h.plain(422, b""),
    "list_400": lambda h, s, t: h.plain(400, [{"error": {"code": 400, "message": "no"}}]),
    "415": _status(415),
    "451": _status(451),
    "firewall": lambda h, s, t: h.plain(403, b"<html>Sorry, you have been blocked</html>"),
    "in_200_no": lambda h, s, t: h.plain(200, {"error": {"code": 422, "message": "no"}}),
}
# Whole replies that only a broken server gives.
BROKEN = {
    "null_text": lambda h, s, t: h.plain(200, completion(None)),
    "blank_text": lambda h, s, t: h.plain(200, completion(" \n")),
    "no_parts": lambda h, s, t: h.plain(200, completion([])),
    "only_thoughts": lambda h, s, t: h.plain(200, completion([{"type": "thinking", "text": t}])),
    "text_is_a_number": lambda h, s, t: h.plain(200, completion(4)),
    "unknown_end": lambda h, s, t: h.plain(200, completion(t, "because")),
}
REFUSED = {
    "401": _status(401, "invalid_api_key", "Incorrect key: sk-secret"),
    "403": _status(403, message="not you"),
    "404": _status(404, "model_not_found", "no such model"),
    "404_detail": lambda h, s, t: h.plain(404, {"detail": "Not Found"}),
    "400_model": _status(400, message="Model Not Exist"),
    "400_key": _status(400, "INVALID_ARGUMENT", "API key not valid. Please pass a valid one."),
    "400_money": _status(400, message="Your credit balance is too low to access the API"),
    "402": _status(402, message="Insufficient Balance"),
    "405": _status(405, message="method not allowed"),
    "401_in_200": lambda h, s, t: h.plain(200, {"error": {"code": 401, "message": "who?"}}),
    "redirect": lambda h, s, t: h.plain(307, b"", {"Location": "http://localhost:9/v1"}),
    "redirect_to_another_scheme": lambda h, s, t: h.plain(302, b"", {"Location": "ftp://[/"}),
    "quota": _status(429, "insufficient_quota", "you have no money"),
}
# How servers say that they do not take a parameter, by which one that is.
NOT_TAKEN = {
    "openai_value": (
        "temperature",
        _status(
            400,
            "unsupported_value",
            "'temperature' does not support 0.25 with this model. Only the"
            " default (1) value is supported.",
            "temperature",
        ),
    ),
    "openai_parameter": ("top_p", _status(400, "unsupported_parameter", "no", "top_p")),
    "named_only": ("top_p", _status(400, message="no", param="top_p")),
    "both": (
        "top_p",
        _status(400, message="`temperature` and `top_p` cannot both be specified for this model."),
    ),
    "deprecated": ("temperature", _status(400, message="`temperature` is deprecated here.")),
    "only_one": ("temperature", _status(400, message="invalid temperature: only 1 is allowed")),
    "pydantic": (
        "top_p",
        lambda h, s, t: h.plain(
            422,
            {
                "detail": [
                    {
                        "loc": ["body", "top_p"],
                        "msg": "Extra inputs are not permitted",
                        "type": "extra",
                    }
                ]
            },
        ),
    ),
    "unrecognised": ("top_p", _status(400, message="Unrecognized request argument: top_p")),
    "no_limit": ("max_tokens", _status(400, "unsupported_parameter", "no 'max_tokens'")),
}
FAULTS = (
    TROUBLE
    | DECLINED
    | UNCLEAR
    | BROKEN
    | REFUSED
    | {name: fault for name, (_, fault) in NOT_TAKEN.items()}
    | {
        "retry_after": _status(429, Retry_After="0.3"),
        "retry_after_ms": _status(429, Retry_After_Ms="300", Retry_After="50"),
        "reset": _status(429, X_RateLimit_Reset_Requests="300ms"),
        "retry_at": lambda h, s, t: h.plain(503, b"", {"Retry-After": _date(1.5)}),
        "newer_name": _status(400, "unsupported_parameter", param="max_tokens"),
        "no_newer": _status(400, "unsupported_parameter", param="max_completion_tokens"),
        "long_limit": _status(400, message="maximum context length is 9", param="max_tokens"),
        "wordy": _status(400, message="context length " + "x" * 1000),
        "huge": lambda h, s, t: h.plain(500, b"x" * 10_000),
        "endless": lambda h, s, t: h.endless(s),
    }
)


class Sockets(http.server.ThreadingHTTPServer):
    daemon_threads, block_on_close = False, True  # so that closing leaves nothing behind
    request_queue_size = 64

    owner: "OpenAIServer"

    def handle_error(self, request, client_address):
        pass  # clients hang up; that is what some tests are about


class OpenAIServer:
    """Serves until the `with` block ends.

    `asked` has (text, request, headers) of every request, `times` when they came, `answered` how
    often a text was answered as it should be, `most_open` how many requests were open at once.
    """

    def __init__(self, answer, fault=lambda text, attempt: "", *, think_s=0.0, headers=(), port=0):
        self.answer, self.fault, self.think_s, self.headers = answer, fault, think_s, headers
        self.asked, self.times = [], []
        self.attempts, self.answered = collections.Counter(), collections.Counter()
        self.open = self.most_open = 0
        self.elsewhere = ""  # base URL that a fault which is a number, say 307, redirects to
        self.closing, self._lock = threading.Event(), threading.Lock()
        self._sockets = Sockets(("127.0.0.1", port), Handler)
        self._sockets.owner = self
        self.port = self._sockets.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}/v1"

    def begin(self, text, request, headers):
        with self._lock:
            self.asked.append((text, request, {k.lower(): v for k, v in headers.items()}))
            self.times.append(time.monotonic())
            attempt = self.attempts[text]
            self.attempts[text] += 1
            self.open += 1
            self.most_open = max(self.most_open, self.open)
        return self.fault(text, attempt)

    def end(self):
        with self._lock:
            self.open -= 1

    def __enter__(self):
        self._thread = threading.Thread(target=self._sockets.serve_forever, args=(0.01,))
        self._thread.start()
        return self

    def __exit__(self, *_):
        self.closing.set()
        self._sockets.shutdown()
        self._thread.join()
        self._sockets.server_close()
