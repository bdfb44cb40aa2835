"""Nothing of a file goes unsaid: each row is read rightly, refused by its place, or counted."""

import codecs
import json
import re

import pytest

from stair_jax import config as config_lib
from stair_jax import text
from stair_jax.data import formats, sources
from stair_jax.run import rows as rows_lib
from stair_jax.text import OUTPUT, OUTPUT_END, STEP, STEP_END

ASK = '{"question": "why?", "type": "safety"}'
GOOD = f"{STEP} a {STEP_END} {OUTPUT} b {OUTPUT_END}"


def prompts_of(path):
    c = config_lib.default()
    c.data.prompts = str(path)
    return rows_lib.for_round(c, 1)


READ = {
    "plain": ASK.encode() + b"\n",
    "no last newline": ASK.encode(),
    "BOM": codecs.BOM_UTF8 + ASK.encode() + b"\n",
    "CRLF": ASK.encode() + b"\r\n",
    "blank lines": b"\n" + ASK.encode() + b"\n  \n\n",
    "UTF-16 little": ASK.encode("utf-16"),
    "UTF-16 big": codecs.BOM_UTF16_BE + ASK.encode("utf-16-be"),
}


@pytest.mark.parametrize("suffix", ["json", "jsonl"])
@pytest.mark.parametrize("kind", READ)
def test_what_can_be_read_rightly_is(tmp_path, kind, suffix):
    path = tmp_path / f"p.{suffix}"
    data = READ[kind]
    if suffix == "json":
        if "UTF" in kind:
            data = f"[{ASK}]".encode("utf-16")
        else:
            data = data.replace(ASK.encode(), f"[{ASK}]".encode())
    path.write_bytes(data)
    (prompt,) = prompts_of(path)
    assert (prompt.question, prompt.type) == ("why?", "safety")


