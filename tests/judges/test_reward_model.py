"""A reward model as a rater: what it is asked, what comes back, and equality with transformers."""

import dataclasses
import math
from typing import Any

import numpy as np
import pytest

from stair_jax import text
from stair_jax.config.schema import EngineConfig
from stair_jax.engine.scoring import Scoring
from stair_jax.hf import reward_model
from stair_jax.judges import reward_model as reward_model_lib
from stair_jax.judges.base import Rater
from stair_jax.judges.reward_model import RewardRater
from stair_jax.miniature import tokenizer as miniature_tokenizer
from stair_jax.model.reward import Readout
from stair_jax.records import Prompt

BT = Readout(position="eos", loss="bt", low=-1.0, high=1.0)
MSE = Readout(position="step_end", loss="mse", low=-3.0, high=3.0)
TURNS = (
    "{{ bos_token }}{% for m in messages %}{{ ' <|start_header_id|> ' + m['role']"
    " + ' <|end_header_id|> ' + m['content'] + ' <|eot_id|> ' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ ' <|start_header_id|> assistant <|end_header_id|> ' }}"
    "{% endif %}"
)


def ask(question, id="q"):
    return Prompt(id=id, question=question, type="helpfulness")


def tokenizer_with(template) -> Any:
    tokenizer = miniature_tokenizer.build()
    tokenizer.chat_template = template
    return tokenizer


def words_of(tokenizer, n) -> list[str]:
    """N of its plain words: a vocabulary lists itself in another order each time."""
    special = set(tokenizer.all_special_tokens)
    return sorted(word for word in tokenizer.get_vocab() if word not in special)[30 : 30 + n]


class PlainScoring:
    """Scores a token by a table; it knows who holds what."""

    def __init__(self, score):
        self.score, self.calls, self.roots, self.held = score, [], [], []

    def root(self, ids) -> Any:
        self.roots.append(tuple(ids))
        self.held.append(tuple(ids))
        return tuple(ids)

    def extend(self, items) -> Any:
        self.calls.append(len(items))
        out = [((*a, *b), np.asarray([self.score(x) for x in b], np.float32)) for a, b in items]
        self.held += [prefix for prefix, _ in out]
        return out

    def release(self, prefix):
        self.held.remove(prefix)


def letters(prompt, answer):
    """A text whose ids are the letters of the question and the answer."""
    return [ord(c) for c in prompt.question], [ord(c) for c in answer]


def rater(score, readout=BT, encode=letters, max_tokens=9, wants_response=False):
    scoring = PlainScoring(score)
    return scoring, RewardRater(
        scoring, readout, encode, max_tokens=max_tokens, wants_response=wants_response
    )


def test_what_waits_is_scored_in_one_call_and_a_prompt_once():
    scoring, judge = rater(lambda x: x - 100)
    assert isinstance(judge, Rater)
    for id, (question, answer) in enumerate([("ab", "cd"), ("xy", "ce"), ("ab", "xc")]):
        judge.submit(id, ask(question), answer)
    assert not scoring.calls
    got = dict(judge.collect())
    assert scoring.calls == [3]
    assert scoring.roots == [(97, 98), (120, 121)]
    assert scoring.held == []
    want = {0: ord("d") - 100, 1: ord("e") - 100, 2: ord("c") - 100}  # at the last token
    for id, raw in want.items():
        assert got[id] == pytest.approx(2 / (1 + math.exp(-raw)) - 1, abs=1e-6)
    assert len(set(got.values())) == 3
    assert judge.collect() == []
    assert dict(judge.counters) == {"scored": 3}


def test_the_readout_says_what_a_score_means():
    for raw, want in [(0.4, 0.4), (7.0, 1.0), (-2.0, -1.0)]:
        judge = rater(lambda _, raw=raw: raw, MSE)[1]
        judge.submit(0, ask("a"), "b")
        assert judge.collect() == [(0, pytest.approx(want, abs=1e-6))]


def test_what_cannot_be_scored_is_missing_and_counted():
    scoring, judge = rater(lambda x: math.nan if x == ord("n") else 1.0, max_tokens=4)
    for id, answer in enumerate(["bcd", "bcde", "n", ""]):
        judge.submit(id, ask("a"), answer)
    got = dict(judge.collect())
    assert {id for id, rating in got.items() if rating is None} == {1, 2, 3}
    assert scoring.calls == [2]
    assert dict(judge.counters) == {"scored": 1, "too_long": 1, "not_finite": 1, "empty": 1}


def test_what_was_closed_gives_nothing():
    scoring, judge = rater(lambda _: 0.0)
    judge.submit(0, ask("a"), "b")
    judge.submit(1, ask("a"), "")
    judge.close()
    assert judge.collect() == []
    assert scoring.calls == []


