"""Stage search with a judge behind an endpoint that fails, and the next start."""

import collections
import json

import pytest

from stair_jax.io.metrics import Metrics
from stair_jax.model.spec import Spec
from stair_jax.records import Tree, read_jsonl
from stair_jax.rewards import remote
from stair_jax.rewards.judgements import FILE
from stair_jax.rewards.remote import Unavailable
from stair_jax.stages import policies, prompts, search
from stair_jax.stages.judges import LeftOpen
from stair_jax.stages.lineage import Lineage
from stair_jax.stages.policies import Policy
from stair_jax.stages.run import Run
from stair_jax.text import Codec
from tests import scripted
from tests.openai_server import OpenAIServer
from tests.scripted import RandomScript, ScriptedCodec, ScriptedEngine
from tests.test_config import tiny

ROWS = scripted.prompts(5)
OPEN_ROWS = ("question 1", "question 3")
# Trees of another shape are another program to compile.
SEARCH = {"iterations": 5, "num_children": 3, "max_depth": 5, "trees_in_flight": 2}


SPEC = Spec(
    **tiny().model.size.to_dict(), V=9, vocab=9, rope_scaling=None, qkv_bias=False, qk_norm=False,
    tied=True, family="llama",
)  # fmt: skip


class Speech(ScriptedCodec, Codec):  # pyright: ignore[reportIncompatibleMethodOverride]
    """A scripted codec where the stages ask for a real one."""


class Engine(ScriptedEngine):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.counters = collections.Counter()

    def compile(self, samplings, **_):
        assert len(samplings) == 1  # nothing for a judge in the engine


def verdict(text):
    return f"Conclusion: {'SAFE' if 'SAFE' in text else 1 + len(text) % 5}"


@pytest.fixture
def stage(tmp_path, monkeypatch):
    """Runs the stage in one workdir; returns its trees, or what it raises, and the lineage."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-mine")
    monkeypatch.setattr(remote, "PAUSE_S", 0.001)
    codec = Speech()
    monkeypatch.setattr(policies, "load", lambda run, name, **_: Policy(name, SPEC, None, codec))
    monkeypatch.setattr(
        policies, "engine_for", lambda *_: Engine(RandomScript("stage", names=4), codec)
    )
    monkeypatch.setattr(policies, "parent_of_round", lambda *_: "base")
    monkeypatch.setattr(prompts, "for_round", lambda *_: ROWS)

    def go(url, **changes):
        c = tiny("smoke", workdir=str(tmp_path), **changes)
        c.data.prompts = "ours"  # the verifier does not know these
        c.judge.update(
            safety="remote", helpfulness="remote", endpoint=url, model="m", retries=1,
            concurrency=1, timeout=20.0, refusal_rule=False,
        )  # fmt: skip
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


def test_open_trees_leave_the_stage_unfinished_and_grow_at_the_next_start(stage, tmp_path):
    def fault(text, attempt):
        return "500" if any(row in text for row in OPEN_ROWS) and attempt < 2 else ""

    with OpenAIServer(verdict, fault) as server:
        starts = []
        while not starts or starts[-1][1]:
            starts.append(stage(server.url))
            assert len(starts) < 20
        assert max(server.answered.values()) == 1
        trees, ended, lineage = starts[0]
        assert isinstance(ended, LeftOpen)
        assert str(ended).startswith("round-1/trees: 2 left open, for nobody judged them (p1, p3)")
        assert "the same command" in str(ended)
        assert sorted(trees) == ["p0", "p2", "p4"]
        assert not lineage.finished("round-1/trees")
    last, _, lineage = starts[-1]
    assert lineage.finished("round-1/trees")
    assert {id: last[id] for id in trees} == trees
    kept = [json.loads(line) for line in (tmp_path / "judgements" / FILE).read_text().splitlines()]
    assert len(kept) == len({row["key"] for row in kept}) == server.answered.total()
    for path in tmp_path.rglob("*"):
        assert path.is_dir() or b"sk-mine" not in path.read_bytes()


def test_a_folder_of_judgements_serves_other_runs(stage, tmp_path_factory):
    cache = tmp_path_factory.mktemp("paid")
    with OpenAIServer(verdict) as server:
        trees, ended, _ = stage(server.url, judge__cache=str(cache))
    assert ended is None
    assert len(trees) == 5
    assert (cache / FILE).exists()


def test_a_dead_endpoint_ends_the_stage(stage):
    with OpenAIServer(verdict, lambda text, attempt: "drop") as server:
        trees, ended, lineage = stage(server.url)
    assert isinstance(ended, Unavailable)
    assert trees == {}
    assert not lineage.finished("round-1/trees")
