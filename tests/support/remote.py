"""Raters behind a server of `openai_server`."""

import contextlib
import json
import time

import pytest

from stair_jax.config.schema import JudgeConfig
from stair_jax.judges.base import Rater
from stair_jax.judges.remote import RemoteRater
from stair_jax.judges.rubrics import Rubric
from stair_jax.records import Prompt
from stair_jax.remote import reply_cache
from stair_jax.remote.client import EndpointClient

HELP = Rubric("helpfulness", "How helpful? {question} / {answer}")
SAFE = Rubric("safety", "How safe? {question} / {answer}")
PROMPT = Prompt(id="p", question="why", type="safety")
SLOW = ("hang", "trickle")  # what only the clock ends


@pytest.fixture(autouse=True)
def _direct(monkeypatch):
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def config(url="http://127.0.0.1:9/v1", **changes):
    values = {
        "safety": "remote",
        "helpfulness": "remote",
        "scope": "all",
        "refusal_rule": False,
        "samples": 1,
        "temperature": 0.25,
        "top_p": 0.75,
        "max_tokens": 99,
        "templates": "",
        "endpoint": url,
        "model": "judge-1",
        "concurrency": 4,
        "timeout": 10.0,
        "retries": 2,
        "cache": "",
        "reward_model": "",
    }
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
    with contextlib.closing(EndpointClient(config(url, **changes), folder, pause_s=0.001)) as line:
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


def kept(folder):
    """The lines of the file of replies."""
    return [json.loads(line) for line in (folder / reply_cache.FILE).read_text().splitlines()]
