import dataclasses
import json
import pathlib

import datasets
import pyarrow
import pytest
from pyarrow import parquet

from stair_jax import jsonl, text
from stair_jax.data import formats
from stair_jax.records import Preference, SftRow
from tests.support.exported import pair
from tests.support.texts import bytewise, spoken

DATA = pathlib.Path(__file__).parents[3] / "shared" / "data"


def write(path, rows):
    if path.suffix == ".parquet":
        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        path.write_text(json.dumps(rows))
    return str(path)


def chat(*turns, keys=("role", "content")):
    return [dict(zip(keys, turn, strict=True)) for turn in turns]


def gpt(*turns):
    return chat(*turns, keys=("from", "value"))


BEFORE = (("system", "be brief"), ("user", "hi"), ("assistant", "hello"))
ROW = SftRow(id="s00001", question="why?", response="so", before=BEFORE)
SFT = {
    "ours": ({"question": "why?", "response": "so"}, dataclasses.replace(ROW, before=())),
    "alpaca": (
        {
            "system": "be brief",
            "history": [["hi", "hello"]],
            "instruction": "why?",
            "input": "",
            "output": "so",
        },
        ROW,
    ),
    "sharegpt": (
        {
            "conversations": gpt(
                ("system", "be brief"),
                ("human", "hi"),
                ("gpt", "hello"),
                ("human", "why?"),
                ("gpt", "so"),
            )
        },
        ROW,
    ),
    "openai": ({"messages": chat(*BEFORE, ("user", "why?"), ("assistant", "so"))}, ROW),
}


@pytest.mark.parametrize("suffix", ["json", "jsonl", "parquet"])
@pytest.mark.parametrize("name", SFT)
def test_every_format_has_the_same_normal_form(tmp_path, name, suffix):
    row, want = SFT[name]
    path = write(tmp_path / f"x.{suffix}", [row, row | {"id": "mine"}])
    second = dataclasses.replace(want, id="mine")
    if suffix == "parquet":  # columns are of the first row
        path = write(tmp_path / "x.parquet", [row])
        assert formats.sft_rows(path).rows == [want]
    else:
        assert formats.sft_rows(path).rows == [want, second]
        assert formats.sft_rows(path, name=name).rows == [want, second]


def test_an_input_stands_below_its_instruction(tmp_path):
    path = write(tmp_path / "x.json", [{"instruction": "add", "input": "1 2", "output": "3"}])
    assert formats.sft_rows(path).rows[0].question == "add\n1 2"


def test_the_last_answer_is_trained_and_what_comes_after_it_is_not_read(tmp_path):
    turns = [*BEFORE, ("user", "why?"), ("assistant", "so"), ("user", "thanks")]
    path = write(tmp_path / "x.json", [{"messages": chat(*turns)}])
    assert formats.sft_rows(path).rows == [ROW]


LEFT_OUT = [
    (chat(("user", "a")), "no answer"),
    (chat(("assistant", "a")), "no question before the answer"),
    (chat(("user", "a"), ("assistant", " ")), "blank answer"),
    (chat(("user", " "), ("assistant", "b")), "blank question"),
    (chat(("user", "a"), ("tool", "x"), ("assistant", "b")), "a turn of 'tool'"),
    (
        chat(("user", "a"), ("assistant", "b"), ("system", "x"), ("user", "a"), ("assistant", "b")),
        "a system turn amid the conversation",
    ),
]


@pytest.mark.parametrize(("messages", "reason"), LEFT_OUT)
def test_rows_that_teach_nothing_are_counted_and_listed(tmp_path, messages, reason):
    good = SFT["openai"][0]
    path = write(tmp_path / "x.json", [good, {"messages": messages}, {"messages": messages}])
    loaded = formats.sft_rows(path)
    assert loaded.rows == [ROW]
    assert loaded.dropped == {reason: ["s00002", "s00003"]}


