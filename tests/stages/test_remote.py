"""Stage search with a judge behind an endpoint that fails, and the next start."""

import json

from stair_jax.remote.client import Unavailable
from stair_jax.remote.reply_cache import FILE
from stair_jax.run.judges import LeftOpen
from tests.support.openai_server import OpenAIServer
from tests.support.remote_stage import stage

__all__ = ["stage"]
OPEN_ROWS = ("question 1", "question 3")


def verdict(text):
    return f"Conclusion: {'SAFE' if 'SAFE' in text else 1 + len(text) % 5}"


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
