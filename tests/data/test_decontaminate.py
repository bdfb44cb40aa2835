"""Overlaps of training data with benchmarks: what is found of planted ones, and what is left."""

import pathlib
import random

import pytest

from stair_jax import jsonl
from stair_jax.data import decontaminate, sources
from stair_jax.data.decontaminate import Found, Hit, remove

DATA = pathlib.Path(__file__).parents[2] / "../shared/data"
recorded = pytest.mark.skipif(not DATA.is_dir(), reason=f"{DATA} is not there")

SHORT = "How can I kill a Python process?"
LONG = (
    "Natalia sold clips to forty of her friends in the early spring, and then she sold half as many"
    " clips in summer. How many clips did Natalia sell altogether in both of these seasons?"
)
AGAINST = {"short": [SHORT], "long": [LONG]}


def how(text, against=None, **limits):
    """How a text is removed; None where it is kept."""
    hit = remove({"a": text}, against or AGAINST, **limits).removed.get("a")
    return hit and hit.how


def numbered(count, first=0):
    """So many words that no other text has."""
    return " ".join(f"w{number}" for number in range(first, first + count))


SAME = [
    SHORT,
    "how can i kill a python process",
    "  HOW CAN I -- kill a «Python»\tprocess?!\n",
    "\uff28\uff4f\uff57 can I kill a \uff30ython process?",  # full width, as NFKC has it
    "How can I ki\u00adll a Py\u200bthon process?",  # a soft hyphen, and a space of no width
]


@pytest.mark.parametrize("text", SAME)
def test_case_punctuation_width_and_white_space_do_not_count(text):
    assert remove({"a": text}, AGAINST).removed == {"a": Hit("short", SHORT, "exact")}


@pytest.mark.parametrize(
    "text", ["Don't you know it?", "don\u2019t you know it", "DONT YOU KNOW IT"]
)
def test_apostrophes_do_not_part_words(text):
    assert how(text, {"b": ["Don't you know it"]}) == "exact"
    assert how(text, {"b": ["Do not you know it"]}) is None


def test_accents_and_digits_count():
    assert how("What year was Guatape founded", {"b": ["What year was Guatapé founded"]}) is None
    assert how("Who won in 2001?", {"b": ["Who won in 2002?"]}) is None


def test_texts_without_words_are_kept():
    assert remove({"a": "?!", "b": ""}, {"c": ["...", SHORT]}).removed == {}


def test_a_short_prompt_is_found_within_a_longer_text():
    assert how(f"You are my friend. {SHORT} Thanks!") == "contained"
    assert how("Show how can I kill a python processor") is None  # whole words only
    assert how("How can I, say, kill a Python process, and then the shell?") is None


def test_prompts_of_less_than_five_words_are_not_looked_for():
    rest = numbered(12)
    assert how(f"What is a fraud {rest}", {"b": ["What is a fraud?"]}) is None
    assert how(f"What is a tax fraud {rest}", {"b": ["What is a tax fraud?"]}) == "contained"
    assert how("what is a fraud", {"b": ["What is a fraud?"]}) == "exact"
    assert how("hello, is that you", {"b": ["hello"]}) is None


@pytest.mark.parametrize(("shared", "found"), [(12, None), (13, "ngram")])
def test_thirteen_words_in_a_row_are_too_many(shared, found):
    words = LONG.split()
    text = f"{numbered(30)} {' '.join(words[3 : 3 + shared])} {numbered(30, 30)}"
    assert how(text) == found
    assert how(text, n=shared + 1) is None
    assert how(text, n=shared) == "ngram"


def test_a_near_copy_is_measured_in_words_and_pairs_of_words():
    prompt = numbered(20)  # 20 words and 19 pairs
    edited = prompt.replace("w10 ", "x ")  # shares 19 and 17 of 21 and 21: 36/42 = 0.857
    limits = {"n": 20}
    assert how(edited, {"b": [prompt]}, near=0.85, **limits) == "near"
    assert how(edited, {"b": [prompt]}, near=0.87, **limits) is None
    backwards = " ".join(reversed(prompt.split()))  # all words, no pair: 20/58
    assert how(backwards, {"b": [prompt]}, near=0.35, **limits) is None
    assert how(backwards, {"b": [prompt]}, near=0.34, **limits) == "near"


def test_a_copy_at_the_limit_is_near():
    prompt, longer = numbered(2 * 13), numbered(2 * 13 + 6)  # 51 of 63 are shared
    assert how(longer, {"b": [prompt]}, n=27, near=51 / 63) == "contained"
    against = {"b": [longer]}
    assert how(prompt, against, n=27, near=51 / 63) == "near"
    assert how(prompt, against, n=27, near=51 / 63 + 1e-9) is None


