"""Pictures and figures of the pages: drawn from, and equal to, what was measured."""

import json
import re

import pytest

from docs import figures, house
from tests.support.pages import ROOT, shown

RESULTS = json.loads(figures.RESULTS.read_text())


@pytest.mark.parametrize("name", figures.drawn())
def test_a_picture_is_what_the_script_draws(name):
    """Red: `python -m docs.figures` draws them anew."""
    assert (figures.FOLDER / name).read_text(encoding="utf-8") == figures.drawn()[name]


def test_the_miniatures_picture_moves_with_its_results():
    other = json.loads(json.dumps(RESULTS))
    other["dpo-2"]["jailbreak"]["compliance"].update(value=0.5, low=0.4, high=0.6)
    before, after = figures.miniature(RESULTS), figures.miniature(other)
    assert before != after
    middle = (figures._y(0) + figures._y(1)) / 2
    assert f"cy='{middle:.1f}'" in after
    assert f"cy='{middle:.1f}'" not in before


def test_the_picture_of_the_house_has_every_room_once():
    rooms = re.findall(r">(\w+)</text>", figures.picture())
    assert {room: rooms.count(room) for room in house.FLOOR_OF} == dict.fromkeys(house.FLOOR_OF, 1)


def cells(row):
    """The cells of a row of the table, as results say them."""
    columns = ("jailbreak", "compliance"), ("lookalike", "refusal"), ("harmless", "accuracy")
    for benchmark, metric in columns:
        one = RESULTS[row][benchmark][metric]
        yield f"{100 * one['value']:.1f} ({100 * one['low']:.0f}-{100 * one['high']:.0f})"


@pytest.mark.parametrize("page", ["README.md", "docs/get-started.md"])
def test_the_table_is_what_was_measured(page):
    rows = re.findall(r"^\| ((?:base|sft|dpo)\S*) +\|(.*)\|$", shown(ROOT / page), re.MULTILINE)
    assert len(rows) == 9
    for name, row in rows:
        assert [cell.strip() for cell in row.split("|")] == list(cells(name)), name


def closed(by):
    """How much of the way from greedy decoding to the oracle a search goes."""
    score = {way: RESULTS[way]["harmless"]["accuracy"]["value"] for way in RESULTS}
    low = score["dpo-3"]
    return (score[f"dpo-3/{by}"] - low) / (score["dpo-3/oracle_of_8"] - low)


def measured(file, *path):
    found = json.loads((ROOT / "benchmarks" / "results" / file).read_text())
    for key in path:
        found = found[key]
    return found


SEARCH, TRAINERS, GPUS = "docs/search.md", "docs/trainers.md", "docs/gpus.md"
PEERS, TORCH = "search_vs_transformers_2_cores.json", "train_vs_torch_2_cores.json"
H100 = "gpu_h100.json"


def claim(file, name):
    return measured(file, "claims", name, "value")


SAID = [
    ("docs/get-started.md", "best\n  of 8 closes {:.2f} here", lambda: closed("best_of_8")),
    ("docs/get-started.md", "beam search {:.2f} here", lambda: closed("beam_2x4")),
    (SEARCH, "grow {:.0f} times as fast", lambda: claim(PEERS, "trees_per_hour_vs_single")),
    (
        SEARCH,
        "{:.1f} times as fast as through padded",
        lambda: claim(PEERS, "trees_per_hour_vs_lockstep"),
    ),
    (SEARCH, "{:.2f} tokens\nare computed", lambda: claim(PEERS, "computed_per_unique_token")),
    (SEARCH, "{:.1f} % of the slots are busy", lambda: 100 * claim(PEERS, "busy_slots")),
    (
        SEARCH,
        "devices {:.2f} busy at 14 ms",
        lambda: measured("host_2_cores.json", "searches", "14ms", "busy"),
    ),
    (SEARCH, "{:.2f} at 30 ms", lambda: measured("host_2_cores.json", "searches", "30ms", "busy")),
    (TRAINERS, "{:.2f} (SFT)", lambda: claim(TORCH, "miniature_sft_vs_torch")),
    (TRAINERS, "{:.2f} (DPO)", lambda: claim(TORCH, "miniature_dpo_vs_torch")),
    (TRAINERS, "{:.2f}\nand", lambda: claim(TORCH, "large_sft_vs_torch")),
    (TRAINERS, "{:.2f} at 28M parameters", lambda: claim(TORCH, "large_dpo_vs_torch")),
    (
        TRAINERS,
        "gradient from {:.2f} of",
        lambda: claim("tree_packing.json", "tokens of trees / of pairs"),
    ),
    (GPUS, "would take {:.0f} % of", lambda: 100 * claim(H100, "decode_share")),
    (GPUS, "run at {:.0f} % of the measured", lambda: 100 * claim(H100, "extend_mfu")),
    (GPUS, "makes {:.1f} times the tokens", lambda: claim(H100, "search_vs_generate")),
    (GPUS, "{:.0f} % of the card's peak", lambda: 100 * claim(H100, "sft_mfu")),
    (GPUS, "That is {:.2f} times\n", lambda: claim(H100, "sft_vs_torch")),
]


@pytest.mark.parametrize(("page", "words", "value"), SAID, ids=[words[:40] for _, words, _ in SAID])
def test_a_figure_is_that_of_its_file(page, words, value):
    said, text = words.format(value()), shown(ROOT / page)
    assert said in text or said.replace("0.", ".") in text
