"""Results of lm-evaluation-harness and inspect_ai in our table, from files as they write them."""

import copy
import json
import math
import zipfile

import pytest

from stair_jax import config as config_lib
from stair_jax.evals.benchmark import registered
from stair_jax.evals.report import table
from stair_jax.log.metrics import Metrics
from stair_jax.run import benchmarks, reports
from stair_jax.run import imported as of_run
from stair_jax.run.lineage import Lineage
from stair_jax.run.workdir import Run
from stair_jax.stages import evaluate
from tests.support.configs import tiny

# What lm-eval 0.4.13 wrote of SmolLM2-135M-Instruct, without what is not read.
LM_EVAL = {
    "results": {
        "hhh_local": {
            "name": "hhh_local",
            "alias": "hhh_local",
            "sample_len": 221,
            "acc,none": 0.4117647058823529,
            "acc_stderr,none": 0.03318094557751566,
        },
        "gsm_local": {
            "alias": "gsm_local",
            "exact_match,flexible-extract": 0.0125,
            "exact_match_stderr,flexible-extract": "N/A",
        },
        "wiki": {"word_perplexity,none": 17.5, "word_perplexity_stderr,none": "N/A"},
    },
    "group_subtasks": {},
    "versions": {"hhh_local": "Yaml", "gsm_local": 3.0, "wiki": 2},
    "n-shot": {"hhh_local": 0, "gsm_local": 5},
    "higher_is_better": {
        "hhh_local": {"acc": True},
        "gsm_local": {"exact_match": True},
        "wiki": {"word_perplexity": False},
    },
    "n-samples": {
        "hhh_local": {"original": 221, "effective": 221},
        "gsm_local": {"original": 1319, "effective": 80},
        "wiki": {"original": 62, "effective": 62},
    },
    "model_name": "/tmp/lms/export/base",
    "lm_eval_version": "0.4.13",
    "date": 1795833479.339192,
}
INSPECT = {
    "version": 2,
    "status": "success",
    "eval": {
        "task": "gsm8k_local",
        "task_version": 0,
        "model": "hf/local",
        "created": "2026-11-28T05:27:01+00:00",
        "packages": {"inspect_ai": "0.3.285"},
    },
    "results": {
        "total_samples": 9,
        "completed_samples": 8,
        "scores": [
            {
                "name": "match",
                "scorer": "match",
                "scored_samples": 8,
                "metrics": {
                    "accuracy": {"name": "accuracy", "value": 0.125, "params": {}},
                    "stderr": {"name": "stderr", "value": 0.125, "params": {}},
                },
            }
        ],
    },
    "samples": [{"id": 1}],
}