BROKEN = {
    "cut": (f'{ASK}\n{{"question": "wh', r"p\.jsonl:2: not JSON \(Unterminated .*; the row is cut"),
    "cut early": (f"{ASK}\n{ASK[:-1]}\n", r"p\.jsonl:2: not JSON \(.* column 38\); the row is cut"),
    "in the middle": (f"{ASK}\n{{'a'}}\n{ASK}\n", r"p\.jsonl:2: not JSON \(Expecting .* column 2"),
    "NaN": (ASK.replace('"safety"', "NaN"), r"p\.jsonl:1: not JSON \(NaN is no number of JSON"),
    "deep": ("[" * 100_000, r"p\.jsonl:1: not JSON"),
    "surrogate": (
        '{"question": "a\\ud800", "type": "safety"}',
        r"p\.jsonl:1: question: character 2 is '\\ud800', half of a surrogate pair",
    ),
    "NUL": ('{"question": "a\x00", "type": "safety"}', r"p\.jsonl:1: not JSON \(Invalid control"),
    "a list": ("[1]\n", r"p\.jsonl:1: "),
    "a number": ("3\n", r"p\.jsonl:1: "),
    "null": ("null\n", r"p\.jsonl:1: "),
    "empty": ("", r"p\.jsonl: found no rows"),
    "blank question": ('{"question": " ", "type": "safety"}', r"p\.jsonl:1: no text under"),
    "null question": ('{"question": null, "type": "safety"}', r"p\.jsonl:1: no text under"),
    "type": (ASK.replace("safety", "harm"), r"p\.jsonl:1: type is 'harm', expected one of"),
    "id list": (ASK[:-1] + ', "id": [1]}', r"p\.jsonl:1: id is \[1\], expected a text, a whole"),
    "id float": (ASK[:-1] + ', "id": 1.5}', r"p\.jsonl:1: id is 1\.5, expected"),
    "id true": (ASK[:-1] + ', "id": true}', r"p\.jsonl:1: id is True, expected"),
    "id blank": (ASK[:-1] + ', "id": " "}', r"p\.jsonl:1: id is ' ', expected"),
    "id twice": (
        ASK[:-1] + ', "id": "x"}\n' + ASK.replace("why", "how")[:-1] + ', "id": "x"}\n',
        r"p\.jsonl:2: id is 'x', which .*p\.jsonl:1 has with other content",
    ),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_what_is_broken_is_refused_by_its_place_in_one_line(tmp_path, kind):
    content, message = BROKEN[kind]
    path = tmp_path / "p.jsonl"
    path.write_text(content)
    with pytest.raises(ValueError, match=message) as error:
        prompts_of(path)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 400


def test_another_encoding_is_told_by_row_and_column(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_bytes(ASK.encode() + b"\n" + '{"question": "é"}'.encode("latin-1"))
    with pytest.raises(ValueError, match=r"p\.jsonl:2: byte 0xe9 in column 15 is not UTF-8"):
        prompts_of(path)
    path.write_bytes(codecs.BOM_UTF16_LE + b"a")
    with pytest.raises(ValueError, match=r"p\.jsonl:1: byte .* is not UTF-16 "):
        prompts_of(path)


def test_an_id_of_null_is_none_and_a_number_is_its_text(tmp_path):
    path = tmp_path / "p.jsonl"
    rows = [
        {"question": "a?", "type": "safety", "id": None},
        {"question": "b?", "type": "safety", "id": 7},
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    first, second = prompts_of(path)
    assert re.fullmatch("p[0-9a-f]{16}", first.id)
    assert second.id == "7"


def test_a_row_without_a_type_has_that_of_its_source_and_is_counted(tmp_path, caplog):
    path = tmp_path / "p.jsonl"
    rows = [
        {"prompt": "a?", "source": "PKU-SafeRLHF"},
        {"prompt": "b?", "source": "UltraFeedback"},
        {"prompt": "c?"},
        {"prompt": "d?", "type": "safety", "source": "UltraFeedback"},
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    assert [row.type for row in prompts_of(path)] == [
        "safety",
        "helpfulness",
        "helpfulness",
        "safety",
    ]
    assert "3 of 4 rows have no type; by their source 2 of all are safety prompts" in caplog.text


TAGS = [
    (GOOD, True),
    ("no tag at all", True),
    (f"{OUTPUT} b {OUTPUT_END}", True),
    (f"{STEP} a {STEP_END}", True),
    (f"{STEP} a {OUTPUT} b {OUTPUT_END}", False),
    (f"{STEP} a {STEP_END} {OUTPUT} b", False),
    (f"a {STEP_END}", False),
    (f"{STEP} a {OUTPUT_END}", False),
    (f"{STEP} {STEP} a {STEP_END} {STEP_END}", False),
]


@pytest.mark.parametrize(("answer", "closes"), TAGS)
def test_an_answer_whose_tags_do_not_close_is_left_out_and_counted(tmp_path, answer, closes):
    assert text.tags_close(answer) == closes
    path = tmp_path / "s.json"
    path.write_text(
        json.dumps([{"prompt": "a?", "answer": GOOD}, {"prompt": "b?", "answer": answer}])
    )
    found = formats.sft_rows(str(path))
    assert len(found.rows) == 1 + closes
    reasons = (
        [] if closes else ["a tag of the answer is opened and not closed, or closed and not opened"]
    )
    assert list(found.dropped) == reasons
    assert sum(map(len, found.dropped.values())) == (not closes)


def test_teacher_rows_of_one_id_are_one_row_or_an_error(tmp_path):
    path = tmp_path / "s.json"
    row = {"id": "x", "prompt": "a?", "answer": GOOD}
    path.write_text(json.dumps([row, row]))
    found = formats.sft_rows(str(path))
    assert len(found.rows) == 1
    assert found.dropped == {"a row that is there already, id and all": ["x"]}
    path.write_text(json.dumps([row, row | {"prompt": "b?"}]))
    with pytest.raises(ValueError, match=r"s\.json:2: id is 'x', which .*s\.json:1 has with other"):
        formats.sft_rows(str(path))


def test_texts_deep_in_a_row_are_looked_at(tmp_path):
    path = tmp_path / "s.json"
    path.write_text('[{"messages": [{"role": "user", "content": "\\udfff"}]}]')
    with pytest.raises(ValueError, match=r"s\.json:1: messages\[0\]\.content: character 1 is"):
        sources.read(str(path))


def test_further_prompts_of_the_reward_model_are_none_of_the_rounds(tmp_path):
    path = tmp_path / "p.jsonl"
    rows = [{"question": f"{number}?", "type": "safety"} for number in (1, 2, 1, 3, 4)]
    path.write_text("\n".join(map(json.dumps, rows)))
    c = config_lib.default()
    c.data.update(prompts=str(path), round_prompts=2)
    c.prm.prompts = 2
    assert [prompt.question for prompt in rows_lib.for_prm(c)[0]] == ["3?", "4?"]
    c.data.round_prompts = 0
    with pytest.raises(ValueError, match=r"config\.prm\.prompts: 2, but the rounds leave 0 of"):
        rows_lib.for_prm(c)
