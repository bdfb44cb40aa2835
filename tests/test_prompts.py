import json

import pytest

from stair_jax import config as config_lib
from stair_jax.miniature import splits
from stair_jax.stages import prompts


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
    first, second = prompts.for_round(config(prompts=path), 1)
    assert (first.id, first.question, first.type) == ("p00001", "a?", "helpfulness")
    assert first.ground_truth == "4"
    assert (second.id, second.type, second.ground_truth) == ("mine", "safety", None)
    assert prompts.for_round(config(prompts=path, round_prompts=1), 1) == [first]


def test_a_round_can_have_a_file_of_its_own(tmp_path):
    for k in (1, 2):
        write(tmp_path / f"r{k}.json", [{"question": f"round {k}", "type": "safety"}])
    c = config(prompts=str(tmp_path / "r{round}.json"))
    assert [prompts.for_round(c, k)[0].question for k in (1, 2)] == ["round 1", "round 2"]


def test_teacher_rows_are_read_under_both_names(tmp_path):
    path = write(tmp_path / "s.json", [{"prompt": "a", "answer": "x"}, {"question": "b", "response": "y"}])  # fmt: skip  # noqa: E501
    rows = prompts.for_sft(config(sft=path))
    assert [(r.question, r.response) for r in rows] == [("a", "x"), ("b", "y")]
    assert len(prompts.for_sft(config(sft=path, sft_rows=1))) == 1


def test_the_miniature_gives_as_many_as_asked_by_the_seed():
    c = config(round_prompts=40, sft_rows=30)
    assert prompts.for_round(c, 2) == splits.round_prompts(2, c.seed, 40)
    assert len(prompts.for_sft(c)) == 30
    c.seed = 1
    assert prompts.for_round(c, 2) != splits.round_prompts(2, 0, 40)


BAD = [
    ("p.json", '[{"type": "safety"}]', r"p\.json:1: no text under 'question' or 'prompt'"),
    ("p.json", '[{"question": " ", "type": "safety"}]', r"p\.json:1: no text under"),
    ("p.jsonl", '{"question": "a", "type": "safety"}\n{"question": "a"}\n', r"p\.jsonl:2: type is"),
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
        prompts.for_round(config(prompts=str(tmp_path / name)), 1)
    assert "\n" not in str(error.value)


def test_a_missing_file_and_a_row_without_an_answer_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"gone\.json: no such file"):
        prompts.for_round(config(prompts=str(tmp_path / "gone.json")), 1)
    path = write(tmp_path / "s.json", [{"prompt": "a"}])
    with pytest.raises(ValueError, match=r"s\.json:1: no text under 'answer' or 'response'"):
        prompts.for_sft(config(sft=path))
