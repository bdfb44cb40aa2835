import dataclasses
import json

import pytest

from stair_jax import records
from stair_jax.records import Node, Pair, Prompt, Response, SftRow, Tree

PROMPT = Prompt(id="a", question="q ü", type="safety", ground_truth="7", meta={"kind": "sum"})
ROOT = Node(parent=-1, ids=(), text="", depth=0, visits=3, value_sum=1.5, reward=None,
            terminal=False, p=1.0, tag="0")  # fmt: skip
LEAF = Node(parent=0, ids=(4, 5), text="x", depth=1, visits=2, value_sum=3.0, reward=1.5,
            terminal=True, p=0.25, tag="0.0")  # fmt: skip
ROWS = [
    PROMPT,
    SftRow(id="s", question="q", response="r"),
    Tree(prompt=PROMPT, nodes=(ROOT, LEAF), counters={"rollouts": 2.0}),
    Pair(id="p", question="q", type="helpfulness", prefix=(1,), chosen=(2, 3), rejected=(4,),
         chosen_value=2.0, rejected_value=1.0, chosen_terminal=True, rejected_terminal=False,
         chosen_text="c", rejected_text="r", depth=2),
    Response(id="r", question="q", type="safety", ids=(1, 2), text="t", value=1.0, terminal=True),
]  # fmt: skip


@pytest.mark.parametrize("row", ROWS, ids=lambda row: type(row).__name__)
def test_rows_survive_the_disk(row, tmp_path):
    path = tmp_path / "rows.jsonl"
    records.append_jsonl(path, row)
    records.append_jsonl(path, row)
    assert records.read_jsonl(path, type(row)) == [row, row]


def test_a_torn_last_line_is_passed_over_and_mended(tmp_path):
    path = tmp_path / "rows.jsonl"
    records.append_jsonl(path, PROMPT)
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"id": "b", "ques')
    assert records.read_jsonl(path, Prompt) == [PROMPT]
    records.mend_jsonl(path)
    assert path.read_bytes() == whole
    records.append_jsonl(path, PROMPT)
    assert len(records.read_jsonl(path, Prompt)) == 2


def test_a_line_cut_exactly_before_its_newline_is_whole_or_mended(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(records.to_json(PROMPT)))
    assert records.read_jsonl(path, Prompt) == [PROMPT]
    records.mend_jsonl(path)
    assert path.read_text() == ""


def test_a_broken_line_in_the_middle_is_named(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 1}\n{"b": \n{"c": 3}\n')
    with pytest.raises(ValueError, match=r"rows\.jsonl:2: not JSON"):
        records.read_json_lines(path)


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
    records.write_jsonl(path, ROWS[:1])
    records.write_jsonl(path, [PROMPT, PROMPT])
    assert len(records.read_jsonl(path, Prompt)) == 2
    assert [p.name for p in path.parent.iterdir()] == ["rows.jsonl"]


def test_what_a_killed_writer_left_goes_with_the_next_write(tmp_path, monkeypatch):
    path = tmp_path / "x.json"
    with monkeypatch.context() as patch:
        patch.setattr(records.os, "replace", _killed)
        with pytest.raises(RuntimeError, match="killed"):
            records.write_json(path, [1])
    assert [p.name for p in tmp_path.iterdir()] == [".x.json.tmp"]
    records.write_json(path, [2])
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]


def _killed(*_):
    raise RuntimeError("killed")


def test_a_journal_writes_what_came_in_within_a_second_at_once(tmp_path, monkeypatch):
    now, path, other = [0.0], tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    monkeypatch.setattr(records.time, "monotonic", lambda: now[0])
    with records.Journal() as journal:
        for i in range(3):
            journal.add(path, dataclasses.replace(PROMPT, id=str(i)))
        assert not path.exists()
        now[0] = records.Journal.EVERY
        journal.add(other, PROMPT)
        assert [row.id for row in records.read_jsonl(path, Prompt)] == ["0", "1", "2"]
        journal.add(path, PROMPT)
        assert len(records.read_jsonl(path, Prompt)) == 3
    assert len(records.read_jsonl(path, Prompt)) == 4
    assert records.read_jsonl(other, Prompt) == [PROMPT]


def test_a_journal_that_an_exception_ends_has_written_all(tmp_path):
    path = tmp_path / "a.jsonl"

    def stopped():
        with records.Journal() as journal:
            journal.add(path, PROMPT)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert records.read_jsonl(path, Prompt) == [PROMPT]
