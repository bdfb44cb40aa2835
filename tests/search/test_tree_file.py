"""The trees of a round on disk: their lines, and the index beside the file."""

import base64
import dataclasses
import json
import struct
import zlib

import pytest

from stair_jax import jsonl, records
from stair_jax.records import Node, Prompt, Tree
from stair_jax.search import tree_file
from stair_jax.search.tree_file import TreeFile, open_to_append


def tree(id, *, size=5, question="q ü?"):
    """A tree whose tokens and statistics are fixed by its id and its nodes' numbers."""
    nodes = [
        Node(
            parent=(i - 1) // 2,
            ids=tuple(7**j * (i + len(id)) % 2**31 for j in range(3 * i % 7)),
            text=f"ß {id} {i}\n",
            depth=i.bit_length() - 1,
            visits=i + 1,
            value_sum=i / 3,
            reward=None if i % 3 else i / 7,
            terminal=i % 3 == 0,
            p=1 / (i + 1),
            tag=f"0.{i}",
        )
        for i in range(size)
    ]
    prompt = Prompt(id=id, question=question, type="safety", meta={"kind": "x"})
    return Tree(prompt=prompt, nodes=tuple(nodes), counters={"tokens": 2.0 * size, "judged": 1.0})


def line_of_before(tree):
    """A line as version 0.1 wrote it."""
    return json.dumps(dataclasses.asdict(tree), ensure_ascii=False) + "\n"


@pytest.fixture
def folder(tmp_path):
    found = open_to_append(tmp_path)
    for id in ("c", "a", "b"):
        found.append(tree(id))
    return tmp_path


def index(folder):
    return [json.loads(line) for line in (folder / tree_file.INDEX).read_text().splitlines()]


# ---- a line


def test_token_ids_are_one_column_whose_parts_are_the_nodes():
    row = records.to_json(tree("a"))
    assert list(row) == ["prompt", "counters", "nodes"]
    nodes = row["nodes"]
    packed = zlib.decompress(base64.b64decode(nodes["ids"]))
    want = [token for node in tree("a").nodes for token in node.ids]
    assert struct.unpack(f"<{len(want)}i", packed) == tuple(want)
    assert nodes["tokens"] == [0, 3, 6, 2, 5]
    assert nodes["parent"] == [-1, 0, 0, 1, 1]
    assert {len(column) for name, column in nodes.items() if name != "ids"} == {5}


def test_compression_has_the_level_that_is_set(monkeypatch):
    some = dataclasses.replace(
        tree("a"), nodes=(dataclasses.replace(tree("a").nodes[0], ids=(5, 6, 7, 8) * 999),)
    )
    lengths = []
    for level in (0, records.LEVEL):
        monkeypatch.setattr(records, "LEVEL", level)
        row = json.loads(json.dumps(records.to_json(some)))
        lengths.append(len(row["nodes"]["ids"]))
        assert records.from_json(Tree, row) == some
    assert lengths[0] > 10 * lengths[1]


@pytest.mark.parametrize(
    ("key", "value", "error", "says"),
    [
        ("tokens", [0, 3, 6, 2, 4], ValueError, "16.0 found, 15 expected"),
        ("tokens", [0, 3, 6, 7], ValueError, "different lengths"),
        ("text", ["x"], ValueError, "different lengths"),
        ("colour", ["red"] * 5, TypeError, "colour"),
    ],
)
def test_columns_that_do_not_fit_are_refused(key, value, error, says):
    row = records.to_json(tree("a"))
    row["nodes"][key] = value
    with pytest.raises(error, match=says):
        records.from_json(Tree, row)


def test_a_tree_is_half_as_large_and_far_smaller_than_a_list_of_objects():
    some = tree("a", size=160)
    long = tuple(range(20_000, 20_100))
    nodes = tuple(dataclasses.replace(node, ids=long) for node in some.nodes)
    some = dataclasses.replace(some, nodes=nodes)
    new = json.dumps(records.to_json(some), ensure_ascii=False)
    assert len(new) < len(line_of_before(some)) / 2


# ---- the file


def test_trees_come_in_the_order_of_ids_whatever_order_they_were_added_in(folder):
    found = TreeFile(folder)
    assert list(found) == [tree(id) for id in "abc"]
    assert list(found.ids) == ["c", "a", "b"]
    assert len(found) == 3
    assert list(found.counters()) == [tree("a").counters] * 3
    other = folder / "other"
    other.mkdir()
    again = open_to_append(other)
    for id in "abc":
        again.append(tree(id))
    assert (other / tree_file.FILE).read_bytes() != (folder / tree_file.FILE).read_bytes()
    assert again.digest() == found.digest()
    again.append(tree("d"))
    assert again.digest() != found.digest()


def test_a_file_of_the_version_before_is_read_and_may_go_on(folder):
    (folder / tree_file.INDEX).unlink()
    old = "".join(line_of_before(tree(id)) for id in ("c", "a"))
    (folder / tree_file.FILE).write_text(old)
    found = open_to_append(folder)
    assert list(found) == [tree("a"), tree("c")]
    found.append(tree("b", size=9))
    found = TreeFile(folder)
    assert list(found) == [tree("a"), tree("b", size=9), tree("c")]
    assert [c["tokens"] for c in found.counters()] == [10, 10, 18]
    assert (folder / tree_file.FILE).read_text().startswith(old)


