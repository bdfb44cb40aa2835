import dataclasses

import pytest

from stair_jax.data import preview
from stair_jax.text import Codec
from tests.support.batches import ROW, dpo, pair, sft

EOS = 4


class Words(Codec):
    """Token 5 is written "<5>"; token 4 ends a response."""

    def __init__(self):
        pass

    def decode(self, ids):
        return "".join("<eos>" if i == EOS else f"<{i}>" for i in ids)


def lines(data, tmp_path):
    preview.show(data, Words(), tmp_path / "new" / "preview.txt")
    return (tmp_path / "new" / "preview.txt").read_text().splitlines()


@pytest.mark.parametrize("batching", ["bucket", "pack"])
def test_sft_rows_show_what_is_trained_up_to_the_end(tmp_path, batching):
    rows = [dataclasses.replace(ROW, id=str(i), response=(7, 8, EOS)) for i in range(5)]
    out = lines(sft(rows, batch=4, buckets=(6, 12), batching=batching), tmp_path)
    assert out == [
        line
        for number in (1, 2, 3)
        for line in (
            f"row {number}, response",
            "  prompt: '<5><6>'",
            "  trained: '<7><8><eos>'",
        )
    ]


@pytest.mark.parametrize("batching", ["bucket", "tree"])
def test_pairs_show_both_sides_and_what_each_mask_says(tmp_path, batching):
    one = pair(chosen=(8, EOS), rejected=(9,))
    assert lines(dpo([one], batching=batching), tmp_path) == [
        "row 1, chosen",
        "  prompt: '<5><6>'",
        "  trained: '<7>'",
        "  compared, trained: '<8><eos>'",
        "row 1, rejected",
        "  prompt: '<5><6><7>'",
        "  rejected: '<9>'",
    ]
    step = dpo([one], batching=batching, more={"sft_scope": "step"})
    assert lines(step, tmp_path)[:3] == [
        "row 1, chosen",
        "  prompt: '<5><6><7>'",
        "  compared, trained: '<8><eos>'",
    ]
    whole = dpo([one], batching=batching, more={"sft_scope": "step", "scope": "response"})
    assert lines(whole, tmp_path)[2:4] == ["  compared: '<7>'", "  compared, trained: '<8><eos>'"]


@pytest.mark.parametrize("batching", ["bucket", "tree"])
def test_anchors_are_responses(tmp_path, batching):
    data = dpo([pair()], [ROW], per_pair=1.0, batching=batching)
    out = lines(data, tmp_path)
    assert out[0] == "row 1, chosen"  # pairs go first
    at = out.index("row 2, response")
    assert out[at + 1 : at + 3] == ["  prompt: '<5><6>'", "  trained: '<7><8><9>'"]


def test_a_terminal_gets_colours(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    preview.show(sft([ROW]), Words(), tmp_path / "preview.txt")
    shown = capsys.readouterr().err
    assert "\x1b[2m<5><6>" in shown
    assert "\x1b[32m<7><8><9>" in shown
    monkeypatch.delenv("FORCE_COLOR")
    preview.show(sft([ROW]), Words(), tmp_path / "preview.txt")
    assert capsys.readouterr().err == ""


def test_text_that_looks_like_markup_is_shown_as_it_is(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setattr(Words, "decode", lambda self, ids: "[red]x[/red]")
    preview.show(sft([ROW]), Words(), tmp_path / "preview.txt")
    assert "[red]x[/red]" in capsys.readouterr().err