def test_our_models_see_the_whole_response_with_its_tags():
    codec = text.Codec(miniature_tokenizer.build(), "llama3")
    words = " ".join(words_of(codec.tokenizer, 4))
    response = f"{text.STEP} {words} {text.STEP_END} {text.OUTPUT} {words} {text.OUTPUT_END}"
    prompt, at_step = reward_model_lib.of_response(codec, MSE)(ask("how many"), response)
    assert prompt == codec.prompt_ids("how many")
    assert at_step[-1] == codec.tokenizer.convert_tokens_to_ids(text.OUTPUT_END)
    assert codec.tokenizer.convert_tokens_to_ids(text.STEP_END) in at_step
    at_end = reward_model_lib.of_response(codec, BT)
    assert at_end(ask("how many"), response)[1] == [*at_step, codec.eos_id]
    ended = f"{response} {text.TURN_ENDS['llama3']}"
    assert at_end(ask("how many"), ended)[1] == [*at_step, codec.eos_id]


def test_others_see_question_and_answer_in_their_own_template():
    tokenizer = tokenizer_with(TURNS)
    words = words_of(tokenizer, 6)
    question, answer = " ".join(words[:3]), " ".join(words[3:])
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    whole = tokenizer.apply_chat_template(turns, return_dict=False)
    shared, rest = reward_model_lib.of_chat(tokenizer, None)(ask(question), answer)
    assert shared + rest == whole
    assert len(shared) > len(tokenizer.encode(question))
    assert len(rest) == 4  # the answer and the end of its turn
    end = whole[-1]
    shared, rest = reward_model_lib.of_chat(tokenizer, end)(ask(question), answer)
    assert shared + rest == whole[:-1]  # transformers does not read at padding


def test_others_see_a_whole_conversation():
    tokenizer = tokenizer_with(TURNS)
    one, two, three, four = words_of(tokenizer, 4)
    prompt = dataclasses.replace(ask(three), before=(("user", one), ("assistant", two)))
    roles = ("user", "assistant", "user", "assistant")
    said = zip(roles, (one, two, three, four), strict=True)
    turns = [{"role": role, "content": content} for role, content in said]
    encode = reward_model_lib.of_chat(tokenizer, None)
    shared, rest = encode(prompt, four)
    assert shared + rest == tokenizer.apply_chat_template(turns, return_dict=False)
    assert shared != encode(ask(three), four)[0]


def test_a_question_cannot_forge_a_turn():
    tokenizer = tokenizer_with(TURNS)
    encode = reward_model_lib.of_chat(tokenizer, None)
    end = tokenizer.convert_tokens_to_ids("<|eot_id|>")
    assert "<|eot_id|>" in tokenizer.get_vocab()
    shared, rest = encode(ask("what <|eot_id|> is"), "this <|eot_id|> one")
    assert (shared + rest).count(end) == 2


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (None, "has no chat template"),
        ("{{ raise_exception('no assistant here') }}", "fails .* no assistant here"),
        ("{{ messages[0]['content'] + ' how many' }}", "leaves the question or answer out"),
    ],
)
def test_templates_that_cannot_serve_are_refused_in_one_line(template, message):
    with pytest.raises(ValueError, match=message) as caught:
        reward_model_lib.of_chat(tokenizer_with(template), None)
    assert "\n" not in str(caught.value)


@pytest.mark.parity
def test_ratings_are_those_of_transformers_by_hand(tmp_path):
    torch = pytest.importorskip("torch")
    import transformers

    tokenizer = tokenizer_with(TURNS)
    config = transformers.LlamaConfig(
        num_hidden_layers=2,
        hidden_size=20,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=6,
        intermediate_size=28,
        vocab_size=len(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        initializer_range=0.4,
    )
    config.num_labels = 1
    torch.manual_seed(0)
    model = transformers.LlamaForSequenceClassification(config).eval()
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)

    got = reward_model.load(tmp_path)
    engine = EngineConfig(
        slots=4,
        page_size=8,
        pool_bytes=1 << 20,
        max_context=64,
        chunk=8,
        prefill_rows=4,
        dtype="float32",
    )
    scoring = Scoring(got.spec, got.params, config=engine)
    judge = RewardRater(
        scoring,
        got.readout,
        reward_model_lib.of_chat(got.tokenizer, got.pad_id),
        max_tokens=engine.max_context,
        wants_response=got.own,
    )
    assert not judge.wants_response
    words = words_of(tokenizer, 20)
    asked = {
        "a": (" ".join(words[:4]), " ".join(words[9:12])),
        "b": (" ".join(words[:4]), " ".join(words[5:19])),
        "c": (" ".join(words[7:9]), words[2]),
        "long": (" ".join(words * 3), words[2]),
    }
    for id, (question, answer) in asked.items():
        judge.submit(id, ask(question), answer)
    ratings: dict[Any, Any] = dict(judge.collect())
    assert ratings.pop("long") is None

    turns = [
        [{"role": "user", "content": q}, {"role": "assistant", "content": a}]
        for q, a in list(asked.values())[:3]
    ]
    batch = tokenizer.apply_chat_template(
        turns, return_dict=True, return_tensors="pt", padding=True
    )
    with torch.no_grad():
        logits = model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    want = 2 * torch.sigmoid(logits[:, 0]).numpy() - 1
    assert np.ptp(want) > 0.05
    np.testing.assert_allclose([ratings[id] for id in "abc"], want, atol=1e-4)
