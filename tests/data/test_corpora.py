"""Corpora: real and schema-true rows become seeds, and every row that cannot is counted."""

import collections
import json
import math
import pathlib
from typing import Any

import pytest

from stair_jax.data import corpus as corpus_lib
from stair_jax.data import sources
from stair_jax.data.corpora import columns

DATA = pathlib.Path(__file__).parents[2] / "../shared/data"
recorded = pytest.mark.skipif(not DATA.is_dir(), reason=f"{DATA} is not there")


def load(name, *files, held_out=(), spec=None):
    place = corpus_lib.Place(
        corpus_lib.registered()[name], tuple(map(str, files)), tuple(map(str, held_out))
    )
    return corpus_lib.load(place, spec)


def counts(loaded):
    return {reason: len(ids) for reason, ids in loaded.dropped.items()}


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


# ---- rows as they are


@recorded
@pytest.mark.parametrize(
    ("name", "file", "seeds", "types", "dropped"),
    [
        ("gsm8k", "gsm8k/train.jsonl", 7473, {"helpfulness": 7473}, {}),
        ("advbench", "advbench/harmful_behaviors.csv", 520, {"safety": 520}, {}),
        ("harmbench", "harmbench/harmbench_behaviors_text_val.csv", 80, {"safety": 80}, {}),
        (
            "official",
            "stair/prompt_data_examples.json",
            6,
            {"helpfulness": 3, "safety": 3},
            {},
        ),
        ("stair_sft", "stair/stair_sft_readme_example.json", 1, {"safety": 1}, {}),
        (
            "pku_saferlhf",
            "schemas/synthetic_pku_saferlhf.jsonl",
            2,
            {"safety": 2},
            {"no unsafe response": 2},
        ),
        (
            "ultrafeedback",
            "schemas/synthetic_ultrafeedback.jsonl",
            1,
            {"helpfulness": 1},
            {"all ratings tie": 1},
        ),
    ],
)
def test_recorded_rows_are_read(name, file, seeds, types, dropped):
    found = load(name, DATA / file)
    assert len(found.seeds) == seeds
    assert collections.Counter(seed.type for seed in found.seeds) == types
    assert counts(found) == dropped
    assert len({seed.id for seed in found.seeds}) == seeds
    assert all(seed.id.startswith(f"{name}-") for seed in found.seeds)


@recorded
def test_a_recorded_row_of_each_kind_says_what_it_should():
    pku, both = load("pku_saferlhf", DATA / "schemas/synthetic_pku_saferlhf.jsonl").seeds
    assert both.rejected == "[placeholder for a harsher insult]"
    assert pku.question == "How can I look up my neighbour's medical records?"
    assert pku.rejected.startswith("Sure, here is how you could try to get them")
    assert (pku.chosen, pku.type, pku.source) == ("", "safety", "PKU-SafeRLHF")
    [rated] = load("ultrafeedback", DATA / "schemas/synthetic_ultrafeedback.jsonl").seeds
    # The lowest has an "N/A" among its aspects, which does not count.
    assert rated.chosen == "11 is prime: only 1 and 11 divide it."
    assert rated.rejected == "12 is prime."
    sums = load("gsm8k", DATA / "gsm8k/train.jsonl").seeds
    assert sums[0].question.startswith("Natalia sold clips to 48 of her friends")
    assert sums[0].ground_truth == "72"
    assert all(math.isfinite(float(seed.ground_truth or "nan")) for seed in sums)
    behaviours = load("harmbench", DATA / "harmbench/harmbench_behaviors_text_val.csv").seeds
    kinds = collections.Counter(seed.meta["kind"] for seed in behaviours)
    assert kinds == {"standard": 41, "copyright": 20, "contextual": 19}
    behind = [seed for seed in behaviours if seed.meta["kind"] == "contextual"]
    assert all(seed.question.endswith(f"\n\n---\n\n{seed.meta['goal']}") for seed in behind)


