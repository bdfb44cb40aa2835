import importlib
import json
import os
import sqlite3
import subprocess
import sys
import types

import pytest

from configs import tiny
from stair_jax.config import TRACKERS
from stair_jax.config.checks import validate
from stair_jax.config.words import split_csv
from stair_jax.log import trackers
from stair_jax.log.metrics import Metrics


def lines(folder):
    return [json.loads(x) for x in (folder / "metrics.jsonl").read_text().splitlines()]


class Fake:
    """Stands for a tracker's package: remembers what it was opened with and what it was told."""

    class Error(Exception):
        pass

    def __init__(self, refuses=""):
        self.opened, self.told, self.finished, self.refuses = [], [], 0, refuses

    def init(self, **about):
        if self.refuses:
            raise self.Error(self.refuses)
        self.opened.append(about)
        return self

    def log(self, values, step):
        self.told.append((self.opened[-1]["name"], step, values))

    def finish(self):
        self.finished += 1


@pytest.fixture
def fake(monkeypatch):
    packages = {"wandb": Fake(), "trackio": Fake()}
    real = trackers.importlib.import_module
    monkeypatch.setattr(
        trackers.importlib.util, "find_spec", lambda name: types.SimpleNamespace(origin=name)
    )
    monkeypatch.setattr(
        trackers.importlib, "import_module", lambda name: packages.get(name) or real(name)
    )
    return packages


def test_one_line_a_step_with_stage_and_time(tmp_path):
    with Metrics(tmp_path / "run") as metrics:
        metrics.log("sft", 1, {"loss": 2.5, "lr": 1e-3})
    (line,) = lines(tmp_path / "run")
    assert line.pop("time") > 1e9
    assert line == {"stage": "sft", "step": 1, "loss": 2.5, "lr": 1e-3}
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["metrics.jsonl"]


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


def events(folder):
    """Scalars of a folder of event files, read by the format alone: (step, name, value)."""
    # The messages; TensorBoard itself is not needed.
    event_pb2 = importlib.import_module("tensorboardX.proto.event_pb2")

    found = []
    for path in sorted(folder.glob("events*")):
        data, at = path.read_bytes(), 0
        while at < len(data):  # length (8), its checksum (4), message, its checksum (4)
            size = int.from_bytes(data[at : at + 8], "little")
            event = event_pb2.Event.FromString(data[at + 12 : at + 12 + size])
            found += [(event.step, v.tag, v.simple_value) for v in event.summary.value]
            at += 16 + size
    return found


def test_event_files_hold_every_figure_once_though_the_run_was_resumed(tmp_path):
    with Metrics(tmp_path, trackers=("tensorboard",)) as metrics:
        for step in (1, 2, 3):
            metrics.log("round-1/dpo", step, {"loss": step / 2, "rewards/margins": 0.25})
    with Metrics(tmp_path, trackers=("tensorboard",)) as metrics:
        metrics.rewind("round-1/dpo", 1)
        for step in (2, 3, 4):
            metrics.log("round-1/dpo", step, {"loss": step / 2, "rewards/margins": 0.25})
    found = events(tmp_path / "tensorboard" / "round-1" / "dpo")
    assert sorted(found) == sorted(
        (step, name, value)
        for step in (1, 2, 3, 4)
        for name, value in (("loss", step / 2), ("rewards/margins", 0.25))
    )
    assert [x["step"] for x in lines(tmp_path)] == [1, 2, 3, 4]


def test_no_tracker_writes_unless_asked_for(tmp_path):
    with Metrics(tmp_path) as metrics:
        metrics.log("sft", 1, {"loss": 2.5})
    assert not (tmp_path / "tensorboard").exists()


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_each_stage_is_a_run_that_a_restart_continues(fake, tmp_path, name):
    def metrics():
        return Metrics(tmp_path, trackers=(name,), project="ours", settings={"seed": 5})

    with metrics() as one:
        for stage, step in (("sft", 1), ("sft", 2), ("sft", 2), ("dpo", 1), ("dpo", 2)):
            one.log(stage, step, {"loss": step})
    with metrics() as two:
        two.rewind("dpo", 1)
        two.log("dpo", 2, {"loss": 9})
    with metrics() as three:  # stopped before it came to where the first one was
        three.rewind("dpo", 0)
        for step in (1, 2, 3):
            three.log("dpo", step, {"loss": step})
    package = fake[name]
    assert [step for _, step, _ in package.told] == [1, 2, 2, 1, 2, 3]
    assert [values["loss"] for _, _, values in package.told] == [1, 2, 2, 1, 2, 3]
    sft, dpo, again = package.opened
    assert dpo == again
    assert sft["name"] != dpo["name"]
    assert "dpo" in dpo["name"]
    assert sft.get("id", 1) != dpo.get("id", 2)
    assert dpo["project"] == "ours"
    assert dpo["config"] == {"seed": 5}
    assert dpo["group"] == tmp_path.name
    assert dpo["resume"] == "allow"
    assert package.finished == 3


