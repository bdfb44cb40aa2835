import pytest

from stair_jax import text
from stair_jax.data import examples
from stair_jax.data.examples import PairExample, SftExample
from stair_jax.miniature import tokenizer as miniature_tokenizer
from stair_jax.records import Pair, Response, SftRow
from stair_jax.text import Codec
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