@recorded
def test_the_row_that_ultrafeedbacks_authors_show_is_read(tmp_path):
    row = json.loads((DATA / "ultrafeedback/readme_example_row.json").read_text(encoding="utf-8"))
    assert row["instruction"].startswith("I am going to cairo in June")
    assert len(row["completions"]) == 4  # of which the authors show the ratings of one
    more = completion(5, "I would go by boat, which nobody has to walk.")
    full = row | {"completions": [*row["completions"], more], "instruction": "With five?"}
    found = load("ultrafeedback", write(tmp_path / "a.jsonl", row, full))
    assert counts(found) == {"fewer than two rated completions: no annotations": 1}
    [seed] = found.seeds
    assert seed.rejected.startswith("Cairo is a city that has something for everyone.")
    assert seed.chosen.startswith("I would go by boat")


@recorded
def test_the_root_is_read_in_the_authors_layout():
    known = corpus_lib.registered()
    place = corpus_lib.find(known["gsm8k"], str(DATA))
    assert [pathlib.Path(file).name for file in place.files] == ["train.jsonl"]
    assert corpus_lib.find(known["gsm8k"], "").files == ()  # the hub
    with pytest.raises(ValueError, match=r"harmbench is on no hub; name its file"):
        corpus_lib.find(known["harmbench"], "")


# ---- rows made to the schema


def pku(prompt: Any = "Q?", **changes):
    return {
        "prompt": prompt,
        "response_0": "worse",
        "response_1": "bad",
        "is_response_0_safe": False,
        "is_response_1_safe": False,
        "safer_response_id": 1,
        "prompt_source": "s",
    } | changes


def test_pku_rows_give_the_worst_response_that_is_not_blank(tmp_path):
    file = write(
        tmp_path / "a.jsonl",
        pku("a"),
        pku("b", safer_response_id=0),
        pku("c", response_0=" \n"),
        pku("d", is_response_0_safe=True),
        pku("e", is_response_0_safe="True", is_response_1_safe="False"),  # words, as in .csv
    )
    found = {seed.question: seed.rejected for seed in load("pku_saferlhf", file).seeds}
    assert found == {"a": "worse", "b": "bad", "c": "bad", "d": "bad", "e": "bad"}


BAD_PKU = [
    (pku(None), "null prompt"),
    (pku("  "), "blank prompt"),
    (pku(7), "prompt is of type int, not a text"),
    (pku(is_response_0_safe=None), "null is_response_0_safe"),
    (pku(is_response_0_safe=0.5), "is_response_0_safe is of type float, not a truth value"),
    (pku(response_0="", response_1=""), "unsafe response: blank response"),
    (pku(response_0=None, response_1=None), "unsafe response: null response"),
    (pku(response_0=3, response_1=4), "unsafe response: response is of type int, not a text"),
    (pku(is_response_0_safe=True, is_response_1_safe=True), "no unsafe response"),
    (pku(" good\tONE "), "a question that an earlier row asks"),
]


@pytest.mark.parametrize(("row", "reason"), BAD_PKU, ids=[reason for _, reason in BAD_PKU])
def test_a_whole_row_that_cannot_be_used_is_dropped_by_reason(tmp_path, row, reason):
    found = load("pku_saferlhf", write(tmp_path / "a.jsonl", pku("Good one"), row))
    assert [seed.question for seed in found.seeds] == ["Good one"]
    assert found.dropped == {reason: ["pku_saferlhf-row2"]}


def test_prompts_of_the_test_split_are_dropped(tmp_path):
    train = write(tmp_path / "train.jsonl", pku("mine"), pku("Shared  prompt"), pku("blank"))
    test = write(tmp_path / "test.jsonl", pku("shared prompt"), pku(None))
    found = load("pku_saferlhf", train, held_out=[test])
    assert [seed.question for seed in found.seeds] == ["mine", "blank"]
    assert found.dropped == {"a prompt of the test split": ["pku_saferlhf-row2"]}
    folder = tmp_path / "pku_saferlhf/data/Alpaca-7B"
    folder.mkdir(parents=True)
    for file in (train, test):
        file.rename(folder / file.name)
    place = corpus_lib.find(corpus_lib.registered()["pku_saferlhf"], str(tmp_path))
    assert [len(place.files), len(place.held_out)] == [1, 1]
    assert len(corpus_lib.load(place).seeds) == 2


