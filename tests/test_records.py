import dataclasses
import json

import pytest

from stair_jax import jsonl, records
from stair_jax.records import Prompt, SftRow
from tests.support.rows import LEAF, PROMPT, ROWS


@pytest.mark.parametrize("row", ROWS, ids=lambda row: type(row).__name__)
def test_rows_survive_the_disk(row, tmp_path):
    path = tmp_path / "rows.jsonl"
    jsonl.append_jsonl(path, row)
    jsonl.append_jsonl(path, row)
    assert jsonl.read_jsonl(path, type(row)) == [row, row]


def test_a_torn_last_line_is_passed_over_and_mended(tmp_path):
    path = tmp_path / "rows.jsonl"
    jsonl.append_jsonl(path, PROMPT)
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"id": "b", "ques')
    assert jsonl.read_jsonl(path, Prompt) == [PROMPT]
    jsonl.mend_jsonl(path)
    assert path.read_bytes() == whole
    jsonl.append_jsonl(path, PROMPT)
    assert len(jsonl.read_jsonl(path, Prompt)) == 2


def test_a_line_cut_exactly_before_its_newline_is_whole_or_mended(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(records.to_json(PROMPT)))
    assert jsonl.read_jsonl(path, Prompt) == [PROMPT]
    jsonl.mend_jsonl(path)
    assert path.read_text() == ""


def test_a_broken_line_in_the_middle_is_named(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 1}\n{"b": \n{"c": 3}\n')
    with pytest.raises(ValueError, match=r"rows\.jsonl:2: not JSON"):
        jsonl.read_json_lines(path)


def test_unknown_and_missing_keys_are_refused():
    with pytest.raises(TypeError, match="colour"):
        records.from_json(SftRow, {"id": "a", "question": "q", "response": "r", "colour": "red"})
    with pytest.raises(TypeError, match="response"):
        records.from_json(SftRow, {"id": "a", "question": "q"})


def test_paths_run_from_the_first_step():
    tree = ROWS[2]
    assert tree.path(1) == [LEAF]
    assert tree.path(0) == []
    assert LEAF.value == 1.5


def test_whole_files_appear_at_once(tmp_path):
    path = tmp_path / "deep" / "rows.jsonl"
    jsonl.write_jsonl(path, ROWS[:1])
    jsonl.write_jsonl(path, [PROMPT, PROMPT])
    assert len(jsonl.read_jsonl(path, Prompt)) == 2
    assert [p.name for p in path.parent.iterdir()] == ["rows.jsonl"]


def test_what_a_killed_writer_left_goes_with_the_next_write(tmp_path, monkeypatch):
    path = tmp_path / "x.json"
    with monkeypatch.context() as patch:
        patch.setattr(jsonl.os, "replace", _killed)
        with pytest.raises(RuntimeError, match="killed"):
            jsonl.write_json(path, [1])
    assert [p.name for p in tmp_path.iterdir()] == [".x.json.tmp"]
    jsonl.write_json(path, [2])
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]


def _killed(*_):
    raise RuntimeError("killed")


def test_a_journal_writes_what_came_in_within_a_second_at_once(tmp_path, monkeypatch):
    now, path, other = [0.0], tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    monkeypatch.setattr(jsonl.time, "monotonic", lambda: now[0])
    with jsonl.Journal() as journal:
        for i in range(3):
            journal.add(path, dataclasses.replace(PROMPT, id=str(i)))
        assert not path.exists()
        now[0] = jsonl.Journal.EVERY
        journal.add(other, PROMPT)
        assert [row.id for row in jsonl.read_jsonl(path, Prompt)] == ["0", "1", "2"]
        journal.add(path, PROMPT)
        assert len(jsonl.read_jsonl(path, Prompt)) == 3
    assert len(jsonl.read_jsonl(path, Prompt)) == 4
    assert jsonl.read_jsonl(other, Prompt) == [PROMPT]


def test_a_journal_that_an_exception_ends_has_written_all(tmp_path):
    path = tmp_path / "a.jsonl"

    def stopped():
        with jsonl.Journal() as journal:
            journal.add(path, PROMPT)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert jsonl.read_jsonl(path, Prompt) == [PROMPT]


def test_a_tree_of_a_plain_prompt_is_written_as_before_there_were_earlier_turns():
    plain = records.Prompt(id="a", question="q", type="safety")
    node = records.Node(
        parent=-1,
        ids=(),
        text="",
        depth=0,
        visits=1,
        value_sum=0.0,
        reward=None,
        terminal=False,
        p=1.0,
        tag="0",
    )
    turns = dataclasses.replace(plain, before=(("system", "s"),), prefill="x")
    for prompt, more in ((plain, set()), (turns, {"before", "prefill"})):
        tree = records.Tree(prompt=prompt, nodes=(node,))
        row = json.loads(json.dumps(records.to_json(tree)))
        assert set(row["prompt"]) == {"id", "question", "type", "ground_truth", "meta"} | more
        assert records.from_json(records.Tree, row).prompt == prompt
