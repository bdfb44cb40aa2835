import json
import pathlib

import pytest

from stair_jax.search import official
from tests.support.scripted import RandomScript, ScriptedCodec, prompts, run, search_config

TREE = pathlib.Path(__file__).parents[1] / "golden" / "official_format" / "tree.json"


def test_an_official_tree_survives_the_round_trip():
    entries = json.loads(TREE.read_text())
    tree = official.from_official(entries, id="x", type="helpfulness")
    assert len(tree.nodes) == entries["tree_size"] > 50
    back = official.to_official(tree)
    assert back == entries
    assert list(back) == list(entries)


def test_files_hold_lists_of_trees_and_give_ids_to_every_step(tmp_path):
    codec = ScriptedCodec()
    tree = official.from_official(json.loads(TREE.read_text()), id="x", type="safety")
    official.write(tmp_path / "trees.json", [tree, tree])
    trees = official.read(
        tmp_path / "trees.json", type_of=lambda question: "safety", encode=codec.encode
    )
    assert [t.prompt.id for t in trees] == ["0", "1"]
    assert trees[1].prompt.question == tree.prompt.question
    assert trees[1].prompt.type == "safety"
    for node in trees[1].nodes:
        assert codec.decode(node.ids) == node.text


def test_a_grown_tree_survives_too_whatever_the_order_of_its_nodes():
    tree = run(RandomScript("o"), search_config(), rows=prompts(1))[0]["p0"]
    tags = [node.tag for node in tree.nodes]
    entries = json.loads(json.dumps(official.to_official(tree)))
    back = official.from_official(entries, id="p0", type="safety")
    assert [node.tag for node in back.nodes] != tags
    for node in back.nodes:
        twin = tree.nodes[tags.index(node.tag)]
        assert (node.text, node.visits, node.value_sum) == (twin.text, twin.visits, twin.value_sum)
        assert (node.reward, node.terminal, node.p) == (twin.reward, twin.terminal, twin.p)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda entries: entries.pop("0"), "root '0' expected"),
        (lambda entries: entries.pop("0.2"), "parent '0.2' is not in the tree"),
        (lambda entries: entries["0.1"].pop("depth"), "node 0.1: no 'depth'"),
    ],
)
def test_broken_trees_are_refused_by_tree_and_node(change, message):
    entries = json.loads(TREE.read_text())
    change(entries)
    with pytest.raises(ValueError, match=message):
        official.from_official(entries, id="x", type="safety")


def test_a_file_that_is_not_a_list_is_refused(tmp_path):
    (tmp_path / "t.json").write_text(TREE.read_text())
    with pytest.raises(ValueError, match=r"t\.json: dict found"):
        official.read(tmp_path / "t.json", type_of=lambda question: "safety")
