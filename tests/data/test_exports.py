import dataclasses
import json

import datasets
import pytest

from stair_jax import config as config_lib
from stair_jax import jsonl
from stair_jax.config import EXPORTS
from stair_jax.config.checks import validate
from stair_jax.data import exports, formats
from stair_jax.log.metrics import Metrics
from stair_jax.records import Node, Prompt, Tree
from stair_jax.run.lineage import Lineage
from stair_jax.run.workdir import Run
from stair_jax.stages import pairs as pairs_stage
from tests.support.exported import pair

PAIRS = [pair(0), pair(1, terminal=False, question="is <tag> é a tag?")]


@pytest.fixture
def folder(tmp_path):
    exports.write(EXPORTS, PAIRS, tmp_path, {"<tag>"})
    return tmp_path


def read(folder, kind, path):
    """As the libraries that these files are for read them; returns the rows."""
    return datasets.load_dataset(
        kind, data_files=str(folder / path), split="train", cache_dir=str(folder / "cache")
    ).to_list()  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize(
    ("kind", "path"), [("json", "openrlhf/pairs.jsonl"), ("parquet", "trl/pairs.parquet")]
)
def test_messages_are_read_back_by_datasets(folder, kind, path):
    rows = read(folder, kind, path)
    assert rows[1]["prompt"] == [{"role": "user", "content": "is < tag> é a tag?"}]
    assert rows[0] == {
        "id": "x/0",
        "type": "safety",
        "prompt": [{"role": "user", "content": "why?"}],
        "chosen": [{"role": "assistant", "content": "shared better 0"}],
        "rejected": [{"role": "assistant", "content": "shared worse 0"}],
    }
    assert len(rows) == 2


def test_a_conversation_and_a_beginning_are_in_every_form(tmp_path):
    began = dataclasses.replace(
        pair(0),
        before=(("system", "be <tag>"), ("user", "hi"), ("assistant", "yes")),
        prefill="so ",
    )
    exports.write(EXPORTS, [began], tmp_path, {"<tag>"})
    (row,) = read(tmp_path, "json", "openrlhf/pairs.jsonl")
    assert [turn["role"] for turn in row["prompt"]] == ["system", "user", "assistant", "user"]
    assert row["prompt"][0]["content"] == "be < tag>"
    assert row["chosen"] == [{"role": "assistant", "content": "so shared better 0"}]
    assert row["rejected"] == [{"role": "assistant", "content": "so shared worse 0"}]
    assert read(tmp_path, "parquet", "trl/pairs.parquet") == [row]
    (ranking,) = read(tmp_path, "json", "llamafactory/pairs.json")
    assert [turn["from"] for turn in ranking["conversations"]] == [
        "system",
        "human",
        "gpt",
        "human",
    ]
    assert ranking["chosen"] == {"from": "gpt", "value": "so shared better 0"}


def test_a_ranking_is_known_by_its_entry(folder):
    entry = json.loads((folder / "llamafactory" / "dataset_info.json").read_text())["stair"]
    assert entry["formatting"] == "sharegpt"
    assert entry["ranking"] is True
    row = read(folder, "json", f"llamafactory/{entry['file_name']}")[0]
    columns = entry["columns"]
    assert row[columns["messages"]] == [{"from": "human", "value": "why?"}]
    assert row[columns["chosen"]] == {"from": "gpt", "value": "shared better 0"}
    assert row[columns["rejected"]] == {"from": "gpt", "value": "shared worse 0"}


FILES = ["llamafactory/pairs.json", "openrlhf/pairs.jsonl", "trl/pairs.parquet"]


@pytest.mark.parametrize("path", FILES)
def test_what_we_write_is_what_we_read(folder, path):
    rows = formats.preference_rows(str(folder / path)).rows
    want = [("why?", 0), ("is < tag> é a tag?", 1)]
    assert [(x.question, x.chosen, x.rejected) for x in rows] == [
        (question, f"shared better {i}", f"shared worse {i}") for question, i in want
    ]
    if "llamafactory" not in path:
        assert [(x.id, x.type) for x in rows] == [("x/0", "safety"), ("x/1", "safety")]


def test_only_what_is_named_is_written(tmp_path):
    exports.write(["trl"], PAIRS, tmp_path, ())
    assert [x.name for x in tmp_path.iterdir()] == ["trl"]
    exports.write([], PAIRS, tmp_path / "none", ())
    assert not (tmp_path / "none").exists()


def test_pairs_that_others_would_end_are_counted():
    assert exports.unfinished(PAIRS) == 1
    assert exports.unfinished(PAIRS[:1]) == 0


def test_names_are_known_and_unknown_ones_refused():
    assert set(exports.WRITERS) == set(EXPORTS)
    c = config_lib.default()
    c.update(workdir="x", stages="pairs")
    c.pairs.export = "trl,axolotl"
    with pytest.raises(ValueError, match=r"config\.pairs\.export: \['axolotl'\] not in"):
        validate(c)
    c.pairs.export = "trl, openrlhf"
    validate(c)


def test_the_stage_writes_what_is_asked_for_and_counts_what_others_will_end(tmp_path, caplog):
    caplog.set_level("INFO", logger="stair_jax.stages.pairs")
    c = config_lib.default()
    c.update(workdir=str(tmp_path), stages="pairs")
    c.pairs.export = "trl, llamafactory"
    run = Run(c, tmp_path, Lineage(tmp_path / "lineage.json"), Metrics(tmp_path))
    run.lineage.begin("round-1/trees", "search", {}, ())
    run.lineage.finish("round-1/trees", "x")
    steps = [("0.0", -1.0, True), ("0.1", 1.0, False)]
    nodes = [
        Node(
            parent=-1,
            ids=(),
            text="",
            depth=0,
            visits=9,
            value_sum=0.0,
            reward=None,
            terminal=False,
            p=1.0,
            tag="0",
        )
    ]
    nodes += [
        Node(
            parent=0,
            ids=(9,),
            text=f"step {tag}",
            depth=1,
            visits=4,
            value_sum=4 * value,
            reward=value if terminal else None,
            terminal=terminal,
            p=1.0,
            tag=tag,
        )
        for tag, value, terminal in steps
    ]
    question = "what is <|Output|> ?"
    tree = Tree(prompt=Prompt(id="q", question=question, type="safety"), nodes=tuple(nodes))
    jsonl.write_jsonl(tmp_path / "round-1" / "trees" / "trees.jsonl", [tree])
    pairs_stage.run(run, 1)
    folder = tmp_path / "round-1" / "pairs" / "export"
    assert sorted(x.name for x in folder.iterdir()) == ["llamafactory", "trl"]
    (row,) = formats.preference_rows(str(folder / "trl" / "pairs.parquet")).rows
    assert (row.chosen, row.rejected) == ("step 0.1", "step 0.0")
    assert row.question == "what is < |Output|> ?"  # as it is trained
    (line,) = jsonl.read_json_lines(tmp_path / "metrics.jsonl")
    assert line["export/unfinished"] == 1
    assert "round-1/pairs: 1 pairs of 1 of 1 trees, 1 whole responses" in caplog.messages
