import json

import pytest

from stair_jax.io.metrics import Metrics


def lines(folder):
    return [json.loads(x) for x in (folder / "metrics.jsonl").read_text().splitlines()]


def test_one_line_a_step_with_stage_and_time(tmp_path):
    with Metrics(tmp_path / "run") as metrics:
        metrics.log("sft", 1, {"loss": 2.5, "lr": 1e-3})
    (line,) = lines(tmp_path / "run")
    assert line.pop("time") > 1e9
    assert line == {"stage": "sft", "step": 1, "loss": 2.5, "lr": 1e-3}


def test_a_new_writer_appends_and_drops_a_torn_line(tmp_path):
    with Metrics(tmp_path) as metrics:
        metrics.log("sft", 1, {"loss": 1})
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"stage": "sft", "st')
    with Metrics(tmp_path) as metrics:
        metrics.log("sft", 2, {"loss": 0.5})
    assert [x["step"] for x in lines(tmp_path)] == [1, 2]


def test_rewind_drops_later_steps_of_that_stage_only(tmp_path):
    with Metrics(tmp_path) as metrics:
        metrics.rewind("sft", 0)  # nothing there yet
        for stage, step in (("sft", 1), ("sft", 2), ("dpo", 2), ("dpo", 3), ("sft", 3)):
            metrics.log(stage, step, {"loss": step})
        metrics.rewind("sft", 1)
        metrics.log("sft", 2, {"loss": 7})
    found = [(x["stage"], x["step"], x["loss"]) for x in lines(tmp_path)]
    assert found == [("sft", 1, 1), ("dpo", 2, 2), ("dpo", 3, 3), ("sft", 2, 7)]


@pytest.mark.parametrize("wanted", [False, True])
def test_tensorboard_files_are_written_where_asked_for(tmp_path, wanted):
    with Metrics(tmp_path, tensorboard=wanted) as metrics:
        metrics.log("sft", 1, {"loss": 2.5})
    assert any((tmp_path / "tensorboard" / "sft").glob("events*")) == wanted