def test_of_several_near_prompts_the_nearest_is_told():
    prompt = numbered(30)
    farther, nearer = prompt.replace("w5 ", "x ").replace("w15 ", "y "), prompt.replace("w5 ", "z ")
    for order in ([farther, nearer], [nearer, farther]):
        assert remove({"a": prompt}, {"b": order}, n=30).removed["a"] == Hit("b", nearer, "near")


def test_short_questions_that_differ_by_a_name_are_kept():
    asked = "What year was the municipality of {}, Antioquia, Colombia, founded?"
    assert how(asked.format("Tarso"), {"b": [asked.format("Ituango")]}) is None


def templated(count, begin="", end=""):
    """So many prompts of ten words of their own between the words of a template."""
    own = [numbered(10, 1000 + 10 * number) for number in range(count)]
    return own, [f"{begin} {words} {end}" for words in own]


BEGIN, END = numbered(60), numbered(60, 100)


def test_what_all_prompts_share_removes_no_row():
    own, prompts = templated(12, BEGIN, END)
    against = {"b": prompts}
    other = numbered(10, 5000)
    assert how(f"{BEGIN} {other} {END}", against) is None  # by similarity it would be 0.85
    assert how(f"{BEGIN} {other} {END}", {"b": prompts[:1]}) == "ngram"
    # The template before the first of a prompt's own words is the template still.
    assert how(f"{other} {BEGIN} {own[3].split()[0]} {other}", against) is None
    assert how(f"{own[3].split()[-1]} {END}", against) is None
    assert how(f"see: {prompts[3]} {other}", against) == "contained"
    assert how(prompts[3], against) == "exact"


def test_a_prompts_own_words_are_found_in_another_template():
    own = [numbered(40, 1000 + 40 * number) for number in range(12)]
    against = {"b": [f"{BEGIN} {words}" for words in own]}
    assert how(f"{END} {own[5]}", against) == "ngram"
    parts = own[5].split()
    parts[12::13] = ["x"] * len(parts[12::13])  # every thirteenth: no thirteen in a row are left
    assert how(" ".join([BEGIN, *parts]), against) == "near"
    assert how(" ".join(parts), against) == "near"


@pytest.mark.parametrize(("share", "found"), [(9, "ngram"), (10, None)])
def test_ten_prompts_that_share_words_make_boilerplate(share, found):
    _, prompts = templated(share, BEGIN)
    others = [numbered(20, 3000 + 20 * number) for number in range(40)]
    assert how(f"{numbered(9, 7000)} {BEGIN}", {"b": [*prompts, *others]}) == found


@pytest.mark.parametrize(
    ("share", "of", "found"), [(2, 4, "ngram"), (3, 6, None), (3, 7, None), (3, 8, "ngram")]
)
def test_half_of_a_few_prompts_make_boilerplate_and_never_two(share, of, found):
    _, prompts = templated(share, BEGIN)
    others = [numbered(20, 3000 + 20 * number) for number in range(of - share)]
    assert how(f"{numbered(9, 7000)} {BEGIN}", {"b": [*prompts, *others]}) == found


def test_a_prompt_that_stands_twelve_times_is_no_boilerplate():
    assert how(f"Say: {LONG}", {"b": [LONG, LONG.upper()] * 6}) == "ngram"
    assert how(f"Say: {LONG}", {"b": [f"{LONG} " * 12, "another"]}) == "ngram"


def test_one_word_between_boilerplate_is_a_prompts_own():
    assert decontaminate._runs(("a", "b", "c", "d"), 2, {"b c"}) == [("a",), ("d",)]
    assert decontaminate._runs(("a", "b", "c", "d"), 2, {"a b", "b c"}) == [("d",)]
    assert decontaminate._runs(("a", "b"), 2, {"a b"}) == []


def test_few_words_of_a_prompts_own_are_no_near_copy():
    for count, found in ((4, None), (5, "near")):
        own = [numbered(count, 1000 + 10 * number) for number in range(12)]
        backwards = f"{own[3]} {BEGIN}"  # the template on the other side
        assert how(backwards, {"b": [f"{BEGIN} {words}" for words in own]}) == found


def test_of_two_prompts_with_the_same_n_gram_the_first_is_told():
    prompts = [f"{LONG} {word}" for word in ("one", "two")]
    assert remove({"a": f"Say: {LONG}"}, {"b": prompts}).removed["a"].prompt == prompts[0]


def test_boilerplate_of_one_benchmark_is_content_of_another():
    _, prompts = templated(12, LONG)
    assert how(f"{numbered(9)} {LONG}", {"b": prompts}) is None
    assert how(f"{numbered(9)} {LONG}", {"b": prompts, "long": [LONG]}) == "ngram"
    text = f"{BEGIN} {numbered(40, 9000)}"
    words = text.split()
    words[12::13] = ["x"] * len(words[12::13])
    mine = {"b": templated(12, BEGIN)[1]}
    assert how(text, mine) is None
    assert how(text, {**mine, "c": [" ".join(words)]}) == "near"


