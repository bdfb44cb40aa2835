import dataclasses

import numpy as np
import pytest

from stair_jax import text
from stair_jax.data import examples
from stair_jax.data.examples import PairExample, SftExample
from stair_jax.miniature import tokenizer as miniature_tokenizer
from stair_jax.model.reward import Readout
from stair_jax.records import (
    Candidate,
    Comparison,
    Label,
    Pair,
    Response,
    SftRow,
    ValuedTrajectory,
)
from stair_jax.text import Codec
from tests.support.batches import dpo, sft
from tests.support.codecs import CODEC, EOS, OTHER_END, OUTPUT_END, STEP_END


@pytest.mark.parametrize(
    ("ids", "terminal", "want"),
    [
        ((7, STEP_END), False, (7, STEP_END)),  # an unfinished step must not learn to stop
        ((7, OUTPUT_END), True, (7, OUTPUT_END, EOS)),
        ((7, 8), True, (7, 8, EOS)),
        ((7, 8), False, (7, 8)),  # cut off by the token limit
        ((7, EOS), True, (7, EOS)),
        ((7, OTHER_END), True, (7, OTHER_END)),
    ],
)
def test_end_of_sequence_follows_finished_trajectories_only(ids, terminal, want):
    assert examples.closed(ids, terminal, CODEC) == want


def test_a_teacher_row_is_finished_by_its_output_block():
    rows = [
        SftRow(id="a", question="why", response=f"7 {text.OUTPUT_END}"),
        SftRow(id="b", question="why", response=f"7 {text.STEP_END}"),
        SftRow(id="c", question="why", response="7 8", before=(("user", "hello"),)),
    ]
    a, b, chat = examples.sft_examples(rows, CODEC)
    assert a == SftExample(id="a", prompt=(13, 11), response=(7, OUTPUT_END, EOS))
    assert b.response == (7, STEP_END)
    assert (chat.prompt, chat.response) == ((5, 13, 11), (7, 8, EOS))  # no tag, nothing to finish


@pytest.mark.parametrize(
    ("behind", "ends"),
    [
        ("", True),
        ("\n", True),
        (" \n\n ", True),
        ("<|eot_id|>", True),
        ("\n<|eot_id|><|eot_id|> ", True),
        (" that is all", True),
        (f" {text.STEP}once more", False),
        (f" {text.OUTPUT}once more", False),
    ],
)
def test_a_closed_answer_is_trained_to_end_once_whatever_stands_behind_it(behind, ends):
    codec = Codec(miniature_tokenizer.build(), "llama3")
    whole = f"{text.STEP} plan {text.STEP_END} {text.OUTPUT} 2 {text.OUTPUT_END}"
    (row,) = examples.sft_examples([SftRow(id="a", question="q", response=whole + behind)], codec)
    assert row.response.count(codec.eos_id) == ends
    assert (row.response[-1] == codec.eos_id) == ends
    if not behind.replace("<|eot_id|>", "").strip():
        assert row.response == (*codec.encode(whole), codec.eos_id)


@pytest.mark.parametrize("chosen_terminal", [True, False])
@pytest.mark.parametrize("rejected_terminal", [True, False])
def test_each_side_of_a_pair_ends_for_itself(chosen_terminal, rejected_terminal):
    row = Pair(
        id="x",
        question="why",
        type="safety",
        prefix=(7, STEP_END),
        chosen=(8,),
        rejected=(9, 12),
        chosen_value=1.0,
        rejected_value=-1.0,
        chosen_terminal=chosen_terminal,
        rejected_terminal=rejected_terminal,
        chosen_text="",
        rejected_text="",
        depth=2,
    )
    (example,) = examples.pair_examples([row], CODEC)
    assert example.depth == 2
    assert example.prefix == (7, STEP_END)
    assert example.chosen == ((8, EOS) if chosen_terminal else (8,))
    assert example.rejected == ((9, 12, EOS) if rejected_terminal else (9, 12))


