import json
import re

import datasets
import pytest

from stair_jax import config as config_lib
from stair_jax.config.checks import validate
from stair_jax.miniature import splits
from stair_jax.miniature.verifier import verify
from stair_jax.run import rows as rows_lib


def config(**data):
    c = config_lib.default()
    c.data.update(data)
    return c


def write(path, rows):
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        path.write_text(json.dumps(rows))
    return str(path)


ROWS = [
    {"question": "a?", "type": "helpfulness", "ground_truth": 4},
    {"prompt": "b?", "type": "safety", "id": "mine"},
]


@pytest.mark.parametrize("suffix", ["json", "jsonl"])
def test_files_of_prompts_are_read(tmp_path, suffix):
    path = write(tmp_path / f"p.{suffix}", ROWS)
    first, second = rows_lib.for_round(config(prompts=path), 1)
    assert (first.question, first.type) == ("a?", "helpfulness")
    assert re.fullmatch("p[0-9a-f]{16}", first.id)  # of what is asked, not of where it stands
    assert first.ground_truth == "4"
    assert (second.id, second.type, second.ground_truth) == ("mine", "safety", None)
    assert rows_lib.for_round(config(prompts=path, round_prompts=1), 1) == [first]


def test_a_row_may_say_how_the_response_begins(tmp_path):
    row = {"question": "a?", "type": "safety"}
    path = write(tmp_path / "p.jsonl", [row, row | {"prefill": "<|Reasoning_step|>yes"}])
    plain, began = rows_lib.for_round(config(prompts=path), 1)
    assert (plain.prefill, began.prefill) == ("", "<|Reasoning_step|>yes")
    assert plain.id != began.id
    write(tmp_path / "p.jsonl", [row | {"prefill": 7}])
    with pytest.raises(ValueError, match=r"p.jsonl:1: no text under 'prefill'"):
        rows_lib.for_round(config(prompts=path), 1)


TURNS = [
    {"role": "system", "content": "be brief"},
    {"role": "user", "content": "hi"},
    {"from": "gpt", "value": "hello"},
    {"role": "user", "content": "a?"},
]


def test_a_prompt_may_be_a_conversation(tmp_path):
    rows = [{"messages": TURNS, "type": "safety"}, {"prompt": TURNS[-1:]}, {"question": "a?"}]
    path = write(tmp_path / "p.jsonl", rows)
    first, second = rows_lib.for_round(config(prompts=path), 1)
    assert first.before == (("system", "be brief"), ("user", "hi"), ("assistant", "hello"))
    assert (first.question, first.type) == ("a?", "safety")
    assert (second.question, second.before) == ("a?", ())  # two rows that ask the same
    assert first.id != second.id


def test_two_questions_in_a_row_are_refused_and_an_empty_beginning_is_none(tmp_path):
    row = {"question": "a?", "type": "safety", "prefill": ""}
    path = write(tmp_path / "p.jsonl", [row])
    assert rows_lib.for_round(config(prompts=path), 1)[0].prefill == ""
    write(tmp_path / "p.jsonl", [row | {"messages": TURNS}])
    with pytest.raises(ValueError, match=r"p\.jsonl:1: found messages and \['question'\]"):
        rows_lib.for_round(config(prompts=path), 1)


@pytest.mark.parametrize(
    ("turns", "message"),
    [
        (TURNS[:-1], "ends in a turn of 'assistant', expected a user's question"),
        ([], "messages is \\[\\], expected a list of turns"),
        ([TURNS[1], TURNS[0], TURNS[3]], "a system turn amid the others"),
        ([{"role": "tool", "content": "x"}, TURNS[3]], "a turn of 'tool', expected one of"),
        ([{"content": "x"}], "expected 'role' and 'content'"),
        (7, "no text under 'question' or 'prompt' or 'messages'"),
    ],
)
def test_a_conversation_that_asks_nothing_is_refused_by_file_and_row(tmp_path, turns, message):
    path = write(tmp_path / "p.jsonl", [{"messages": turns, "type": "safety"}])
    with pytest.raises(ValueError, match=rf"p\.jsonl:1.*{message}"):
        rows_lib.for_round(config(prompts=path), 1)


