"""The benchmark of the server: what it claims of its figures."""

import argparse
import json

from benchmarks import harness, serving


class Fake:
    """A server of known figures."""

    def __init__(self, checkpoint, folder):
        assert checkpoint == "folder/smol"
        self.turns, self.model = 0, self
        self.engine = self.codec = self
        self.counters = {"prefilled": 0, "reused": 0}

    def close(self):
        self.closed = True

    def prompt_ids(self, prompt):
        return [1, 2, 3]

    def alone(self, prompts, turn):
        return {"seconds": 1.0, "tokens": 100.0, "per_s": 100.0}

    def asked(self, prompts, clients, stream, n=1):
        if n > 1:
            self.counters = {"prefilled": 3 * len(prompts), "reused": 8 * len(prompts)}
        first = {"first_s": 0.25} if stream else {}
        return {"seconds": 2.0, "tokens": 100.0, "per_s": 90.0 if clients > 1 else 30.0, **first}


def test_claims_compare_the_server_with_its_engine(monkeypatch):
    monkeypatch.setattr(serving, "Serving", Fake)
    monkeypatch.setattr(harness, "machine", lambda *_: {})
    options = argparse.Namespace(checkpoint="folder/smol", requests=4, repetitions=2)
    figures, claims = serving.measure(options)
    assert claims["server_to_engine"].value == 0.9
    assert claims["server_to_engine"].holds
    assert claims["prompt_tokens_computed_once"].value == 1.5  # 3 computed of 2 that are to be
    assert not claims["prompt_tokens_computed_once"].holds
    assert figures["first_token_s"] == {"16 streams": 0.25, "1 stream": 0.25}
    assert figures["checkpoint"] == "smol"
    assert len(figures["rounds"]) == 2
    json.dumps(figures)
    assert "0.25" in serving.tables(figures)
