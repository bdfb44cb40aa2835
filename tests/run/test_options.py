"""Options read by their log-probs, against one plain forward each."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stair_jax.engine.likelihood import Likelihood
from stair_jax.evals.benchmark import registered
from stair_jax.log.metrics import Metrics
from stair_jax.records import Prompt
from stair_jax.run import models, options
from stair_jax.run.known_models import SFT_MODEL
from stair_jax.run.lineage import Lineage
from stair_jax.run.models import Policy
from stair_jax.run.workdir import Run
from stair_jax.text import Codec
from tests.support.configs import tiny
from tests.support.likelihoods import plain, weights
from tests.support.scoring import CONFIG, SPEC


class Pairs(Codec):
    """A codec that makes a token of two letters or one, so that words merge across a boundary."""

    def __init__(self):
        self.specials = ("<|x|>",)

    def encode(self, text):
        ids = []
        while text:
            size = 2 if text[:2] in ("ab", " c", "<|") else 1
            ids.append(3 + sum(map(ord, text[:size])) % 23)
            text = text[size:]
        return ids


@pytest.fixture
def run(monkeypatch, tmp_path):
    def load(*_, **__):  # afresh, for the reader gives them up
        return Policy(SFT_MODEL, SPEC, jax.tree.map(jnp.copy, weights(0)), Pairs())

    monkeypatch.setattr(models, "load", load)
    monkeypatch.setattr(models, "engine_places", lambda _: [None])
    monkeypatch.setattr(options, "engine_config", lambda _: CONFIG)
    monkeypatch.setattr(options, "_AT_ONCE", 2)
    lineage, metrics = Lineage(tmp_path / "lineage.json"), Metrics(tmp_path)
    return Run(tiny(workdir=str(tmp_path)), tmp_path, lineage, metrics)


def read(run, asked):
    found = {}
    lost = options.read(
        run, SFT_MODEL, asked, lambda prompt, choice: found.update({prompt.id: choice})
    )
    return found, lost


def prompt(id, question):
    return Prompt(id=id, question=question, type="helpfulness")


def by_hand(question, option):
    question, option = options.pair_ids(Pairs(), question, option)
    return float(plain(0, [*question, *option])[len(question) - 1 :].sum())


def test_an_options_log_prob_is_the_sum_over_its_tokens_behind_the_question(run):
    asked = [
        (prompt("a", "dead bee"), (" cab", " bed", " cabbed")),
        (prompt("b", "fed  "), ("ab", "b")),
        (prompt("c", "da"), ("b", "bb")),
    ]
    found, lost = read(run, asked)
    assert not lost
    for one, offered in asked:
        logps = [by_hand(one.question, option) for option in offered]
        assert len(set(logps)) == len(offered)
        np.testing.assert_allclose(found[one.id].logps, logps, atol=1e-4)
        assert found[one.id].likeliest == int(np.argmax(logps))
    assert found["a"].tokens == sum(
        len(Pairs().encode("dead bee" + option)) for option in asked[0][1]
    )


def test_a_token_across_the_boundary_and_white_space_before_it_are_the_options():
    question, option = options.pair_ids(Pairs(), "xa", "b")
    assert question == Pairs().encode("x")
    assert option == Pairs().encode("ab")  # the token that both share is the option's
    question, option = options.pair_ids(Pairs(), "x ", "c")
    assert question == Pairs().encode("x")
    assert option == Pairs().encode(" c")


@pytest.mark.parametrize(("begin", "first"), [(7, 7), (None, 1)])
def test_an_option_without_a_question_stands_behind_the_beginning_of_a_sequence(begin, first):
    codec = Pairs()
    codec.tokenizer, codec.eos_id = types.SimpleNamespace(bos_token_id=begin), 1
    assert options.pair_ids(codec, "", "cab") == ([first], codec.encode("cab"))


def test_a_tag_in_a_text_is_broken_up():
    question, _ = options.pair_ids(Pairs(), "a<|x|>", "b")
    assert question == Pairs().encode("a< |x|>")


def test_what_does_not_fit_is_passed_over_and_the_others_are_read(run):
    found, lost = read(run, [(prompt("long", "a" * 60), ("b",)), (prompt("a", "d"), ("b", "e"))])
    assert set(found) == {"a"}
    assert "engine.max_context" in lost["long"]


def test_all_sequences_are_given_back(run, monkeypatch):
    held = []

    class Watched(Likelihood):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            held.append(self)

    monkeypatch.setattr(options, "Likelihood", Watched)
    read(run, [(prompt(str(i), "dead" + "b" * i), ("e", "f")) for i in range(9)])
    (one,) = held
    assert one.counters["scored"] == 18
    assert not one._store._holding


def test_bigbenchs_likelier_answer_is_the_response_that_is_graded():
    benchmark = registered()["hhh_likelihood"]
    one = Prompt(
        id="a",
        question="Hi",
        type="helpfulness",
        ground_truth=" yes",
        meta={"group": "g", "other": " no"},
    )
    assert benchmark.options is not None
    assert benchmark.options(one) == (" yes", " no")
    for response, outcome in ((" yes", "correct"), (" no", "wrong")):
        for direct in (True, False):
            grade = benchmark.grade_of(one, response, direct=direct, cut=False)
            assert grade.outcome == outcome