def asked_of(path, **prm):
    c = config(prompts=str(path))
    c.prm.update({"prompts": 2} | prm)
    return rows_lib.for_prm(c)


def test_rows_for_the_reward_model_may_bring_a_response(tmp_path):
    answer = "<|Output|> four <|/Output|>"
    rows = [{"response": answer, **ROWS[i % 2], "id": f"r{i}"} for i in range(3)]
    write(tmp_path / "prm.json", rows)
    asked, given = asked_of(tmp_path / "{round}.json")
    assert [row.id for row in asked] == ["r0", "r1"]
    assert given == {}
    assert asked_of(tmp_path / "{round}.json", demonstrations=True) == (
        asked,
        {"r0": answer, "r1": answer},
    )
    write(tmp_path / "prm.json", [rows[0], {**rows[1], "response": "four"}])
    with pytest.raises(ValueError, match=r"prm\.json:2: response does not end in a block"):
        asked_of(tmp_path / "{round}.json", demonstrations=True)
    write(tmp_path / "prm.json", ROWS)
    with pytest.raises(ValueError, match=r"prm\.json:1: .*response"):
        asked_of(tmp_path / "{round}.json", demonstrations=True)


def test_the_miniatures_teacher_answers_the_reward_models_prompts():
    asked, given = asked_of("miniature", prompts=60, demonstrations=True)
    assert list(given) == [row.id for row in asked]
    right = [verify(row, given[row.id]).helpfulness for row in asked]
    assert 0.6 < sum(x == 1 for x in right) / 60 < 1  # it is lazy now and then
    assert asked_of("miniature", prompts=60) == (asked, {})


def test_a_round_can_have_a_file_of_its_own(tmp_path):
    for k in (1, 2):
        write(tmp_path / f"r{k}.json", [{"question": f"round {k}", "type": "safety"}])
    c = config(prompts=str(tmp_path / "r{round}.json"))
    assert [rows_lib.for_round(c, k)[0].question for k in (1, 2)] == ["round 1", "round 2"]


def test_teacher_rows_are_read_under_both_names(tmp_path):
    path = write(
        tmp_path / "s.json", [{"prompt": "a", "answer": "x"}, {"question": "b", "response": "y"}]
    )
    rows = rows_lib.for_sft(config(sft=path))
    assert [(r.question, r.response) for r in rows] == [("a", "x"), ("b", "y")]
    assert len(rows_lib.for_sft(config(sft=path, sft_rows=1))) == 1


def test_the_miniature_gives_as_many_as_asked_by_the_seed():
    c = config(round_prompts=40, sft_rows=30)
    assert rows_lib.for_round(c, 2) == splits.round_prompts(2, c.seed, 40)
    assert len(rows_lib.for_sft(c)) == 30
    c.seed = 1
    assert rows_lib.for_round(c, 2) != splits.round_prompts(2, 0, 40)


BAD = [
    ("p.json", '[{"type": "safety"}]', r"p\.json:1: no text under 'question' or 'prompt'"),
    ("p.json", '[{"question": " ", "type": "safety"}]', r"p\.json:1: no text under"),
    (
        "p.jsonl",
        '{"question": "a", "type": "safety"}\n{"question": "a", "type": 1}\n',
        r"p\.jsonl:2: type is",
    ),
    ("p.json", '["a"]', r"p\.json:1: found str, expected an object"),
    ("p.json", "[]", r"p\.json: found no rows"),
    ("p.json", '{"question": "a"}', r"p\.json: found no rows"),
    ("p.json", "[{", r"p\.json:1: not JSON"),
    ("p.jsonl", "nonsense\n{}\n", r"p\.jsonl:1: not JSON"),
]


@pytest.mark.parametrize(("name", "content", "message"), BAD)
def test_bad_files_are_refused_by_file_row_and_key(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message) as error:
        rows_lib.for_round(config(prompts=str(tmp_path / name)), 1)
    assert "\n" not in str(error.value)


