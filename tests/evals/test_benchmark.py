"""The registry of benchmarks: what each declares, and what is said of a name that is none."""

import dataclasses
import json

import pytest

from stair_jax import config as config_lib
from stair_jax.evals.benchmark import columns_of, register, registered
from stair_jax.evals.benchmarks import own_prompts
from stair_jax.miniature import splits
from stair_jax.records import Prompt
from stair_jax.run import benchmarks
from tests.support.configs import tiny


def test_each_file_is_found_by_the_names_of_its_benchmarks():
    assert {"gsm8k", *splits.BENCHMARKS} <= set(registered())
    assert all(name == one.name for name, one in registered().items())


@pytest.mark.parametrize("name", registered())
def test_what_a_benchmark_declares_fits_together(name):
    benchmark = registered()[name]
    assert {(c.benchmark, c.metric) for c in benchmark.columns} <= {
        (name, metric) for metric in benchmark.metrics
    }
    prompt = Prompt(id="a", question="q", type="safety", ground_truth="1")
    grade = benchmark.grade(prompt, "no answer", False)
    assert set(grade.figures) | set(benchmark.sides) == set(benchmark.metrics)
    assert not benchmark.merits or grade.outcome in benchmark.merits
    assert bool(benchmark.world) != bool(benchmark.protocol)


def test_a_benchmark_of_other_code_is_known_by_its_name_and_takes_none_that_is_there():
    mine = own_prompts.benchmark("mine", (), "a.jsonl", sides=())
    try:
        register(mine)
        assert registered()["mine"] is mine
        assert columns_of([mine])
        with pytest.raises(ValueError, match="'mine' is there already, expected another name"):
            register(mine)
    finally:
        registered().pop("mine")
    with pytest.raises(ValueError, match="'gsm8k' is there already"):
        register(dataclasses.replace(mine, name="gsm8k"))


def test_the_columns_are_in_one_order_whatever_is_asked_first():
    mine = own_prompts.benchmark("a", (), "a.jsonl", sides=("safety",))
    asked = [registered()[name] for name in ("harmless", "jailbreak")]
    columns = columns_of([mine, *asked])
    assert columns == columns_of([*reversed(asked), mine])
    assert list(dict.fromkeys(c.benchmark for c in columns)) == ["jailbreak", "harmless", "a"]
    assert [c.metric for c in columns_of([mine])] == ["answered", "malformed", "refusal", "safety"]


REAL = {"model__checkpoint": "x", "evaluate__search": "greedy"}
BAD = [
    (
        {"evaluate__benchmarks": "gsm8"},
        r"\['gsm8'\], did you mean 'gsm8k'\? Found no such benchmark, no .*'gsm8k', ",
    ),
    ({"evaluate__benchmarks": "harmful,gsm:a.jsonl"}, r"\['gsm:a\.jsonl'\]"),
    (
        {"evaluate__benchmarks": "harmful:a.jsonl"},
        r"\['harmful:a\.jsonl'\], expected the name alone",
    ),
    ({"evaluate__benchmarks": "gsm8k"}, r"\['gsm8k'\] need a model that speaks their language"),
    (
        {**REAL, "evaluate__benchmarks": "gsm8k,b.jsonl", "evaluate__search": "oracle_of_2"},
        r"the truth, which is known of \[.*'gsm8k', .*\] and not of \['b\.jsonl'\]",
    ),
]


@pytest.mark.parametrize(("changes", "message"), BAD)
def test_a_benchmark_that_cannot_be_asked_is_refused_in_one_line(changes, message):
    with pytest.raises(ValueError, match=message) as error:
        benchmarks.check(tiny(**changes))
    assert "\n" not in str(error.value)


@pytest.fixture
def bare(monkeypatch):
    """A benchmark of code outside the package that names no place of rows, and reads some."""

    def load(rows, split):
        return [Prompt(id=f"bare-{at}", question=row["q"], type="helpfulness") for at, row in rows]

    like = registered()["gsm8k"]
    found = dataclasses.replace(like, name="bare", hub=None, file="", read=None, load=load)
    monkeypatch.setitem(registered(), "bare", found)


def test_a_benchmark_without_a_place_of_rows_takes_a_file_and_is_not_empty(bare, tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"q": "why"}\n')
    real = {"model__checkpoint": "x", "evaluate__search": "greedy", "stages": "evaluate"}
    named = tiny(evaluate__benchmarks=f"bare:{tmp_path}/rows.jsonl", **real)
    benchmarks.check(named)
    (found,) = benchmarks.of(named)
    assert [prompt.question for prompt in found.prompts] == ["why"]
    alone = tiny(evaluate__benchmarks="bare", **real)
    with pytest.raises(ValueError, match=r"'bare' makes no prompts .* expected bare:FILE"):
        benchmarks.of(alone)


def test_a_checkpoint_can_be_asked_what_is_in_no_worlds_language():
    benchmarks.check(tiny(evaluate__benchmarks="gsm8k:a.jsonl", **REAL))
    benchmarks.check(
        tiny(evaluate__benchmarks="gsm8k", **REAL | {"evaluate__search": "oracle_of_2"})
    )


def test_two_of_one_name_are_refused(tmp_path):
    row = {"question": "q", "answer": "#### 1"}
    path = tmp_path / "gsm8k.jsonl"
    path.write_text(json.dumps(row | {"type": "safety"}) + "\n")
    c = config_lib.default()
    for words in (f"gsm8k:{path},gsm8k:{path}", f"{path}"):
        c.evaluate.benchmarks = words
        with pytest.raises(ValueError, match="would be called 'gsm8k', as another benchmark is"):
            benchmarks.of(c)


def test_prompts_belong_to_a_loaded_benchmark_alone():
    c = tiny(evaluate__benchmarks="harmful", evaluate__split="dev")
    (loaded,) = benchmarks.of(c)
    assert registered()["harmful"].prompts == ()
    assert list(loaded.prompts) == splits.benchmark("harmful", "dev")
    assert dataclasses.replace(loaded, prompts=()) == registered()["harmful"]
