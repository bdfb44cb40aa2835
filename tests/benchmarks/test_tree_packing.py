import dataclasses
import json

import pytest

from benchmarks import tree_packing
from stair_jax import jsonl
from tests.support.exported import pair


def rows():
    """Three pairs of one group, over a prefix of 20 tokens; steps of 2 tokens."""
    prefix, steps = tuple(range(20, 40)), [(50, 51), (52, 53), (54, 55)]
    return [
        dataclasses.replace(
            pair(i, terminal=False),
            prefix=prefix,
            chosen=steps[a],
            rejected=steps[b],
            rejected_terminal=False,
        )
        for i, (a, b) in enumerate([(0, 1), (0, 2), (1, 2)])
    ]


def test_tokens_of_trees_and_pairs_by_hand(tmp_path, capsys):
    jsonl.write_jsonl(tmp_path / "round-1" / "pairs" / "pairs.jsonl", rows())
    out = tmp_path / "out.json"
    tree_packing.main(["--out", str(out), "--workdir", str(tmp_path)])
    told = json.loads(out.read_text())
    (example, *_) = tree_packing.pairs_of(tmp_path)
    context = len(example.prompt) + 20
    pairwise, tree = told["sides"]["pairwise"], told["sides"]["tree, rows of 96"]
    assert pairwise["tokens"] == 3 * 2 * (context + 2)
    assert tree["tokens"] == context + 3 * 2
    assert told["tokens_of_distinct_trajectories"] == 3 * (context + 2)
    assert (pairwise["positions"], tree["positions"]) == (3 * 2 * 64, 96)
    assert (told["pairs"], told["groups"]) == (3, 1)
    assert told["claims"]["tokens of trees / of pairs"]["holds"]
    assert "An epoch of 3 pairs" in capsys.readouterr().out


def test_a_workdir_without_pairs_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit):
        tree_packing.main(["--out", str(tmp_path / "x.json"), "--workdir", str(tmp_path)])
    assert "has no round-*/pairs/pairs.jsonl with pairs" in capsys.readouterr().err


def test_a_run_is_made_for_its_pairs_where_none_is_named(tmp_path, monkeypatch):
    def grow(workdir):
        jsonl.write_jsonl(workdir / "round-1" / "pairs" / "pairs.jsonl", rows())

    monkeypatch.setattr(tree_packing, "grow", grow)
    tree_packing.main(["--out", str(tmp_path / "x.json")])
    assert json.loads((tmp_path / "x.json").read_text())["pairs_of"] == "configs/tiny.py:smoke"
