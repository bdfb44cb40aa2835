import json

import datasets
import pytest

from stair_jax import config as config_lib
from stair_jax.config import EXPORTS
from stair_jax.io import exports, formats
from stair_jax.records import Pair
from stair_jax.validate import validate


def pair(i, terminal=True, question="why?"):
    return Pair(
        id=f"x/{i}", question=question, type="safety", prefix=(1,), chosen=(2,), rejected=(3,),
        chosen_value=1.0, rejected_value=-1.0, chosen_terminal=terminal, rejected_terminal=True,
        chosen_text=f"shared better {i}", rejected_text=f"shared worse {i}", depth=2,
    )  # fmt: skip


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
        "id": "x/0", "type": "safety", "prompt": [{"role": "user", "content": "why?"}],
        "chosen": [{"role": "assistant", "content": "shared better 0"}],
        "rejected": [{"role": "assistant", "content": "shared worse 0"}],
    }  # fmt: skip
    assert len(rows) == 2


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
