"""Stage search with a judge behind a server."""

import collections
import functools

import pytest

from stair_jax.jsonl import read_jsonl
from stair_jax.log.metrics import Metrics
from stair_jax.model.spec import Spec
from stair_jax.records import Tree
from stair_jax.remote import client
from stair_jax.run import known_models, models, rows
from stair_jax.run.lineage import Lineage
from stair_jax.run.models import Policy
from stair_jax.run.workdir import Run
from stair_jax.stages import search
from stair_jax.text import Codec
from tests.support import scripted
from tests.support.configs import tiny
from tests.support.scripted import RandomScript, ScriptedCodec, ScriptedEngine

ROWS = scripted.prompts(5)
# Trees of another shape are another program to compile.
SEARCH = {"iterations": 5, "num_children": 3, "max_depth": 5, "trees_in_flight": 2}


SPEC = Spec(
    **tiny().model.size.to_dict(),
    V=9,
    vocab=9,
    rope_scaling=None,
    qkv_bias=False,
    qk_norm=False,
    tied=True,
    family="llama",
)


class Speech(ScriptedCodec, Codec):  # pyright: ignore[reportIncompatibleMethodOverride]
    """A scripted codec where the stages ask for a real one."""


class Engine(ScriptedEngine):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.counters = collections.Counter()

    def compile(self, samplings, **_):
        assert len(samplings) == 1  # nothing for a judge in the engine


@pytest.fixture
def stage(tmp_path, monkeypatch):
    """Runs the stage in one workdir; returns its trees, or what it raises, and the lineage."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-mine")
    hasty = functools.partial(client.EndpointClient, pause_s=0.001)
    monkeypatch.setattr(client, "EndpointClient", hasty)
    codec = Speech()
    monkeypatch.setattr(models, "load", lambda run, model, **_: Policy(model, SPEC, None, codec))
    monkeypatch.setattr(
        models, "engine_for", lambda *_: Engine(RandomScript("stage", names=4), codec)
    )
    monkeypatch.setattr(known_models, "parent_of_round", lambda run, _: known_models.base(run))
    monkeypatch.setattr(rows, "for_round", lambda *_: ROWS)

    def go(url, **changes):
        c = tiny("smoke", workdir=str(tmp_path), **changes)
        c.data.prompts = "ours"  # the verifier does not know these
        c.judge.update(
            safety="remote",
            helpfulness="remote",
            endpoint=url,
            model="m",
            retries=1,
            concurrency=1,
            timeout=20.0,
            refusal_rule=False,
        )
        c.search.update(SEARCH)
        with Metrics(tmp_path) as metrics:
            run = Run(c, tmp_path, Lineage(tmp_path / "lineage.json"), metrics)
            try:
                search.run(run, 1)
                ended = None
            except OSError as error:
                ended = error
        trees = read_jsonl(tmp_path / "round-1" / "trees" / "trees.jsonl", Tree)
        return {tree.prompt.id: tree for tree in trees}, ended, run.lineage

    return go
