"""Plans for GPUs that are not here, where JAX has its CUDA plugin."""

import importlib.util
import json
import pathlib
import subprocess
import sys

import pytest

from stair_jax.plan.target import PLUGINS

ROOT = pathlib.Path(__file__).parents[2]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not any(importlib.util.find_spec(name) for name in PLUGINS),
        reason="JAX has no CUDA plugin here (extra cuda12 or cuda13)",
    ),
]


def plan(folder, config, *flags):
    command = [sys.executable, "-m", "stair_jax.main", f"--config={ROOT}/configs/{config}.py"]
    done = subprocess.run(
        [*command, f"--config.workdir={folder}", *flags],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    return done, json.loads((folder / "plan.json").read_text())


def test_the_miniature_fits_two_hosts_of_eight(tmp_path):
    flags = "--config.plan=a800x2x8", "--config.mesh.shape=(2,8,1)", "--config.stages=sft,search"
    done, saved = plan(tmp_path, "tiny", *flags)
    assert done.returncode == 0, done.stderr
    names = [one["name"] for one in saved["programs"]]
    assert any(name.startswith("search: decode") for name in names)
    assert all(one["fits"] and one["compiled"] for one in saved["programs"])
    assert saved["chosen"]["config.engine.attention"] == "pallas"
    assert saved["run"]["hours"].keys() == {"sft", "search"}


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--config.plan=a800x1",), "lora_rank=16"),
        (
            ("--config.plan=a800x8", "--config.model.checkpoint=meta-llama/Llama-3.1-70B-Instruct"),
            "4 times the devices",
        ),
    ],
)
def test_what_does_not_fit_is_refused_with_what_to_change(tmp_path, flags, said):
    done, saved = plan(tmp_path, "llama8b", "--config.stages=sft", *flags)
    assert done.returncode == 1
    assert saved["fits"] is False
    assert said in "\n".join(saved["refused"])
