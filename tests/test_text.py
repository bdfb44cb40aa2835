import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stair_jax import text
from stair_jax.miniature import tokenizer as miniature
from stair_jax.records import Prompt
from tests.support.texts import bytewise, spoken

LLAMA = (
    "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nhi?<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n"
)
CHATML = "<|im_start|>user\nhi?<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize(("template", "want"), [("llama3", LLAMA), ("chatml", CHATML)])
def test_prompts_have_no_system_turn_unless_one_is_asked_for(template, want):
    codec = text.Codec(bytewise(), template)
    assert spoken(codec, codec.prompt_ids("hi?")) == want
    system = text.Codec(bytewise(), template, "be kind")
    said = spoken(system, system.prompt_ids("hi?"))
    assert "system" in said
    assert "be kind" in said
    assert said.endswith(want[want.index("user") - 3 :])


def test_stop_sets_hold_the_ends_of_steps_and_of_responses():
    codec = text.Codec(bytewise(), "llama3")
    name = codec.tokenizer.convert_ids_to_tokens
    ends = {"<|eot_id|>", "<|im_end|>", "<|endoftext|>"}
    assert set(name(list(codec.end_ids))) == ends
    assert set(name(list(codec.end_stop))) == ends | {text.OUTPUT_END}
    assert set(name(list(codec.step_stop))) == ends | {text.OUTPUT_END, text.STEP_END}
    assert codec.stops == {"step": codec.step_stop, "end": codec.end_stop}
    assert name(codec.eos_id) == "<|eot_id|>"
    assert name(text.Codec(bytewise(), "chatml").eos_id) == "<|im_end|>"


def test_padding_never_ends_anything():
    assert text.Codec(bytewise(), "llama3").pad_id == bytewise().convert_tokens_to_ids("<|pad|>")
    codec = text.Codec(bytewise(pad="<|eot_id|>"), "llama3")
    assert codec.pad_id not in codec.step_stop


def test_words_that_a_vocabulary_lacks_are_counted():
    codec = text.Codec(miniature.build(), "llama3")
    known, strange = codec.prompt_ids("how do i make a ?"), codec.prompt_ids("Janet lays eggs")
    assert codec.unknown_id == codec.tokenizer.unk_token_id
    assert (text.unknown_of(codec, known), text.unknown_of(codec, strange)) == (0, 3)
    # A vocabulary of bytes spells everything, and some of them call an end their unknown token.
    tokenizer = bytewise()
    tokenizer.unk_token = "<|endoftext|>"
    spelling = text.Codec(tokenizer, "chatml")
    assert spelling.unknown_id is None
    assert text.unknown_of(spelling, [tokenizer.get_vocab()["<|endoftext|>"]]) == 0


@given(st.text(alphabet=st.sampled_from("ab <|/>"), max_size=12), st.sampled_from(text.TAGS))
def test_tags_in_user_text_never_become_tokens(around, tag):
    codec = text.Codec(bytewise(), "llama3")
    question = f"{around}{tag}<|eot_id|>{around}"
    ids = codec.prompt_ids(question)
    plain = codec.prompt_ids("")
    specials = set(codec.tokenizer.all_special_ids)
    assert [i for i in ids if i in specials] == [i for i in plain if i in specials]
    spaced = text.escape(question, codec.specials)
    assert spaced.replace(" ", "") == question.replace(" ", "")  # nothing else was changed


@pytest.mark.parametrize("control", ["<|eot_id|>", "<|im_start|>", "<|pad|>"])
def test_special_tokens_in_answers_stay_plain_text(control):
    codec = text.Codec(bytewise(), "llama3")
    tags = [codec.tokenizer.convert_tokens_to_ids(tag) for tag in text.TAGS]
    ids = codec.response_ids(f"{''.join(text.TAGS)}say {control} now")
    assert ids[:4] == tags
    assert not set(ids[4:]) & set(codec.tokenizer.all_special_ids)
    assert spoken(codec, ids[4:]) == f"say {text.escape(control, [control])} now"
    turns = [("user", "a"), ("assistant", f"say {control}{text.STEP} now")]
    plain = codec.prompt_ids("b", [("user", "a"), ("assistant", "say now")])
    count = lambda ids: sum(ids.count(i) for i in codec.tokenizer.all_special_ids)  # noqa: E731
    assert count(codec.prompt_ids("b", turns)) == count(plain) + 1
    assert codec.holds_controls(f"say {control} now")
    assert not codec.holds_controls(f"{text.STEP}say now<|eot_id|>")


def test_what_stands_behind_an_answer_is_no_part_of_it():
    codec = text.Codec(bytewise(), "llama3")
    answer = f"{text.OUTPUT}a b{text.OUTPUT_END}"
    for behind in ("", " ", "\n\n", "<|eot_id|>", " <|endoftext|>\n<|eot_id|> "):
        assert codec.response_ids(answer + behind) == codec.encode(answer)
    assert codec.response_ids(" \n") == []


def test_an_end_that_is_an_ordinary_letter_stays_where_it_is():
    codec = text.Codec(bytewise(), "llama3", more_ends=[bytewise().get_vocab()["x"]])
    assert codec.response_ids("box") == codec.encode("box")


def test_words_that_a_checkpoint_added_stay_words_in_answers_alone():
    tokenizer = bytewise()
    tokenizer.add_tokens(["<think>"])
    codec = text.Codec(tokenizer, "chatml")
    (think,) = codec.response_ids("<think>")
    assert think == tokenizer.get_vocab()["<think>"]
    assert think not in codec.prompt_ids("<think>")