@pytest.mark.parametrize(
    ("name", "row", "column"),
    [
        ("pku_saferlhf", {"question": "Q?"}, "prompt"),
        ("ultrafeedback", {"instruction": "Q?"}, "completions"),
        ("jailbreakv", {"format": "Template"}, "transfer_from_llm"),
        ("stair_sft", {"prompt": "Q?"}, "answer"),
        ("stair_prompts", {"question": "Q?"}, "prompt"),
        ("official", {"question": "Q?"}, "type"),
        ("harmbench", {"Behavior": "Q?"}, "ContextString"),
        ("advbench", {"target": "Q?"}, "goal"),
        ("gsm8k", {"question": "Q?"}, "answer"),
    ],
)
def test_a_row_without_a_column_is_an_error_that_names_file_row_and_column(
    tmp_path, name, row, column
):
    file = write(tmp_path / "rows.jsonl", row)
    with pytest.raises(ValueError, match=rf"rows\.jsonl:1: no column '{column}', found \["):
        load(name, file)


def completion(rating, response: str | None = "r", **aspects):
    ratings = dict.fromkeys(
        ("helpfulness", "honesty", "instruction_following", "truthfulness"), str(rating)
    )
    return {
        "annotations": {k: {"Rating": v} for k, v in (ratings | aspects).items()},
        "response": response,
    }


def rated(*completions, question="Q?"):
    return {"instruction": question, "completions": list(completions), "source": "flan"}


def test_ratings_are_the_mean_of_what_is_rated(tmp_path):
    file = write(
        tmp_path / "a.jsonl",
        # 4, 4, 4, 1 is less than 4, and more than 3
        rated(
            completion(4, "low", honesty="1"),
            completion(4, "not rated", honesty="N/A"),
            completion(3, "lowest"),
        ),
    )
    [seed] = load("ultrafeedback", file).seeds
    assert (seed.chosen, seed.rejected) == ("not rated", "lowest")
    assert seed.meta == {"source": "flan"}


BAD_RATED = [
    (rated(completion(3, "a")), "fewer than two completions"),
    (rated(), "fewer than two completions"),
    (rated(completion(3, "a"), completion("N/A", "b")), "rated completions: all ratings N/A"),
    (rated(completion(3, "a"), completion(2, " ")), "rated completions: blank response"),
    (rated(completion(3, "a"), completion(2, None)), "rated completions: null response"),
    (rated(completion(3, "a"), completion(3, "b")), "all ratings tie"),
    (rated(completion(3, "a"), completion(2, "a")), "equal responses"),
    ({"instruction": "Q?", "completions": None}, "null completions"),
    ({"instruction": "Q?", "completions": "x"}, "completions are of type str, not a list"),
    (rated(completion(3, "a"), {"annotations": None, "response": "b"}), "no annotations"),
]


@pytest.mark.parametrize(("row", "reason"), BAD_RATED, ids=[reason for _, reason in BAD_RATED])
def test_completions_that_cannot_be_compared_are_counted(tmp_path, row, reason):
    good = rated(completion(5, "a"), completion(1, "b"), question="Good?")
    found = load("ultrafeedback", write(tmp_path / "a.jsonl", row, good))
    assert len(found.seeds) == 1
    [(why, ids)] = found.dropped.items()
    assert why.endswith(reason)
    assert ids == ["ultrafeedback-row1"]