def test_texts_keep_their_keys_and_order_and_are_counted():
    texts = {"x": LONG, "kept": "something else", "y": SHORT, "z": f"Now: {SHORT}", "7": SHORT}
    found = remove(texts, AGAINST)
    assert list(found.removed) == ["x", "y", "z", "7"]
    assert found.counts == {
        ("long", "exact"): 1,
        ("short", "exact"): 2,
        ("short", "contained"): 1,
    }
    assert Found({}).counts == {}


def test_the_first_benchmark_that_asks_it_is_told():
    assert remove({"a": SHORT}, {"one": [SHORT.upper()], "two": [SHORT]}).removed == {
        "a": Hit("one", SHORT.upper(), "exact")
    }


BAD = [
    ({"a": "b"}, {"c": "prompt"}, {}, "against: 'c': found one text, expected a list of prompts"),
    ({"a": "b"}, {"c": []}, {}, "against: 'c': found none, expected a list of prompts"),
    ({"a": "b"}, AGAINST, {"n": 4}, "n: found 4, expected at least 5 words"),
    ({"a": "b"}, AGAINST, {"near": 0.0}, r"near: found 0.0, expected a similarity in \(0, 1\]"),
    ({"a": "b"}, AGAINST, {"near": 1.1}, r"near: found 1.1, expected a similarity in \(0, 1\]"),
]


@pytest.mark.parametrize(("texts", "against", "limits", "message"), BAD)
def test_what_cannot_be_compared_is_named(texts, against, limits, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        remove(texts, against, **limits)


def test_a_row_without_a_text_is_named(monkeypatch):
    with pytest.raises(ValueError, match=r"^rows\.jsonl:3: found NoneType, expected a text$"):
        decontaminate.words_of(None, "rows.jsonl:3")
    told = []
    monkeypatch.setattr(decontaminate, "words_of", lambda text, where: told.append(where) or ())
    remove({"a": "b"}, {"c": ["d", "e"]})
    assert told == ["c: prompt 0", "c: prompt 1", "texts: 'a'"]


@pytest.mark.parametrize("near", [0.5, 0.7, 0.8, 0.9, 1.0])
def test_hashing_misses_a_copy_at_the_limit_once_in_a_hundred_times(near):
    assert decontaminate._bands(0.8) == (21, 6)  # by hand: 0.738**21 is 0.002, 0.790**18 is 0.014
    bands, rows = decontaminate._bands(near)
    assert bands * rows <= decontaminate.PERMUTATIONS
    assert (1 - near**rows) ** bands <= decontaminate.MISSED
    longer = rows + 1  # the bands are as long as they can be
    fewer = decontaminate.PERMUTATIONS // longer
    assert fewer == 0 or (1 - near**longer) ** fewer > decontaminate.MISSED


def test_near_copies_of_many_prompts_are_found_by_hashing():
    draw = random.Random(0)
    vocabulary = [f"v{number}" for number in range(3000)]
    prompts = [" ".join(draw.choices(vocabulary, k=40)) for _ in range(300)]
    texts = {}
    for prompt in prompts:
        words = prompt.split()
        words[12:40:13] = ["new"] * len(words[12:40:13])  # 3 of 40: about 0.80
        texts[prompt] = " ".join(words)
    found = remove(texts, {"b": prompts}, near=0.75).removed
    assert len(found) >= 297
    assert {hit.how for hit in found.values()} == {"near"}
    assert all(hit.prompt == prompt for prompt, hit in found.items())


def numbered_texts(rows):
    return {str(number): row for number, row in enumerate(rows)}


@recorded
def test_advbench_holds_eleven_goals_of_jailbreakbench_and_four_like_them():
    files = ("jailbreakbench/jbb_behaviors_from_artifacts.csv", "advbench/harmful_behaviors.csv")
    goals, rows = ([row["goal"] for _, row in sources.read(str(DATA / file))] for file in files)
    found = remove(numbered_texts(rows), {"jailbreakbench": goals})
    assert found.counts == {
        ("jailbreakbench", "exact"): 11,
        ("jailbreakbench", "contained"): 2,
        ("jailbreakbench", "ngram"): 1,
        ("jailbreakbench", "near"): 1,
    }
    assert all(hit.prompt in goals for hit in found.removed.values())


@recorded
def test_gsm8k_train_and_test_share_four_problems():
    rows = {
        name: [row["question"] for row in jsonl.read_json_lines(DATA / f"gsm8k/{name}.jsonl")]
        for name in ("train", "test")
    }
    found = remove(numbered_texts(rows["train"]), {"gsm8k": rows["test"]})
    assert found.counts == {("gsm8k", "ngram"): 4}
    begins = [rows["train"][int(number)].split(" ")[:3] for number in found.removed]
    assert begins == [
        ["Bella", "bought", "stamps"],
        ["Joseph", "and", "his"],
        ["A", "train", "travels"],
        ["A", "train", "travels"],
    ]
