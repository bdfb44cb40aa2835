"""Which models judge published benchmarks: how the setting is read, and what is refused."""

import dataclasses

import pytest

from stair_jax.config.checks import validate
from stair_jax.evals.benchmark import registered
from stair_jax.run import benchmarks, judge_models
from tests.support.configs import tiny

HTTP = "http://h:1/v1"
REAL = {
    "model__checkpoint": "x",
    "evaluate__search": "greedy",
    "evaluate__benchmarks": "xstest_safe:a.csv",
    "stages": "evaluate",
    "judge__safety": "rule",
    "judge__helpfulness": "none",
    "workdir": "w",
}


def check(**changes):
    c = tiny(**(REAL | changes))
    validate(c)
    benchmarks.check(c)
    return c


def test_judges_are_at_the_endpoint_or_at_their_own():
    c = check(evaluate__judges="org/m@1, n@https://o/v1", judge__endpoint=HTTP)
    assert judge_models.of(c) == [("org/m@1", HTTP), ("n", "https://o/v1")]
    check(evaluate__judges=f"n@{HTTP}")
    assert judge_models.of(check()) == []


BAD = [
    ({"evaluate__judges": "m"}, r"'m' has no endpoint; expected NAME@URL, or config\.judge\.endp"),
    ({"evaluate__judges": f"@{HTTP}"}, "no name before the address"),
    ({"evaluate__judges": "m@http://user:secret@h/v1"}, r"evaluate\.judges: 'http://\*\*\*@h/v1'"),
    ({"evaluate__judges": f"m@{HTTP},m@http://i/v1"}, r"\['m'\] more than once"),
    (
        {"evaluate__judges": f"m@{HTTP}", "evaluate__benchmarks": "gsm8k,b.jsonl"},
        r"evaluate\.judges: \['m'\] would be ignored, no model judges \['gsm8k'\]",
    ),
    (
        {"evaluate__judges": f"m@{HTTP}", "judge__endpoint": "http://i/v1"},
        r"judge\.endpoint: would be ignored, every judge has its own address",
    ),
    ({"evaluate__prompts": "folder"}, r"evaluate\.prompts: 'folder' would be ignored, it needs a"),
    ({"judge__endpoint": HTTP}, r"judge\.endpoint: .* would be ignored, .* config\.evaluate\.judg"),
]


@pytest.mark.parametrize(("changes", "message"), BAD, ids=lambda x: str(x)[:60])
def test_judges_that_could_not_judge_are_refused_in_one_line(changes, message):
    with pytest.raises(ValueError, match=message) as error:
        check(**changes)
    assert "\n" not in str(error.value)
    assert "secret" not in str(error.value)


@pytest.mark.parametrize(
    ("judged", "message"),
    [
        ("nobody", "judged by 'nobody', expected one of"),
        ("jbb", r"\['refusal'\] are figures of its rules and of its judges"),
    ],
)
def test_a_benchmark_that_cannot_be_judged_so_is_refused(monkeypatch, judged, message):
    one = dataclasses.replace(registered()["xstest_safe"], judged=judged)
    monkeypatch.setitem(registered(), "xstest_safe", one)
    check()
    with pytest.raises(ValueError, match=message):
        check(evaluate__judges=f"m@{HTTP}")


def test_official_prompts_are_looked_for_only_where_somebody_judges(tmp_path):
    asked = [registered()["xstest_safe"], registered()["gsm8k"]]
    assert judge_models.wordings(check(), asked) == {}
    c = check(evaluate__judges=f"m@{HTTP}")
    assert list(judge_models.wordings(c, asked)) == ["xstest"]
    c.evaluate.prompts = str(tmp_path)
    with pytest.raises(ValueError, match=r"evaluate\.prompts: .*xstest_gpt4_classifier\.txt can"):
        judge_models.wordings(c, asked)