def test_ends_of_the_checkpoint_stop_and_are_kept():
    vocabulary = bytewise().get_vocab()
    codec = text.Codec(bytewise(), "llama3", more_ends=[5, 7, vocabulary[text.STEP_END]])
    plain = text.Codec(bytewise(), "llama3")
    assert codec.end_ids == plain.end_ids | {5, 7}
    assert codec.stops == {name: ids | {5, 7} for name, ids in plain.stops.items()}
    assert codec.eos_id == plain.eos_id
    assert codec.pad_id not in codec.end_ids


SYSTEMS = [
    "be kind",
    "two\nlines",
    "both \"quotes\" and 'these'",
    "back\\slash \\n",
    "{{ a }} {% if b %}",
    "a <|eot_id|> b",
    " spaced ",
]


@pytest.mark.parametrize("template", text.TEMPLATES)
@pytest.mark.parametrize("system", SYSTEMS)
def test_the_exported_template_has_the_system_turn(template, system):
    codec = text.Codec(bytewise(), template, system)
    asked = [{"role": "user", "content": "hi?"}]
    speak = lambda turns: codec.tokenizer.apply_chat_template(  # noqa: E731
        turns, chat_template=codec.chat_template, add_generation_prompt=True, return_dict=False
    )
    assert speak(asked) == codec.prompt_ids("hi?")
    plain = text.Codec(bytewise(), template)
    said = text.escape(system, codec.specials)
    assert speak(asked) == plain.prompt_ids("hi?", [("system", said)])
    assert speak(asked) != plain.prompt_ids("hi?")
    own = [{"role": "system", "content": "be brief"}, *asked]
    assert speak(own) == plain.prompt_ids("hi?", [("system", "be brief")])


def test_the_exported_template_says_what_no_ascii_can():
    codec = text.Codec(bytewise(), "chatml", "caf\u00e9 \U0001f600 \u2028")
    said = codec.tokenizer.apply_chat_template(
        [{"role": "user", "content": "hi"}], chat_template=codec.chat_template, tokenize=False
    )
    assert said.startswith("<|im_start|>system\ncaf\u00e9 \U0001f600<|im_end|>\n")


@pytest.mark.parametrize("template", text.TEMPLATES)
def test_a_system_turn_of_a_tokenizers_own_template_is_found(template):
    tokenizer = bytewise()
    assert text.own_system(tokenizer) == ""
    tokenizer.chat_template = text.Codec(tokenizer, template, "You are Qwen.").chat_template
    assert text.own_system(tokenizer) == "You are Qwen."
    tokenizer.chat_template = text.TEMPLATES[template]
    assert text.own_system(tokenizer) == ""
    tokenizer.chat_template = "{{ raise_exception('no') }}"
    assert text.own_system(tokenizer) == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((bytewise(), "alpaca"), "'alpaca' is not one of"),
        ((bytewise(without=["<|/Output|>"]), "llama3"), r"'<\|/Output\|>' is no token"),
        ((bytewise(without=["<|im_end|>"]), "chatml"), r"'<\|im_end\|>' is no token"),
    ],
)
def test_a_tokenizer_that_cannot_serve_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        text.Codec(*arguments)


@pytest.mark.parametrize(
    ("response", "want"),
    [
        (
            "<|Reasoning_step|>a<|/Reasoning_step|>\n\n<|Output|>\nFinal Answer:\nyes\n<|/Output|>",
            "yes",
        ),
        ("<|Output|> final answer : 4 2 <|/Output|>", "4 2"),
        ("<|Output|>one<|/Output|><|Output|>two<|/Output|><|eot_id|>", "two"),
        ("<|Output|><|/Output|>", ""),
        ("<|Output|>never closed", None),
        ("closed only<|/Output|>", None),
        ("no block at all", None),
        ("", None),
    ],
)
def test_the_final_answer_is_told_apart_from_a_missing_one(response, want):
    assert text.final_answer(response) == want


def test_decode_keeps_tags_and_inverts_response_ids():
    codec = text.Codec(miniature.build(), "llama3")
    response = "<|Reasoning_step|> plan : 1 <|/Reasoning_step|> <|Output|> 2 <|/Output|>"
    assert codec.decode(codec.response_ids(response)) == response


def test_a_model_goes_on_from_the_earlier_turns_and_from_how_its_response_begins():
    codec = text.Codec(bytewise(), "chatml", "be kind")
    plain = Prompt(id="a", question="hi?", type="safety")
    turns = (("system", "be strict"), ("user", "a"), ("assistant", "b"))
    begun = dataclasses.replace(plain, before=turns, prefill=f"{text.STEP} it is fine")
    said = spoken(codec, text.opening_ids(codec, begun))
    assert spoken(codec, text.opening_ids(codec, plain)) == spoken(codec, codec.prompt_ids("hi?"))
    assert "be kind" not in said
    assert "<|im_start|>system\nbe strict<|im_end|>\n<|im_start|>user\na<|im_end|>" in said
    assert said.endswith(f"<|im_start|>assistant\n{text.STEP} it is fine")
    tag = codec.tokenizer.convert_tokens_to_ids(text.STEP)
    assert text.opening_ids(codec, begun).count(tag) == 1  # the tag itself, not its letters
