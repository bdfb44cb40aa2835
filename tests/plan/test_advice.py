"""Why a run does not fit, and what to change: by figures, nothing is compiled."""

import pathlib

import jax
import pytest

from stair_jax.config import with_values
from stair_jax.log.metrics import Metrics
from stair_jax.model.footprint import Split
from stair_jax.plan import advice, sizes, target
from stair_jax.plan.figures import Figures
from stair_jax.run.lineage import Lineage
from stair_jax.run.workdir import Run, train_config
from tests.support.configs import FILES, load

CONFIG = load(next(path for path in FILES if path.stem == "llama8b")).get_config()
LARGE = "meta-llama/Llama-3.1-70B-Instruct"


def figures(**sizes):
    return Figures(
        name="pass", stage="sft", trains=True, pool=0, **{"arguments": 0, "beside": {}, **sizes}
    )


def run_of(shape, **changes):
    values = {"mesh.shape": shape, **{k.replace("__", "."): v for k, v in changes.items()}}
    config, folder = with_values(CONFIG, values), pathlib.Path("nowhere")
    devices = jax.local_devices(backend="cpu")
    return Run(config, folder, Lineage(folder / "lineage.json"), Metrics(folder), devices=devices)


def told(shape, at="a800x8", stage="sft", trains=True, **changes):
    aim, run = target.Target.parse(at), run_of(shape, **changes)
    with aim.asked():
        return advice.changes(run, stage, sizes.of(run), aim, trains=trains)


def test_a_reason_says_what_is_kept_and_what_is_left():
    assert advice.reason(figures(arguments=6, temporaries=3), 10.0) == ""
    assert advice.reason(figures(arguments=6, temporaries=3), None) == ""
    kept = advice.reason(figures(arguments=6 * 10**9, beside={"moments": 5 * 10**9}), 10e9)
    assert kept == (
        "what is kept there (arguments 6.0 GB, moments 5.0 GB) alone is more than the 10.0 GB of a"
        " device"
    )
    computed = advice.reason(figures(arguments=6 * 10**9, temporaries=5 * 10**9), 10e9)
    assert computed.endswith("leaves 4.0 GB of 10.0 GB, what it computes takes 5.0 GB")
    assert advice.reason(figures(error="XlaRuntimeError: no"), 10.0) == "XlaRuntimeError: no"


def test_8b_on_one_device_is_to_train_adapters_or_on_more():
    adapters, more = told((1, 1, 1), at="a800x1")
    assert "config.sft.train.lora_rank=16" in adapters
    assert more.startswith(("2 times the devices", "4 times the devices"))


def test_no_remat_at_32k_is_to_compute_again():
    long = {"sft__train__buckets": (32_768,), "sft__train__micro_tokens": 8 * 32_768}
    first = told((1, 8, 1), sft__train__remat="none", **long)[0]
    assert first.startswith("config.sft.train.remat=")
    run = run_of((1, 8, 1), sft__train__remat="none", **long)
    aim = target.Target.parse("a800x8")
    with aim.asked():
        found = advice.training_bytes(
            run, "sft", sizes.of(run), train_config(run.config, "sft"), Split(fsdp=8)
        )
    assert found > (aim.room or 0)


def test_70b_is_to_train_adapters_or_on_more_devices():
    adapters, more = told((1, 8, 1), model__checkpoint=LARGE)
    assert "lora_rank=16" in adapters
    assert "4 times the devices" in more  # 22 bytes a parameter, of 16 devices 97 GB each
    assert "config.mesh.shape=(1, 32, 1)" in more


def test_an_engine_that_is_too_large_is_to_be_split_over_tensor():
    (split,) = told((1, 8, 1), trains=False, stage="search", model__checkpoint=LARGE)
    assert split.startswith("config.mesh.shape=(1, 2, 4)")
    assert "2 replicas" in split


@pytest.mark.parametrize("stage", ["sft", "dpo", "prm"])
def test_what_is_proposed_is_estimated_to_fit(stage):
    run, aim = run_of((1, 1, 1)), target.Target.parse("a800x1")
    with aim.asked():
        model = sizes.of(run)
        config = train_config(run.config, stage)
        assert advice.training_bytes(run, stage, model, config, Split()) > (aim.room or 0)
        assert advice.changes(run, stage, model, aim, trains=True)
