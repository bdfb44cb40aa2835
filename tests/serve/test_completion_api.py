"""Completions: text and tokens that go on, and what a model finds of them."""

from typing import Any

import numpy as np
import openai
import pytest

from stair_jax.engine.request import GREEDY, Request
from stair_jax.miniature import tokenizer as mini
from stair_jax.text import OUTPUT_END, STEP
from tests.support import serving
from tests.support.serving import VOCABULARY, id_of

WORDS = ["what", "can", "you", "do"]


def complete(client, prompt: Any = "what can you do", model="random", **options):
    return client.completions.create(model=model, prompt=prompt, **options)


def test_text_goes_on_as_the_decoder_has_it(client):
    ids = serving.greedy("random", map(id_of, WORDS), 12)
    answer = complete(client, max_tokens=12)
    (choice,) = answer.choices
    assert choice.text == serving.codec().decode(ids[len(WORDS) :])
    assert choice.finish_reason == "length"
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (4, 12)
    assert complete(client).usage.completion_tokens == 16  # OpenAI's


def test_tokens_are_taken_for_the_text_that_they_are(client):
    ids = [id_of(word) for word in WORDS]
    assert complete(client, ids).choices[0].text == complete(client).choices[0].text


def test_prompts_side_by_side_answer_in_their_order(client):
    prompts = ["what can", "one", "you do"]
    together = complete(client, prompts, n=2, temperature=1.0, top_p=0.0, max_tokens=6)
    assert [choice.index for choice in together.choices] == list(range(6))
    alone = [complete(client, prompt, max_tokens=6).choices[0].text for prompt in prompts]
    assert [choice.text for choice in together.choices] == [t for t in alone for _ in range(2)]
    assert len(set(alone)) == 3
    rows = [[id_of(word) for word in prompt.split()] for prompt in prompts]
    assert [c.text for c in complete(client, rows, max_tokens=6).choices] == alone


def test_a_tag_ends_a_text_and_the_end_of_a_turn_is_not_shown(client):
    (choice,) = complete(client, "yes it", "sft").choices
    assert (choice.text, choice.finish_reason) == (f"can {OUTPUT_END}", "stop")
    answer = complete(client, "end", "sft")
    assert (answer.choices[0].text, answer.choices[0].finish_reason) == ("", "stop")
    assert answer.usage.completion_tokens == 1


def test_log_probs_of_an_echo_are_those_of_one_forward(client):
    """As lm-evaluation-harness asks for them."""
    for top in (0, 1, 5):
        (choice,) = complete(client, echo=True, logprobs=top, max_tokens=1).choices
        found = choice.logprobs
        ids = [id_of(word) for word in found.tokens]
        assert found.tokens[:4] == WORDS
        assert len(ids) == 5
        table = serving.logps_of(serving.random_weights(), ids)
        assert found.token_logprobs[0] is None
        want = table[np.arange(4), ids[1:]]
        np.testing.assert_allclose(found.token_logprobs[1:], want, atol=1e-5)
        for row, tops in zip(table[:-1], found.top_logprobs[1:], strict=True):
            best = np.argsort(-row)[:top]
            assert list(tops) == [VOCABULARY[id] for id in best]
            np.testing.assert_allclose(list(tops.values()), row[best], atol=1e-5)
        assert choice.text.startswith(" ".join(WORDS))


def test_the_likeliest_token_has_one_log_prob_to_the_last_bit(client):
    """The harness finds out by this whether a continuation is the greedy one."""
    (choice,) = complete(client, logprobs=1, max_tokens=20).choices
    for chosen, tops in zip(
        choice.logprobs.token_logprobs, choice.logprobs.top_logprobs, strict=True
    ):
        assert chosen == max(tops.values())


def test_log_probs_of_drawn_tokens_are_the_engines_own(client, server):
    """Two programs that share no code compute them: one draws, the other reads."""
    (choice,) = complete(client, logprobs=0, max_tokens=12).choices
    engine = serving.serve_model(server.models[0].run.workdir, "x", serving.random_weights()).engine
    request = Request(
        id=0,
        prefix=engine.root([id_of(word) for word in WORDS]),
        key=("k",),
        stop="end",
        max_tokens=12,
        sampling=GREEDY,
        logps=True,
    )
    (result,) = engine.generate([request])
    assert choice.logprobs.tokens == [VOCABULARY[id] for id in result.ids]
    np.testing.assert_allclose(choice.logprobs.token_logprobs, result.logps, atol=1e-5)


def test_offsets_say_where_each_token_begins_in_the_text(client):
    for echo in (True, False):
        (choice,) = complete(client, echo=echo, logprobs=0, max_tokens=6).choices
        found = choice.logprobs
        assert found.text_offset[0] == 0
        for token, offset in zip(found.tokens, found.text_offset, strict=True):
            assert choice.text[offset:].lstrip().startswith(token)