@pytest.mark.parametrize("terminal", [True, False])
def test_responses_of_trees_keep_their_ids(terminal):
    row = Response(
        id="x", question="", type="safety", ids=(7, 8), text="", value=1.0, terminal=terminal
    )
    (example,) = examples.response_examples([row], CODEC)
    assert example.response == ((7, 8, EOS) if terminal else (7, 8))


def test_a_pair_is_as_long_as_its_longer_side():
    pair = PairExample(id="", prompt=(1,), prefix=(2,), chosen=(3, 4), rejected=(5,))
    assert pair.length == 4
    assert pair.sides == ((2, 3, 4), (2, 5))
    assert examples.fault(pair, 4) == ""
    assert examples.fault(pair, 3) == "too long"


BEFORE, PREFILL = (("user", "what is 2 plus 3 ?"),), f"{text.STEP} safe {text.STEP_END}"


def _of_trees(**began):
    """One row of each kind that trees and samples give, and its example."""
    codec = Codec(miniature_tokenizer.build(), "llama3")
    same = {"id": "x", "question": "why", "type": "safety", **began}
    pair = Pair(
        prefix=(7,),
        chosen=(8,),
        rejected=(9,),
        chosen_value=1.0,
        rejected_value=-1.0,
        chosen_terminal=False,
        rejected_terminal=False,
        chosen_text="",
        rejected_text="",
        depth=2,
        **same,
    )
    response = Response(ids=(8,), text="", value=1.0, terminal=False, **same)
    comparison = Comparison(
        better=(8,), worse=(9,), better_value=1.0, worse_value=0.0, depth=1, **same
    )
    label = Label(tokens=1, depth=1, value=1.0, weight=1.0, tag="0.0")
    valued = ValuedTrajectory(ids=(8,), labels=(label,), **same)
    best = Candidate(prompt="x", ids=(8,), text="", reward=1.0, ended=False, **same)
    worst = dataclasses.replace(best, ids=(9,))
    readout = Readout(loss="bce", low=-3.0, high=3.0, position="step_end")
    made = {
        Pair: examples.pair_examples([pair], codec),
        Response: examples.response_examples([response], codec),
        Comparison: examples.comparison_examples([comparison], codec, "step_end"),
        "implicit": examples.implicit_examples([comparison], codec, "step_end"),
        ValuedTrajectory: examples.valued_examples([valued], codec, readout),
        Candidate: [examples.preference_example((best, worst), codec)],
    }
    return codec, {kind: found[0] for kind, found in made.items()}


@pytest.mark.parametrize(
    "kind", [Pair, Response, Comparison, "implicit", ValuedTrajectory, Candidate]
)
def test_earlier_turns_and_how_a_response_began_are_prompt_of_every_row(kind):
    codec, plain = _of_trees()
    _, began = _of_trees(before=BEFORE, prefill=PREFILL)
    want = (*codec.prompt_ids("why", BEFORE), *codec.encode(PREFILL))
    assert len(want) > len(plain[kind].prompt)
    assert plain[kind].prompt == tuple(codec.prompt_ids("why"))
    assert began[kind].prompt == want
    for field in ("prefix", "chosen", "response", "better", "worse"):
        assert getattr(began[kind], field, ()) == getattr(plain[kind], field, ())


def test_a_beginning_has_no_weight_in_any_loss():
    codec, began = _of_trees(before=BEFORE, prefill=PREFILL)
    begin = len(codec.prompt_ids("why", BEFORE)) + len(codec.encode(PREFILL))
    whole = {"buckets": (64,), "batch": 1}
    (mask,) = sft([began[Response]], **whole).batch_at(0).loss_mask.reshape(1, -1)
    assert np.flatnonzero(mask).tolist() == [begin]
    pairs = dpo([began[Pair]], **whole).batch_at(0)
    compared = pairs.step_mask.reshape(-1, pairs.step_mask.shape[-1])
    assert {int(at) for row in compared for at in np.flatnonzero(row)} == {begin + 1}
    assert np.flatnonzero(pairs.sft_mask)[0] >= begin
    assert began[ValuedTrajectory].reads == (begin,)