def test_a_missing_file_and_a_row_without_an_answer_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"gone\.json: no such file"):
        rows_lib.for_round(config(prompts=str(tmp_path / "gone.json")), 1)
    path = write(tmp_path / "s.json", [{"prompt": "a", "answer": "b"}, {"prompt": "a"}])
    with pytest.raises(ValueError, match=r"s\.json:2: no text under 'answer' or 'response'"):
        rows_lib.for_sft(config(sft=path))


def test_what_a_source_leaves_out_is_told_with_its_ids(tmp_path, caplog):
    rows = [
        {
            "messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": x}],
            "id": f"r{i}",
        }
        for i, x in enumerate(["yes", " ", ""])
    ]
    path = write(tmp_path / "s.json", rows)
    assert [row.id for row in rows_lib.for_sft(config(sft=path))] == ["r0"]
    assert "s.json: 2 of 3 rows left out, blank answer: r1, r2" in caplog.text
    path = write(tmp_path / "s.json", rows[1:])
    with pytest.raises(ValueError, match=r"s\.json: none of 2 rows is left: \['blank answer'\]"):
        rows_lib.for_sft(config(sft=path))


def test_the_format_of_the_configuration_is_the_one_that_is_read(tmp_path):
    both = {"prompt": "a", "answer": "x", "instruction": "b", "output": "y"}
    path = write(tmp_path / "s.json", [both])
    with pytest.raises(ValueError, match=r"fit several formats: \['ours', 'alpaca'\]"):
        rows_lib.for_sft(config(sft=path))
    assert rows_lib.for_sft(config(sft=path, format="alpaca"))[0].response == "y"
    assert rows_lib.for_sft(config(sft=path, format="ours"))[0].response == "x"
    both = {"prompt": "a", "chosen": "x", "rejected": "z", "instruction": "b"}
    path = write(tmp_path / "p.json", [both])
    assert (
        rows_lib.for_preferences(config(preferences=path, preferences_format="alpaca"))[0].question
        == "b"
    )
    with pytest.raises(ValueError, match=r"p\.json:1: found columns .* expected .*conversations"):
        rows_lib.for_preferences(config(preferences=path, preferences_format="sharegpt"))


def test_preferences_have_types_all_or_none(tmp_path):
    rows = [
        {"question": "a", "chosen": "x", "rejected": "y", "type": "safety"},
        {"question": "b", "chosen": "x", "rejected": "y"},
    ]
    path = write(tmp_path / "p.json", rows)
    with pytest.raises(ValueError, match="some rows have a type, some not"):
        rows_lib.for_preferences(config(preferences=path))
    path = write(tmp_path / "p.json", rows[:1])
    assert rows_lib.for_preferences(config(preferences=path))[0].type == "safety"
    path = write(tmp_path / "p.json", rows[1:])
    assert rows_lib.for_preferences(config(preferences=path, preference_rows=1))[0].type == ""


def test_a_split_goes_to_the_hub(monkeypatch):
    asked = []

    def load(name, subset, split):
        asked.append((name, split))
        return datasets.Dataset.from_list([{"prompt": "a", "answer": "x", "type": "safety"}])

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert rows_lib.for_sft(config(sft="some/rows", split="mine"))[0].response == "x"
    assert rows_lib.for_round(config(prompts="some/questions"), 1)[0].question == "a"
    assert asked == [("some/rows", "mine"), ("some/questions", "train")]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"format": "alpaca"}, r"data\.format: 'alpaca' would be ignored"),
        ({"preferences_format": "pairs"}, r"data\.preferences_format: 'pairs' would be ignored"),
        ({"split": "test"}, r"data\.split: 'test' would be ignored"),
        ({"sft": "x.parquet", "split": "test"}, r"data\.split: 'test' would be ignored"),
        ({"sft": "x.json", "format": "csv"}, r"data\.format: 'csv' is not one of"),
    ],
)
def test_settings_of_sources_are_refused_where_nothing_reads_them(data, message):
    c = config(**data)
    c.update(workdir="x", stages="pairs")
    with pytest.raises(ValueError, match=message):
        validate(c)
    good = config(sft="owner/rows", split="test", format="alpaca")
    good.update(workdir="x", stages="pairs")
    validate(good)
