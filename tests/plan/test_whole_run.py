"""Hours and disk of a whole run: by hand, and every assumption reaches them."""

import dataclasses
import pathlib

import jax
import pytest

from stair_jax.config import with_values
from stair_jax.log.metrics import Metrics
from stair_jax.plan import sizes, whole_run
from stair_jax.plan.target import Target
from stair_jax.plan.whole_run import Assumptions
from stair_jax.run.lineage import Lineage
from stair_jax.run.workdir import Run
from tests.support.configs import FILES, load

CONFIG = load(next(path for path in FILES if path.stem == "llama8b")).get_config()
A800 = Target.parse("a800x8")
PLAIN = Assumptions()


def estimate(assumed=PLAIN, aim=A800, **changes):
    config = with_values(CONFIG, {k.replace("__", "."): v for k, v in changes.items()})
    folder = pathlib.Path("nowhere")
    devices = jax.local_devices(backend="cpu")
    run = Run(config, folder, Lineage(folder / "lineage.json"), Metrics(folder), devices=devices)
    with aim.asked():
        return whole_run.estimate(run, sizes.of(run), aim, assumed)


def test_files_that_are_not_here_have_as_many_rows_as_the_papers():
    rows = estimate().rows
    assert rows["sft rows"] == 20_000
    assert rows["prompts"] == 10_000 + 11_000 + 12_000
    assert rows["pairs"] == 330_000
    assert estimate(data__round_prompts=7, data__sft_rows=5).rows["prompts"] == 21
    assert estimate(data__sft_rows=5).rows["sft rows"] == 5


def test_rows_of_a_file_that_is_here_are_counted(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text('{"a": 1}\n\n{"a": 2}\n{"a": 3}\n')
    assert estimate(data__sft=str(file)).rows["sft rows"] == 3


def test_hours_of_sft_by_hand():
    # Rows of 670 tokens, six operations a weight and position, 550 of them through the head.
    assert CONFIG.sft.train.remat == "products"  # else a third more
    weights = 32 * (2 * 4096 * 128 * 40 + 3 * 4096 * 14_336)
    keys = 670 * 671 // 2
    row = 6 * (weights * 670 + 128_264 * 4096 * 550) + 3 * 4 * 32 * 32 * 128 * keys
    seconds = 3 * 20_000 * row / (8 * 312e12 * 0.45)
    assert estimate().hours["sft"] == pytest.approx(seconds / 3600, rel=1e-6)


def test_hours_of_an_answer_by_hand():
    weights = 2 * (32 * (2 * 4096 * 128 * 40 + 3 * 4096 * 14_336) + 128_264 * 4096)
    keys = 256 * (120 + 275) * 2 * 32 * 8 * 128 * 2
    step = (weights + keys) / 2.03904e12 / 0.8
    decoded = 550 * step / (256 * 0.9 * 8)
    read = 2 * 32 * (2 * 4096 * 128 * 40 + 3 * 4096 * 14_336) * 120 / (8 * 312e12 * 0.6)
    found = estimate()
    seconds = found.rows["answers"] * (decoded + read)
    assert found.hours["evaluate"] == pytest.approx(seconds / 3600, rel=1e-6)


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(Assumptions)])
def test_every_assumption_reaches_the_hours(name):
    value = getattr(PLAIN, name)
    other = dataclasses.replace(PLAIN, **{name: type(value)(value * 2)})
    assert sum(estimate(other).hours.values()) != sum(estimate().hours.values())


def test_a_faster_machine_needs_fewer_hours_and_a_cpu_has_none():
    faster = estimate(aim=Target.parse("h100x8")).hours
    assert faster.keys() == {"sft", "search", "dpo", "prm", "evaluate"}
    assert all(faster[stage] < hours for stage, hours in estimate().hours.items())
    assert estimate(aim=Target.parse("cpux8")).hours == {}


def test_disk_is_what_checkpoints_trees_and_the_export_take():
    disk = estimate().disk
    states = 3 * (1 + 3 + 1)  # two are kept and one is written, of sft, three rounds and prm
    assert disk["checkpoints"] == pytest.approx(states * 12 * 8.0303e9, rel=1e-3)
    assert disk["trees"] == 33_000 * 200 * 2048 * 8
    assert disk["export"] == pytest.approx(2 * 8.0303e9, rel=1e-3)
