"""A conversation with a model of a run, in every way that an answer can be found."""

import pytest

from stair_jax import chat, text
from stair_jax.run import models
from stair_jax.run.answerer import Answerer
from stair_jax.run.lineage import Lineage
from stair_jax.run.models import Policy
from stair_jax.text import OUTPUT, OUTPUT_END
from tests.support.configs import tiny
from tests.support.evaluation import Codec, Machine
from tests.support.hf_folders import TIED
from tests.support.scripted import ScriptedRewardModel

LOAD = models.load  # as it is


class Words:
    """A tokenizer of whole words."""

    unk_token_id = 0

    def encode(self, word, add_special_tokens):
        assert not add_special_tokens
        return [0 if word == "quux" else 1]


@pytest.fixture
def talk(tmp_path, monkeypatch, capsys):
    """Asks a scripted model: `talk(questions, *flags)` returns what it prints."""
    codec = Codec()
    codec.tokenizer = Words()
    config = tiny(workdir=str(tmp_path))
    (tmp_path / "config.json").write_text(config.to_json())
    monkeypatch.setattr(models, "load", lambda run, model, **_: Policy(model, TIED, None, codec))
    monkeypatch.setattr(models, "engine_for", lambda run, policy: Machine(codec, 10**6))
    monkeypatch.setattr(Answerer, "_reward_model", ScriptedRewardModel(codec), raising=False)

    def say(questions, *flags, prm=True):
        lineage = Lineage(tmp_path / "lineage.json")
        for name in ("sft", *(["prm"] if prm else [])):
            lineage.begin(name, name, {}, ())
            lineage.finish(name, name, readout=ScriptedRewardModel.readout.to_json())
        monkeypatch.setattr("sys.stdin", iter(f"{question}\n" for question in questions))
        chat.main([str(tmp_path), *flags])
        return capsys.readouterr()

    return say


def test_an_answer_is_the_whole_response_of_the_last_model(talk):
    out, err = talk(["what is 1 ?", "", "what is 2 ?"])
    assert out.count(OUTPUT_END) == 2
    assert err.startswith("sft of ")
    assert "score" not in err


@pytest.mark.parametrize("way", ["best_of_3", "vote_of_3", "beam_2x2", "mcts_16"])
def test_a_search_answers_under_the_runs_reward_model(talk, way):
    out, err = talk(["what is 1 ?"], f"--search={way}")
    assert out.count(OUTPUT) == out.count(OUTPUT_END) == 1
    assert "(score " in err
    assert " tokens generated)" in err


def test_a_temperature_draws_another_answer_each_time(talk):
    questions = ["what is 1 ?"] * 3
    talk(questions, "--temperature=1")
    drawn = Machine.last
    talk(questions)
    assert (drawn.sampled, Machine.last.sampled) == (3, 0)
    assert len(set(drawn.keys)) == 3  # that fix the draws


def test_the_miniature_says_what_it_understands_and_which_words_it_does_not(talk):
    _, err = talk(["what is quux ?"])
    assert "The miniature understands its own words and forms of question alone, such as:\n" in err
    assert err.count("\n  ") >= 4  # an example of each benchmark
    assert "(words that it does not know: quux)" in err


@pytest.fixture
def turns(monkeypatch):
    """The earlier turns of every prompt, in the order in which they were asked."""
    seen, ask = [], Answerer.ask

    def watched(self, strategy, prompts, on_reply):
        seen.extend(prompt.before for prompt in prompts)
        return ask(self, strategy, prompts, on_reply)

    ids = Codec.prompt_ids
    monkeypatch.setattr(Answerer, "ask", watched)
    monkeypatch.setattr(Codec, "prompt_ids", lambda self, question, before=(): ids(self, question))
    return seen


def test_questions_stand_alone_unless_it_is_a_conversation(talk, turns):
    talk(["what is 1 ?", "what is 2 ?"])
    assert turns == [(), ()]


def test_a_conversation_goes_on_from_final_answers_and_starts_anew(talk, turns):
    questions = ["what is 1 ?", "what is 2 ?", "/new", "what is 3 ?"]
    out, _ = talk(questions, "--conversation", "--system=be brief")
    system = ("system", "be brief")
    first, second, anew = turns
    assert first == anew == (system,)
    assert second[:2] == (system, ("user", "what is 1 ?"))
    role, answer = second[2]
    assert role == "assistant"
    assert answer == text.final_answer(out[: out.index(OUTPUT_END) + len(OUTPUT_END)])
    assert OUTPUT not in answer


def test_a_conversation_without_room_is_told_as_one(talk, monkeypatch):
    ids = Codec.prompt_ids
    monkeypatch.setattr(
        Codec, "prompt_ids", lambda self, q, before=(): ids(self, q) * (200 if before else 1)
    )
    out, err = talk(["what is 1 ?", "what is 2 ?"], "--conversation")
    assert out.count(OUTPUT_END) == 1
    assert "the conversation is 200 tokens, of 104 that question and response have" in err


BAD = [
    (["--search=best_of"], r"--search: 'best_of' is none of greedy"),
    (["--search=oracle_of_4"], r"--search: 'oracle_of_4' needs the truth"),
    (["--temperature=-1"], r"--temperature: -1\.0, expected 0 or more"),
    (["--temperature=nan"], r"--temperature: nan, expected 0 or more"),
    (["--max_tokens=0"], r"--max_tokens: 0, expected 1 or more"),
]


@pytest.mark.parametrize(("flags", "message"), BAD)
def test_a_bad_flag_ends_in_one_line(talk, flags, message):
    with pytest.raises(SystemExit, match=message) as ended:
        talk([], *flags)
    assert "\n" not in str(ended.value)


def test_a_search_without_a_reward_model_is_refused(talk):
    with pytest.raises(SystemExit, match=r"--search=best_of_2: asks a reward model, and there is"):
        talk([], "--search=best_of_2", prm=False)


def test_a_model_that_is_not_there_is_told_with_those_that_are(talk, monkeypatch):
    monkeypatch.setattr(models, "load", LOAD)
    with pytest.raises(SystemExit, match=r"model 'dpo-9' is not one of \['base', 'sft'\]"):
        talk([], "--model=dpo-9")
