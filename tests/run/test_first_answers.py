"""The first answers of a round: without STAIR's format it stops, with little of it it says so."""

import json

import pytest

from stair_jax.log.metrics import Metrics
from stair_jax.records import Node, Prompt, Tree
from stair_jax.run import known_models, models
from stair_jax.run.first_answers import FirstAnswers
from stair_jax.run.lineage import Lineage
from stair_jax.run.workdir import Run
from stair_jax.text import OUTPUT, OUTPUT_END, STEP, STEP_END
from tests.support.workdirs import run as run_pipeline
from tests.support.workdirs import toy

GOOD = f"{STEP}problem analysis : two{STEP_END}{OUTPUT}final answer : two{OUTPUT_END}"
PLAIN = "two it is<|eot_id|>"
CUT = f"{STEP}problem analysis : two{STEP_END}{STEP}then"
TAGS_AT = {"tags/nats": 12.5, "tags/rank": 4321.0, "tags/in_top_k": 0.01}


def looking(tmp_path, model="sft", number=1, trees=(), facts=TAGS_AT, **changes):
    c = toy(tmp_path, search__first_answers=32, **changes)
    this = Run(c, tmp_path, Lineage(tmp_path / "lineage.json"), Metrics(tmp_path))
    codec = models.spec_and_codec(this)[1]
    this.lineage.entries["sft"] = {"finished": True, "settings": {}, **facts}
    return FirstAnswers(this, number, known_models.of_name(this, model), codec, trees)


def give(first, *answers):
    for answer in answers:
        first(answer)


def test_none_of_32_stops_with_the_true_cause(tmp_path):
    first = looking(tmp_path)
    give(first, *[PLAIN] * 31)
    with pytest.raises(ValueError, match=r"^round-1/trees: 0 of the first 32 answers") as error:
        first(PLAIN)
    said = str(error.value)
    assert "\n" not in said
    assert "32 have no tag at all; stage 1 has not taught the format" in said
    assert "12.50 nats and rank 4,321.0, 1% within search.top_k" in said
    assert "config.sft.train.epochs" in said
    assert "--config.redo=sft" in said


def test_4_of_32_go_on_with_one_warning(tmp_path, caplog):
    first = looking(tmp_path)
    give(first, *[GOOD] * 4, *[PLAIN] * 80)
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 1
    assert said[0].startswith("round-1/trees: 4 of the first 32 answers have a closed block")


def test_16_of_32_are_not_worth_a_word(tmp_path, caplog):
    first = looking(tmp_path)
    give(first, *[GOOD] * 16, *[PLAIN] * 80)
    first.close()
    assert not caplog.records


def test_share_and_number_are_knobs(tmp_path):
    first = looking(tmp_path, search__least_well_formed=0.2)
    give(first, *[GOOD] * 6, *[PLAIN] * 25)
    with pytest.raises(ValueError, match=r"6 of the first 32 .* expected 20% at least"):
        first(PLAIN)
    first = looking(tmp_path, search__least_well_formed=0.0)
    give(first, *[PLAIN] * 32)
    first = looking(tmp_path)
    first.run.config.search.first_answers = 3
    with pytest.raises(ValueError, match="0 of the first 3 answers"):
        give(first, *[PLAIN] * 3)
    first.run.config.search.first_answers = 0
    give(looking(tmp_path), *[GOOD] * 32)


@pytest.mark.parametrize(
    ("answer", "how", "said"),
    [
        (CUT, {}, r"32 were cut amid their steps; raise config\.search\.max_rollout_tokens"),
        (PLAIN, {"model": "base"}, "no stage sft has taught the checkpoint the format"),
        (PLAIN, {"model": "dpo-1", "number": 2}, r"lost the format.*redo=round-1/dpo"),
        (PLAIN, {"facts": {}}, "stage 1 has not taught the format; teach"),
    ],
)
def test_the_cause_is_told_apart(tmp_path, answer, how, said):
    with pytest.raises(ValueError, match=said) as error:
        give(looking(tmp_path, **how), *[answer] * 32)
    assert "\n" not in str(error.value)


def tree(*answers):
    def node(parent, text, terminal):
        return Node(
            parent=parent,
            ids=(1,),
            text=text,
            depth=1,
            visits=1,
            value_sum=1.0,
            reward=1.0 if terminal else None,
            terminal=terminal,
            p=1.0,
            tag="0",
        )

    nodes = (node(-1, "", False), *(node(0, answer, True) for answer in answers))
    return Tree(prompt=Prompt(id="x", question="q", type="safety"), nodes=nodes)


def test_trees_that_are_whole_count(tmp_path):
    trees = [tree(*[GOOD] * 3), tree(*[PLAIN] * 17)]
    first = looking(tmp_path, trees=trees)
    assert (first.answers, first.well_formed) == (20, 3)
    give(first, *[PLAIN] * 12)  # 3 of 32
    full = looking(tmp_path, trees=[tree(*[PLAIN] * 40)])  # they were looked at when they came
    give(full, *[PLAIN] * 64)


def test_fewer_answers_than_wanted_are_told_at_the_end(tmp_path, caplog):
    first = looking(tmp_path)
    give(first, *[PLAIN] * 7)
    first.close()
    assert "0 of the first 7 answers" in caplog.text


def test_a_search_stops_stops_again_and_goes_on_when_told(tmp_path, caplog):
    """A model of two steps knows no format: its own search, through the pipeline."""
    run_pipeline(tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    (tags,) = [line for line in lines if line["stage"] == "sft/tags"]
    assert tags["tags/nats"] > 1
    assert tags["tags/rank"] > 10
    search = {
        "stages": "search",
        "data__round_prompts": 2,
        "search__iterations": 2,
        "search__trees_in_flight": 2,
        "engine__slots": 4,
    }
    for _ in range(2):
        with pytest.raises(ValueError, match=rf"{tags['tags/nats']:.2f} nats and rank"):
            run_pipeline(tmp_path, **search, search__first_answers=4, search__least_well_formed=1.0)
    caplog.clear()
    run_pipeline(tmp_path, **search, search__first_answers=4, search__least_well_formed=0.0)
    assert Lineage(tmp_path / "lineage.json").finished("round-1/trees")
    assert "of the first 4 answers have" in caplog.text