def test_attacks_by_images_and_of_other_sources_are_dropped(tmp_path):
    head = (
        "id,jailbreak_query,redteam_query,format,policy,image_path,from,selected_mini,"
        "transfer_from_llm\n"
    )
    rows = [
        "7,Attack A,Goal A,Template,P,x.png,GPT_Generate,False,True",
        "8,Attack B,Goal B,Persuade,P,x.png,hh-rlhf,False,TRUE",
        "9,Attack C,Goal C,Logic,P,x.png,handcraft,False,True",
        "10,Attack D,Goal D,figstep,P,x.png,Handcraft,False,False",
        "11,Attack E,Goal E,Query-Relevant,P,x.png,Handcraft,False,False",
        "12,Attack F,Goal F,Template,P,x.png,AdvBench,False,True",
        "9,Attack G,Goal G,Logic,P,x.png,Handcraft,False,True",
        "13,attack a,Goal H,Logic,P,x.png,Handcraft,False,True",
    ]
    file = tmp_path / "JailBreakV_28K.csv"
    file.write_text(head + "\n".join(rows), encoding="utf-8")
    found = load("jailbreakv", file)
    assert [(seed.id, seed.question, seed.meta["goal"]) for seed in found.seeds] == [
        ("jailbreakv-7", "Attack A", "Goal A"),
        ("jailbreakv-8", "Attack B", "Goal B"),
        ("jailbreakv-9", "Attack C", "Goal C"),
    ]
    assert found.dropped == {
        "an attack by an image": ["jailbreakv-10", "jailbreakv-11"],
        "a request of AdvBench, none of GPT-Generate, Handcraft, HH-RLHF": ["jailbreakv-12"],
        "an id that an earlier row has": ["jailbreakv-9"],
        "a question that an earlier row asks": ["jailbreakv-13"],
    }


def test_texts_are_mended_and_rows_are_not_split_by_unicode_lines(tmp_path):
    file = tmp_path / "a.jsonl"
    rows = [pku("\ufeffa"), pku("b\r\nb\rb"), pku("c\u2028c\u0085c"), pku("d")]
    text = "\r\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    file.write_bytes(b"\xef\xbb\xbf" + text.encode())
    found = load("pku_saferlhf", file)
    assert [seed.question for seed in found.seeds] == ["a", "b\nb\nb", "c\nc\nc", "d"]
    ids = [seed.id for seed in found.seeds]
    assert found.mended == {
        "a byte order mark taken out": [ids[0]],
        "carriage returns made newlines": [ids[1]],
        "Unicode line separators made newlines": [ids[2]],
    }


def test_a_stream_gives_what_the_whole_file_gives(tmp_path):
    file = write(tmp_path / "a.jsonl", pku("a"), pku("b"))
    file.write_text(file.read_text() + "\n  \n" + json.dumps(pku("c")))
    assert list(sources.stream(str(file))) == sources.read(str(file))
    wide = tmp_path / "wide.jsonl"
    wide.write_text(file.read_text(), encoding="utf-16")
    assert [row for _, row in sources.stream(str(wide))] == [
        row for _, row in sources.read(str(file))
    ]
    file.write_bytes(file.read_bytes() + b'\n{"prompt": "\xff"}')
    with pytest.raises(ValueError, match=r"a\.jsonl:6: byte 0xff in column 13 is not UTF-8"):
        list(sources.stream(str(file)))
    file.write_text('{"prompt": "a"}\n{"prompt": ')
    with pytest.raises(ValueError, match=r"a\.jsonl:2: not JSON .*the row is cut"):
        list(sources.stream(str(file)))
    file.write_text("\n")
    with pytest.raises(ValueError, match="found no rows"):
        list(sources.stream(str(file)))


def test_a_file_of_which_nothing_is_left_is_an_error(tmp_path):
    file = write(tmp_path / "a.jsonl", pku(None), pku(" "))
    with pytest.raises(
        ValueError, match=r"pku_saferlhf: none of 2 rows can be used: \{'null prompt': 1, 'blank"
    ):
        load("pku_saferlhf", file)


STEPS = "<|Reasoning_step|>a<|/Reasoning_step|><|Output|>Final Answer: b<|/Output|>"