def test_two_workdirs_are_two_runs(fake, tmp_path):
    for folder in ("a/run", "b/run"):
        with Metrics(tmp_path / folder, trackers=("wandb", "trackio")) as metrics:
            metrics.log("sft", 1, {"loss": 1})
    for package in fake.values():
        one, two = package.opened
        assert (one["name"], one.get("id")) != (two["name"], two.get("id"))


def test_a_tracker_that_joins_later_gets_what_comes_then(fake, tmp_path):
    with Metrics(tmp_path, trackers=("wandb",)) as metrics:
        metrics.log("sft", 1, {"loss": 1})
        metrics.log("sft", 2, {"loss": 2})
    with Metrics(tmp_path, trackers=("wandb", "trackio")) as metrics:
        metrics.rewind("sft", 1)
        metrics.log("sft", 2, {"loss": 2})
    assert [step for _, step, _ in fake["wandb"].told] == [1, 2]
    assert [step for _, step, _ in fake["trackio"].told] == [2]


def configured(**values):
    c = tiny.get_config()
    c.update(values)
    return c


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"trackers": "wandb,mlflow"}, r"config\.trackers: \['mlflow'\] not in"),
        ({"project": "mine"}, r"config\.project: 'mine' would be ignored"),
        (
            {"project": "mine", "trackers": "tensorboard"},
            r"config\.project: 'mine' would be ignored",
        ),
        ({"project": "", "trackers": "trackio"}, r"config\.project: empty"),
    ],
)
def test_settings_of_trackers_that_cannot_work_are_refused(values, message):
    validate(configured())
    with pytest.raises(ValueError, match=message):
        validate(configured(**values))


@pytest.mark.parametrize("names", ["tensorboard", "wandb", "trackio, tensorboard,wandb"])
def test_every_tracker_can_be_asked_for(names):
    validate(configured(trackers=names))
    assert set(split_csv(names)) <= set(TRACKERS) == set(trackers._PACKAGES)
    if names != "tensorboard":
        validate(configured(trackers=names, project="mine"))


def test_a_missing_tracker_is_refused_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"wandb is not installed; pip install 'stair-jax\[wandb"):
        Metrics(tmp_path, trackers=("wandb",))


def test_what_wandb_refuses_is_one_line(fake, tmp_path):
    fake["wandb"].refuses = "no API key"
    with (
        pytest.raises(ValueError, match=r"config\.trackers: wandb: no API key"),
        Metrics(tmp_path, trackers=("wandb",)) as metrics,
    ):
        metrics.log("sft", 1, {"loss": 1})


def test_packages_that_few_runs_need_are_not_imported_at_every_start():
    code = (
        "import sys; import stair_jax.main;"
        "print(*{'wandb', 'trackio', 'tensorboardX', 'openai', 'torch'} & set(sys.modules))"
    )
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert found.stdout.split() == []


# The real packages, where they are installed, in processes of their own.
_REAL = """
import sys
from stair_jax.log.metrics import Metrics
folder, name = sys.argv[1:3]
for start, end in ((0, 3), (1, 4)):
    with Metrics(folder, trackers=(name,), project="ours", settings={"seed": 5}) as metrics:
        metrics.rewind("round-1/dpo", start)
        for step in range(start + 1, end + 1):
            metrics.log("round-1/dpo", step, {"rewards/margins": step / 4})
"""


def real(folder, name, **environment):
    pytest.importorskip(name)
    subprocess.run(
        [sys.executable, "-c", _REAL, str(folder), name], check=True, env=environment, timeout=120
    )


def log_records(data):
    """Records of a LevelDB log, which W&B's files are, behind 7 bytes of their own."""
    at, part = 7, b""
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:  # no header fits into what is left of the block
            at += 32768 - at % 32768
            continue
        size, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        part += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # whole, last part
            yield part
            part = b""


def test_wandb_keeps_an_offline_run_with_every_step_once(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    real(tmp_path, "wandb", **dict(os.environ))
    wandb_internal_pb2 = importlib.import_module("wandb.proto.wandb_internal_pb2")

    ids, steps = set(), []
    for path in sorted(tmp_path.glob("wandb/offline-run-*/*.wandb")):
        for data in log_records(path.read_bytes()):
            record = wandb_internal_pb2.Record.FromString(data)
            if record.run.run_id:
                ids.add((record.run.run_id, record.run.project))
            if record.history.item:
                items = {"/".join(i.nested_key) or i.key: i.value_json for i in record.history.item}
                steps.append((int(items["_step"]), float(items["rewards/margins"])))
    assert len(ids) == 1
    assert next(iter(ids))[1] == "ours"
    assert steps == [(1, 0.25), (2, 0.5), (3, 0.75), (4, 1.0)]


def test_trackio_stores_one_run_with_every_step_once(tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    real(tmp_path, "trackio", **dict(os.environ))

    (file,) = (tmp_path / "trackio").glob("ours*.db")
    with sqlite3.connect(file) as db:
        rows = db.execute("select run_name, step, metrics from metrics order by step").fetchall()
    assert len({name for name, _, _ in rows}) == 1
    assert [(step, json.loads(text)["rewards/margins"]) for _, step, text in rows] == [
        (1, 0.25),
        (2, 0.5),
        (3, 0.75),
        (4, 1.0),
    ]