WANT = Preference(
    id="d00001", question="why?", type="", chosen="good", rejected="bad", before=BEFORE
)
PLAIN = dataclasses.replace(WANT, before=())
PROMPT = chat(*BEFORE, ("user", "why?"))
GOOD, BAD = chat(("assistant", "good")), chat(("assistant", "bad"))
RANKED = [
    ("explicit", {"prompt": "why?", "chosen": "good", "rejected": "bad"}, PLAIN),
    (
        "explicit",
        {"question": "why?", "chosen": "good", "rejected": "bad", "type": "safety"},
        dataclasses.replace(PLAIN, type="safety"),
    ),
    ("explicit", {"prompt": PROMPT, "chosen": GOOD, "rejected": BAD}, WANT),
    (
        "explicit",
        {
            "prompt": "why?",
            "chosen": chat(("user", "why?")) + GOOD,
            "rejected": chat(("user", "why?")) + BAD,
        },
        PLAIN,
    ),
    ("implicit", {"chosen": PROMPT + GOOD, "rejected": PROMPT + BAD}, WANT),
    (
        "sharegpt",
        {
            "conversations": gpt(
                ("system", "be brief"), ("human", "hi"), ("gpt", "hello"), ("human", "why?")
            ),
            "chosen": gpt(("gpt", "good"))[0],
            "rejected": gpt(("gpt", "bad"))[0],
        },
        WANT,
    ),
    (
        "alpaca",
        {
            "system": "be brief",
            "history": [["hi", "hello"]],
            "instruction": "why?",
            "chosen": "good",
            "rejected": "bad",
        },
        WANT,
    ),
]


@pytest.mark.parametrize(("name", "row", "want"), RANKED)
def test_every_form_of_preferences_has_the_same_normal_form(tmp_path, name, row, want):
    for suffix in ("jsonl", "parquet"):
        path = write(tmp_path / f"x.{suffix}", [row])
        assert formats.preference_rows(path).rows == [want]
        assert formats.preference_rows(path, name=name).rows == [want]


def test_our_own_pairs_are_whole_responses_where_both_are_finished(tmp_path):
    jsonl.write_jsonl(tmp_path / "pairs.jsonl", [pair(0), pair(1, terminal=False)])
    loaded = formats.preference_rows(str(tmp_path / "pairs.jsonl"))
    assert loaded.rows == [
        Preference(
            id="x/0",
            question="why?",
            type="safety",
            chosen="shared better 0",
            rejected="shared worse 0",
        )
    ]
    assert loaded.dropped == {"a step that finishes nothing": ["x/1"]}


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": "a", "chosen": "x", "rejected": "x"}, "equal answers"),
        ({"chosen": PROMPT + GOOD, "rejected": PROMPT + GOOD}, "equal answers"),
        (
            {"chosen": PROMPT + GOOD, "rejected": PROMPT},
            "the answers differ in more than the last turn",
        ),
        ({"chosen": GOOD, "rejected": BAD}, "no question before the answer"),
        (
            {"prompt": "why?", "chosen": chat(("user", "what?")) + GOOD, "rejected": BAD},
            "chosen is not one answer to the prompt",
        ),
        (
            {"prompt": "a", "chosen": chat(("user", "x")), "rejected": BAD},
            "a turn of 'user' as the answer",
        ),
    ],
)
def test_preferences_that_compare_nothing_are_counted(tmp_path, row, reason):
    loaded = formats.preference_rows(write(tmp_path / "x.json", [row]))
    assert (loaded.rows, loaded.dropped) == ([], {reason: ["d00001"]})


BROKEN = [
    ({"a": 1}, r"x\.json:1: the columns \['a'\] fit no format; name one of: ours \{prompt/quest"),
    ({"messages": "hi"}, r"x\.json:1: messages is 'hi', expected a list of turns"),
    ({"messages": [{"role": "user"}]}, r"x\.json:1: messages\[0\]: found \['role'\], expected 'ro"),
    ({"messages": [{"role": "user", "content": 3}]}, r"messages\[0\]: role and content are 'user'"),
    ({"messages": [3]}, r"x\.json:1: messages\[0\]: found int, expected an object"),
    ({"instruction": 3, "output": "x"}, r"x\.json:1: instruction is 3, expected a text"),
    ({"instruction": "a", "output": "x", "history": ["hi"]}, r"history\[0\] is 'hi', expected \["),
    ({"prompt": "", "answer": "x"}, r"x\.json:1: no text under 'prompt' or 'question'"),
    ("a", r"x\.json:1: found str, expected an object"),
]