def test_published_rows_have_their_type_by_their_source(tmp_path):
    rows = [
        {"prompt": "a", "answer": STEPS, "source": "PKU-SafeRLHF"},
        {"prompt": "b", "answer": STEPS + "\n", "source": "UltraFeedback"},
        {"prompt": "c", "answer": STEPS[:-3], "source": "UltraFeedback"},
        {"prompt": "d", "answer": "plain", "source": "UltraFeedback"},
        {"prompt": "e", "answer": None, "source": "UltraFeedback"},
    ]
    found = load("stair_sft", write(tmp_path / "a.jsonl", *rows))
    assert [(seed.type, seed.response) for seed in found.seeds] == [
        ("safety", STEPS),
        ("helpfulness", STEPS),
    ]
    assert sorted(counts(found).values()) == [1, 2]
    asked = [{"prompt": "a", "source": "JailbreakV-28k"}, {"prompt": "b", "source": None}]
    found = load("stair_prompts", write(tmp_path / "b.jsonl", *asked))
    assert [seed.type for seed in found.seeds] == ["safety"]
    assert counts(found) == {"no source that says whether it is a safety prompt": 1}


# ---- columns of the user's own

SPEC = {"question": "asked", "chosen": "good", "rejected": "bad", "type": "safety", "id": "n"}


def own(**changes):
    return {"n": 5, "asked": "Q?", "good": "no", "bad": "yes"} | changes


def test_any_file_is_read_by_the_names_of_its_columns(tmp_path):
    [seed] = load("columns", write(tmp_path / "a.jsonl", own()), spec=SPEC).seeds
    assert (seed.id, seed.question, seed.chosen, seed.rejected) == ("columns-5", "Q?", "no", "yes")
    assert seed.type == "safety"
    row = {"asked": "Q?", "kind": "helpfulness", "said": "r", "truth": 4}
    spec = {"question": "asked", "type": "kind", "response": "said", "ground_truth": "truth"}
    [seed] = load("columns", write(tmp_path / "b.jsonl", row), spec=spec).seeds
    assert (seed.type, seed.response, seed.ground_truth) == ("helpfulness", "r", "4")
    bad = load("columns", write(tmp_path / "c.jsonl", row, row | {"kind": "odd"}), spec=spec)
    assert counts(bad) == {"kind is neither of ['safety', 'helpfulness']": 1}


def test_nested_messages_are_turns_before_the_question(tmp_path):
    turns = [
        {"role": "system", "content": "S"},
        {"role": "user", "content": "U"},
        {"role": "assistant", "content": "A"},
        {"role": "user", "content": "Q?"},
    ]
    answer = [*turns, {"role": "assistant", "content": "yes"}]
    rows = [
        own(asked=turns, bad=answer),
        own(n=6, asked=turns[:3]),
        own(n=7, asked=[turns[1], turns[0], turns[3]]),
        own(n=8, asked=[{"role": "tool", "content": "x"}]),
        own(n=9, asked=["Q?"]),
        own(n=10, asked=[{"role": "user", "content": None}]),
        own(n=11, asked=[]),
        own(n=12, asked="other", good="same", bad="same"),
        own(n=13, asked="another", bad=turns),
    ]
    found = load("columns", write(tmp_path / "a.jsonl", *rows), spec=SPEC)
    [seed] = found.seeds
    assert seed.before == (("system", "S"), ("user", "U"), ("assistant", "A"))
    assert (seed.question, seed.rejected, seed.prompt) == ("Q?", "yes", "S\nU\nA\nQ?")
    assert found.dropped == {
        "asked is a list of messages whose last is not the user's": ["columns-6", "columns-11"],
        "asked has a system turn amid the conversation": ["columns-7"],
        "asked has a turn of 'tool'": ["columns-8"],
        "asked is a list of something else than messages": ["columns-9"],
        "null turn of asked": ["columns-10"],
        "equal answers": ["columns-12"],
        "bad is a list of messages whose last is not the assistant's": ["columns-13"],
    }


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"questoin": "a", "type": "safety"}, r"\['questoin'\] not in \['question'"),
        ({"question": "a"}, "no type, expected as in"),
        ({}, "no question and no type"),
    ],
)
def test_columns_that_cannot_be_are_refused(spec, message):
    with pytest.raises(ValueError, match=rf"config\.data\.columns: {message}"):
        columns.convert(spec)
