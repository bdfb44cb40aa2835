"""The lines below the table: what its figures are of, and what the answers lack."""

import dataclasses

import pytest

from stair_jax.evals.benchmark import Column, registered
from stair_jax.evals.report import notes
from stair_jax.records import Prompt

PROMPTS = tuple(Prompt(id=str(n), question="q", type="safety") for n in range(20))


def of(name):
    return dataclasses.replace(registered()[name], prompts=PROMPTS)


def figures(count=20, **ones):
    """Figures of the first `count` prompts: so many ones of each metric that is named."""
    return {
        metric: {str(n): float(n < ones.get(metric, 0)) for n in range(count)}
        for metric in registered()["harmbench"].metrics
    }


def columns(*names):
    return [column for name in names for column in registered()[name].columns]


def test_figures_of_rules_are_told_where_the_authors_have_a_judge():
    asked = [of("harmbench"), of("gsm8k"), of("advbench"), of("simpleqa")]
    (line,) = notes.of_figures(asked, {}, columns("harmbench", "gsm8k", "simpleqa"), 0)
    assert line.startswith("harmbench, simpleqa: the authors' judge was not asked (config.evaluate")
    judged = [*columns("harmbench"), Column("HarmBench: asr by m", "harmbench", "asr", up=False)]
    assert notes.of_figures([of("harmbench")], {}, judged, 0) == []


@pytest.mark.parametrize(
    ("protocol", "told"),
    [("own words harmbench 1234, judge m", True), ("official prompt harmbench, judge m", False)],
)
def test_a_judge_in_our_words_is_told_by_its_column(protocol, told):
    judged = [Column("HarmBench: asr by m", "harmbench", "asr", up=False)]
    results = {"base": {}, "sft": {"harmbench": {"asr": {"protocol": protocol}}}}
    found = notes.of_figures([of("harmbench")], results, judged, 0)
    assert found == told * [
        "HarmBench: asr by m: the judge was asked in our words, not in the authors'"
        " (config.evaluate.prompts). No published figure can be set beside these."
    ]


def test_a_part_of_the_rows_is_told():
    assert notes.of_figures([of("gsm8k")], {}, columns("gsm8k"), 50) == [
        "At most 50 prompts of each benchmark were asked (config.evaluate.rows)."
    ]


def test_what_answers_lack_is_told_by_benchmark_and_model():
    by = {
        "base": {"harmbench": figures(15, cut=3, malformed=6)},
        "sft": {"harmbench": figures(cut=1)},  # 5 %
        "dpo-1": {"harmbench": figures(cut=2)},
    }
    assert notes.of_answers([of("harmbench")], by, {"sft": {"harmbench": 7}}) == [
        "harmbench: base: 20 % of answers cut, 40 % without a final answer, 5 of 20 prompts have no"
        " answer; sft: 7 of 20 prompts have words that its tokenizer lacks; dpo-1: 10 % of answers"
        " cut."
    ]


def test_whole_answers_need_no_line():
    assert notes.of_answers([of("harmbench")], {"sft": {"harmbench": figures()}}, {}) == []
    alone = dataclasses.replace(registered()["harmbench"])  # whose prompts are not known
    assert notes.of_answers([alone], {"sft": {"harmbench": figures(3)}}, {}) == []