def test_a_second_tree_of_a_prompt_is_refused(folder):
    with pytest.raises(ValueError, match=r"trees\.jsonl: a second tree of prompt 'a'"):
        TreeFile(folder).append(tree("a"))
    jsonl.append_jsonl(folder / tree_file.FILE, tree("c"))
    with pytest.raises(ValueError, match=r"trees\.jsonl:4: a second tree of prompt 'c'"):
        TreeFile(folder)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('{"prompt": ', "not JSON"),
        ('{"id": 1}', "not a tree, expected a prompt"),
        ("[1]", "not a tree"),
    ],
)
def test_a_broken_line_is_named(folder, line, says):
    with open(folder / tree_file.FILE, "a", encoding="utf-8") as file:
        file.write(line + "\n")
    with pytest.raises(ValueError, match=rf"trees\.jsonl:4: {says}"):
        TreeFile(folder)


def test_a_line_that_only_begins_as_a_tree_is_named_when_it_is_read(folder):
    row = records.to_json(tree("d"))
    del row["nodes"]["tag"]
    with open(folder / tree_file.FILE, "a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
    with pytest.raises(ValueError, match=r"tree of prompt 'd': columns of nodes: .*'tag'"):
        list(TreeFile(folder))


@pytest.mark.parametrize("torn", ['{"prompt": {"id": "d"', line_of_before(tree("d"))[:-1]])
def test_a_torn_last_line_is_passed_over_and_mended(folder, torn):
    whole = (folder / tree_file.FILE).read_bytes()
    (folder / tree_file.FILE).write_bytes(whole + torn.encode())
    assert list(TreeFile(folder).ids) == ["c", "a", "b"]
    assert (folder / tree_file.FILE).read_bytes() != whole  # who only reads changes nothing
    found = open_to_append(folder)
    assert (folder / tree_file.FILE).read_bytes() == whole
    found.append(tree("d"))
    assert list(TreeFile(folder).ids) == ["c", "a", "b", "d"]


def test_an_empty_folder_has_no_trees(tmp_path):
    found = open_to_append(tmp_path)
    assert list(found) == []
    assert (tmp_path / tree_file.FILE).read_bytes() == b""
    with pytest.raises(FileNotFoundError):
        TreeFile(tmp_path / "none")


def test_a_question_longer_than_what_is_read_of_a_line(tmp_path):
    found = open_to_append(tmp_path)
    some = tree("long", question="ü" * 3 * tree_file._HEAD)
    found.append(some)
    (tmp_path / tree_file.INDEX).unlink()
    found = TreeFile(tmp_path)
    assert list(found) == [some]
    assert list(found.counters()) == [some.counters]


# ---- the index


def test_the_index_saves_reading_the_file(folder, monkeypatch):
    monkeypatch.setattr(tree_file, "_head", lambda line: pytest.fail("a line was read"))
    found = TreeFile(folder)
    assert list(found.ids) == ["c", "a", "b"]
    places = [place for _, *place in index(folder)]
    assert places == [list(place) for place in found._places.values()]
    monkeypatch.undo()
    assert list(found) == [tree(id) for id in "abc"]


def changed(folder, how):
    """Spoils the index, or the file behind its back."""
    path, rows = folder / tree_file.INDEX, index(folder)
    spoiled = {
        "absent": None,
        "short": rows[:2],
        "of a longer file": [*rows, ["d", rows[-1][1] + rows[-1][2], 9]],
        "of other sizes": [[id, at, size + 1] for id, at, size in rows],
        "of other ids": [["x", *rows[0][1:]], *rows[1:]],
        "out of order": rows[::-1],
        "not places": [["c"], 7, None],
    }[how]
    if spoiled is None:
        path.unlink()
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in spoiled))


HOWS = "absent, short, of a longer file, of other sizes, of other ids, out of order, not places"


@pytest.mark.parametrize("how", HOWS.split(", "))
def test_an_index_that_does_not_fit_is_made_anew(folder, how):
    right = index(folder)
    changed(folder, how)
    assert not (folder / tree_file.INDEX).exists() or index(folder) != right
    assert list(TreeFile(folder)) == [tree(id) for id in "abc"]
    assert index(folder) == right


def test_a_torn_index_is_made_anew(folder):
    right = (folder / tree_file.INDEX).read_bytes()
    for cut in (1, 5, len(right) // 2):
        (folder / tree_file.INDEX).write_bytes(right[:-cut])
        found = open_to_append(folder)
        assert list(found.ids) == ["c", "a", "b"]
        assert (folder / tree_file.INDEX).read_bytes() == right


def test_a_file_changed_behind_the_index_is_read_anew(folder):
    lines = (folder / tree_file.FILE).read_text().splitlines(keepends=True)
    (folder / tree_file.FILE).write_text(lines[2] + lines[0])
    assert list(TreeFile(folder)) == [tree("b"), tree("c")]