def test_nothing_is_drawn_where_only_the_prompt_is_to_be_read(client, server):
    before = server.models[2].engine.counters["decoded"]
    (choice,) = complete(client, echo=True, logprobs=1, max_tokens=0).choices
    assert choice.text == " ".join(WORDS)
    assert len(choice.logprobs.tokens) == 4
    (choice,) = complete(client, "what", echo=True, logprobs=1, max_tokens=0).choices
    assert choice.logprobs.token_logprobs == [None]
    assert server.models[2].engine.counters["decoded"] == before


def test_a_stream_adds_up_to_the_whole(client):
    prompts = ["what can", "you"]
    whole = complete(client, prompts, max_tokens=14, echo=True)
    options = {"include_usage": True}
    events = list(
        complete(client, prompts, max_tokens=14, echo=True, stream=True, stream_options=options)
    )
    said = ["", ""]
    for event in events[:-1]:
        said[event.choices[0].index] += event.choices[0].text
    assert said == [choice.text for choice in whole.choices]
    assert len(events) > 6
    assert events[-1].usage == whole.usage


def test_a_string_stops_a_text(client, server):
    before = server.models[0].engine.counters["delivered"]
    (choice,) = complete(client, "loop", "sft", stop="loop loop loop", max_tokens=80).choices
    assert (choice.text, choice.finish_reason) == ("", "stop")
    serving.wait_until(lambda: serving.pages_used(server.models[0]) == 0)
    assert server.models[0].engine.counters["delivered"] == before  # it was cancelled


def test_a_tag_in_a_text_becomes_no_token(client):
    (choice,) = complete(
        client, f"what {STEP} can", "sft", echo=True, logprobs=0, max_tokens=0
    ).choices
    assert STEP not in choice.logprobs.tokens
    assert choice.logprobs.tokens[0] == "what"


@pytest.mark.parametrize("word", [STEP, mini.EOS, mini.HEADER_END])
def test_special_tokens_among_tokens_are_refused(client, word):
    with pytest.raises(openai.BadRequestError, match="special tokens within it") as found:
        complete(client, [id_of("what"), id_of(word)])
    assert found.value.code == "special_tokens"


@pytest.mark.parametrize("word", [mini.BOS, mini.EOS])
def test_the_token_that_begins_a_text_is_taken(client, word):
    assert complete(client, [id_of(word), id_of("what")]).usage.prompt_tokens == 2


BAD = [
    ({"prompt": ""}, "prompt: empty"),
    ({"prompt": []}, "prompt"),
    ({"prompt": [10**6]}, "prompt: token 1000000, expected below"),
    ({"prompt": [-1]}, "prompt"),
    ({"prompt": ["a", 1]}, "prompt"),
    ({"max_tokens": 0}, "max_tokens: 0, and echo is off"),
    ({"max_tokens": 93}, "max_tokens: 93, and there is room for 92"),
    ({"prompt": "you " * 96}, "maximum context length is 96 tokens"),
    ({"best_of": 2}, "best_of: 2, expected as many as n"),
    ({"logprobs": 21}, "logprobs"),
    ({"logprobs": 1, "stream": True}, "logprobs: not with stream or stop"),
    ({"suffix": "a"}, "suffix"),
    ({"guided_regex": "a"}, "guided_regex: unknown here, it would be ignored"),
]


@pytest.mark.parametrize(("change", "message"), BAD)
def test_what_cannot_be_is_refused_by_its_name(http, change, message):
    body = {"model": "random", "prompt": "what can you do"} | change
    answer = http.post("/v1/completions", json=body)
    assert answer.status_code == 400
    assert message in answer.json()["error"]["message"]


def test_tokens_and_text_turn_into_each_other(http):
    found = http.post("/tokenize", json={"prompt": f"what {STEP} can"}).json()
    assert found["tokens"] == [id_of("what"), id_of(STEP), id_of("can")]
    assert (found["count"], found["max_model_len"]) == (3, 96)
    text = http.post("/detokenize", json={"tokens": found["tokens"]}).json()["prompt"]
    assert text == f"what {STEP} can"
    for body in ({}, {"prompt": "a", "messages": [{"role": "user", "content": "a"}]}):
        assert http.post("/tokenize", json=body).status_code == 400
    assert http.post("/detokenize", json={"tokens": [10**6]}).status_code == 400


def test_the_tokenizer_is_described(http):
    info = http.get("/tokenizer_info").json()
    assert info["eos_token"] == mini.EOS
    assert info["bos_token"] == mini.BOS
    assert "assistant" in info["chat_template"]
    assert info["max_model_len"] == 96
    assert http.get("/tokenizer_info?model=none").status_code == 404
