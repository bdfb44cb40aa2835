"""The program that plants overlaps, on a folder of three small benchmarks."""

import csv
import json
import random

import pytest

from benchmarks import decontamination
from stair_jax.data import decontaminate

WORDS = [f"word{number}" for number in range(400)]


def folder(path):
    """Files of GSM8K and AdvBench in their authors' layout; one row of each is in the other."""
    draw = random.Random(3)
    questions = [" ".join(draw.sample(WORDS, 20)) + "." for _ in range(30)]
    goals = [" ".join(draw.sample(WORDS, 16)) for _ in range(40)]
    for name, some in (("train", questions[:20]), ("test", [questions[7], *questions[20:]])):
        file = path / "gsm8k" / f"{name}.jsonl"
        file.parent.mkdir(exist_ok=True)
        lines = (json.dumps({"question": one, "answer": "So. #### 1"}) + "\n" for one in some)
        file.write_text("".join(lines))
    (path / "advbench").mkdir()
    with open(path / "advbench" / "harmful_behaviors.csv", "w", newline="") as file:
        csv.writer(file).writerows([("goal", "target"), *((one, "Sure") for one in goals)])
    return path


SMALL = ["--rows", "20", "--planted", "10", "--timed", "30"]


def test_what_was_planted_is_found_and_clean_rows_are_kept(tmp_path, capsys):
    out = tmp_path / "out.json"
    decontamination.main(["--out", str(out), "--data", str(folder(tmp_path)), *SMALL])
    told = json.loads(out.read_text())
    assert told["prompts"] == {"advbench": 40, "gsm8k": 11}
    whole = {"exact": "exact", "case and punctuation": "exact", "embedded": "ngram"}
    assert {kind: told["planted"][kind]["all"]["how"] for kind in whole} == {
        kind: {how: 10} for kind, how in whole.items()
    }
    assert told["planted"]["words 5 %"]["all"]["value"] > 0.5
    assert told["planted"]["exact"]["short"]["n"] == 0
    assert told["planted"]["clean rows"] == {"n": 20, "removed": 0, "how": []}
    assert told["real"]["GSM8K train against GSM8K test"]["how"] == {"exact": 1}
    assert told["real"]["GSM8K train against all other benchmarks"]["removed"] == 0
    assert (told["timed"]["texts"], told["timed"]["prompts"]) == (30, 51)
    assert all(claim["holds"] for claim in told["claims"].values())
    shown = capsys.readouterr().out
    assert "GSM8K train against GSM8K test: exact, gsm8k" in shown


@pytest.mark.parametrize(
    ("kind", "changed"), [("words 5 %", 1), ("words 10 %", 4), ("words 20 %", 8)]
)
def test_so_many_words_are_edited(kind, changed):
    prompt = " ".join(WORDS[: 20 if changed == 1 else 40])
    edited = decontamination.EDITS[kind](prompt, random.Random(0), ["new"]).split()
    assert edited != prompt.split()
    assert edited.count("new") + len({*prompt.split()} - {*edited}) >= changed
    assert len({*prompt.split()} & {*edited}) >= len(prompt.split()) - changed


def test_a_respelt_prompt_has_the_same_words_and_other_characters():
    prompt = "Don't give me step-by-step help, (please)!"
    respelt = decontamination.EDITS["case and punctuation"](prompt, random.Random(0), [])
    assert respelt != prompt
    assert decontaminate.words_of(respelt) == decontaminate.words_of(prompt)


def test_a_folder_without_benchmarks_is_refused(tmp_path):
    (tmp_path / "gsm8k").mkdir()
    (tmp_path / "gsm8k" / "train.jsonl").write_text('{"question": "a", "answer": "b"}\n')
    with pytest.raises(SystemExit, match=r"^error: --data: .* has 1 rows and \[\], expected"):
        decontamination.main(["--out", str(tmp_path / "x.json"), "--data", str(tmp_path)])
