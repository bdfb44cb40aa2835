"""Text as it grows: whatever is shown early is a beginning of what is shown at the end."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stair_jax import text
from stair_jax.serve import pieces
from stair_jax.serve.pieces import Parts, Reply, TextPieces, direct, raw, reasoned
from stair_jax.text import OUTPUT, OUTPUT_END, STEP, STEP_END, Codec
from tests.support.hf_folders import make_tokenizer

STEPS = f"{STEP}\nTitle: it is safe{STEP_END}{STEP} so help {STEP_END}"
WHOLE = f"{STEPS}{OUTPUT} Final Answer:  42 {OUTPUT_END}"
SAID = st.lists(
    st.sampled_from(
        [
            STEP,
            STEP_END,
            OUTPUT,
            OUTPUT_END,
            "Final",
            " final answer",
            ":",
            " ",
            "\n",
            "a",
            "<|",
            "é",
        ]
    ),
    max_size=12,
).map("".join)


@pytest.fixture(scope="module")
def codec():
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens({"extra_special_tokens": [*text.TAGS, "<|eot_id|>"]})
    return Codec(tokenizer, "llama3")


def test_steps_and_answer_stand_apart():
    assert reasoned(WHOLE, True) == Parts("Title: it is safe\n\n so help", "42")


def test_an_answer_that_is_closed_is_the_one_that_evaluation_takes():
    for said in (
        WHOLE,
        f"{OUTPUT}x{OUTPUT_END}",
        f"{STEP}a{STEP_END}{OUTPUT}\n final ANSWER :{OUTPUT_END}",
        f"{STEP}a{STEP_END}{OUTPUT}So the final answer: 5{OUTPUT_END}",  # no heading
    ):
        assert reasoned(said, True).content == text.final_answer(said)


def test_an_answer_that_was_cut_shows_its_beginning_and_one_that_never_began_is_empty():
    assert reasoned(f"{STEP}a{STEP_END}{OUTPUT} the an", True) == Parts("a", "the an")
    assert reasoned(f"{STEP}a thought", True) == Parts("a thought", "")


def test_all_of_a_direct_answer_is_content_without_white_space_about_it():
    assert direct("  yes \n", True) == Parts("", "yes")
    assert text.final_answer(" yes ", True) == "yes"


@given(SAID, st.sampled_from([raw, direct, reasoned]))
@settings(max_examples=300, deadline=None)
def test_what_is_shown_early_begins_what_is_shown_at_the_end(said, view):
    whole = view(said, True)
    for end in range(len(said) + 1):
        early = view(said[:end], False)
        assert whole.reasoning.startswith(early.reasoning)
        assert whole.content.startswith(early.content)


def test_a_tag_that_has_only_begun_is_not_shown():
    assert reasoned(f"{STEP}safe<|/Reas", False) == Parts("safe", "")
    assert reasoned(f"{STEP}safe<|/Reas", True) == Parts("safe<|/Reas", "")


@given(st.lists(st.text(alphabet="aé漢🙂 ", max_size=6), max_size=5), st.data())
@settings(max_examples=60, deadline=None)
def test_pieces_of_tokens_add_up_though_characters_are_cut(words, data):
    tokenizer = make_tokenizer()  # a token a byte
    said = "".join(words)
    ids = tokenizer.encode(said)
    grown, at, shown = TextPieces(lambda ids: str(tokenizer.decode(list(ids)))), 0, ""
    while at < len(ids):
        size = data.draw(st.integers(1, 4))
        shown += grown.add(ids[at : at + size])
        at += size
        assert said.startswith(shown)
        assert "\ufffd" not in shown
    assert shown == said


def test_a_byte_that_is_no_character_does_not_hold_up_what_follows():
    tokenizer = make_tokenizer()
    broken = tokenizer.encode("é")[:1]
    grown = TextPieces(lambda ids: str(tokenizer.decode(list(ids))))
    assert grown.add(broken) == ""
    assert grown.add(tokenizer.encode("ab")) == "\ufffdab"


def spoken(codec, said, view=raw, stops=(), size=3, end=()):
    reply, ids, shown = Reply(codec, view, stops), codec.encode(said) + list(end), ["", ""]
    for at in range(0, len(ids), size):
        parts = reply.add(ids[at : at + size], ended=at + size >= len(ids))
        shown = [a + b for a, b in zip(shown, parts, strict=True)]
        if reply.stopped:
            break
    assert tuple(shown) == reply.shown
    return reply


@pytest.mark.parametrize("size", [1, 2, 5, 1000])
def test_a_string_stops_an_answer_before_it_wherever_tokens_end(codec, size):
    reply = spoken(codec, "one two\n\nthree", stops=["xx", "\n\nth"], size=size)
    assert reply.stopped
    assert reply.shown == Parts("", "one two")


def test_the_earliest_of_the_strings_stops(codec):
    assert spoken(codec, "one two three", stops=["three", "two"], size=99).shown.content == "one "


def test_a_beginning_of_a_string_that_stops_is_shown_once_something_else_follows(codec):
    reply = spoken(codec, "a STO b ST", stops=["STOP"], size=1)
    assert not reply.stopped
    assert reply.shown.content == "a STO b ST"


def test_a_string_in_the_steps_stops_nothing(codec):
    reply = spoken(codec, WHOLE, view=reasoned, stops=["safe"])
    assert not reply.stopped
    assert reply.shown.content == "42"


def test_the_token_that_ends_a_turn_is_not_shown_but_counted(codec):
    reply = spoken(codec, "ab", end=[codec.eos_id])
    assert reply.shown.content == "ab"
    assert len(reply.ids) == 3


def test_pieces_of_a_codec_keep_tags(codec):
    grown = pieces.pieces_of(codec)
    assert grown.add(codec.encode(OUTPUT)) == OUTPUT