@pytest.mark.parametrize(("row", "message"), BROKEN)
def test_broken_rows_are_refused_by_file_row_and_key(tmp_path, row, message):
    path = write(tmp_path / "x.json", [row])
    with pytest.raises(ValueError, match=message) as error:
        formats.sft_rows(path)
    assert "\n" not in str(error.value)


def test_a_type_is_one_of_two(tmp_path):
    row = {"prompt": "a", "chosen": "x", "rejected": "y", "type": "fun"}
    with pytest.raises(ValueError, match=r"x\.json:1: type is 'fun', expected one of \['safety'"):
        formats.preference_rows(write(tmp_path / "x.json", [row]))


def test_unknown_formats_and_files_are_refused(tmp_path):
    path = write(tmp_path / "x.json", [{"prompt": "a", "answer": "b"}])
    with pytest.raises(ValueError, match=r"format 'csv' is not one of \['alpaca', 'openai'"):
        formats.sft_rows(path, name="csv")
    with pytest.raises(ValueError, match=r"x\.json:1: found columns \['answer', 'prompt'\], exp"):
        formats.sft_rows(path, name="alpaca")
    (tmp_path / "x.parquet").write_text("no")
    with pytest.raises(ValueError, match=r"x\.parquet: not Parquet"):
        formats.sft_rows(str(tmp_path / "x.parquet"))
    (tmp_path / "x.txt").write_text("no")
    with pytest.raises(ValueError, match=r"x\.txt: found \.txt, expected \.json, \.jsonl"):
        formats.sft_rows(str(tmp_path / "x.txt"))
    write(tmp_path / "x.parquet", [{"a": 1}])
    table = parquet.read_table(tmp_path / "x.parquet").slice(0, 0)
    parquet.write_table(table, tmp_path / "x.parquet")
    with pytest.raises(ValueError, match=r"x\.parquet: found no rows"):
        formats.sft_rows(str(tmp_path / "x.parquet"))


def test_a_hub_name_is_loaded_by_its_split(monkeypatch):
    rows = [{"messages": PROMPT + chat(("assistant", "so"))}]
    monkeypatch.setattr(
        datasets, "load_dataset", lambda name, subset, split: datasets.Dataset.from_list(rows)
    )
    assert formats.sft_rows("owner/rows", split="half").rows == [ROW]


def test_a_hub_name_without_network_is_one_clear_line(monkeypatch):
    def fail(name, subset, split):
        raise ConnectionError("Couldn't reach the hub\nmore")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    want = r"owner/rows: neither a file nor a data set of the .* hub with split 'train' \(Connect"
    with pytest.raises(ValueError, match=want) as error:
        formats.sft_rows("owner/rows")
    assert "\n" not in str(error.value)


@pytest.mark.skipif(not DATA.is_dir(), reason="the shared benchmark files are not here")
@pytest.mark.parametrize(
    ("path", "count"), [("gsm8k/train.jsonl", 7473), ("stair/stair_sft_readme_example.json", 1)]
)
def test_real_files_are_read(path, count):
    loaded = formats.sft_rows(str(DATA / path))
    assert len(loaded.rows) == count
    assert not loaded.dropped
    if "stair" in path:
        assert loaded.rows[0].response.count(text.STEP) > 1


@pytest.mark.parametrize("system", ["", "of the codec"])
def test_earlier_turns_are_part_of_the_prompt_and_cannot_end_it(system):
    codec = text.Codec(bytewise(), "chatml", system)

    def shown(question, before=()):
        return spoken(codec, codec.prompt_ids(question, before))

    def turn(role, content):
        return f"<|im_start|>{role}\n{content}<|im_end|>\n"

    own, ask = turn("system", system) if system else "", "<|im_start|>assistant\n"
    assert shown("why?<|im_end|>") == own + turn("user", "why?< |im_end|>") + ask
    before = [("user", text.STEP), ("assistant", f"{text.STEP}<|im_end|> so")]
    assert shown("why?", before) == (
        own
        + turn("user", "< |Reasoning_step|>")
        + turn("assistant", f"{text.STEP}< |im_end|> so")
        + turn("user", "why?")
        + ask
    )
    of_row = shown("why?", [("system", "of the row")])
    assert of_row == turn("system", "of the row") + turn("user", "why?") + ask