def write(path, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".eval":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("header.json", json.dumps({**data, "samples": None}))
            archive.writestr("samples/1_epoch_1.json", "{}")
    else:
        path.write_text(json.dumps(data))
    return path


def of(*paths):
    c = config_lib.default()
    c.evaluate.imported = ",".join(map(str, paths))
    return of_run.of(c)


def test_lm_evals_results_have_value_interval_and_protocol(tmp_path):
    path = write(tmp_path / "results_2026.json", LM_EVAL)
    found = of(path)
    (model,) = found.results
    assert model == "base (lm-eval 0.4.13)"
    acc = found.results[model]["lm-eval/hhh_local"]["acc"]
    assert (acc["value"], acc["n"], acc["missing"]) == (0.4117647058823529, 221, 0)
    assert acc["low"] == pytest.approx(0.4117647 - 1.959964 * 0.0331809)
    assert acc["high"] == pytest.approx(0.4117647 + 1.959964 * 0.0331809)
    assert acc["protocol"] == (
        f"lm-eval 0.4.13, task hhh_local version Yaml, 0 examples, from {path}"
    )
    gsm = found.results[model]["lm-eval/gsm_local"]["exact_match,flexible-extract"]
    assert (gsm["value"], gsm["n"], gsm["low"], gsm["high"]) == (0.0125, 80, None, None)
    assert "version 3.0, 5 examples, 80 of 1319 samples" in gsm["protocol"]
    shown = [(one.heading, one.up, one.share) for one in found.columns]
    assert shown == [
        ("lm-eval hhh_local: acc", True, True),
        ("lm-eval gsm_local: exact_match (flexible-extract)", True, True),
        ("lm-eval wiki: word_perplexity", False, False),
    ]


@pytest.mark.parametrize("name", ["log.json", "log.eval"])
def test_inspects_logs_have_value_interval_and_what_is_missing(tmp_path, name):
    found = of(write(tmp_path / name, INSPECT))
    one = found.results["hf/local (inspect_ai 0.3.285)"]["inspect_ai/gsm8k_local"]
    assert set(one) == {"accuracy,match"}
    accuracy = one["accuracy,match"]
    assert (accuracy["value"], accuracy["n"], accuracy["missing"]) == (0.125, 8, 1)
    assert accuracy["low"] == 0.0  # an interval of a share does not leave [0, 1]
    assert accuracy["high"] == pytest.approx(0.125 + 1.959964 * 0.125)
    assert accuracy["protocol"].startswith("inspect_ai 0.3.285, task gsm8k_local version 0, from")
    (column,) = found.columns
    assert (column.heading, column.up) == ("inspect_ai gsm8k_local: accuracy (match)", True)


def test_a_group_has_the_samples_of_its_tasks(tmp_path):
    data = copy.deepcopy(LM_EVAL)
    data["results"]["both"] = {"acc,none": 0.5, "acc_stderr,none": 0.1}
    data["group_subtasks"] = {"both": ["hhh_local", "gsm_local"]}
    found = of(write(tmp_path / "results_1.json", data))
    assert found.results["base (lm-eval 0.4.13)"]["lm-eval/both"]["acc"]["n"] == 221 + 80


def test_of_two_runs_of_a_task_the_later_one_counts(tmp_path):
    # By the date within, not by the name of the file.
    later, earlier = copy.deepcopy(LM_EVAL), LM_EVAL
    later["date"] += 1000.0
    later["results"]["hhh_local"]["acc,none"] = 0.75
    write(tmp_path / "a" / "results_1.json", later)
    write(tmp_path / "b" / "results_2.json", earlier)
    write(tmp_path / "b" / "samples.json", {"doc": 1})  # of something else: passed over
    found = of(tmp_path)
    assert found.results["base (lm-eval 0.4.13)"]["lm-eval/hhh_local"]["acc"]["value"] == 0.75
    assert len(found.columns) == 3


def changed(data, *keys, to):
    data = copy.deepcopy(data)
    place = data
    for key in keys[:-1]:
        place = place[key]
    if to is None:
        del place[keys[-1]]
    else:
        place[keys[-1]] = to
    return data


REFUSED = [
    (changed(LM_EVAL, "model_name", to=None), "model_name: found None, expected str"),
    (changed(LM_EVAL, "results", to=[1]), r"results: found \[1\], expected dict"),
    (
        changed(LM_EVAL, "n-samples", "wiki", to=None),
        "n-samples.wiki.effective: found None, expected int",
    ),
    (changed(INSPECT, "status", to="error"), "status: found 'error', expected 'success'"),
    (changed(INSPECT, "eval", "task", to=None), "eval.task: found None, expected str"),
    (changed(INSPECT, "results", to=None), "results.total_samples: found None, expected int"),
    (changed(INSPECT, "results", "scores", to=3), "results.scores: found 3, expected list"),
    ({"a": 1}, r"found no results, expected results_\*.json of lm-eval, or a log of inspect_ai"),
    ([1], r"found no results, expected results_\*.json of lm-eval, or a log of inspect_ai"),
]


@pytest.mark.parametrize(("data", "message"), REFUSED)
def test_a_file_that_lacks_what_its_tool_writes_is_named(tmp_path, data, message):
    path = write(tmp_path / "x.json", data)
    with pytest.raises(ValueError, match=message) as caught:
        of(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_cannot_be_read_is_named(tmp_path):
    with pytest.raises(ValueError, match="'nowhere' is not there, expected a file or a folder"):
        of("nowhere")
    (tmp_path / "torn.json").write_text('{"results": ')
    with pytest.raises(ValueError, match=r"torn.json: expected results of lm-eval or inspect_ai"):
        of(tmp_path / "torn.json")
    (tmp_path / "no.eval").write_text("no zip")
    with pytest.raises(ValueError, match=r"no.eval: expected results of lm-eval or inspect_ai"):
        of(tmp_path / "no.eval")
    with zipfile.ZipFile(tmp_path / "begun.eval", "w") as archive:
        archive.writestr("_journal/start.json", "{}")
    with pytest.raises(ValueError, match=r"begun.eval: no header.json, expected the log of a fin"):
        of(tmp_path / "begun.eval")
    folder = tmp_path / "empty"
    write(folder / "x.json", {"a": 1})
    with pytest.raises(ValueError, match=r"none of 1 files .json or .eval below it has results"):
        of(folder)


@pytest.mark.parametrize("key", ["imported", "annotations"])
def test_files_are_read_before_anything_is_asked(tmp_path, monkeypatch, key):
    monkeypatch.setattr(benchmarks, "of", lambda config: [])
    config = tiny(workdir=str(tmp_path))
    (tmp_path / "x.json").write_text("[1]")
    config.evaluate[key] = str(tmp_path / "x.json")
    run = Run(config, tmp_path, Lineage(tmp_path / "lineage.json"), Metrics(tmp_path))
    with pytest.raises(ValueError, match=r"x.json"):
        evaluate.look(run)


def test_the_report_has_their_rows_and_columns(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(table, "plot", lambda results, columns, path: drawn.append(set(results)))
    config = tiny(workdir=str(tmp_path))
    perplexity = changed(LM_EVAL, "results", "wiki", "word_perplexity,none", to=math.inf)
    logs = write(tmp_path / "results_1.json", perplexity), write(tmp_path / "a.eval", INSPECT)
    config.evaluate.imported = ",".join(map(str, logs))
    run = Run(config, tmp_path, Lineage(tmp_path / "lineage.json"), Metrics(tmp_path))
    bench = registered()["gsm8k"]
    figures = {"dpo-1": {"gsm8k": {name: {"1": 0.0} for name in bench.metrics}}}
    ours = {"dpo-1": {"gsm8k": {"accuracy": {"value": 0.5, "n": 4, "low": 0.0, "high": 1.0}}}}
    reports.write(run, reports.Evaluation([bench], figures, ours, {}))
    page = [
        [cell.strip() for cell in line.strip("| ").split("|")]
        for line in (tmp_path / "report" / "table.md").read_text().splitlines()
    ]
    assert page[0][-2:] == [
        "lm-eval wiki: word_perplexity ↓",
        "inspect_ai gsm8k_local: accuracy (match) ↑",
    ]
    assert page[2:] == [
        ["dpo-1", "50.0 (0-100)", "-", "-", "-", "-", "-"],
        ["base (lm-eval 0.4.13)", "-", "-", "41.2 (35-48)", "1.2", "-", "-"],
        ["hf/local (inspect_ai 0.3.285)", "-", "-", "-", "-", "-", "12.5 (0-37)"],
    ]
    assert "hf/local (inspect\\_ai 0.3.285) & --" in (tmp_path / "report/table.tex").read_text()
    written = json.loads((tmp_path / "evals" / "results.json").read_text())
    assert written["hf/local (inspect_ai 0.3.285)"]["inspect_ai/gsm8k_local"]["accuracy,match"][
        "protocol"
    ].startswith("inspect_ai 0.3.285, task gsm8k_local")
    assert drawn == [{"dpo-1"}]
